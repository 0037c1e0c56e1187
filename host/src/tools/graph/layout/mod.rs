//! Where each node, label and link is in the picture.
//!
//! # Theory of operation
//!
//! Parts of the graph that nothing connects are laid out one by one, and then put beside and below
//! each other. Each goes through three steps:
//!
//! 1. [`sketch`]: the crate `dagre` lays it out in columns: nodes with the sizes of their text, and
//!    labels of links as large as theirs, so that no two overlap;
//! 2. [`fold`]: what is too wide for a screen is cut between columns. The pieces are put below each
//!    other, every other one turned, as a road turns on a slope;
//! 3. [`route`]: links are led from row to row.
//!
//! All text is in a font of fixed width, so its size is known without the font.

mod fold;
mod orientation;
mod route;
mod sketch;

use unicode_width::UnicodeWidthStr;

use self::fold::Fold;
use self::orientation::Orientation;
use self::sketch::Sketch;
use super::model::{Graph, Link};
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
/// Between two parts of the picture.
const GAP: f64 = 40.0;
/// What a screen shows. What is wider is folded, and parts are beside each other up to here.
const SCREEN: f64 = 1600.0;

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

    pub(super) fn bottom(&self) -> f64 {
        self.y + self.height / 2.0
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
    let mut picture = Picture {
        nodes: graph
            .nodes
            .iter()
            .map(|node| sized(rows::of(node)))
            .collect(),
        links: graph.links.iter().map(labelled).collect(),
        ..Picture::default()
    };
    let mut shelf = Shelf {
        corner: (MARGIN, MARGIN),
        right: 0.0,
        bottom: 0.0,
    };
    let orientation = Orientation::of(graph);
    for part in parts(graph) {
        let sketch = Sketch::of(graph, &orientation, &part, &picture);
        let fold = Fold::of(&sketch);
        picture.draw(&sketch, &fold);
        picture.put(&part, &mut shelf);
    }
    (picture.width, picture.height) = (shelf.right + MARGIN, shelf.bottom + MARGIN);
    picture
}

/// A box for these lines.
fn sized(rows: Vec<Row>) -> PlacedNode {
    let widths = rows.iter().map(|row| width_of(&row.text));
    let place = Rect {
        width: widths.fold(0.0, f64::max) + 2.0 * PADDING,
        height: rows.len() as f64 * LINE + PADDING,
        ..Rect::default()
    };
    PlacedNode { place, rows }
}

/// A link with room for its label. A loop has no room for one.
fn labelled(link: &Link) -> PlacedLink {
    let label = rows::clipped(&link.label);
    let size = Rect {
        width: width_of(&label) + PADDING,
        height: LINE,
        ..Rect::default()
    };
    let is_loop = link.ends[0].node == link.ends[1].node;
    PlacedLink {
        way: Vec::new(),
        label: Some((size, label)).filter(|(_, label)| !is_loop && !label.is_empty()),
    }
}

/// Nodes that are connected with each other, and the links between them, by their indices.
#[derive(Debug, Default)]
struct Part {
    nodes: Vec<usize>,
    links: Vec<usize>,
}

/// The parts of a graph, in the order of their first nodes.
fn parts(graph: &Graph) -> Vec<Part> {
    // Each node's part is that of a node before it, until no link says otherwise.
    let mut first: Vec<usize> = (0..graph.nodes.len()).collect();
    let mut is_settled = false;
    while !is_settled {
        is_settled = true;
        for Link { ends: [a, b], .. } in &graph.links {
            let least = first[a.node].min(first[b.node]);
            is_settled &= first[a.node] == first[b.node];
            (first[a.node], first[b.node]) = (least, least);
        }
    }
    let mut parts: Vec<Part> = Vec::new();
    parts.resize_with(graph.nodes.len(), Part::default);
    for (node, part) in first.iter().enumerate() {
        parts[*part].nodes.push(node);
    }
    for (index, link) in graph.links.iter().enumerate() {
        parts[first[link.ends[0].node]].links.push(index);
    }
    parts.retain(|part| !part.nodes.is_empty());
    parts
}

/// Where the next part of a picture goes: beside the last one, or below all.
#[derive(Debug)]
struct Shelf {
    corner: (f64, f64),
    /// The right and the lower edge of all parts.
    right: f64,
    bottom: f64,
}

impl Picture {
    /// All boxes with text: of nodes, and labels.
    #[cfg(test)]
    pub(super) fn boxes(&self) -> impl Iterator<Item = Rect> {
        let labels = self.links.iter().filter_map(|link| link.label.as_ref());
        let labels = labels.map(|(place, _)| *place);
        self.nodes.iter().map(|node| node.place).chain(labels)
    }

