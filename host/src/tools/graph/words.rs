//! A graph as text for a person, and in the languages of Graphviz and Mermaid.
//!
//! Names come from others and may hold anything, so each language has its own way to quote them.

use std::fmt::{self, Display, Write as _};

use super::model::{End, Graph, Kind, Node};
use super::rows;
use crate::output::{Line, Text};

/// Text: each node, and below it each interface and what it is connected with.
pub(super) fn text(graph: &Graph) -> Text {
    let mut text = Text::default();
    for (index, node) in graph.nodes.iter().enumerate() {
        if index > 0 {
            text.gap();
        }
        let note = if node.note.is_empty() {
            rows::kind(node.kind)
        } else {
            &node.note
        };
        text.line(format_args!("{} ({note})", node.name));
        for (number, interface) in node.interfaces.iter().enumerate() {
            let addresses = interface
                .addresses
                .iter()
                .map(|address| format!(" {address}"));
            let addresses: String = addresses.collect();
            let state = if interface.is_up { "up" } else { "DOWN" };
            let end = End {
                node: index,
                interface: Some(number),
            };
            let lines = connections(graph, end);
            let links = if lines.is_empty() {
                String::new()
            } else {
                format!(" {}", lines.join(", "))
            };
            text.line(format_args!(
                "  {}{addresses} {state}{links}",
                interface.name
            ));
        }
        for line in connections(
            graph,
            End {
                node: index,
                interface: None,
            },
        ) {
            text.line(format_args!("  {line}"));
        }
    }
    text
}

/// The links at an end: `-- NODE:INTERFACE [IMPAIRMENTS]`.
fn connections(graph: &Graph, end: End) -> Vec<String> {
    let mut found = Vec::new();
    for link in &graph.links {
        let [a, b] = link.ends;
        let mut others = Vec::new();
        if a == end {
            others.push(b);
        }
        if b == end {
            others.push(a);
        }
        for other in others {
            let node = &graph.nodes[other.node].name;
            let interface = graph
                .interface(other)
                .map_or(String::new(), |i| format!(":{}", i.name));
            let label = if link.label.is_empty() {
                String::new()
            } else {
                format!(" [{}]", link.label)
            };
            let state = if link.is_up { "" } else { " DOWN" };
            found.push(format!("-- {node}{interface}{label}{state}"));
        }
    }
    found
}

/// The language of Graphviz (`dot -Tpng`).
pub(super) fn dot(graph: &Graph) -> String {
    let mut dot = "graph vdens {\n  rankdir=LR;\n  node [shape=box, fontname=monospace];\n  \
                   edge [fontname=monospace];\n"
        .to_owned();
    for (index, node) in graph.nodes.iter().enumerate() {
        let shape = match node.kind {
            Kind::Namespace => "style=rounded",
            Kind::Switch => "style=bold",
            Kind::Plug => "style=solid",
            Kind::Outside => "style=dashed",
        };
        let colour = if node.is_silent { ", color=red" } else { "" };
        // `\l` ends a line that is set flush left.
        let lines = box_lines(node).map(|line| format!("{}\\l", DotEscaped(&line)));
        let label: String = lines.collect();
        let _ = writeln!(dot, "  n{index} [label=\"{label}\", {shape}{colour}];");
    }
    for link in &graph.links {
        let [a, b] = link.ends;
        let mut attributes = vec![format!("label=\"{}\"", DotEscaped(&link.label))];
        for (name, end) in [("taillabel", a), ("headlabel", b)] {
            let interface = graph.interface(end);
            attributes.extend(interface.map(|i| format!("{name}=\"{}\"", DotEscaped(&i.name))));
        }
        if !link.is_up {
            attributes.push("color=red, style=dashed".to_owned());
        }
        let _ = writeln!(
            dot,
            "  n{} -- n{} [{}];",
            a.node,
            b.node,
            attributes.join(", ")
        );
    }
    dot.push_str("}\n");
    dot
}

/// The language of Mermaid, which many web pages draw.
pub(super) fn mermaid(graph: &Graph) -> String {
    let mut mermaid = "graph LR\n".to_owned();
    for (index, node) in graph.nodes.iter().enumerate() {
        let (open, close) = match node.kind {
            Kind::Namespace => ("[", "]"),
            Kind::Switch => ("[[", "]]"),
            Kind::Plug => ("[/", "/]"),
            Kind::Outside => ("([", "])"),
        };
        let lines = box_lines(node).map(|line| MermaidEscaped(&line).to_string());
        let lines: Vec<String> = lines.collect();
        let label = lines.join("<br/>");
        let _ = writeln!(mermaid, "  n{index}{open}\"{label}\"{close}");
        if node.is_silent {
            let _ = writeln!(mermaid, "  style n{index} stroke:red");
        }
    }
    for (index, link) in graph.links.iter().enumerate() {
        let [a, b] = link.ends;
        let interfaces = [a, b].into_iter().filter_map(|end| graph.interface(end));
        let names: Vec<&str> = interfaces
            .map(|interface| interface.name.as_str())
            .collect();
        let names = names.join(" - ");
        let parts = [names.as_str(), &link.label].into_iter();
        let parts: Vec<&str> = parts.filter(|part| !part.is_empty()).collect();
        let label = parts.join(": ");
        let label = match label.as_str() {
            "" => String::new(),
            label => format!("|\"{}\"|", MermaidEscaped(label)),
        };
        let _ = writeln!(mermaid, "  n{} ---{label} n{}", a.node, b.node);
        if !link.is_up {
            let _ = writeln!(mermaid, "  linkStyle {index} stroke:red");
        }
    }
    mermaid
}

