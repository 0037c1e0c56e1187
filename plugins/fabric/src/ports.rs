//! The ports that clients have.

use crate::memory::Memory;
use crate::port::{Port, PortId};

/// The ports that clients have, by id. The local port and the bridge have ids of their own.
#[derive(Debug, Default)]
pub(crate) struct Ports(Vec<Option<Port>>);

impl Ports {
    /// Adds a port.
    pub(crate) fn insert(&mut self, port: Port) -> PortId {
        let is_free = |(index, slot): &(usize, &mut Option<Port>)| *index > 0 && slot.is_none();
        if self.0.is_empty() {
            self.0.push(None);
        }
        let index = match self.0.iter_mut().enumerate().find(is_free) {
            Some((index, slot)) => {
                *slot = Some(port);
                index
            }
            None => {
                self.0.push(Some(port));
                self.0.len() - 1
            }
        };
        PortId(index as u32)
    }

    pub(crate) fn get(&self, id: PortId) -> Option<&Port> {
        self.0.get(id.0 as usize)?.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: PortId) -> Option<&mut Port> {
        self.0.get_mut(id.0 as usize)?.as_mut()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PortId, &mut Port)> {
        let ports = self.0.iter_mut().enumerate();
        ports.filter_map(|(index, slot)| Some((PortId(index as u32), slot.as_mut()?)))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PortId, &Port)> {
        let ports = self.0.iter().enumerate();
        ports.filter_map(|(index, slot)| Some((PortId(index as u32), slot.as_ref()?)))
    }

    /// Removes the ports that are closing; their queues give `memory` back.
    pub(crate) fn take_closing(
        &mut self,
        memory: &mut Memory,
    ) -> impl Iterator<Item = (PortId, Port)> {
        let ports = self.0.iter_mut().enumerate();
        ports.filter_map(|(index, slot)| {
            let mut port = slot.take_if(|port| port.closing.is_some())?;
            port.cut(0, memory);
            Some((PortId(index as u32), port))
        })
    }

    /// How many ports a user's clients have.
    pub(crate) fn of_user(&self, user: u32) -> usize {
        let ports = self.0.iter().flatten();
        ports.filter(|port| port.queue.user() == user).count()
    }

    /// Cuts the queues that have more than their share of the memory. They keep half of their
    /// share, so that they are not cut again for each frame.
    pub(crate) fn cut(&mut self, memory: &mut Memory) {
        for port in self.0.iter_mut().flatten() {
            let share = memory.share(port.queue.user());
            if port.queue.held() > share {
                port.cut(share / 2, memory);
            }
        }
    }

    /// Whether a client has the port number.
    pub(crate) fn has_number(&self, number: u32) -> bool {
        self.0.iter().flatten().any(|port| port.number == number)
    }

    /// The port of this number.
    pub(crate) fn of_number(&mut self, number: u32) -> Option<(PortId, &mut Port)> {
        self.iter_mut().find(|(_, port)| port.number == number)
    }
}
