//! The panel: where the kernel itself forwards frames between one user's sessions.
//!
//! # Namespaces
//!
//! An unprivileged user may own virtual Ethernet pairs between network namespaces if these belong
//! to children of one user namespace of its own. So each user has a user namespace H. In it is a
//! network namespace, the panel. A session on the panel is a *member*: its user namespace is made
//! by entering H first. Its interface `vde0` is one end of a virtual Ethernet pair. The other end
//! is on the panel: the member's *port*. A port is in one of three states:
//!
//! - on a bridge together with its peer's port, so that the kernel forwards the frames;
//! - on a bridge with a tap, through which a worker moves the frames;
//! - down, which the member sees as NO-CARRIER.
//!
//! The port of a virtual machine is a tap, which its monitor holds ([`Panel::add_tap`]).
//!
//! A port exists as long as its interface. The command may rename the interface or move it to
//! another namespace. If the command deletes it, the kernel deletes the port, too.
//!
//! # Processes
//!
//! There is no daemon. H and the panel exist as long as any process holds their two descriptors.
//! The `registry` says where the next process can take them over. Two kinds of process hold the
//! panel: supervisors, and a `service` beside a process that has loaded plugins. They execute
//! orders ([`Order`]), which workers and plugins send through a [`PanelClient`]. What an order
//! means is in `plumbing`.
//!
//! Some bridges on the panel know VLANs: they filter them, or their ports drop frames of VLANs
//! (`untagged`).
//!
//! A holder configures the panel through one netlink socket. A short-lived child opens the socket,
//! because opening it requires entering the panel, which a process cannot leave. Orders that make
//! or delete bridges are executed under the registry's lock.
//!
//! # Trust
//!
//! The descriptors that are taken over are checked ([`namespaces`]): H must be owned by this user
//! and be a child of this very user namespace. No member can make such a namespace.

mod client;
mod namespaces;
mod plumbing;
mod port;
mod registry;
mod service;
mod untagged;

use std::cell::{Cell, OnceCell, RefCell};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::sched::CloneFlags;
use vdens_plugin_kit::tap::{MAX_INTERFACE_NAME, Tap};

pub(crate) use client::{Executed, PanelClient, no_successor};
pub(crate) use namespaces::{enter, make, open_namespace};
pub(crate) use plumbing::{interface_of, new_place, port_index};
pub(crate) use port::PanelPort;
pub(crate) use service::Service;
pub(crate) use untagged::drop_tagged;

use crate::error::{Error, Result};
use crate::ipc::{BridgeVlans, Channel, Order, Reply, Request, in_child};
use crate::sys::interface::Traffic;
use crate::sys::netlink::{Batch, Netlink};
use crate::sys::signals;
use crate::sys::user_namespace::Ids;
use namespaces::{inode, lost_descriptors, take_over};
use plumbing::Lock;
use registry::{Registration, Registry};

/// The user's panel. It exists at least as long as this value.
#[derive(Debug)]
pub(crate) struct Panel {
    user: OwnedFd,
    net: OwnedFd,
    id: u64,
    /// Opened when it is first needed.
    netlink: OnceCell<Netlink>,
    /// The ports that this process has made, by their places.
    ports: RefCell<Vec<String>>,
    /// Of each pair that this process has made, one port.
    pairs: RefCell<Vec<String>>,
    /// Whether this process has made something whose end may leave a bridge without ports: a
    /// learning bridge or a pair.
    leaves_bridges: Cell<bool>,
    /// Whether the panel is known to have the rule of [`drop_tagged`].
    drops_tagged: Cell<bool>,
    /// `None` if no other process is to find the panel.
    registration: Option<Registration>,
}

impl Panel {
    /// Takes the panel over from another holder, or makes it.
    ///
    /// # Errors
    /// The kernel or a limit does not allow it, another process holds the registry's lock for too
    /// long, or a signal that should end this process came while waiting for the lock.
    pub(crate) fn acquire() -> Result<Self> {
        let registry = Registry::lock_unless(signals::end_is_pending)?;
        let taken = registry
            .holders()
            .find_map(|holder| match take_over(&holder) {
                Ok(pair) => Some(pair),
                Err(error) => {
                    log::debug!("panel: process {}: {error}", holder.pid);
                    None
                }
            });
        let (user, net, netlink) = match taken {
            Some((user, net)) => (user, net, OnceCell::new()),
            None => {
                make(Ids::Own).map(|(user, net, netlink)| (user, net, OnceCell::from(netlink)))?
            }
        };
        let id = inode(&net)?;
        let registration = registry.register(user.as_raw_fd(), net.as_raw_fd())?;
        log::debug!("panel {id}");
        Ok(Self {
            user,
            net,
            id,
            netlink,
            ports: RefCell::default(),
            pairs: RefCell::default(),
            leaves_bridges: Cell::default(),
            drops_tagged: Cell::default(),
            registration: Some(registration),
        })
    }

