//! The command line of `vdectl capture`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;

use crate::cli::complete::candidates::{labs, links};

/// The longest part of a frame that can be kept: that of tcpdump.
const SNAPLEN: u32 = 262_144;

/// What `vdectl capture` does.
#[derive(Clone, Debug, Args)]
pub struct CaptureOptions {
    /// What to capture on: an interface such as r1:eth0, or all interfaces of r1
    #[arg(required_unless_present = "lab", value_name = "LINK", add = links())]
    pub links: Vec<String>,

    /// Capture on all links of this lab, too
    #[arg(long, value_name = "NAME", add = labs())]
    pub lab: Option<String>,

    /// Write to this file, or - for standard output, which is the default
    #[arg(short, long, value_name = "FILE")]
    pub write: Option<PathBuf>,

    /// Keep this many bytes of each frame
    #[arg(long, value_name = "BYTES", default_value_t = SNAPLEN,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(SNAPLEN)))]
    pub snaplen: u32,

    /// Capture only what this filter lets pass (man 7 pcap-filter)
    #[arg(long, value_name = "FILTER|@FILE")]
    pub filter: Option<String>,

    /// Begin a new file after this size, such as 100M
    #[arg(long, value_name = "SIZE", value_parser = super::super::values::size)]
    pub ring: Option<u64>,

    /// Keep only this many files of the ring, the newest
    #[arg(long, value_name = "N", requires = "ring")]
    pub files: Option<NonZeroUsize>,
}
