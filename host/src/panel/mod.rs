//! The panel: where the kernel itself carries frames between one user's namespaces.
//!
//! An unprivileged user may own virtual Ethernet pairs between its namespaces if these are children of
//! one user namespace that it owns. So each user has a user namespace H and in it a network namespace, the
//! panel. A namespace on it, a member, is made by entering H first; its interface `vde0` is one end of a
//! veth whose other end, the member's *port*, is on the panel: plugged into a bridge together with its
//! peer's port, or with a tap that a worker serves, or down, which the member sees as no carrier.
//! The port exists as long as the interface: a command may rename that or move it to another
//! namespace, but when it deletes it the kernel deletes the port, too.
//!
//! There is no daemon. Two descriptors keep H and the panel alive, whoever holds them; the
//! `registry` says where the next comer can take them over, and with the last holder everything is
//! gone. The `plumbing` is done by short-lived children that enter the panel, under the registry's lock, for
//! processes that hold it: a supervisor, or a `service` beside a process that plugins have entered. These give [`Orders`].
//!
//! What is taken over is not believed: both descriptors must be namespaces of the right kind, H owned by this user and a
//! child of this very user namespace, which no member can make. A descriptor of another process is
//! opened only if it is a namespace: opening a FIFO, say, could block for ever.

mod plumbing;
mod port;
mod registry;
mod service;

use std::cell::{OnceCell, RefCell};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;
use vdens_plugin_kit::tap::{MAX_INTERFACE_NAME, Tap};

use plumbing::Lock;
pub use plumbing::{interface_of, new_place, port_index};
pub use port::PanelPort;
use registry::{Holder, Registration, Registry};
pub use service::Service;

use crate::error::{Error, ErrorKind, Result, system};
use crate::ipc::{Channel, Order, Reply, Request, in_child, malformed};
use crate::sys::netlink::Netlink;
use crate::sys::signals;
use crate::sys::user_namespace::unshare_mapped;

/// The ioctls of nsfs (ioctl_nsfs(2)).
mod ioctl {
    const NSIO: u8 = 0xb7;
    nix::ioctl_none!(user_namespace, NSIO, 1);
    nix::ioctl_none!(parent, NSIO, 2);
    nix::ioctl_none!(kind, NSIO, 3);
    nix::ioctl_read_bad!(owner, nix::request_code_none!(NSIO, 4), libc::uid_t);
}

/// The user's panel, held.
#[derive(Debug)]
pub struct Panel {
    user: OwnedFd,
    net: OwnedFd,
    id: u64,
    /// Opened when it is first needed.
    netlink: OnceCell<Netlink>,
    /// The ports that this process has made, by their places.
    ports: RefCell<Vec<String>>,
    _registration: Registration,
}

