//! A network namespace made by root, standing in for the host's network.

use crate::{Cmd, Lab, User};

/// A named network namespace. Dropping it deletes it.
#[derive(Debug)]
pub struct Netns<'lab> {
    lab: &'lab Lab,
    name: String,
}

impl<'lab> Netns<'lab> {
    pub(crate) fn new(lab: &'lab Lab, suffix: &str) -> Self {
        let name = format!("{}{suffix}", lab.id());
        lab.command("ip", ["netns", "add", &name])
            .by(User::root())
            .ok();
        Self { lab, name }
    }

    /// Its name, as `ip netns` knows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A shell script that root runs in the namespace.
    pub fn sh(&self, script: &str) -> Cmd<'lab> {
        self.lab
            .command("sh", ["-ec", script])
            .by(User::root())
            .inside(self)
    }
}

impl Drop for Netns<'_> {
    fn drop(&mut self) {
        // A failure shows up as the lab's leak.
        let _ = self
            .lab
            .command("ip", ["netns", "del", &self.name])
            .by(User::root())
            .run();
    }
}
