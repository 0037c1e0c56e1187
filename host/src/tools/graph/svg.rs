//! A graph as a picture in SVG 1.1.
//!
//! It needs no font and no style sheet: each text has its length, so a viewer that has another font
//! stretches it. A line is red where no frames pass.

use std::fmt::{self, Display, Write as _};

use super::layout::{self, FONT_SIZE, LINE, PADDING, Picture, PlacedNode, Rect};
use super::model::{Graph, Kind};
use super::rows::Role;

/// Frames pass.
const UP: &str = "#333333";
/// No frames pass.
const DOWN: &str = "#d00000";
/// What is said beside.
const FAINT: &str = "#666666";

/// The graph as a picture.
pub(super) fn draw(graph: &Graph) -> String {
    let picture = layout::place(graph);
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut svg, graph, &picture);
    svg
}

fn write(svg: &mut String, graph: &Graph, picture: &Picture) -> fmt::Result {
    let Picture { width, height, .. } = picture;
    writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {width:.0} {height:.0}\" font-family=\"monospace\" \
         font-size=\"{FONT_SIZE}\">"
    )?;
    writeln!(
        svg,
        "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
    )?;
    for (link, placed) in graph.links.iter().zip(&picture.links) {
        let colour = if link.is_up { UP } else { DOWN };
        let dashes = if link.is_up {
            ""
        } else {
            " stroke-dasharray=\"6 4\""
        };
        writeln!(
            svg,
            "<path d=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"{dashes}/>",
            Way(&placed.way)
        )?;
    }
    for (link, placed) in graph.links.iter().zip(&picture.links) {
        if let Some((place, text)) = &placed.label {
            let colour = if link.is_up { UP } else { DOWN };
            rectangle(svg, place, "fill=\"#ffffff\"")?;
            let (x, y) = (place.left() + PADDING / 2.0, place.y + LINE / 4.0);
            line(svg, x, y, text, &format!("fill=\"{colour}\""), &link.label)?;
        }
    }
    for (node, placed) in graph.nodes.iter().zip(&picture.nodes) {
        let PlacedNode { place, rows } = placed;
        let (fill, more) = match node.kind {
            Kind::Namespace => ("#eef4ff", " rx=\"4\""),
            Kind::Switch => ("#e6f5e6", ""),
            Kind::Plug => ("#f4f4f4", ""),
            Kind::Outside => ("#ffffff", " rx=\"12\" stroke-dasharray=\"3 3\""),
        };
        let colour = if node.is_silent { DOWN } else { UP };
        rectangle(
            svg,
            place,
            &format!("fill=\"{fill}\" stroke=\"{colour}\"{more}"),
        )?;
        for (number, row) in rows.iter().enumerate() {
            let y = place.top() + PADDING / 2.0 + (number as f64 + 0.75) * LINE;
            let style = match row.role {
                Role::Name => format!("font-weight=\"bold\" fill=\"{colour}\""),
                Role::Note => format!("fill=\"{FAINT}\""),
                Role::Interface(_, false) => format!("fill=\"{DOWN}\""),
                Role::Interface(..) | Role::Address => format!("fill=\"{UP}\""),
            };
            let whole = if row.role == Role::Name {
                &node.name
            } else {
                &row.text
            };
            line(svg, place.left() + PADDING, y, &row.text, &style, whole)?;
        }
    }
    writeln!(svg, "</svg>")
}

fn rectangle(svg: &mut String, place: &Rect, style: &str) -> fmt::Result {
    let (x, y) = (place.left(), place.top());
    let Rect { width, height, .. } = place;
    writeln!(
        svg,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" {style}/>"
    )
}

/// A line of text. What was cut off is in its title, which viewers show on demand.
fn line(svg: &mut String, x: f64, y: f64, text: &str, style: &str, whole: &str) -> fmt::Result {
    let width = layout::width_of(text);
    let title = if whole.len() > text.len() {
        format!("<title>{}</title>", Escaped(whole))
    } else {
        String::new()
    };
    writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" textLength=\"{width:.1}\" \
         lengthAdjust=\"spacingAndGlyphs\" xml:space=\"preserve\" {style}>{}{title}</text>",
        Escaped(text)
    )
}

/// A smooth line through points. It is level at each point.
struct Way<'a>(&'a [(f64, f64)]);

impl Display for Way<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = None;
        for (x, y) in self.0 {
            match last {
                None => write!(f, "M{x:.1} {y:.1}")?,
                // Level or upright.
                Some((a, b)) if b == *y || a == *x => write!(f, " L{x:.1} {y:.1}")?,
                Some((a, b)) => {
                    let middle = f64::midpoint(a, *x);
                    write!(f, " C{middle:.1} {b:.1} {middle:.1} {y:.1} {x:.1} {y:.1}")?;
                }
            }
            last = Some((*x, *y));
        }
        Ok(())
    }
}