    /// Makes a panel that no other process finds, with the user's subordinate ids in its user
    /// namespace. The user's own panel has none, and a member can have no others than the panel.
    ///
    /// # Errors
    /// The kernel, a limit or newuidmap(1) does not allow it.
    pub(crate) fn with_subordinate_ids() -> Result<Self> {
        let (user, net, netlink) = make(Ids::Subordinate)?;
        Ok(Self {
            id: inode(&net)?,
            user,
            net,
            netlink: OnceCell::from(netlink),
            ports: RefCell::default(),
            pairs: RefCell::default(),
            leaves_bridges: Cell::default(),
            drops_tagged: Cell::default(),
            registration: None,
        })
    }

    /// The panel's identity: the inode number of its network namespace, which no other namespace
    /// has while the panel exists.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Whether members can have the user's subordinate ids.
    pub(crate) fn has_subordinate_ids(&self) -> bool {
        self.registration.is_none()
    }

    /// The user namespace that members are children of.
    pub(crate) fn user_namespace(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// Executes an order and returns the tap or the watch that the order hands over, if any.
    /// `namespace` is the member's network namespace, for an order that makes a port. The calling
    /// process must not have loaded a plugin, because this may fork.
    ///
    /// # Errors
    /// The kernel refuses, or another process holds the registry's lock for too long.
    pub(crate) fn execute(
        &self,
        order: &Order,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Option<OwnedFd>> {
        let lock = match plumbing::lock_for(order) {
            Lock::Unneeded => None,
            // When many sessions end together, each has a signal pending and does not wait.
            Lock::Useful => Registry::lock_unless(signals::is_pending).ok(),
            Lock::Needed => Some(Registry::lock()?),
        };
        let namespace = match order {
            Order::AddTap { port, .. } => {
                self.ports.borrow_mut().push(port.clone());
                namespace
            }
            Order::AddPort { port, .. } => {
                self.ports.borrow_mut().push(port.clone());
                namespace
            }
            Order::AddPair { port, .. } => {
                self.leaves_bridges.set(true);
                self.pairs.borrow_mut().push(port.clone());
                Some(self.net.as_fd())
            }
            Order::Bridge { vlans, .. } => {
                self.leaves_bridges.set(true);
                self.prepare_for(*vlans)?;
                namespace
            }
            _ => namespace,
        };
        let open_tap =
            |name: &str, header| self.on_panel(|| Tap::open_with(name, header).map(Into::into));
        plumbing::execute(order, self.netlink()?, open_tap, namespace, lock.is_some())
    }

    /// Makes the panel ready for a bridge that does this with VLANs.
    fn prepare_for(&self, vlans: BridgeVlans) -> Result<()> {
        if vlans == BridgeVlans::Ignored || self.drops_tagged.get() {
            return Ok(());
        }
        match self.inside(|| drop_tagged().map(|()| Vec::new())) {
            Ok(_) => self.drops_tagged.set(true),
            // Without the rule, a port of such a bridge also takes tags that name its own VLAN.
            Err(error) if vlans == BridgeVlans::Filtered => log::debug!("panel: {error}"),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Makes a port that is a tap, for a virtual machine. Returns the tap and a watch over the
    /// panel. The port exists as long as the tap is open, and is unplugged.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn add_tap(&self, port: &str) -> Result<(OwnedFd, OwnedFd)> {
        let order = Order::AddTap {
            port: port.to_owned(),
            has_header: true,
        };
        let tap = self.execute(&order, None)?.ok_or_else(lost_descriptors)?;
        let netlink = self.netlink()?;
        let watch = netlink.as_fd().try_clone_to_owned();
        let watch = watch.map_err(|error| Error::io("watch the panel", &error))?;
        Ok((tap, watch))
    }

    /// The counters of a machine's port, from the machine's point of view. `None` if it is gone.
    pub(crate) fn machine_traffic(&self, port: &str) -> Option<Traffic> {
        let interfaces = self.netlink().and_then(Netlink::interfaces).ok()?;
        let port = interface_of(port);
        let found = interfaces.into_iter().find(|found| found.name == port)?;
        Some(found.traffic.at_the_other_end())
    }

    /// Makes interfaces in namespaces below the panel's user namespace.
    ///
    /// # Errors
    /// As for [`Netlink::perform`].
    pub(crate) fn perform(&self, batch: Batch) -> Result<()> {
        self.netlink()?.perform(batch)
    }

    /// Has a child enter a network namespace below the panel's user namespace, and open descriptors
    /// there.
    ///
    /// # Errors
    /// The network namespace belongs to others, or what `open` reports.
    pub(crate) fn in_network(
        &self,
        network: BorrowedFd<'_>,
        open: impl FnMut() -> Result<Vec<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>> {
        self.in_networks(&[network], open)
    }

    /// The same in several networks, one after the other.
    ///
    /// # Errors
    /// As for [`Panel::in_network`].
    pub(crate) fn in_networks(
        &self,
        networks: &[BorrowedFd<'_>],
        mut open: impl FnMut() -> Result<Vec<OwnedFd>>,
    ) -> Result<Vec<OwnedFd>> {
        in_child(|| {
            enter(self.user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            let mut fds = Vec::new();
            for network in networks {
                enter(*network, CloneFlags::CLONE_NEWNET)?;
                fds.extend(open()?);
            }
            Ok(fds)
        })
    }

    /// Makes a network namespace that belongs to the panel's user namespace. Returns it, and a
    /// connection to its configuration. It exists as long as one of them.
    ///
    /// # Errors
    /// The kernel or a limit does not allow it.
    pub(crate) fn make_network(&self) -> Result<(OwnedFd, Netlink)> {
        let mut fds = in_child(|| {
            enter(self.user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            namespaces::unshare_network()?;
            Ok(vec![
                open_namespace("/proc/self/ns/net")?,
                Netlink::open()?.into(),
            ])
        })?;
        match (fds.pop(), fds.pop()) {
            (Some(netlink), Some(net)) => Ok((net, netlink.into())),
            _ => Err(lost_descriptors()),
        }
    }

    fn netlink(&self) -> Result<&Netlink> {
        if let Some(netlink) = self.netlink.get() {
            return Ok(netlink);
        }
        let netlink = self.on_panel(|| Netlink::open().map(Into::into))?;
        Ok(self.netlink.get_or_init(|| netlink.into()))
    }

    /// Has a child enter the panel and open a descriptor there. The descriptor acts on the panel,
    /// whichever process uses it.
    fn on_panel(&self, open: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
        let mut fds = self.inside(|| open().map(|fd| vec![fd]))?;
        fds.pop().ok_or_else(lost_descriptors)
    }

    /// Has a child enter the panel and do something there.
    fn inside(&self, work: impl FnOnce() -> Result<Vec<OwnedFd>>) -> Result<Vec<OwnedFd>> {
        in_child(|| {
            enter(self.user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            enter(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            work()
        })
    }
}

impl Drop for Panel {
    /// Sets this process's ports down, so that an ended session's interface has no carrier and no
    /// longer answers for its address. Its namespace may live on: the kernel removes namespaces
    /// later, and a background process of the command keeps its namespace alive. Deletes its pairs,
    /// which are in no session's namespace, and the bridges that have no ports then.
    fn drop(&mut self) {
        let Some(netlink) = self.netlink.get() else {
            return;
        };
        for port in self.ports.get_mut() {
            if let Err(error) = netlink.set_down(&interface_of(port)) {
                log::debug!("panel: {error}");
            }
        }
        for port in self.pairs.get_mut() {
            if let Err(error) = netlink.delete(&interface_of(port)) {
                log::debug!("panel: {error}");
            }
        }
        if self.leaves_bridges.get()
            && let Err(error) = Registry::lock().and_then(|_lock| plumbing::sweep(netlink))
        {
            log::debug!("panel: {error}");
        }
    }
}

/// Executes an order for the process at the other end of `channel` and sends the reply.
///
/// # Errors
/// The reply cannot be sent.
pub(crate) fn answer(
    panel: Result<&Panel>,
    channel: &Channel<Reply, Request>,
    order: &Order,
) -> Result<()> {
    let executed = panel.and_then(|panel| Ok((panel.id(), panel.execute(order, None)?)));
    match executed {
        Ok((panel, tap)) => {
            let fds: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
            channel.send(&Reply::Executed { panel }, &fds)
        }
        Err(error) => channel.send(&Reply::Failed(error), &[]),
    }
}

/// Checks that `place`, which a peer has sent, can be the name of a place on the panel.
///
/// # Errors
/// It cannot.
pub(crate) fn check_place(place: &str) -> Result<()> {
    let fits = (1..MAX_INTERFACE_NAME).contains(&place.len());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    match fits && place.chars().all(allowed) {
        true => Ok(()),
        false => Err(Error::usage(format!(
            "'{place}' is not a place on the panel"
        ))),
    }
}
