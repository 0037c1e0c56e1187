//! Where each node, label and link is in the picture.
//!
//! # Theory of operation
//!
//! The crate `dagre` lays the graph out in columns: nodes with the sizes of their text, and labels
//! of links as large as theirs, so that no two overlap. It needs to know which end of a link is
//! left: [`Orientation`] says so by the distance from a node at the rim, or in the middle if the
//! graph is long. A switch with many leaves has every other one at its left.
//!
//! The picture and its mirror image are equally good to `dagre`. The one is taken in which the
//! links of a node leave it in the order of its interfaces, so that fewer cross; those of a switch,
//! in the order of the nodes.
//!
//! A link begins at the row of its interface. From there it runs level to the edge of its column,
//! and level through each column on its way, because other boxes may be above and below. In the
//! gaps between the columns it changes its height.
//!
//! All text is in a font of fixed width, so its size is known without the font.

use std::collections::{BTreeMap, VecDeque};

use dagre::graph::{Graph as Dagre, GraphOptions};
use dagre::layout::types::LabelPos;
use dagre::{EdgeLabel, LayoutOptions, NodeLabel, RankDir};
use unicode_width::UnicodeWidthStr;

use super::model::{End, Graph, Link};
use super::rows::{self, Row};

/// The width of a column of text, in pixels, in a font of [`FONT_SIZE`].
pub(super) const COLUMN: f64 = 7.2;
/// The size of the font, in pixels.
pub(super) const FONT_SIZE: f64 = 12.0;
/// From one line of text to the next.
pub(super) const LINE: f64 = 16.0;
/// Around the text in a box.
pub(super) const PADDING: f64 = 8.0;
/// Around the picture.
const MARGIN: f64 = 16.0;

/// The longest shortest way through a graph that is drawn from one rim to the other. A longer one
/// is drawn from the middle, which halves the picture's width.
const LONG: usize = 12;

/// How many leaves a node may have at one side.
const LEAVES: usize = 6;

/// A rectangle, by its centre.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rect {
    pub x: f64,
    pub y: f64,
    pub width: f64,
    pub height: f64,
}

impl Rect {
    pub(super) fn left(&self) -> f64 {
        self.x - self.width / 2.0
    }

    pub(super) fn right(&self) -> f64 {
        self.x + self.width / 2.0
    }

    pub(super) fn top(&self) -> f64 {
        self.y - self.height / 2.0
    }
}

/// A node's box, and the lines in it.
#[derive(Clone, Debug)]
pub(super) struct PlacedNode {
    pub place: Rect,
    pub rows: Vec<Row>,
}

/// A link's way, and its label.
#[derive(Clone, Debug)]
pub(super) struct PlacedLink {
    /// The points that it passes, in order.
    pub way: Vec<(f64, f64)>,
    /// The label, if it has one.
    pub label: Option<(Rect, String)>,
}

/// The picture.
#[derive(Clone, Debug, Default)]
pub(super) struct Picture {
    pub width: f64,
    pub height: f64,
    /// As in the graph.
    pub nodes: Vec<PlacedNode>,
    /// As in the graph.
    pub links: Vec<PlacedLink>,
}

/// The width of a line of text.
pub(super) fn width_of(text: &str) -> f64 {
    text.width() as f64 * COLUMN
}