    /// Moves a part that was drawn anywhere to its place.
    fn put(&mut self, part: &Part, shelf: &mut Shelf) {
        let Self { nodes, links, .. } = self;
        let (mut left, mut top) = (f64::MAX, f64::MAX);
        let (mut right, mut bottom) = (f64::MIN, f64::MIN);
        let mut cover = |place: &Rect| {
            (left, top) = (left.min(place.left()), top.min(place.top()));
            (right, bottom) = (right.max(place.right()), bottom.max(place.bottom()));
        };
        part.nodes
            .iter()
            .for_each(|node| cover(&nodes[*node].place));
        for link in &part.links {
            let PlacedLink { way, label } = &links[*link];
            label.iter().for_each(|(place, _)| cover(place));
            let point = |(x, y): &(f64, f64)| Rect {
                x: *x,
                y: *y,
                ..Rect::default()
            };
            way.iter().map(point).for_each(|place| cover(&place));
        }
        let (width, height) = (right - left, bottom - top);
        if shelf.corner.0 > MARGIN && shelf.corner.0 + width > SCREEN {
            shelf.corner = (MARGIN, shelf.bottom + GAP);
        }
        let (x, y) = shelf.corner;
        shelf.corner.0 += width + GAP;
        shelf.right = shelf.right.max(x + width);
        shelf.bottom = shelf.bottom.max(y + height);
        let (x, y) = (x - left, y - top);
        let shift = |place: &mut Rect| (place.x, place.y) = (place.x + x, place.y + y);
        part.nodes
            .iter()
            .for_each(|node| shift(&mut nodes[*node].place));
        for link in &part.links {
            let PlacedLink { way, label } = &mut links[*link];
            label.iter_mut().for_each(|(place, _)| shift(place));
            way.iter_mut()
                .for_each(|point| *point = (point.0 + x, point.1 + y));
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::tools::graph::model::{End, Interface, Kind, Node};

    /// A graph of nodes with an interface for each of their links.
    fn graph(count: usize, pairs: &[(usize, usize)]) -> Graph {
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
    pub(in crate::tools::graph) fn shapes() -> Vec<(&'static str, Graph)> {
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
            ("line of five", graph(5, &line[..4])),
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
        // From the top to the bottom in the order of the interfaces, so that no links cross.
        for is_left in [true, false] {
            let side = picture.nodes[1..].iter().map(|leaf| leaf.place);
            let side = side.filter(|leaf| (leaf.x < hub.x) == is_left);
            assert!(side.map(|leaf| leaf.y).is_sorted());
        }
    }

    #[test]
    fn no_link_passes_through_a_node_or_anothers_label() {
        for (shape, graph) in shapes() {
            let picture = place(&graph);
            for (link, placed) in graph.links.iter().zip(&picture.links) {
                let others = (0..picture.nodes.len())
                    .filter(|node| link.ends.iter().all(|end| end.node != *node));
                let labels = picture.links.iter().zip(&graph.links);
                let labels = labels.filter(|(_, other)| *other != link);
                let labels = labels.filter_map(|(other, _)| Some(other.label.as_ref()?.0));
                let others = others.map(|node| picture.nodes[node].place);
                let others: Vec<Rect> = others.chain(labels).collect();
                for pair in placed.way.windows(2) {
                    let [(a, b), (c, d)] = [pair[0], pair[1]];
                    let part = Rect {
                        x: f64::midpoint(a, c),
                        y: f64::midpoint(b, d),
                        width: (a - c).abs(),
                        height: (b - d).abs(),
                    };
                    // A line that is neither level nor upright is in a gap between two columns.
                    let meets = others.iter().find(|other| overlap(part, **other));
                    assert_eq!(meets, None, "{shape}: {pair:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_long_is_folded_and_reads_from_its_start() {
        for (shape, graph) in shapes() {
            let Picture { width, height, .. } = place(&graph);
            assert!(
                width < 4100.0 && height < 3000.0,
                "{shape}: {width} x {height}"
            );
        }
        let line: Vec<_> = (1..60).map(|n| (n - 1, n)).collect();
        let picture = place(&graph(60, &line));
        let at = |node: usize| picture.nodes[node].place;
        assert!(at(0).left() < 2.0 * MARGIN && at(0).x < at(1).x);
        assert!(at(59).top() > at(0).top() + 500.0);
        // A band is turned, so that the next node is below the last of the one before.
        for node in 1..60 {
            let (before, after) = (at(node - 1), at(node));
            let near = (before.x - after.x).abs() < 700.0 && (before.y - after.y).abs() < 200.0;
            assert!(near, "{before:?} {after:?}");
        }
    }
}
