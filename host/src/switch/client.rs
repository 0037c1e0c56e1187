//! A running switch, as its faces ask it: the console and `vdectl switch`.

use std::path::PathBuf;

use vdens_plugin_kit::control;
use vdens_switch_control::{
    Answer, Change, Event, General, Mac, Page, PortReport, PortSelection, Request, StationReport,
    StpReport, VlanReport,
};

use crate::error::{Error, ErrorKind, Result};

/// A switch that can be asked.
pub(crate) trait Ask {
    /// Asks it, and waits for the answer.
    ///
    /// # Errors
    /// It has ended, or cannot fulfil the request.
    fn ask(&self, request: &Request) -> Result<Answer>;
}

/// A switch by its socket for requests.
#[derive(Debug)]
pub(crate) struct Socket(pub(crate) PathBuf);

impl Ask for Socket {
    fn ask(&self, request: &Request) -> Result<Answer> {
        let mut answer: Answer = control::ask(&self.0, request)?;
        match answer.error.take() {
            None => Ok(answer),
            Some(failure) => Err(Error {
                errno: failure.errno,
                ..Error::usage(failure.message)
            }),
        }
    }
}

/// An answer without what was asked for.
fn incomplete() -> Error {
    Error::new(ErrorKind::Protocol, "the switch's answer is incomplete")
        .hint("it may be of another version of vdens")
}

/// What the switch is and how it is set.
///
/// # Errors
/// As for [`Ask::ask`]; so do those below.
pub(crate) fn general(switch: &dyn Ask) -> Result<General> {
    switch.ask(&Request::Show)?.switch.ok_or_else(incomplete)
}

/// All ports of the selection.
pub(crate) fn ports(switch: &dyn Ask, selection: PortSelection) -> Result<Vec<PortReport>> {
    all(0, |from| {
        switch
            .ask(&Request::Ports { from, selection })?
            .ports
            .ok_or_else(incomplete)
    })
}

/// All VLANs.
pub(crate) fn vlans(switch: &dyn Ask) -> Result<Vec<VlanReport>> {
    all(0, |from| {
        switch
            .ask(&Request::Vlans { from })?
            .vlans
            .ok_or_else(incomplete)
    })
}

/// All stations, or only those of an address or VLAN.
pub(crate) fn stations(
    switch: &dyn Ask,
    mac: Option<Mac>,
    vlan: Option<u16>,
) -> Result<Vec<StationReport>> {
    all((0, Mac::default()), |from| {
        let request = Request::Stations { from, mac, vlan };
        switch.ask(&request)?.stations.ok_or_else(incomplete)
    })
}

/// The spanning tree.
pub(crate) fn tree(switch: &dyn Ask) -> Result<StpReport> {
    let part = |from| {
        let answer = switch.ask(&Request::Stp { from })?;
        answer.stp.ok_or_else(incomplete)
    };
    let mut tree = part(0)?;
    while let Some(from) = tree.from {
        let more = part(from)?;
        tree.from = more.from.filter(|next| *next > from);
        tree.ports.extend(more.ports);
    }
    Ok(tree)
}

/// What has happened since event `from`, and the number of the next event.
pub(crate) fn events(switch: &dyn Ask, mut from: u64) -> Result<(Vec<Event>, u64)> {
    let mut events = Vec::new();
    loop {
        let page = switch
            .ask(&Request::Events { from })?
            .events
            .ok_or_else(incomplete)?;
        let next = page.from.ok_or_else(incomplete)?;
        if page.items.is_empty() || next <= from {
            return Ok((events, next));
        }
        events.extend(page.items);
        from = next;
    }
}

/// Makes changes, all or none. Returns the number of a port that was made.
pub(crate) fn change(switch: &dyn Ask, changes: Vec<Change>) -> Result<Option<u32>> {
    Ok(switch.ask(&Request::Change(changes))?.created)
}

/// All elements of a list that comes in parts.
fn all<T, K: Copy + PartialOrd>(
    mut from: K,
    mut part: impl FnMut(K) -> Result<Page<T, K>>,
) -> Result<Vec<T>> {
    let mut items = Vec::new();
    loop {
        let page = part(from)?;
        items.extend(page.items);
        match page.from {
            Some(next) if next > from => from = next,
            _ => return Ok(items),
        }
    }
}
