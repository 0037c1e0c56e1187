//! What a link is opened on.

use std::fmt;

use vdens_plugin_kit::vnl::Vnl;

/// What one end of a link is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A VNL for a plugin: `scheme://argument`.
    Vnl(String),
    /// A shell command that speaks vdestream on its standard input and output.
    Command(String),
}

impl End {
    /// The scheme whose plugin is needed.
    pub fn scheme(&self) -> Option<&str> {
        match self {
            Self::Vnl(vnl) => Vnl::parse(vnl).ok().map(|vnl| vnl.scheme),
            Self::Command(_) => None,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vnl(vnl) => f.write_str(vnl),
            Self::Command(command) => write!(f, "={command}"),
        }
    }
}
