//! The command line of `vdectl lab`.

use std::path::PathBuf;

use clap::Subcommand;

/// What `vdectl lab` does.
#[derive(Clone, Debug, Subcommand)]
pub enum LabTask {
    /// Check a lab file, and make nothing
    Validate {
        /// Print JSON, with the lab in full
        #[arg(long)]
        json: bool,

        /// The lab file
        file: PathBuf,
    },

    /// Print the JSON Schema of lab files, for editors
    Schema,
}
