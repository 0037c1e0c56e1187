//! What `vdectl` does with sessions.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args, Subcommand};

use crate::cli::complete::candidates::{sessions, targets};
use crate::cli::values::seconds;

/// Commands for sessions.
#[derive(Clone, Debug, Subcommand)]
pub enum SessionTask {
    /// List your sessions
    Ls {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Run a command in a session, and return its exit status
    Exec(Exec),

    /// Start your shell in a session
    Enter {
        /// The session: a name, LAB/NODE, or the id of a vdens process
        #[arg(value_name = "NAME", add = targets())]
        name: String,
    },

    /// End sessions, with everything that runs in them
    Stop(Stop),

    /// Wait until a session runs
    Wait(Wait),

    /// Print the id of a process in a session, for nsenter and its like
    Pid {
        /// The session: a name, LAB/NODE, or the id of a vdens process
        #[arg(value_name = "NAME", add = targets())]
        name: String,
    },
}

/// The arguments of `vdectl exec`.
#[derive(Args, Clone, Debug)]
pub struct Exec {
    /// The session: a name, LAB/NODE, or the id of a vdens process
    #[arg(value_name = "NAME", add = targets())]
    pub name: String,

    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<OsString>,
}

/// The arguments of `vdectl stop`.
#[derive(Args, Clone, Debug)]
pub struct Stop {
    /// Stop all your sessions
    #[arg(long, conflicts_with = "names")]
    pub all: bool,

    /// The sessions: names, or ids of vdens processes
    #[arg(value_name = "NAME", required_unless_present = "all", add = sessions())]
    pub names: Vec<String>,
}

/// The arguments of `vdectl wait`.
#[derive(Args, Clone, Debug)]
pub struct Wait {
    /// Wait until its links have carrier, too
    #[arg(long)]
    pub link_up: bool,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub timeout: Duration,

    /// The session: a name, LAB/NODE, or the id of a vdens process
    #[arg(value_name = "NAME", add = targets())]
    pub name: String,
}
