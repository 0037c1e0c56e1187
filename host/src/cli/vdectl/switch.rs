//! The command line of `vdectl switch`.

use clap::{Subcommand, ValueEnum};

use crate::cli::complete::candidates::{running_switches, switch_words};

/// What `vdectl switch` does.
#[derive(Clone, Debug, Subcommand)]
pub enum SwitchTask {
    /// Show switches: what they are, or more of one of them
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,

        /// The switch: its directory, its process, or its session; without it, all of yours
        #[arg(add = running_switches())]
        switch: Option<String>,

        /// What of it
        #[arg(value_enum)]
        what: Option<Part>,
    },

    /// Change a switch while it runs: all that is said, or nothing
    #[command(
        after_help = "Words: hub on, stp on, priority N, ports N, expiry SECONDS, storm RATE, flush, reset, and \
        of a part of it: vlan N create | remove | offer [mode MODE] | withdraw; port N untagged VLAN, tagged VLAN, \
        not-tagged VLAN, user NAME, group NAME, lock MAC, mirror N, storm RATE, edge on, cost N, allocatable on, \
        create, remove, disconnect, reset; station MAC [vlan N] port N | remove."
    )]
    Set {
        /// The switch: its directory, its process, or its session
        #[arg(add = running_switches())]
        switch: String,

        /// What is to change, for example vlan 10 create port 3 untagged 10
        #[arg(required = true, value_name = "WORD", add = switch_words())]
        words: Vec<String>,
    },
}

/// What of a switch is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Its ports, with settings and counters
    Ports,
    /// Its VLANs, with their ports
    Vlans,
    /// The stations that it knows
    Stations,
    /// Its spanning tree
    Stp,
    /// What has happened lately
    Events,
}
