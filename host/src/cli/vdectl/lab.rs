//! The command line of `vdectl lab`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;

/// What `vdectl lab` does.
#[derive(Clone, Debug, Subcommand)]
pub enum LabTask {
    /// Start the lab of a file, and return when it runs
    Up {
        /// The lab file
        file: PathBuf,
    },

    /// End a lab and everything in it
    Down {
        /// The lab's name, if there are several labs
        name: Option<String>,
    },

    /// Change the running lab to what its edited file says; what is the same goes on undisturbed
    Apply {
        /// The lab file
        file: PathBuf,
    },

    /// Show the running labs: nodes, addresses, links, services
    Status {
        /// Show this lab only
        name: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Run a command in a node, or in many at once, as h*
    Exec {
        /// The nodes: NODE or LAB/NODE, where * stands for any characters and ? for one
        nodes: String,

        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },

    /// Start a shell in a node
    Enter {
        /// The node: NODE or LAB/NODE
        node: String,
    },
}