/// Lays a graph out.
pub(super) fn place(graph: &Graph) -> Picture {
    let boxes: Vec<(Vec<Row>, Rect)> = graph
        .nodes
        .iter()
        .map(|node| {
            let rows = rows::of(node);
            let widest = rows
                .iter()
                .map(|row| width_of(&row.text))
                .fold(0.0, f64::max);
            let size = Rect {
                width: widest + 2.0 * PADDING,
                height: rows.len() as f64 * LINE + PADDING,
                ..Rect::default()
            };
            (rows, size)
        })
        .collect();
    let labels: Vec<Option<(Rect, String)>> = graph
        .links
        .iter()
        .map(|link| {
            let label = rows::clipped(&link.label);
            let size = Rect {
                width: width_of(&label) + PADDING,
                height: LINE,
                ..Rect::default()
            };
            // A loop has no room for one.
            let is_loop = link.ends[0].node == link.ends[1].node;
            Some((size, label)).filter(|(_, label)| !is_loop && !label.is_empty())
        })
        .collect();

    let orientation = Orientation::of(graph);
    let mut dagre = Dagre::with_options(GraphOptions {
        directed: true,
        multigraph: true,
        compound: true,
    });
    for (index, (_, size)) in boxes.iter().enumerate() {
        dagre.set_node(
            index.to_string(),
            Some(NodeLabel {
                width: size.width,
                height: size.height,
                ..NodeLabel::default()
            }),
        );
    }
    for (index, (link, label)) in graph.links.iter().zip(&labels).enumerate() {
        let size = label.as_ref().map(|(size, _)| *size).unwrap_or_default();
        let [left, right] = orientation.ends(link).map(|end| end.node.to_string());
        let edge = EdgeLabel {
            width: size.width,
            height: size.height,
            labelpos: LabelPos::Center,
            ..EdgeLabel::default()
        };
        dagre.set_edge(left, right, Some(edge), Some(&index.to_string()));
    }
    dagre::layout(
        &mut dagre,
        Some(LayoutOptions {
            rankdir: RankDir::LR,
            nodesep: 20.0,
            edgesep: 14.0,
            ranksep: 60.0,
            marginx: MARGIN,
            marginy: MARGIN,
            ..LayoutOptions::default()
        }),
    );

    let mut picture = Picture::default();
    for (index, (rows, size)) in boxes.into_iter().enumerate() {
        let at = dagre.node(&index.to_string());
        let place = Rect {
            x: at.and_then(|at| at.x).unwrap_or_default(),
            y: at.and_then(|at| at.y).unwrap_or_default(),
            ..size
        };
        picture.nodes.push(PlacedNode { place, rows });
    }
    for (index, (link, label)) in graph.links.iter().zip(labels).enumerate() {
        let [left, right] = orientation.ends(link).map(|end| end.node.to_string());
        let edge = dagre.edge(&left, &right, Some(&index.to_string()));
        let points = edge.map_or(&[][..], |edge| &edge.points);
        let label = label.map(|(size, text)| {
            let x = edge.and_then(|edge| edge.x).unwrap_or_default();
            let y = edge.and_then(|edge| edge.y).unwrap_or_default();
            (Rect { x, y, ..size }, text)
        });
        let way = points.iter().map(|point| (point.x, point.y)).collect();
        picture.links.push(PlacedLink { way, label });
    }
    if picture.is_upside_down(graph) {
        picture.turn();
    }
    picture.route(graph, &orientation);
    picture.measure();
    picture
}

impl Picture {
    /// All boxes with text: of nodes, and labels.
    pub(super) fn boxes(&self) -> impl Iterator<Item = Rect> {
        let labels = self.links.iter().filter_map(|link| link.label.as_ref());
        let labels = labels.map(|(place, _)| *place);
        self.nodes.iter().map(|node| node.place).chain(labels)
    }

    /// Whether more pairs of links would cross where they leave a node than in the mirror image.
    fn is_upside_down(&self, graph: &Graph) -> bool {
        let mut at = vec![Vec::new(); self.nodes.len()];
        for Link { ends: [a, b], .. } in &graph.links {
            at[a.node].push(((a.interface, b.node), self.nodes[b.node].place.y));
            at[b.node].push(((b.interface, a.node), self.nodes[a.node].place.y));
        }
        let mut balance = 0_i64;
        for list in &at {
            for (number, (row, y)) in list.iter().enumerate() {
                for (other_row, other_y) in &list[..number] {
                    let order = row.cmp(other_row) as i64;
                    balance += order * y.total_cmp(other_y) as i64;
                }
            }
        }
        balance < 0
    }

    /// Turns the picture upside down.
    fn turn(&mut self) {
        self.measure();
        let height = self.height;
        let labels = self.links.iter_mut().filter_map(|link| link.label.as_mut());
        let labels = labels.map(|(place, _)| &mut place.y);
        let points = self.nodes.iter_mut().map(|node| &mut node.place.y);
        points.chain(labels).for_each(|y| *y = height - *y);
        let ways = self.links.iter_mut().flat_map(|link| &mut link.way);
        ways.for_each(|(_, y)| *y = height - *y);
    }

    /// Leads the links from row to row, and level through the columns.
    fn route(&mut self, graph: &Graph, orientation: &Orientation) {
        let columns = Columns::of(self.boxes());
        for (link, of) in self.links.iter_mut().zip(&graph.links) {
            let [left, right] = orientation.ends(of);
            let [from, to] = [left, right].map(|end| {
                let PlacedNode { place, rows } = &self.nodes[end.node];
                let row = rows::of_interface(rows, end.interface);
                let y = match row {
                    Some(row) => place.top() + PADDING / 2.0 + (row as f64 + 0.5) * LINE,
                    None => place.y,
                };
                (place, y)
            });
            let mut way = vec![(from.0.right(), from.1)];
            if left.node == right.node {
                // A loop beside its box, in the room that the layout left for it.
                let out = from.0.right() + 2.0 * PADDING;
                way.extend([(out, from.1), (out, to.1), (to.0.right(), to.1)]);
                link.way = way;
                continue;
            }
            way.push((columns.around(from.0.x).1, from.1));
            let inner = link.way.iter().skip(1).rev().skip(1).rev();
            for (x, y) in inner {
                let (start, end) = columns.around(*x);
                way.extend([(start, *y), (end, *y)]);
            }
            way.push((columns.around(to.0.x).0, to.1));
            way.push((to.0.left(), to.1));
            way.dedup();
            link.way = way;
        }
    }

