//! The command line of `vdectl`.

mod capture;
pub mod lab;
mod link;
mod switch;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand};

pub use capture::CaptureOptions;
pub use link::LinkTask;
pub use switch::{Part, SwitchTask};

use self::lab::LabTask;
use super::Common;
use super::complete::candidates::{names, plugins, processes, vnls};
use super::version;
use crate::plugins::scaffold::Language;
use crate::tools::graph::Format;

pub mod sessions;

use sessions::SessionTask;

/// Show what vdens runs, check what it needs, and manage its plugins
#[derive(Clone, Debug, Parser)]
#[command(name = "vdectl", version, long_version = version::long(), disable_help_subcommand = true)]
#[command(arg_required_else_help = false)]
pub struct Vdectl {
    /// What is to be done.
    #[command(subcommand)]
    pub task: Task,

    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
}

/// What `vdectl` does.
#[derive(Clone, Debug, Subcommand)]
pub enum Task {
    /// List your running vdens and vde_plug with their links
    Status {
        /// Print JSON, with everything that is known
        #[arg(long)]
        json: bool,
    },

    #[command(flatten)]
    #[allow(missing_docs)]
    Session(SessionTask),

    /// Check that this machine has what vdens needs, and say how to mend what it lacks
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Draw what is connected with what
    Graph {
        /// Only what is connected with this session, switch or lab
        #[arg(add = names())]
        name: Option<String>,

        /// The form: text, a picture, or the language of a program that draws
        #[arg(long, value_enum, default_value_t)]
        format: Format,

        /// Write to a file
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },

    /// Show what all links move, as it happens
    Top {
        /// Print lines once, for one interval
        #[arg(long)]
        once: bool,

        /// Print JSON once, for one interval
        #[arg(long)]
        json: bool,

        /// Seconds from one sample to the next, 0.1 to 3600
        #[arg(long, value_name = "S", default_value = "1", value_parser = interval)]
        interval: Duration,
    },

    /// Show and change the ports that lead into a network behind nat://
    #[command(arg_required_else_help = false)]
    Forward {
        /// The process whose network is meant, if there are several: a vdens or vde_plug
        #[arg(long, global = true, value_name = "PID", add = processes())]
        of: Option<u32>,

        /// What is to be done with forwards.
        #[command(subcommand)]
        task: ForwardTask,
    },

    /// Run networks of nodes, links and switches, made from a file
    #[command(arg_required_else_help = false)]
    Lab {
        /// What is to be done with labs.
        #[command(subcommand)]
        task: LabTask,
    },

    /// Change links that run: those of labs, and those through netem://
    #[command(arg_required_else_help = false)]
    Link {
        /// What is to be done with links.
        #[command(subcommand)]
        task: LinkTask,
    },

    /// Show and change switches that run: ports, VLANs, stations, spanning tree
    #[command(arg_required_else_help = false)]
    Switch {
        /// What is to be done with switches.
        #[command(subcommand)]
        task: SwitchTask,
    },

    /// Write the frames of interfaces to a file or a pipe, as pcapng
    Capture(CaptureOptions),

    /// List, check and write plugins
    #[command(arg_required_else_help = false)]
    Plugin {
        /// What is to be done with plugins.
        #[command(subcommand)]
        task: PluginTask,
    },

    /// Print what the last word of a command line may become, for the shell
    #[command(hide = true)]
    Complete {
        /// The words up to the cursor, and the program's name before them
        #[arg(last = true)]
        words: Vec<OsString>,
    },
}

/// What `vdectl forward` does.
#[derive(Clone, Debug, Subcommand)]
pub enum ForwardTask {
    /// List the forwards
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Begin to forward, without touching any connection
    Add {
        /// What to forward, for example tcp=8080:80
        #[arg(required = true, value_name = "FORWARD")]
        forwards: Vec<String>,
    },

    /// Stop to forward; open connections go on
    Remove {
        /// What was added, in the same words
        #[arg(required = true, value_name = "FORWARD")]
        forwards: Vec<String>,
    },
}

/// What `vdectl plugin` does.
#[derive(Clone, Debug, Subcommand)]
pub enum PluginTask {
    /// List the plugins in all directories, and what is wrong with them
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },

    /// Check that a plugin keeps its side of the contract
    Check {
        /// Print JSON, when all checks are done
        #[arg(long)]
        json: bool,

        /// The plugin: a file, or the scheme of an installed one
        #[arg(add = plugins())]
        plugin: PathBuf,

        /// What to open at the two ends of a link; one VNL is opened twice, none leaves links out
        #[arg(value_name = "VNL", add = vnls())]
        vnls: Vec<OsString>,
    },

    /// Write the source of a plugin, to start from
    New {
        /// The new directory, whose name becomes the plugin's scheme
        dir: PathBuf,

        /// The plugin-api to depend on: its directory, or a version
        #[arg(long, value_name = "DIR|VERSION")]
        api: Option<String>,

        /// The language to write it in
        #[arg(
            long,
            default_value = "rust",
            conflicts_with = "api",
            hide_default_value = true
        )]
        language: Language,
    },
}

/// The time between two samples.
fn interval(text: &str) -> Result<Duration, String> {
    let seconds: Option<f64> = text.parse().ok();
    seconds
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "it is no number of seconds from 0.1 to 3600".to_owned())
}
