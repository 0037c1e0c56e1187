//! `vdectl lab`: each subcommand is a short-lived process, which finds the running labs through
//! their status, and talks to a lab's supervisor where it changes something.

pub mod change;
pub mod events;
pub mod exec;
mod find;
mod join;
pub mod status;
pub mod test;
pub mod verdict;