    /// Finds the size, and moves everything into view.
    fn measure(&mut self) {
        let (mut right, mut bottom) = (0.0_f64, 0.0_f64);
        for place in self.boxes() {
            right = right.max(place.right());
            bottom = bottom.max(place.y + place.height / 2.0);
        }
        for (x, y) in self.links.iter().flat_map(|link| &link.way) {
            right = right.max(*x);
            bottom = bottom.max(*y);
        }
        (self.width, self.height) = (right + MARGIN, bottom + MARGIN);
    }
}

/// The columns of a picture: of boxes with one centre, from the left edge to the right one.
#[derive(Debug, Default)]
struct Columns(BTreeMap<i64, (f64, f64)>);

impl Columns {
    fn of(boxes: impl Iterator<Item = Rect>) -> Self {
        let mut columns = Self::default();
        for place in boxes {
            let edges = (place.left(), place.right());
            let column = columns.0.entry(key(place.x)).or_insert(edges);
            *column = (column.0.min(edges.0), column.1.max(edges.1));
        }
        columns
    }

    /// The edges of the column with this centre.
    fn around(&self, x: f64) -> (f64, f64) {
        self.0.get(&key(x)).copied().unwrap_or((x, x))
    }
}

/// A column's key: its centre in tenths of a pixel.
fn key(x: f64) -> i64 {
    (x * 10.0).round() as i64
}

/// Which nodes are left of which.
#[derive(Debug)]
struct Orientation {
    /// A node's rank. A link goes from the lower to the higher one.
    rank: Vec<usize>,
    /// Whether a leaf has changed sides.
    is_turned: Vec<bool>,
}