/// Text in XML. Control characters are escaped as in all output, because XML 1.0 has no form for
/// them, and neither for U+FFFE and U+FFFF.
struct Escaped<'a>(&'a str);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in crate::output::Line(self.0).to_string().chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\u{fffe}' | '\u{ffff}' => write!(f, "{}", c.escape_unicode())?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::graph::layout::tests::shapes;
    use crate::tools::graph::model::{End, Interface, Link, Node};
    use std::fs;
    use std::path::Path;

    /// Two routers, three hosts on a switch, one of them unplugged, and the way outside.
    fn example() -> Graph {
        let node = |kind, name: &str, note: &str, interfaces: &[(&str, &str, bool)]| Node {
            kind,
            name: name.to_owned(),
            note: note.to_owned(),
            is_silent: false,
            interfaces: interfaces
                .iter()
                .map(|(name, address, is_up)| Interface {
                    name: (*name).to_owned(),
                    addresses: vec![(*address).to_owned()],
                    is_up: *is_up,
                })
                .collect(),
        };
        let session = |name, note, interfaces| node(Kind::Namespace, name, note, interfaces);
        let host = |name, note, address, is_up| {
            node(Kind::Namespace, name, note, &[("vde0", address, is_up)])
        };
        let nodes = vec![
            session(
                "r1",
                "vdens 4711",
                &[
                    ("vde0", "10.0.0.1/24", true),
                    ("vde1", "192.0.2.1/24", true),
                ],
            ),
            session(
                "r2",
                "vdens 4712",
                &[("vde0", "10.0.0.2/24", true), ("vde1", "10.1.0.1/24", true)],
            ),
            host("h1", "vdens 4713", "10.1.0.11/24", true),
            host("h2", "vdens 4714", "10.1.0.12/24", true),
            host("h3", "vdens 4715", "10.1.0.13/24", false),
            node(Kind::Switch, "lan", "switch, vde_plug 4710", &[]),
            node(Kind::Outside, "nat://", "", &[]),
        ];
        let end = |node, interface| End { node, interface };
        let link = |a, b, label: &str, is_up| Link {
            ends: [a, b],
            label: label.to_owned(),
            is_up,
        };
        let port =
            |node, interface, is_up| link(end(node, Some(interface)), end(5, None), "", is_up);
        let wan = "delay=20ms/loss=1%";
        let links = vec![
            link(end(0, Some(0)), end(1, Some(0)), wan, true),
            link(end(0, Some(1)), end(6, None), "", true),
            port(1, 1, true),
            port(2, 0, true),
            port(3, 0, true),
            port(4, 0, false),
        ];
        Graph { nodes, links }
    }

    #[test]
    fn the_picture_in_the_documentation_is_what_is_drawn() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/graph.svg");
        let drawn = draw(&example());
        let is_same = fs::read_to_string(&file).is_ok_and(|shown| shown == drawn);
        let new = std::env::temp_dir().join("vdens-graph.svg");
        if !is_same {
            fs::write(&new, drawn).unwrap();
        }
        assert!(
            is_same,
            "look at {} and copy it to {}",
            new.display(),
            file.display()
        );
    }

    /// The number in an attribute of an element.
    fn number(element: &str, attribute: &str) -> f64 {
        let (_, rest) = element.split_once(&format!(" {attribute}=\"")).unwrap();
        rest.split('"').next().unwrap().parse().unwrap()
    }

    #[test]
    fn no_two_texts_overlap_in_what_is_drawn() {
        for (shape, graph) in shapes() {
            let svg = draw(&graph);
            let texts = svg.lines().filter(|line| line.starts_with("<text "));
            let boxes: Vec<_> = texts
                .map(|text| {
                    let (x, y) = (number(text, "x"), number(text, "y"));
                    // From the ascenders to the descenders of a font of this size.
                    let (top, bottom) = (y - 0.8 * FONT_SIZE, y + 0.25 * FONT_SIZE);
                    (x, x + number(text, "textLength"), top, bottom, text)
                })
                .collect();
            assert!(graph.nodes.is_empty() || boxes.len() >= 2 * graph.nodes.len());
            let (width, height) = (number(&svg, "width"), number(&svg, "height"));
            for (at, a) in boxes.iter().enumerate() {
                assert!(
                    a.0 > 0.0 && a.1 < width && a.2 > 0.0 && a.3 < height,
                    "{shape}: {a:?}"
                );
                for b in &boxes[..at] {
                    let is_apart = a.1 <= b.0 || b.1 <= a.0 || a.3 <= b.2 || b.3 <= a.2;
                    assert!(is_apart, "{shape}: {} {}", a.4, b.4);
                }
            }
        }
    }
}