/// The lines of a node's box, in full length.
fn box_lines(node: &Node) -> impl Iterator<Item = String> {
    let note = Some(node.note.clone()).filter(|note| !note.is_empty());
    let interfaces = node.interfaces.iter().map(|interface| {
        let state = if interface.is_up { "" } else { " DOWN" };
        let words = [&interface.name].into_iter().chain(&interface.addresses);
        let words: Vec<&str> = words.map(String::as_str).collect();
        format!("{}{state}", words.join(" "))
    });
    [node.name.clone()]
        .into_iter()
        .chain(note)
        .chain(interfaces)
}

/// Text between the quotes of a string in dot, where it is taken literally.
struct DotEscaped<'a>(&'a str);

impl Display for DotEscaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in Line(self.0).to_string().chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                // Graphviz resolves HTML entities in every label.
                '&' => f.write_str("&amp;")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// Text between the quotes of a label in Mermaid: all that is not plain is the code of a character,
/// because Mermaid reads Markdown and HTML there.
struct MermaidEscaped<'a>(&'a str);

impl Display for MermaidEscaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in Line(self.0).to_string().chars() {
            match c {
                ' ' | '.' | ',' | ':' | '/' | '-' | '=' | '%' | '(' | ')' => f.write_char(c)?,
                c if c.is_alphanumeric() => f.write_char(c)?,
                c => write!(f, "#{};", u32::from(c))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::graph::model::{Interface, Link};
    use crate::tools::graph::svg;

    fn graph(name: &str) -> Graph {
        let node = |kind, name: &str, interfaces: &[(&str, bool)]| Node {
            kind,
            name: name.to_owned(),
            note: String::new(),
            is_silent: false,
            interfaces: interfaces
                .iter()
                .map(|(name, is_up)| Interface {
                    name: (*name).to_owned(),
                    addresses: vec!["10.0.0.1/24".to_owned()],
                    is_up: *is_up,
                })
                .collect(),
        };
        let end = |node, interface| End { node, interface };
        let link = |a, b, label: &str, is_up| Link {
            ends: [a, b],
            label: label.to_owned(),
            is_up,
        };
        Graph {
            nodes: vec![
                node(Kind::Namespace, name, &[("eth0", true), ("eth1", false)]),
                node(Kind::Namespace, "r2", &[("eth0", false)]),
                node(Kind::Switch, "lan", &[]),
            ],
            links: vec![
                link(end(0, Some(0)), end(2, None), "", true),
                link(end(0, Some(1)), end(1, Some(0)), "loss=1%", false),
            ],
        }
    }

    #[test]
    fn text_says_what_is_connected_with_what() {
        let told = text(&graph("r1"));
        let expected = "\
r1 (namespace)
  eth0 10.0.0.1/24 up -- lan
  eth1 10.0.0.1/24 DOWN -- r2:eth0 [loss=1%] DOWN

r2 (namespace)
  eth0 10.0.0.1/24 DOWN -- r1:eth1 [loss=1%] DOWN

lan (switch)
  -- r1:eth0
";
        assert_eq!(told.as_ref(), expected);
    }

    #[test]
    fn what_is_down_is_red_in_each_language() {
        let dot = dot(&graph("r1"));
        let line = "n0 -- n1 [label=\"loss=1%\", taillabel=\"eth1\", headlabel=\"eth0\", color=red";
        assert!(dot.contains(line), "{dot}");
        assert!(
            dot.contains("n0 -- n2 [label=\"\", taillabel=\"eth0\"];"),
            "{dot}"
        );
        let mermaid = mermaid(&graph("r1"));
        assert!(
            mermaid.contains("  n0 ---|\"eth1 - eth0: loss=1%\"| n1\n  linkStyle 1 stroke:red\n"),
            "{mermaid}"
        );
        let svg = svg::draw(&graph("r1"));
        assert_eq!(svg.matches("stroke=\"#d00000\"").count(), 1, "{svg}");
        assert!(svg.contains(">loss=1%</text>"), "{svg}");
    }

    #[test]
    fn a_name_can_hold_anything() {
        let evil = "\"]; <b>&amp;\\ \u{1b}[2J\n\u{202e}\u{ffff} %%{init} #quot; ]]>";
        let graph = graph(evil);
        let text = text(&graph);
        assert!(!text.as_ref().contains('\u{1b}'), "{}", text.as_ref());
        assert_eq!(text.as_ref().lines().count(), 9);
        let dot = dot(&graph);
        assert!(
            dot.contains("label=\"\\\"]; <b>&amp;amp;\\\\ \\\\u{1b}[2J\\\\n"),
            "{dot}"
        );
        let mermaid = mermaid(&graph);
        assert!(
            mermaid.contains("n0[\"#34;#93;#59; #60;b#62;#38;amp#59;#92; "),
            "{mermaid}"
        );
        let svg = svg::draw(&graph);
        assert!(
            svg.contains("&quot;]; &lt;b&gt;&amp;amp;\\ \\u{1b}[2J\\n\\u{202e}\\u{ffff}"),
            "{svg}"
        );
    }
}
