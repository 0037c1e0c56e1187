//! A front end and its guest in this process, for tests and for the fuzzer: memory with rings in
//! it, and the requests that hand both to a device.
//!
//! Ring N is at 4096 × (N + 1): its descriptors, its available ring and its used ring, 1024 bytes
//! each. For the front end, all addresses are higher by [`FRONT_END`].

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::device::Device;
use crate::protocol::{Event, Region, Request, RingAddress};
use crate::wakeups::Wakeups;

/// Bytes of the guest's memory.
pub(crate) const LENGTH: u64 = 0x40000;

/// Where the guest's memory begins for the front end.
pub(crate) const FRONT_END: u64 = 0x7f00_0000_0000;

/// Descriptors of a ring, unless the ring is set up otherwise.
pub(crate) const SIZE: u16 = 32;

/// The guest.
#[derive(Debug)]
pub(crate) struct Guest {
    file: OwnedFd,
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) kick: EventFd,
    pub(crate) call: EventFd,
}

/// Something that this process lacks.
fn lack(error: impl std::fmt::Display) -> String {
    format!("there is no guest: {error}")
}

impl Guest {
    pub(crate) fn new() -> Result<Self, String> {
        let file = memfd_create("guest", MFdFlags::MFD_CLOEXEC).map_err(lack)?;
        ftruncate(&file, LENGTH as i64).map_err(lack)?;
        let offset = FileOffset::new(File::from(copy(&file).map_err(lack)?), 0);
        let range = (GuestAddress(0), LENGTH as usize, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).map_err(lack)?;
        let event = || EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        Ok(Self {
            file,
            memory,
            kick: event().map_err(lack)?,
            call: event().map_err(lack)?,
        })
    }

    /// The file that is the memory.
    pub(crate) fn file(&self) -> Result<OwnedFd, String> {
        copy(&self.file).map_err(lack)
    }

    /// Hands memory and `rings` rings to a device, which agrees on `features`.
    pub(crate) fn plug(
        &self,
        device: &mut Device,
        wakeups: &Arc<Wakeups>,
        features: u64,
        rings: u32,
    ) -> Result<(), String> {
        let region = Region {
            guest: 0,
            length: LENGTH,
            front_end: FRONT_END,
            offset: 0,
        };
        let mut ask = |request, fds| device.handle(request, fds, wakeups).map(drop);
        ask(Request::SetFeatures(features), Vec::new())?;
        ask(Request::SetMemory(vec![region]), vec![self.file()?])?;
        for ring in 0..rings {
            let size = SIZE.into();
            ask(Request::SetSize { ring, size }, Vec::new())?;
            ask(Request::SetBase { ring, base: 0 }, Vec::new())?;
            let address = place(ring);
            ask(Request::SetAddress { ring, address }, Vec::new())?;
            for (event, fd) in [(Event::Call, &self.call), (Event::Kick, &self.kick)] {
                let request = Request::SetEvent {
                    ring,
                    event,
                    has_fd: true,
                };
                ask(request, vec![copy(fd).map_err(lack)?])?;
            }
            let is_enabled = true;
            ask(Request::Enable { ring, is_enabled }, Vec::new())?;
        }
        Ok(())
    }

    /// Writes a descriptor of a ring.
    pub(crate) fn describe(&self, ring: u32, index: u16, descriptor: Descriptor) {
        self.describe_at(base(ring) + 16 * u64::from(index), descriptor);
    }

    /// Writes a descriptor at an address.
    pub(crate) fn describe_at(&self, at: u64, descriptor: Descriptor) {
        let Descriptor(address, length, flags, next) = descriptor;
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &length.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that begins with descriptor `head` available.
    pub(crate) fn offer(&self, ring: u32, head: u16) {
        let available = base(ring) + 0x400;
        let index = self.read16(available + 2);
        let at = available + 4 + 2 * u64::from(index % SIZE);
        self.write(at, &head.to_le_bytes());
        self.write(available + 2, &index.wrapping_add(1).to_le_bytes());
    }

    /// How many chains of a ring were used.
    #[cfg(test)]
    pub(crate) fn used(&self, ring: u32) -> u16 {
        self.read16(base(ring) + 0x802)
    }

    /// What can be written or not: what is outside of the memory is left out.
    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(at));
    }

    fn read16(&self, at: u64) -> u16 {
        self.memory
            .read_obj(GuestAddress(at))
            .map_or(0, u16::from_le)
    }
}

/// A descriptor: address, length, flags, next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Descriptor(
    pub(crate) u64,
    pub(crate) u32,
    pub(crate) u16,
    pub(crate) u16,
);

/// Where a ring begins.
pub(crate) fn base(ring: u32) -> u64 {
    0x1000 * (u64::from(ring) + 1)
}

/// Where a ring is for the front end.
pub(crate) fn place(ring: u32) -> RingAddress {
    let at = FRONT_END + base(ring);
    RingAddress {
        descriptors: at,
        available: at + 0x400,
        used: at + 0x800,
    }
}

pub(crate) fn copy(fd: impl AsFd) -> io::Result<OwnedFd> {
    fd.as_fd().try_clone_to_owned()
}
