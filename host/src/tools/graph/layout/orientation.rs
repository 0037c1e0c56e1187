//! Which end of a link is left.
//!
//! A node's rank is its distance from one that is left of all, and a link goes from the lower rank
//! to the higher. That node is one at the rim of its part of the graph; but the part's first node,
//! if it is in the middle, as the root of a tree is. Then what hangs on it is at both sides. A node
//! with many leaves has every other one at its left.

use std::collections::VecDeque;

use crate::tools::graph::model::{End, Graph, Link};

/// The shortest way between two nodes at the rim from which on there is a middle.
const LONG: usize = 4;

/// How many leaves a node may have at one side.
const LEAVES: usize = 6;

/// Which nodes are left of which.
#[derive(Debug)]
pub(super) struct Orientation {
    /// A node's rank. A link goes from the lower to the higher one.
    rank: Vec<usize>,
    /// Whether the link that leads to a node from a lower rank goes to the left.
    is_turned: Vec<bool>,
}

impl Orientation {
    /// That of a graph's nodes.
    pub(super) fn of(graph: &Graph) -> Self {
        let mut neighbours = vec![Vec::new(); graph.nodes.len()];
        for Link { ends: [a, b], .. } in &graph.links {
            if a.node != b.node {
                neighbours[a.node].push(b.node);
                neighbours[b.node].push(a.node);
            }
        }
        for list in &mut neighbours {
            list.sort_unstable();
            list.dedup();
        }
        let mut this = Self {
            rank: vec![usize::MAX; graph.nodes.len()],
            is_turned: vec![false; graph.nodes.len()],
        };
        for first in 0..graph.nodes.len() {
            if this.rank[first] != usize::MAX {
                continue;
            }
            // Nearly the longest of the shortest ways: from the node that is farthest from any.
            let far = |node| {
                let (distance, order) = distances(&neighbours, node);
                let far = order.last().copied().unwrap_or(node);
                (far, distance[far])
            };
            let (rim, depth) = far(first);
            let (root, length) = far(rim);
            let is_central = length >= LONG && depth * 5 <= length * 3;
            let root = if is_central { first } else { root };
            let (rank, order) = distances(&neighbours, root);
            order.iter().for_each(|node| this.rank[*node] = rank[*node]);
            if is_central {
                this.spread(root, &neighbours);
            }
        }
        for hub in &neighbours {
            let leaves = hub.iter().filter(|leaf| neighbours[**leaf].len() == 1);
            if leaves.clone().count() > LEAVES {
                leaves
                    .step_by(2)
                    .for_each(|leaf| this.is_turned[*leaf] ^= true);
            }
        }
        this
    }

    /// Puts what hangs on a node at both its sides, so that they have about as many nodes.
    fn spread(&mut self, root: usize, neighbours: &[Vec<usize>]) {
        let mut is_known = vec![false; neighbours.len()];
        is_known[root] = true;
        let (mut left, mut right) = (0, 0);
        for &branch in &neighbours[root] {
            let mut nodes = Vec::new();
            let mut next = vec![branch];
            while let Some(node) = next.pop() {
                if !std::mem::replace(&mut is_known[node], true) {
                    nodes.push(node);
                    next.extend(&neighbours[node]);
                }
            }
            let is_left = left < right;
            *(if is_left { &mut left } else { &mut right }) += nodes.len();
            nodes
                .iter()
                .for_each(|node| self.is_turned[*node] = is_left);
        }
    }

    /// The ends of a link, the left one first.
    pub(super) fn ends(&self, link: &Link) -> [End; 2] {
        let [a, b] = link.ends;
        let is_ordered = (self.rank[a.node], a.node) <= (self.rank[b.node], b.node);
        let [near, far] = if is_ordered { [a, b] } else { [b, a] };
        match self.is_turned[far.node] {
            true => [far, near],
            false => [near, far],
        }
    }
}

/// The distance of each node that can be reached from `start`, and these nodes, near ones first.
fn distances(neighbours: &[Vec<usize>], start: usize) -> (Vec<usize>, Vec<usize>) {
    let mut distance = vec![usize::MAX; neighbours.len()];
    let (mut order, mut queue) = (Vec::new(), VecDeque::from([start]));
    distance[start] = 0;
    while let Some(node) = queue.pop_front() {
        order.push(node);
        for &next in &neighbours[node] {
            if distance[next] == usize::MAX {
                distance[next] = distance[node] + 1;
                queue.push_back(next);
            }
        }
    }
    (distance, order)
}
