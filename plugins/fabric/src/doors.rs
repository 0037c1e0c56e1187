//! The sockets in the directory through which clients come: `ctl`, and one for each VLAN that is
//! offered. Who may use one of them is up to its permission bits.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use nix::sys::epoll::{Epoll, EpollFlags};
use vdens_plugin_kit::{Error, Result, log};

use crate::directory::{Directory, DirectorySocket};
use crate::settings::Settings;
use crate::switch::Source;

#[derive(Debug)]
struct Door {
    listener: UnixListener,
    entry: DirectorySocket,
}

/// The sockets by VLAN; that of 0 is `ctl`.
#[derive(Debug)]
pub(crate) struct Doors(BTreeMap<u16, Door>);

impl Doors {
    /// Makes the sockets.
    pub(crate) fn open(
        directory: &Arc<Directory>,
        epoll: &Epoll,
        settings: &Settings,
    ) -> Result<Self> {
        let control = make(directory, epoll, 0, None)?;
        let mut doors = Self([(0, control)].into());
        let offered = settings.vlans.iter();
        for (vlan, access) in offered.filter_map(|(vlan, access)| Some((vlan, access.as_ref()?))) {
            let door = make(directory, epoll, *vlan, access.mode)?;
            doors.0.insert(*vlan, door);
        }
        Ok(doors)
    }

    /// Makes, changes and removes sockets for the settings `after`. If it fails, all that there
    /// were are still there.
    pub(crate) fn change(
        &mut self,
        directory: &Arc<Directory>,
        epoll: &Epoll,
        after: &Settings,
    ) -> Result<()> {
        let mut made = Vec::new();
        for (vlan, access) in &after.vlans {
            let Some(access) = access else {
                continue;
            };
            match self.0.get(vlan) {
                None => made.push((*vlan, make(directory, epoll, *vlan, access.mode)?)),
                Some(door) => {
                    let mode = access.mode.unwrap_or(directory.mode());
                    let path = door.entry.path();
                    fs::set_permissions(path, Permissions::from_mode(mode))
                        .map_err(|error| Error::path("set the mode of", path, &error))?;
                }
            }
        }
        self.0.extend(made);
        let is_offered = |vlan: &u16| after.vlans.get(vlan).is_some_and(Option::is_some);
        self.0.retain(|vlan, _| *vlan == 0 || is_offered(vlan));
        Ok(())
    }

    pub(crate) fn listener(&self, vlan: u16) -> Option<&UnixListener> {
        self.0.get(&vlan).map(|door| &door.listener)
    }

    /// Whether clients are accepted.
    pub(crate) fn watch(&self, epoll: &Epoll, is_wanted: bool) {
        let flags = match is_wanted {
            true => EpollFlags::EPOLLIN,
            false => EpollFlags::empty(),
        };
        for (vlan, door) in &self.0 {
            let mut event = Source::Listener(*vlan).event(flags);
            if let Err(errno) = epoll.modify(&door.listener, &mut event) {
                log::error!("cannot watch a control socket: {}", errno.desc());
            }
        }
    }
}

fn make(directory: &Arc<Directory>, epoll: &Epoll, vlan: u16, mode: Option<u32>) -> Result<Door> {
    let (listener, entry) = directory.listen(vlan, mode)?;
    let event = Source::Listener(vlan).event(EpollFlags::EPOLLIN);
    let watched = epoll.add(&listener, event);
    watched.map_err(|errno| Error::io("watch a control socket", &errno.into()))?;
    Ok(Door { listener, entry })
}