impl Orientation {
    fn of(graph: &Graph) -> Self {
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
            // The longest of the shortest ways, nearly: from the node that is farthest from any.
            let (_, order) = distances(&neighbours, first);
            let rim = order.last().copied().unwrap_or(first);
            let (far, order) = distances(&neighbours, rim);
            let mut root = order.last().copied().unwrap_or(rim);
            let length = far[root];
            if length > LONG {
                while far[root] > length / 2 {
                    let closer = |node: &usize| far[*node] < far[root];
                    let next = neighbours[root].iter().copied().find(closer);
                    root = next.unwrap_or(rim);
                }
            }
            let (rank, order) = distances(&neighbours, root);
            order.iter().for_each(|node| this.rank[*node] = rank[*node]);
        }
        for hub in &neighbours {
            let leaves = hub.iter().filter(|leaf| neighbours[**leaf].len() == 1);
            if leaves.clone().count() > LEAVES {
                leaves
                    .step_by(2)
                    .for_each(|leaf| this.is_turned[*leaf] = true);
            }
        }
        this
    }

    /// The ends of a link, the left one first.
    fn ends(&self, link: &Link) -> [End; 2] {
        let [a, b] = link.ends;
        let is_ordered = (self.rank[a.node], a.node) <= (self.rank[b.node], b.node);
        match is_ordered != (self.is_turned[a.node] || self.is_turned[b.node]) {
            true => [a, b],
            false => [b, a],
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::graph::model::{Interface, Kind, Node};

    /// A graph of nodes with an interface for each of their links.
    pub(super) fn graph(count: usize, pairs: &[(usize, usize)]) -> Graph {
        let node = |number: usize| Node {
            kind: Kind::Namespace,
            name: format!("node-{number}"),
            note: format!("vdens {}", 1000 + number),
            is_silent: false,
            interfaces: Vec::new(),
        };
        let mut graph = Graph {
            nodes: (0..count).map(node).collect(),
            links: Vec::new(),
        };
        for (number, (a, b)) in pairs.iter().enumerate() {
            let mut end = |node: usize| {
                let interfaces = &mut graph.nodes[node].interfaces;
                interfaces.push(Interface {
                    name: format!("eth{}", interfaces.len()),
                    addresses: vec![format!("10.0.{number}.{node}/24"), "fd00::1/64".into()],
                    is_up: true,
                });
                let interface = Some(interfaces.len() - 1);
                End { node, interface }
            };
            graph.links.push(Link {
                ends: [end(*a), end(*b)],
                label: if number % 3 == 0 {
                    String::new()
                } else {
                    "delay=20ms/loss=1%".into()
                },
                is_up: number % 5 != 0,
            });
        }
        graph
    }

    /// Graphs of many shapes.
    fn shapes() -> Vec<(&'static str, Graph)> {
        let line: Vec<_> = (1..60).map(|n| (n - 1, n)).collect();
        let ring: Vec<_> = (0..60).map(|n| (n, (n + 1) % 60)).collect();
        let star: Vec<_> = (1..60).map(|n| (0, n)).collect();
        let tree: Vec<_> = (1..60).map(|n| ((n - 1) / 3, n)).collect();
        let grid: Vec<_> = (0..60)
            .flat_map(|n| [(n, n + 1), (n, n + 10)])
            .filter(|(a, b)| *b < 60 && (b - a == 10 || b % 10 != 0))
            .collect();
        let dense: Vec<_> = (0..12).flat_map(|a| (0..a).map(move |b| (b, a))).collect();
        let apart: Vec<_> = (0..30).map(|n| (2 * n, 2 * n + 1)).collect();
        vec![
            ("nothing", graph(0, &[])),
            ("one", graph(1, &[])),
            (
                "loops and parallels",
                graph(3, &[(0, 0), (0, 0), (0, 1), (1, 0), (1, 2)]),
            ),
            ("five", graph(5, &[(0, 1), (1, 2), (2, 0), (2, 3), (3, 4)])),
            ("line", graph(60, &line)),
            ("ring", graph(60, &ring)),
            ("star", graph(60, &star)),
            ("tree", graph(60, &tree)),
            ("grid", graph(60, &grid)),
            ("dense", graph(12, &dense)),
            ("apart", graph(60, &apart)),
        ]
    }

    fn overlap(a: Rect, b: Rect) -> bool {
        let near = |a: f64, b: f64, sizes: f64| (a - b).abs() < sizes / 2.0 - 0.01;
        near(a.x, b.x, a.width + b.width) && near(a.y, b.y, a.height + b.height)
    }

    #[test]
    fn no_text_overlaps_and_all_is_in_view() {
        for (shape, graph) in shapes() {
            let picture = place(&graph);
            let boxes: Vec<Rect> = picture.boxes().collect();
            let has_label =
                |link: &&Link| !link.label.is_empty() && link.ends[0].node != link.ends[1].node;
            let labels = graph.links.iter().filter(has_label);
            assert_eq!(boxes.len(), graph.nodes.len() + labels.count());
            for (number, a) in boxes.iter().enumerate() {
                assert!(a.left() > 0.0 && a.top() > 0.0, "{shape}: {a:?}");
                assert!(a.right() < picture.width, "{shape}: {a:?}");
                assert!(a.y + a.height / 2.0 < picture.height, "{shape}: {a:?}");
                for b in &boxes[..number] {
                    assert!(!overlap(*a, *b), "{shape}: {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn a_link_begins_and_ends_at_its_interfaces() {
        for (shape, graph) in shapes() {
            let picture = place(&graph);
            for (link, placed) in graph.links.iter().zip(&picture.links) {
                let touches = |(x, y): (f64, f64), end: End| {
                    let Rect { height, .. } = picture.nodes[end.node].place;
                    let place = picture.nodes[end.node].place;
                    let is_at_side =
                        (x - place.left()).abs() < 0.01 || (x - place.right()).abs() < 0.01;
                    is_at_side && (y - place.y).abs() < height / 2.0
                };
                let ends = [placed.way[0], placed.way[placed.way.len() - 1]];
                let [a, b] = link.ends;
                let straight = touches(ends[0], a) && touches(ends[1], b);
                assert!(
                    straight || touches(ends[0], b) && touches(ends[1], a),
                    "{shape}"
                );
            }
        }
    }

    #[test]
    fn the_same_graph_gives_the_same_picture() {
        for (shape, graph) in shapes() {
            let (a, b) = (place(&graph), place(&graph));
            assert_eq!(format!("{a:?}"), format!("{b:?}"), "{shape}");
        }
    }

    #[test]
    fn a_star_has_leaves_at_both_sides() {
        let star: Vec<_> = (1..60).map(|n| (0, n)).collect();
        let picture = place(&graph(60, &star));
        let hub = picture.nodes[0].place;
        let left = picture.nodes[1..]
            .iter()
            .filter(|leaf| leaf.place.x < hub.x);
        assert!((20..=40).contains(&left.count()));
    }
}
