//! `vdectl graph`: a picture of what is connected with what.
//!
//! [`builder`] makes a graph ([`model`]) of what the processes report, and [`lab`] of what a lab
//! reports. [`layout`] finds a place for everything, and [`svg`] draws it; [`words`] writes the
//! formats that need no places.

mod builder;
mod lab;
mod layout;
mod model;
mod network;
mod rows;
mod svg;
mod words;

use std::fs;
use std::path::Path;

use clap::ValueEnum;

use self::model::Graph;
use super::status::client::ask_all;
use crate::error::{Error, Result};
use crate::output::Text;

/// In what form a graph is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Lines for a person
    #[default]
    Text,
    /// A picture
    Svg,
    /// For Graphviz
    Dot,
    /// For Mermaid, which many web pages draw
    Mermaid,
}

/// Shows the graph of all that runs, or of what is connected with a session or lab.
///
/// # Errors
/// There is no such session or lab, or the file cannot be written.
pub fn run(name: Option<&str>, format: Format, file: Option<&Path>) -> Result<()> {
    let mut graph = Graph::of(&ask_all()?);
    if let Some(name) = name {
        graph = graph.around(name).ok_or_else(|| {
            Error::usage(format!(
                "no session, switch or lab '{name}' of yours is running"
            ))
            .hint("vdectl graph shows all that are")
        })?;
    }
    let text: Text = match format {
        Format::Text => words::text(&graph),
        Format::Svg => svg::draw(&graph).lines().collect(),
        Format::Dot => words::dot(&graph).lines().collect(),
        Format::Mermaid => words::mermaid(&graph).lines().collect(),
    };
    match file {
        Some(file) => {
            fs::write(file, text.as_ref()).map_err(|error| Error::path("write", file, &error))
        }
        None => text.print(),
    }
}
