//! The command line of `vdectl lab`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Subcommand;

use crate::cli::complete::candidates::{lab_files, labs, labs_and_files, nodes};
use crate::lab::commands::verdict::Format;

/// What `vdectl lab` does.
#[derive(Clone, Debug, Subcommand)]
pub enum LabTask {
    /// Start the lab of a file, and return when it runs
    Up {
        /// Print what runs then as JSON, as status does
        #[arg(long)]
        json: bool,

        /// The lab file
        #[arg(add = lab_files())]
        file: PathBuf,
    },

    /// End a lab and everything in it
    Down {
        /// The lab's name, if there are several labs
        #[arg(add = labs())]
        name: Option<String>,
    },

    /// Change the running lab to what its edited file says; what is the same goes on undisturbed
    Apply {
        /// Print what has changed as JSON
        #[arg(long)]
        json: bool,

        /// The lab file
        #[arg(add = lab_files())]
        file: PathBuf,
    },

    /// Show the running labs: nodes, addresses, links, services
    Status {
        /// Show this lab only
        #[arg(add = labs())]
        name: Option<String>,

        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Run a command in a node, or in many at once, as h*
    Exec {
        /// Print a JSON object for each line of output, and for each exit status
        #[arg(long)]
        json: bool,

        /// The nodes: NODE or LAB/NODE, where * stands for any characters and ? for one
        #[arg(add = nodes())]
        nodes: String,

        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },

    /// Run the tests of a lab's file
    Test {
        /// The lab file, whose lab is started and ended if it does not run, or a running lab's name
        #[arg(add = labs_and_files())]
        lab: String,

        /// Print the results in this form
        #[arg(long, value_enum, default_value = "tap")]
        format: Format,

        /// Print the results as JSON; the same as --format json
        #[arg(long, conflicts_with = "format")]
        json: bool,
    },

    /// Print what happens in a lab, a JSON object a line, until it ends
    Events {
        /// The lab's name, if there are several labs
        #[arg(add = labs())]
        name: Option<String>,
    },

    /// Check a lab file, and make nothing
    Validate {
        /// Print JSON, with the lab in full
        #[arg(long)]
        json: bool,

        /// The lab file
        #[arg(add = lab_files())]
        file: PathBuf,
    },

    /// Print the JSON Schema of lab files, for editors
    Schema,

    /// Start a shell in a node
    Enter {
        /// The node: NODE or LAB/NODE
        #[arg(add = nodes())]
        node: String,
    },
}
