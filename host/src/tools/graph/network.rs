//! Which network a VNL leads to.

use std::path::{Component, Path, PathBuf};

use vdens_plugin_kit::vnl::{Keys, Spec, Vnl};

/// A network that ends join.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Network {
    /// The clients of the switch in a directory.
    Switch(PathBuf),
    /// The two ends of the cable at a path.
    Cable(PathBuf),
    /// All ends with this VNL.
    Shared(String),
    /// One end, by its number.
    Own(usize),
}

/// What one end of a link is plugged into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is a switch of its own, in a directory.
    Serves(PathBuf),
    /// It joins a network; without a key, one that no other end joins.
    Joins(Option<Network>),
    /// It leads nowhere.
    Nowhere,
}

/// The VNL in the innermost braces.
pub(super) fn innermost(vnl: &str) -> &str {
    match nested(vnl) {
        Some((_, inner)) => innermost(inner),
        None => vnl,
    }
}

/// What stands before a nested VNL, and that.
fn nested(vnl: &str) -> Option<(&str, &str)> {
    let (outer, rest) = vnl.split_once('{')?;
    Some((outer, rest.strip_suffix('}')?)).filter(|(_, inner)| inner.contains("://"))
}

/// Where a VNL leads, and what a frame passes through on its way.
pub(super) fn place(vnl: &str, directory: &str) -> (Place, String) {
    if let Some((outer, inner)) = nested(vnl) {
        let (place, label) = place(inner, directory);
        let outer = outer.strip_prefix("netem://").unwrap_or(outer);
        return (place, joined(outer, &label));
    }
    let place = match Vnl::parse(vnl) {
        Ok(Vnl { scheme, argument }) => match scheme {
            "null" => Place::Nowhere,
            "ptp" => Place::Joins(Some(Network::Cable(absolute(argument, directory)))),
            "vde" => Place::Joins(Some(Network::Switch(absolute(argument, directory)))),
            "switch" | "hub" => Place::Serves(absolute(argument, directory)),
            "nat" | "cmd" | "seqpacket" => Place::Joins(None),
            _ => Place::Joins(Some(Network::Shared(vnl.to_owned()))),
        },
        Err(_) => Place::Joins(None),
    };
    (place, String::new())
}

/// The path in the argument of a VNL, without what is in brackets, from the root on.
fn absolute(argument: &str, directory: &str) -> PathBuf {
    let path = argument.split('[').next().unwrap_or(argument);
    let spec = Spec::path_grammar(path, &Keys::new(&[]));
    let path = spec.map_or_else(|_| path.into(), |spec| spec.target().to_owned());
    let mut whole = PathBuf::new();
    for component in Path::new(directory).join(path).components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => _ = whole.pop(),
            other => whole.push(other),
        }
    }
    whole
}

/// Words with commas between them.
pub(super) fn join_words(words: &[&str]) -> String {
    let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
    words.join(", ")
}

/// The labels of both ends of a link as one.
pub(super) fn joined(a: &str, b: &str) -> String {
    match a == b {
        true => a.to_owned(),
        false => join_words(&[a, b]),
    }
}
