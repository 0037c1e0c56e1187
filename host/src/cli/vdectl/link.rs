//! The command line of `vdectl link`.

use clap::Subcommand;

use crate::cli::complete::candidates::{keys, links};

/// What `vdectl link` does.
#[derive(Clone, Debug, Subcommand)]
pub enum LinkTask {
    /// Show what is set, and what became of the frames
    Show {
        /// Print JSON
        #[arg(long)]
        json: bool,

        /// The link, for example r1:vde0; without it, all that can be changed
        #[arg(add = links())]
        link: Option<String>,
    },

    /// Change impairments while the link runs; what is not named stays
    Set {
        /// Drop the impairments that are not named
        #[arg(long)]
        replace: bool,

        /// The link, for example r1:vde0
        #[arg(add = links())]
        link: String,

        /// Keys of netem:// such as delay=50ms or tx.loss=1%; loss= removes one
        #[arg(required_unless_present = "replace", value_name = "KEY=VALUE", add = keys())]
        keys: Vec<String>,
    },

    /// Take the carrier of links away, as if the cable were pulled
    Down {
        /// The links
        #[arg(required = true, value_name = "LINK", add = links())]
        links: Vec<String>,
    },

    /// Give it back
    Up {
        /// The links
        #[arg(required = true, value_name = "LINK", add = links())]
        links: Vec<String>,
    },
}
