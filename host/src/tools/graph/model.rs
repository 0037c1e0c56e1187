//! What a graph is: nodes with interfaces, and links between them.

/// What is drawn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Graph {
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The links between them.
    pub links: Vec<Link>,
}

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    /// What it is.
    pub kind: Kind,
    /// Its name, or else what describes it.
    pub name: String,
    /// What else is known of it; may be empty.
    pub note: String,
    /// Whether it does not answer.
    pub is_silent: bool,
    /// Its interfaces.
    pub interfaces: Vec<Interface>,
}

/// What a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A network namespace: a session, or a node of a lab.
    Namespace,
    /// A switch or hub.
    Switch,
    /// A plug that serves no switch.
    Plug,
    /// A peer or a network that is no process of this user.
    Outside,
}

/// An interface of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// Whether it has carrier.
    pub is_up: bool,
}

/// One end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    /// The node's index.
    pub node: usize,
    /// The index of its interface, if it is one.
    pub interface: Option<usize>,
}

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// What it connects.
    pub ends: [End; 2],
    /// Its impairments, and what else it passes through; may be empty.
    pub label: String,
    /// Whether frames can pass.
    pub is_up: bool,
}

impl Graph {
    /// The part that is connected with the nodes of this name: a session, or the nodes of a lab.
    /// `None` if there are none.
    pub(super) fn around(&self, name: &str) -> Option<Self> {
        let is_meant = |node: &Node| {
            let rest = node.name.strip_prefix(name);
            let is_whole = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
            is_whole && matches!(node.kind, Kind::Namespace | Kind::Switch)
        };
        let mut is_in: Vec<bool> = self.nodes.iter().map(is_meant).collect();
        let mut grows = is_in.contains(&true);
        if !grows {
            return None;
        }
        while grows {
            grows = false;
            for Link { ends: [a, b], .. } in &self.links {
                if is_in[a.node] != is_in[b.node] {
                    (is_in[a.node], is_in[b.node], grows) = (true, true, true);
                }
            }
        }
        let mut places = vec![0; self.nodes.len()];
        let mut part = Self::default();
        for (index, node) in self.nodes.iter().enumerate().filter(|(i, _)| is_in[*i]) {
            places[index] = part.nodes.len();
            part.nodes.push(node.clone());
        }
        let links = self.links.iter().filter(|link| is_in[link.ends[0].node]);
        part.links = links
            .map(|link| Link {
                ends: link.ends.map(|end| End {
                    node: places[end.node],
                    ..end
                }),
                ..link.clone()
            })
            .collect();
        Some(part)
    }

    /// The interface at an end.
    pub(super) fn interface(&self, end: End) -> Option<&Interface> {
        self.nodes[end.node].interfaces.get(end.interface?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::graph::builder::tests::{answer, names, pairs, up};

    #[test]
    fn a_part_is_all_that_can_be_reached() {
        let mut graph = Graph::of(&[
            answer(10, &[("vde0", "ptp://p", up())]),
            answer(20, &[("vde0", "ptp://q", up()), ("vde1", "ptp://r", up())]),
            answer(30, &[("vde0", "ptp://r", up())]),
        ]);
        graph.nodes[2].name = "lab/r1".into();
        let part = graph.around("lab").unwrap();
        assert_eq!(names(&part), ["sh -i", "lab/r1", "ptp://q"]);
        assert_eq!(pairs(&part), [[0, 2], [0, 1]]);
        assert_eq!(graph.around("la"), None);
    }
}
