//! The guest's memory, as the front end shares it.
//!
//! The front end sends the files that hold it, and where each part is for the guest and for itself.
//! It names rings by its own addresses and the guest names buffers by its own. Both come from
//! outside: each access is checked against the parts that are mapped (`vm-memory`).

use std::fs::File;
use std::os::fd::OwnedFd;

use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use crate::protocol::Region;

/// The guest's memory.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) guest: GuestMemoryMmap,
    /// The regions, for what the front end names.
    regions: Vec<Region>,
}

impl Memory {
    /// Maps the regions, each with its file.
    ///
    /// # Errors
    /// A region does not fit into its file or overlaps another, or cannot be mapped.
    pub(crate) fn map(mut regions: Vec<Region>, files: Vec<OwnedFd>) -> Result<Self, String> {
        if regions.len() != files.len() {
            return Err(format!(
                "{} files came for {} regions of memory",
                files.len(),
                regions.len()
            ));
        }
        let mut mapped = regions
            .iter()
            .zip(files)
            .map(|(region, file)| map(region, file))
            .collect::<Result<Vec<_>, _>>()?;
        mapped.sort_by_key(|(guest, _)| *guest);
        regions.sort_by_key(|region| region.guest);
        let mapped = mapped.into_iter().map(|(_, region)| region).collect();
        let guest = GuestMemoryMmap::from_regions(mapped)
            .map_err(|error| format!("the guest's memory cannot be used: {error}"))?;
        Ok(Self { guest, regions })
    }

    /// The guest's address for an address of the front end.
    pub(crate) fn of_front_end(&self, address: u64) -> Option<GuestAddress> {
        self.regions.iter().find_map(|region| {
            let offset = address.checked_sub(region.front_end)?;
            (offset < region.length).then(|| GuestAddress(region.guest + offset))
        })
    }
}

fn map(region: &Region, file: OwnedFd) -> Result<(u64, GuestRegionMmap), String> {
    let cannot = |why: &str| format!("a region of the guest's memory cannot be mapped: {why}");
    let length = usize::try_from(region.length).map_err(|_| cannot("it is too long"))?;
    if length == 0 {
        return Err(cannot("it has no length"));
    }
    // What is mapped behind the end of a file cannot be accessed: the kernel sends SIGBUS.
    let file = File::from(file);
    let there = file
        .metadata()
        .map_err(|error| cannot(&error.to_string()))?;
    let end = region.offset.checked_add(region.length);
    if end.is_none_or(|end| end > there.len()) {
        return Err(cannot("its file is too short"));
    }
    let file = FileOffset::new(file, region.offset);
    let mapping = MmapRegion::from_file(file, length).map_err(|e| cannot(&e.to_string()))?;
    let mapped = GuestRegionMmap::new(mapping, GuestAddress(region.guest));
    let mapped = mapped.ok_or_else(|| cannot("its address is too high"))?;
    Ok((region.guest, mapped))
}
