//! A part of a graph in columns, as the crate `dagre` lays it out.
//!
//! The picture and its mirror image are equally good to `dagre`. The one is taken in which the
//! links of a node leave it in the order of its interfaces, so that fewer cross; those of a switch,
//! in the order of the nodes.

use std::collections::BTreeMap;

use dagre::graph::{Graph as Dagre, GraphOptions};
use dagre::layout::types::LabelPos;
use dagre::{EdgeLabel, LayoutOptions, NodeLabel, RankDir};

use super::orientation::Orientation;
use super::{Part, Picture, Rect};
use crate::tools::graph::model::{End, Graph, Link};

/// What is where, by the indices of nodes and links.
#[derive(Debug, Default)]
pub(super) struct Sketch {
    pub nodes: BTreeMap<usize, Rect>,
    pub links: BTreeMap<usize, Drawn>,
}

/// A link.
#[derive(Debug)]
pub(super) struct Drawn {
    /// Its ends, the left one first.
    pub ends: [End; 2],
    /// Where it passes the columns between its ends.
    pub points: Vec<(f64, f64)>,
    /// Where its label is.
    pub label: Option<Rect>,
}

impl Sketch {
    /// Lays out a part whose nodes and labels are as large as in the picture.
    pub(super) fn of(
        graph: &Graph,
        orientation: &Orientation,
        part: &Part,
        picture: &Picture,
    ) -> Self {
        let mut dagre = Dagre::with_options(GraphOptions {
            directed: true,
            multigraph: true,
            compound: true,
        });
        for index in &part.nodes {
            let Rect { width, height, .. } = picture.nodes[*index].place;
            let node = NodeLabel {
                width,
                height,
                ..NodeLabel::default()
            };
            dagre.set_node(id(*index), Some(node));
        }
        for index in &part.links {
            let label = &picture.links[*index].label;
            let Rect { width, height, .. } =
                label.as_ref().map(|(size, _)| *size).unwrap_or_default();
            let [left, right] = orientation
                .ends(&graph.links[*index])
                .map(|end| id(end.node));
            let edge = EdgeLabel {
                width,
                height,
                labelpos: LabelPos::Center,
                ..EdgeLabel::default()
            };
            dagre.set_edge(left, right, Some(edge), Some(&id(*index)));
        }
        dagre::layout(
            &mut dagre,
            Some(LayoutOptions {
                rankdir: RankDir::LR,
                nodesep: 20.0,
                edgesep: 14.0,
                ranksep: 60.0,
                ..LayoutOptions::default()
            }),
        );
        let mut sketch = Self::default();
        for index in &part.nodes {
            let at = dagre.node(&id(*index));
            let place = Rect {
                x: at.and_then(|at| at.x).unwrap_or_default(),
                y: at.and_then(|at| at.y).unwrap_or_default(),
                ..picture.nodes[*index].place
            };
            sketch.nodes.insert(*index, place);
        }
        for index in &part.links {
            let ends = orientation.ends(&graph.links[*index]);
            let [left, right] = ends.map(|end| id(end.node));
            let edge = dagre.edge(&left, &right, Some(&id(*index)));
            // The first and the last are at the boxes, and the boxes have rows.
            let points = edge.map_or(&[][..], |edge| &edge.points);
            let points = points.iter().skip(1).rev().skip(1).rev();
            let label = picture.links[*index].label.as_ref().map(|(size, _)| Rect {
                x: edge.and_then(|edge| edge.x).unwrap_or_default(),
                y: edge.and_then(|edge| edge.y).unwrap_or_default(),
                ..*size
            });
            let drawn = Drawn {
                ends,
                points: points.map(|point| (point.x, point.y)).collect(),
                label,
            };
            sketch.links.insert(*index, drawn);
        }
        if sketch.is_upside_down(graph) {
            sketch.turn();
        }
        sketch
    }

    /// All boxes with text: of nodes, and labels.
    pub(super) fn boxes(&self) -> impl Iterator<Item = Rect> {
        let labels = self.links.values().filter_map(|link| link.label);
        self.nodes.values().copied().chain(labels)
    }

    /// Whether more pairs of links would cross where they leave a node than in the mirror image.
    fn is_upside_down(&self, graph: &Graph) -> bool {
        // By the node and the side at which they leave it.
        let mut at: BTreeMap<(usize, bool), Vec<_>> = BTreeMap::new();
        for index in self.links.keys() {
            let Link { ends: [a, b], .. } = &graph.links[*index];
            for (own, other) in [(a, b), (b, a)] {
                let (here, there) = (self.nodes[&own.node], self.nodes[&other.node]);
                let leaves = at.entry((own.node, there.x > here.x)).or_default();
                leaves.push(((own.interface, other.node), there.y));
            }
        }
        let mut balance = 0_i64;
        for list in at.values() {
            for (number, (row, y)) in list.iter().enumerate() {
                for (other_row, other_y) in &list[..number] {
                    let order = row.cmp(other_row) as i64;
                    balance += order * y.total_cmp(other_y) as i64;
                }
            }
        }
        balance < 0
    }

    /// Turns it upside down.
    fn turn(&mut self) {
        self.nodes.values_mut().for_each(|place| place.y = -place.y);
        for link in self.links.values_mut() {
            link.label.iter_mut().for_each(|place| place.y = -place.y);
            link.points.iter_mut().for_each(|(_, y)| *y = -*y);
        }
    }
}

/// A name for `dagre`, which keeps what is equally good in the order of the names.
fn id(index: usize) -> String {
    format!("{index:08}")
}