impl Panel {
    /// Takes the panel over from another holder, or makes it.
    ///
    /// # Errors
    /// The kernel or a limit does not allow it, another process holds the registry's lock for too
    /// long, or a signal that should end this process came while waiting for the lock.
    pub fn acquire() -> Result<Self> {
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
            None => make().map(|(user, net, netlink)| (user, net, OnceCell::from(netlink)))?,
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
            _registration: registration,
        })
    }

    /// Its identity: the number of its network namespace, unique on the machine while it exists.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The user namespace that members are children of.
    pub fn user_namespace(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// Executes an order; `namespace` is the member's network namespace where the order is about one.
    /// Returns the tap or the watch that the order hands over, if any. For processes that no plugin
    /// has entered.
    ///
    /// # Errors
    /// What the plumbing reports.
    pub fn execute(
        &self,
        order: &Order,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<Option<OwnedFd>> {
        let lock = match plumbing::lock_for(order) {
            Lock::Unneeded => None,
            // When many sessions end together a signal has come for this one, too.
            Lock::Useful => Registry::lock_unless(signals::is_pending).ok(),
            Lock::Needed => Some(Registry::lock()?),
        };
        if let Order::AddPort { port, .. } = order {
            self.ports.borrow_mut().push(port.clone());
        }
        let open_tap = |name: &str| self.on_panel(|| Tap::open(name).map(Into::into));
        plumbing::execute(order, self.netlink()?, open_tap, namespace, lock.is_some())
    }

    fn netlink(&self) -> Result<&Netlink> {
        if let Some(netlink) = self.netlink.get() {
            return Ok(netlink);
        }
        let netlink = self.on_panel(|| Netlink::open().map(Into::into))?;
        Ok(self.netlink.get_or_init(|| netlink.into()))
    }

    /// Has a child enter the panel and open something there. Only opening has to be done there:
    /// what is opened acts on the panel, whoever uses it.
    fn on_panel(&self, open: impl FnOnce() -> Result<OwnedFd>) -> Result<OwnedFd> {
        let mut fds = in_child(|| {
            enter(self.user.as_fd(), CloneFlags::CLONE_NEWUSER)?;
            enter(self.net.as_fd(), CloneFlags::CLONE_NEWNET)?;
            open().map(|fd| vec![fd])
        })?;
        fds.pop().ok_or_else(lost_descriptors)
    }
}

impl Drop for Panel {
    /// Sets this process's ports down. A process that the command has left in the background keeps
    /// the member's namespace alive, and the kernel takes its time to remove one that is dead. Until
    /// then its interface must have no carrier, or it would answer for its address.
    fn drop(&mut self) {
        let Some(netlink) = self.netlink.get() else {
            return;
        };
        for port in self.ports.get_mut() {
            if let Err(error) = netlink.set_down(&interface_of(port)) {
                log::debug!("panel: {error}");
            }
        }
    }
}

/// What an executed order results in.
#[derive(Debug)]
pub struct Executed {
    /// The panel's identity.
    pub panel: u64,
    /// The tap that was made, if one was.
    pub tap: Option<OwnedFd>,
}

/// The way to the process that executes orders: a supervisor or a [`Service`].
///
/// A plugin's threads may give orders at the same time. They take turns, from the order to its
/// answer, so that no thread receives another's answer.
#[derive(Clone, Copy, Debug)]
pub struct Orders(&'static Conversation);

/// Leaked: plugins may give orders as long as the process lives.
#[derive(Debug)]
struct Conversation {
    channel: Channel<Request, Reply>,
    /// Locked from an order to its answer.
    turn: Mutex<()>,
    /// How long an answer may take; `None` for as long as there is somebody.
    patience: Option<Duration>,
}

impl Orders {
    /// Orders that go to a supervisor. If that is stopped, by Ctrl-Z, say, they wait.
    pub fn to_supervisor(channel: Channel<Request, Reply>) -> Self {
        Self::over(channel, None)
    }

    fn over(channel: Channel<Request, Reply>, patience: Option<Duration>) -> Self {
        Self(Box::leak(Box::new(Conversation {
            channel,
            turn: Mutex::default(),
            patience,
        })))
    }

    /// Closes the channel; a thread that waits for an answer gets an error.
    fn close(self) {
        self.0.channel.close();
    }

    /// Has an order executed.
    ///
    /// # Errors
    /// What the plumbing reports, or the other process is gone.
    pub fn give(self, order: Order) -> Result<Executed> {
        match self.ask(&Request::Execute(order), &[])? {
            (Reply::Executed { panel }, mut fds) => Ok(Executed {
                panel,
                tap: fds.pop(),
            }),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Has a descriptor held for the worker that takes this one's place, instead of the one held before.
    ///
    /// # Errors
    /// It is no supervisor that the orders go to.
    pub fn store_fd(self, fd: Option<BorrowedFd<'_>>) -> Result<()> {
        match self.0.patience {
            None => match self.ask(&Request::StoreFd, fd.as_slice())? {
                (Reply::Stored, _) => Ok(()),
                (other, _) => Err(unexpected(&other)),
            },
            Some(_) => Err(nobody_keeps()),
        }
    }

    /// Sends a request and waits for the reply, which is not [`Reply::Failed`].
    fn ask(self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(Reply, Vec<OwnedFd>)> {
        let Conversation {
            channel,
            turn,
            patience,
        } = self.0;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(request, fds)?;
        let answer = match *patience {
            None => channel.receive(),
            Some(patience) => channel.receive_within(patience),
        };
        // An answer that came too late would be taken for the next one's.
        let answer = answer.inspect_err(|_| channel.close())?;
        // A malformed answer is one: the next request has its own.
        match answer.well_formed()? {
            Some((Reply::Failed(error), _)) => Err(error),
            Some(reply) => Ok(reply),
            None => Err(Error::closed("there is nobody to carry out orders")),
        }
    }
}

/// The error of who would have a descriptor kept where there is no successor.
pub fn nobody_keeps() -> Error {
    let message = "there is nobody to keep a descriptor for";
    Error::new(ErrorKind::Unsupported, message)
}

/// The error for an answer to another request.
fn unexpected(reply: &Reply) -> Error {
    malformed(format_args!("{reply:?} is no answer to the request"))
}

/// Executes an order for the process at the other end of `channel`, and answers.
///
/// # Errors
/// The answer cannot be sent.
pub fn answer(
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

/// Whether `place` can be a place on the panel: what a peer says is not believed.
///
/// # Errors
/// It cannot.
pub fn check_place(place: &str) -> Result<()> {
    let fits = (1..MAX_INTERFACE_NAME).contains(&place.len());
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    match fits && place.chars().all(allowed) {
        true => Ok(()),
        false => Err(Error::usage(format!("'{place}' is no place on the panel"))),
    }
}

/// Enters a namespace.
///
/// # Errors
/// It is not this user's.
pub fn enter(namespace: BorrowedFd<'_>, kind: CloneFlags) -> Result<()> {
    setns(namespace, kind).map_err(system("enter the panel's namespace"))
}

/// Makes H and the panel: descriptors of a user namespace and a network namespace, which no other
/// process finds until they are registered, and a connection to the panel.
///
/// # Errors
/// The kernel or a limit does not allow it.
pub(crate) fn make() -> Result<(OwnedFd, OwnedFd, Netlink)> {
    let mut fds = in_child(|| {
        unshare_mapped(CloneFlags::CLONE_NEWUSER)?;
        unshare(CloneFlags::CLONE_NEWNET).map_err(system("make a network namespace"))?;
        // Nothing on the panel speaks for itself: without IPv6 an interface there sends nothing.
        for kind in ["all", "default"] {
            let path = format!("/proc/sys/net/ipv6/conf/{kind}/disable_ipv6");
            if let Err(error) = fs::write(&path, "1")
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(Error::io(format_args!("write {path}"), &error));
            }
        }
        // Its bridges show no frame to the packet filter, which has no rules here: that costs a tenth of the
        // throughput, and what is malformed as IP would not pass. Where the setting is another namespace's
        // (before Linux 5.3), or br_netfilter is not there, it stays as it is.
        for kind in ["arptables", "iptables", "ip6tables"] {
            let path = format!("/proc/sys/net/bridge/bridge-nf-call-{kind}");
            match fs::write(&path, "0") {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    log::debug!("write {path}: {error}");
                }
                _ => {}
            }
        }
        Ok(vec![
            open_namespace("/proc/self/ns/user")?,
            open_namespace("/proc/self/ns/net")?,
            Netlink::open()?.into(),
        ])
    })?;
    match (fds.pop(), fds.pop(), fds.pop()) {
        (Some(netlink), Some(net), Some(user)) => Ok((user, net, netlink.into())),
        _ => Err(lost_descriptors()),
    }
}

fn lost_descriptors() -> Error {
    Error::closed("a helper process lost descriptors")
}

/// Opens a namespace by its path in /proc. Anything else at the path is neither opened nor is its
/// file system asked about it (fstatfs(2)), because both may block for ever: a FIFO, a dead FUSE
/// mount.
pub(crate) fn open_namespace(path: &str) -> Result<OwnedFd> {
    let open = |path: &str, flags| {
        open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(system(format_args!("open {path}")))
    };
    let found = open(path, OFlag::O_PATH)?;
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    // The kernel gives a namespace such a name (namespaces(7)); a file's begins with a slash.
    let name =
        fs::read_link(&link).map_err(|error| Error::io(format_args!("look at {path}"), &error))?;
    let name = name.to_string_lossy();
    match name.starts_with("user:[") || name.starts_with("net:[") {
        true => open(&link, OFlag::O_RDONLY),
        false => Err(Error::new(
            ErrorKind::Permission,
            format!("{path} is not a namespace"),
        )),
    }
}

/// Opens a holder's descriptors and checks that they are what they should be.
fn take_over(holder: &Holder) -> Result<(OwnedFd, OwnedFd)> {
    let open = |fd| open_namespace(&format!("/proc/{}/fd/{fd}", holder.pid));
    let (user, net) = (open(holder.user)?, open(holder.net)?);
    let not = |what| {
        Err(Error::new(
            ErrorKind::Permission,
            format!("its descriptor is not {what}"),
        ))
    };
    if kind(&user)? != libc::CLONE_NEWUSER || owner(&user)? != geteuid().as_raw() {
        return not("a user namespace of this user");
    }
    // SAFETY: the descriptor is a user namespace; the kernel returns a new descriptor or an error.
    let parent = unsafe { ioctl::parent(user.as_raw_fd()) };
    if inode(&own(parent)?)? != inode(&open_namespace("/proc/self/ns/user")?)? {
        return not("a child of this user namespace");
    }
    if kind(&net)? != libc::CLONE_NEWNET {
        return not("a network namespace");
    }
    // SAFETY: the descriptor is a namespace; the kernel returns a new descriptor or an error.
    let owning = unsafe { ioctl::user_namespace(net.as_raw_fd()) };
    if inode(&own(owning)?)? != inode(&user)? {
        return not("a network namespace of that user namespace");
    }
    Ok((user, net))
}

fn own(fd: nix::Result<libc::c_int>) -> Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    let fd = fd.map_err(system("look at a namespace"))?;
    // SAFETY: the ioctl has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn kind(namespace: &OwnedFd) -> Result<libc::c_int> {
    // SAFETY: the ioctl takes no argument; on another kind of file it fails.
    unsafe { ioctl::kind(namespace.as_raw_fd()) }.map_err(system("look at a namespace"))
}

fn owner(namespace: &OwnedFd) -> Result<libc::uid_t> {
    let mut uid = 0;
    // SAFETY: the kernel writes a uid_t to `uid`, which outlives the call.
    unsafe { ioctl::owner(namespace.as_raw_fd(), &mut uid) }
        .map_err(system("look at a namespace"))?;
    Ok(uid)
}

fn inode(namespace: &OwnedFd) -> Result<u64> {
    let file = File::from(
        namespace
            .try_clone()
            .map_err(|error| Error::io("look at a namespace", &error))?,
    );
    let meta = file
        .metadata()
        .map_err(|error| Error::io("look at a namespace", &error))?;
    Ok(meta.ino())
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::poll::{PollFd, PollFlags, poll};

    use super::*;
    use crate::ipc::Received;

    fn bridge(ageing: u32) -> Order {
        Order::Bridge {
            bridge: "1n0".into(),
            ageing,
        }
    }

    /// Answers each order for a bridge with its time of ageing. When two orders are there at once,
    /// it answers the second first.
    fn serve(channel: &Channel<Reply, Request>) {
        let next = || match channel.receive().unwrap() {
            Received::Message(Request::Execute(Order::Bridge { ageing, .. }), _) => Some(ageing),
            _ => None,
        };
        let answer = |ageing: u32| {
            let panel = ageing.into();
            channel.send(&Reply::Executed { panel }, &[]).unwrap();
        };
        while let Some(first) = next() {
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, 20u8).unwrap() == 1
                && let Some(second) = next()
            {
                answer(second);
            }
            answer(first);
        }
    }

    #[test]
    fn no_thread_takes_anothers_answer() {
        let (ours, theirs) = Channel::pair().unwrap();
        let orders = Orders::over(ours, Some(Duration::from_secs(60)));
        let server = thread::spawn(move || serve(&theirs));
        let ask = move |thread: u32| {
            for n in 0..10 {
                let ageing = thread * 100 + n;
                let done = orders.give(bridge(ageing)).unwrap();
                assert_eq!(done.panel, u64::from(ageing));
            }
        };
        let threads: Vec<_> = (0..4).map(|n| thread::spawn(move || ask(n))).collect();
        let outcomes: Vec<_> = threads.into_iter().map(thread::JoinHandle::join).collect();
        orders.close();
        server.join().unwrap();
        assert!(outcomes.iter().all(Result::is_ok));
    }
    #[test]
    fn a_malformed_answer_is_the_failure_of_one_request() {
        let (ours, theirs) = Channel::pair().unwrap();
        let orders = Orders::over(ours, Some(Duration::from_secs(60)));
        let server = thread::spawn(move || {
            let stored =
                Channel::<&str, Request>::from(theirs.as_fd().try_clone_to_owned().unwrap());
            stored.receive().unwrap();
            stored.send(&"nonsense", &[]).unwrap();
            drop(stored);
            serve(&theirs);
        });
        let error = orders.give(bridge(1)).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Protocol, "{error}");
        assert_eq!(orders.give(bridge(2)).unwrap().panel, 2);
        orders.close();
        server.join().unwrap();
    }
}
