//! What an interface is plugged into.

use std::fmt;

use vdens_plugin_kit::vnl::Vnl;

/// What the user names to plug an interface into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum LinkTarget {
    /// A VNL for a plugin: `scheme://argument`.
    Vnl(String),
    /// A shell command that speaks vdestream on its standard input and output.
    Command(String),
}

impl LinkTarget {
    /// The VNL, if it is one.
    pub(crate) fn vnl(&self) -> Option<&str> {
        match self {
            Self::Vnl(vnl) => Some(vnl),
            Self::Command(_) => None,
        }
    }

    /// The scheme whose plugin is needed.
    pub(crate) fn scheme(&self) -> Option<&str> {
        let vnl = Vnl::parse(self.vnl()?).ok()?;
        Some(vnl.scheme)
    }
}

impl fmt::Display for LinkTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vnl(vnl) => f.write_str(vnl),
            Self::Command(command) => write!(f, "={command}"),
        }
    }
}
