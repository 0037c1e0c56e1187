//! The lines of text in a node's box, the same in all pictures.

use super::model::{Interface, Kind, Node};
use crate::output::Line;

/// The longest text in a picture, in characters. The rest is cut off.
const LONGEST: usize = 40;

/// A line of a box.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// The text, on one line.
    pub text: String,
    /// What it is.
    pub role: Role,
}

/// What a line of a box is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// The node's name.
    Name,
    /// What else is known of it.
    Note,
    /// An interface, by its index, and whether it is up.
    Interface(usize, bool),
    /// A further address of the interface above.
    Address,
}

/// The lines of a node's box.
pub(super) fn of(node: &Node) -> Vec<Row> {
    let row = |text: &str, role| Row {
        text: clipped(text),
        role,
    };
    let mut rows = vec![row(&node.name, Role::Name)];
    if !node.note.is_empty() {
        rows.push(row(&node.note, Role::Note));
    }
    for (index, interface) in node.interfaces.iter().enumerate() {
        let Interface {
            name,
            addresses,
            is_up,
        } = interface;
        let first = addresses.first().map_or("", String::as_str);
        let text = format!("{name} {first}");
        rows.push(row(text.trim_end(), Role::Interface(index, *is_up)));
        let indent = " ".repeat(name.chars().count());
        let further = addresses.iter().skip(1);
        rows.extend(further.map(|address| row(&format!("{indent} {address}"), Role::Address)));
    }
    rows
}

/// The line of an interface.
pub(super) fn of_interface(rows: &[Row], interface: Option<usize>) -> Option<usize> {
    let interface = interface?;
    rows.iter()
        .position(|row| matches!(row.role, Role::Interface(index, _) if index == interface))
}

/// A word for what a node is.
pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Namespace => "namespace",
        Kind::Switch => "switch",
        Kind::Plug => "plug",
        Kind::Outside => "outside",
    }
}

/// Text on one line, without control characters, and not too long.
pub(super) fn clipped(text: &str) -> String {
    let text = Line(text).to_string();
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
