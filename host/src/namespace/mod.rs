//! The namespace child: it makes the session's namespaces and interfaces, and becomes the command.
//!
//! The order of the steps follows from what each one needs:
//!
//! 1. If there is a panel, enter its user namespace, so that the session's becomes a child of it.
//!    Make a user namespace. It gives all capabilities over the namespaces that are made with it:
//!    network, UTS, a mount namespace if something is to be mounted or the command may mount, and a
//!    PID namespace if the session is to have one.
//! 2. Map the caller's ids to themselves, so that files keep their owners, or as `--root` and
//!    `--map-auto` want it (`sys::user_namespace`).
//! 3. If there is a PID namespace, fork its first process ([`init`]), which goes on in place of
//!    this one.
//! 4. Set the host name and mount `/proc`, `/run`, `/sys` and resolv.conf, with those capabilities.
//!    Send the network namespace to the supervisor. The supervisor makes the interfaces that are on
//!    the panel, and replies which ones are to be made here, as taps.
//! 5. Configure the interfaces. Send the taps and the watch over the carrier to the supervisor, and
//!    wait until it says that the links are open.
//! 6. Make the network capabilities ambient, so that they survive the exec. The process loses all
//!    others, even if it runs as root ([`capabilities`]).
//! 7. Execute the command. The kernel kills it if the supervisor dies first. In a PID namespace, a
//!    child of the first process does so.
//!
//! Other processes join a session later through [`enter`].

pub(crate) mod auto;
mod capabilities;
pub(crate) mod enter;
pub(crate) mod init;
pub(crate) mod machine_tap;
pub(crate) mod resolv;
mod run_dir;
mod sysfs;

pub(crate) use capabilities::Rights;

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::iter;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, execvp, getppid, sethostname};
use vdens_plugin_kit::tap::Tap;

use crate::error::{
    EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_NOT_RUNNABLE, Error, ErrorKind, Result, system,
};
use crate::ipc::{Channel, FromNamespace, ToNamespace, malformed};
use crate::namespace::init::Forked;
use crate::namespace::machine_tap::Names;
use crate::namespace::resolv::Resolv;
use crate::output::complain;
use crate::panel::{self, Panel};
use crate::sys::child::{Child, exit_child};
use crate::sys::netlink::{Mac, Netlink};
use crate::sys::signals::{self, Signals};
use crate::sys::user_namespace::{Ids, unshare_as, unshare_when_there_is_room};
use crate::worker::carrier::LinkWatch;

/// How often it is looked for the carrier that `--wait-carrier` waits for.
const CARRIER_LOOK: Duration = Duration::from_millis(5);

/// A parameter of mount(2) that is not given.
const NOTHING: Option<&str> = None;

/// An interface to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name, valid and unique.
    pub name: String,
    /// The name of the tap of a virtual machine that is plugged into it, if there is one.
    pub tap: Option<String>,
    /// Its Ethernet address, if not the kernel's choice.
    pub mac: Option<Mac>,
    /// Its MTU in bytes, if not the kernel's choice.
    pub mtu: Option<u32>,
    /// Its addresses.
    pub addresses: Vec<IpNet>,
}

/// What the namespace contains, and what runs in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The interfaces, in order.
    pub(crate) interfaces: Vec<Interface>,
    /// Whether they and the loopback interface start up.
    pub(crate) up: bool,
    /// Default routers.
    pub(crate) gateways: Vec<IpAddr>,
    /// The host name, if not the caller's.
    pub(crate) hostname: Option<String>,
    /// The resolv.conf, if not the caller's.
    pub(crate) resolv: Option<Resolv>,
    /// How long to wait for the network to configure the interfaces, if it is to.
    pub(crate) auto: Option<Duration>,
    /// Under which ids the user appears.
    pub(crate) ids: Ids,
    /// Whether there is a PID namespace, so that what the command starts ends with it.
    pub(crate) own_pids: bool,
    /// The session's name, if it has one.
    pub(crate) name: Option<String>,
    /// Whether it runs in the background. Without a command it then lives until it is stopped.
    pub(crate) is_detached: bool,
    /// How long to wait for the carrier of all interfaces before the command runs, if at all.
    pub(crate) wait_carrier: Option<Duration>,
    /// Whether the command may mount and do other things that CAP_SYS_ADMIN allows.
    pub(crate) sysadmin: bool,
    /// The command and its arguments. If empty, the user's shell, or nothing if it is detached.
    pub(crate) command: Vec<OsString>,
    /// What to say at a terminal before the user's shell starts.
    pub(crate) welcome: Option<String>,
    /// What `VDENS` is in the command's environment.
    pub(crate) label: String,
    /// Whether the kernel may forward frames between this session and others of the user.
    pub(crate) panel: bool,
    /// Whether TCP sends the kernel's longest super-frames on interfaces that are on the panel.
    pub(crate) big_tcp: bool,
}

impl Plan {
    /// The command and its arguments; the user's shell if none was given, and nothing if the
    /// session is detached then.
    pub(crate) fn command_words(&self) -> Vec<OsString> {
        match self.has_no_command() {
            true => Vec::new(),
            false => command_words(&self.command),
        }
    }

    /// Whether the session only lives until it is stopped.
    fn has_no_command(&self) -> bool {
        self.is_detached && self.command.is_empty()
    }
}

/// The namespace child's end of its channel to the supervisor.
pub(crate) type NamespaceChannel = Channel<FromNamespace, ToNamespace>;

/// Runs the namespace child. Returns only if there is no command to become: with the exit status.
pub(crate) fn run(
    plan: &Plan,
    panel: Option<Panel>,
    channel: NamespaceChannel,
    signals: &Signals,
    supervisor: Pid,
) -> i32 {
    let fail = |channel: &NamespaceChannel, status, error| {
        // The supervisor reports the failure. If it has exited, nothing is left to do.
        let _ = channel.send(&FromNamespace::Failed { status, error }, &[]);
        status
    };
    let made = make(plan, panel.as_ref()).and_then(|()| match plan.own_pids {
        true => become_first(&channel),
        false => Ok(true),
    });
    drop(panel);
    let made = made.and_then(|goes_on| match goes_on {
        true => furnish(plan).and_then(|()| interfaces(plan, &channel)),
        false => Ok(false),
    });
    let ready = made.and_then(|goes_on| {
        if goes_on {
            configure_by_network(plan, signals)?;
            carrier(plan)?;
        }
        Ok(goes_on)
    });
    match ready {
        Ok(true) => {}
        // The first process of the PID namespace has taken over, or the supervisor has exited.
        Ok(false) => return 0,
        Err(error) => return fail(&channel, EXIT_FAILURE, error),
    }
    if plan.own_pids {
        return match command_in_own_pids(plan, &channel, signals) {
            Ok(command) => {
                drop(channel);
                init::serve(command, signals)
            }
            Err(error) => fail(&channel, EXIT_FAILURE, error),
        };
    }
    let is_orphan = || getppid() != supervisor;
    let (status, error) = become_command(plan, signals, is_orphan);
    fail(&channel, status, error)
}

/// Forks the first process of the PID namespace, which goes on. Returns whether this is that one.
fn become_first(channel: &NamespaceChannel) -> Result<bool> {
    match init::fork_first()? {
        Forked::Parent { pid, pidfd } => {
            let message = FromNamespace::FirstProcess { pid };
            channel.send(&message, &[pidfd.as_fd()]).map(|()| false)
        }
        Forked::First => {
            die_with_parent()?;
            // The parent has no id here. While it lives, it holds the channel's other end.
            let mut fds = [PollFd::new(channel.as_fd(), PollFlags::empty())];
            poll(&mut fds, PollTimeout::ZERO).map_err(system("look for the supervisor"))?;
            Ok(fds[0].any() != Some(true))
        }
    }
}

/// Starts the command in the PID namespace, if there is one to start; its id there.
fn command_in_own_pids(
    plan: &Plan,
    channel: &NamespaceChannel,
    signals: &Signals,
) -> Result<Option<Pid>> {
    rights(plan).take()?;
    if plan.has_no_command() {
        return Ok(None);
    }
    match Child::fork()? {
        Some(command) => Ok(Some(command.pid())),
        None => exit_child(|| {
            let (status, error) = become_command(plan, signals, || false);
            let _ = channel.send(&FromNamespace::Failed { status, error }, &[]);
            status
        }),
    }
}

/// Executes the command. Returns only if that fails, with the exit status and the reason.
fn become_command(plan: &Plan, signals: &Signals, is_orphan: impl Fn() -> bool) -> (i32, Error) {
    let prepared = prepare(plan, signals, is_orphan).and_then(|()| arguments(&plan.command));
    match prepared {
        Err(error) => (EXIT_FAILURE, error),
        Ok(arguments) => {
            let is_at_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
            if let Some(welcome) = plan.welcome.as_ref().filter(|_| is_at_terminal) {
                complain(welcome);
            }
            execute(&arguments)
        }
    }
}

/// Makes the interfaces, if there are any, together with the supervisor, and waits for its
/// permission to run the command. `false` if the session is over instead.
fn interfaces(plan: &Plan, channel: &NamespaceChannel) -> Result<bool> {
    if plan.interfaces.is_empty() {
        if plan.up {
            configure(&Netlink::open()?, plan)?;
        }
        return Ok(true);
    }
    let namespace = File::open("/proc/self/ns/net")
        .map_err(|error| Error::io("open the network namespace", &error))?;
    // The supervisor gets a socket of its own: of two processes that wait for answers at one
    // socket, each may receive the other's.
    let supervisors = Netlink::open()?;
    let fds = [namespace.as_fd(), supervisors.as_fd()];
    channel.send(&FromNamespace::NamespaceMade, &fds)?;
    drop((namespace, supervisors));
    let taps = match channel.receive()?.well_formed()? {
        Some((ToNamespace::MakeInterfaces(taps), _)) => taps,
        Some((ToNamespace::Run, _)) => return Err(malformed("it comes too early")),
        None => return Ok(false),
    };
    let netlink = Netlink::open()?;
    let mut made = Vec::new();
    for (interface, is_tap) in plan.interfaces.iter().zip(taps) {
        if is_tap {
            made.push(Tap::open(&interface.name)?);
        } else if plan.big_tcp {
            netlink.set_big_tcp(&interface.name)?;
        }
    }
    configure(&netlink, plan)?;
    for interface in &plan.interfaces {
        if let Some(tap) = &interface.tap {
            machine_tap::make(&netlink, &Names::of_tap(tap), interface.mtu)?;
        }
    }
    let watch = LinkWatch::open()?;
    let fds: Vec<_> = iter::once(watch.as_fd())
        .chain(made.iter().map(Tap::as_fd))
        .collect();
    channel.send(&FromNamespace::InterfacesMade, &fds)?;
    drop((watch, made));
    match channel.receive()?.well_formed()? {
        Some((ToNamespace::Run, _)) => Ok(true),
        Some((ToNamespace::MakeInterfaces(_), _)) => Err(malformed("the interfaces are made")),
        None => Ok(false),
    }
}

/// Makes the namespaces.
fn make(plan: &Plan, panel: Option<&Panel>) -> Result<()> {
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNS, has_mounts(plan));
    flags.set(CloneFlags::CLONE_NEWPID, plan.own_pids);
    match panel {
        Some(panel) => {
            panel::enter(panel.user_namespace(), CloneFlags::CLONE_NEWUSER)?;
            unshare_as(plan.ids, flags)
        }
        None => unshare_when_there_is_room(plan.ids, flags),
    }
}

/// Whether there is a mount namespace.
fn has_mounts(plan: &Plan) -> bool {
    plan.sysadmin
        || plan.resolv.is_some()
        || plan.auto.is_some()
        || plan.own_pids
        || plan.ids != Ids::Own
}

/// What the processes in the session may do.
fn rights(plan: &Plan) -> Rights {
    match plan.ids {
        Ids::Own => Rights::usual(plan.sysadmin),
        Ids::Root | Ids::Subordinate => Rights::Root,
    }
}

/// Changes what is to be seen in the namespaces: the host name and some files.
fn furnish(plan: &Plan) -> Result<()> {
    if let Some(name) = &plan.hostname {
        sethostname(name).map_err(system(format_args!("set the host name to '{name}'")))?;
    }
    if has_mounts(plan) {
        let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(NOTHING, "/", NOTHING, private, NOTHING).map_err(system("make mounts private"))?;
        if plan.own_pids {
            mount_proc()?;
        }
        if plan.ids != Ids::Own {
            run_dir::mount_private()?;
            if let Err(error) = resolv::overlay_etc() {
                log::info!("/etc cannot be written in the session: {error}");
            }
        }
        if let Err(error) = sysfs::mount_fresh() {
            log::info!("/sys shows the host's interfaces: {error}");
        }
    }
    if let Some(resolv) = &plan.resolv {
        resolv.mount()?;
    }
    let mut addresses = plan.interfaces.iter().flat_map(|i| &i.addresses);
    match plan.auto.is_some() || addresses.any(|net| matches!(net, IpNet::V6(_))) {
        true => skip_duplicate_detection(),
        false => Ok(()),
    }
}

/// Makes IPv6 addresses usable at once, link-local ones too: looking for duplicates takes a second,
/// and interfaces here have random Ethernet addresses.
fn skip_duplicate_detection() -> Result<()> {
    for (name, value) in [("accept_dad", "0"), ("dad_transmits", "0")] {
        let path = format!("/proc/sys/net/ipv6/conf/default/{name}");
        match fs::write(&path, value) {
            // A kernel without IPv6 has no addresses to check.
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(Error::path("write", path.as_ref(), &error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Configures the interfaces as the network says, and shows its name servers.
fn configure_by_network(plan: &Plan, signals: &Signals) -> Result<()> {
    let Some(limit) = plan.auto.filter(|_| !plan.interfaces.is_empty()) else {
        return Ok(());
    };
    let (names, leases) = auto::configure(&plan.interfaces, limit)?;
    if plan.resolv.is_none() && !names.servers.is_empty() {
        Resolv::Names(names).mount()?;
    }
    auto::keep(leases, signals)
}

/// Calls `work` with a directory on a file system of the given type, which is mounted meanwhile
/// where temporary files are.
fn while_mounted(
    kind: &str,
    flags: MsFlags,
    options: &str,
    work: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let dir = env::temp_dir();
    mount(Some(kind), &dir, Some(kind), flags, Some(options))
        .map_err(system(format_args!("mount a {kind} on {}", dir.display())))?;
    let outcome = work(&dir);
    let detached = umount2(&dir, MntFlags::MNT_DETACH);
    outcome.and(detached.map_err(system(format_args!("unmount {}", dir.display()))))
}

/// Calls `work` with a directory on a tmpfs.
fn in_memory(work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    while_mounted("tmpfs", MsFlags::empty(), "mode=0755", work)
}

fn configure(netlink: &Netlink, plan: &Plan) -> Result<()> {
    if plan.up {
        netlink.set_up("lo")?;
    }
    for interface in &plan.interfaces {
        let name = &interface.name;
        if let Some(mac) = interface.mac {
            netlink.set_mac(name, mac)?;
        }
        if let Some(mtu) = interface.mtu {
            netlink.set_mtu(name, mtu)?;
        }
        if plan.up {
            netlink.set_up(name)?;
        }
        for address in &interface.addresses {
            netlink.add_address(name, *address)?;
        }
    }
    let mut gateways = plan.gateways.iter();
    gateways.try_for_each(|gateway| netlink.add_default_route(*gateway))
}

/// Mounts a /proc that shows the processes of the PID namespace.
fn mount_proc() -> Result<()> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, NOTHING).map_err(|errno| {
        system("mount a /proc of the session's own")(errno)
            .hint("a container that hides parts of /proc forbids it: leave --pid and -d out there")
    })
}

/// Waits until all interfaces have carrier, if the user wants that.
fn carrier(plan: &Plan) -> Result<()> {
    let Some(limit) = plan.wait_carrier.filter(|_| !plan.interfaces.is_empty()) else {
        return Ok(());
    };
    let netlink = Netlink::open()?;
    let deadline = Instant::now().checked_add(limit);
    loop {
        let links = netlink.links()?;
        let runs = |name: &str| {
            links
                .iter()
                .any(|link| link.name == name && link.is_running)
        };
        let Some(late) = plan
            .interfaces
            .iter()
            .find(|interface| !runs(&interface.name))
        else {
            return Ok(());
        };
        if signals::end_is_pending() {
            return Err(Error::closed(
                "a signal came while the links had no carrier",
            ));
        }
        if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            let message = format!("{} has no carrier after {limit:?}", late.name);
            return Err(Error::new(ErrorKind::Busy, message)
                .hint("start the far end, or allow more time with --wait-carrier=SECONDS"));
        }
        sleep(CARRIER_LOOK);
    }
}

/// Gives the process the state in which the command starts.
fn prepare(plan: &Plan, signals: &Signals, is_orphan: impl Fn() -> bool) -> Result<()> {
    rights(plan).take()?;
    // SAFETY: no other thread exists in this forked child that could read the environment
    // meanwhile.
    unsafe { env::set_var("VDENS", &plan.label) };
    signals::default(Signal::SIGPIPE);
    signals.restore()?;
    die_with_parent()?;
    match is_orphan() {
        false => Ok(()),
        true => Err(Error::closed("the parent process is gone")),
    }
}

/// What the processes of a lab's node may do in it, by the ids under which the user appears.
pub(crate) fn node_rights(ids: Ids) -> Rights {
    match ids {
        Ids::Own => Rights::usual(true),
        Ids::Root | Ids::Subordinate => Rights::Root,
    }
}

/// Mounts what a lab's node has of its own: /proc, /run, and the interfaces in /sys. The mount
/// namespace must be new.
///
/// # Errors
/// The kernel refuses a mount.
pub(crate) fn furnish_node() -> Result<()> {
    let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(NOTHING, "/", NOTHING, private, NOTHING).map_err(system("make mounts private"))?;
    mount_proc()?;
    if let Err(error) = sysfs::mount_fresh() {
        log::info!("/sys shows the host's interfaces: {error}");
    }
    run_dir::mount_private()?;
    skip_duplicate_detection()
}

fn die_with_parent() -> Result<()> {
    set_pdeathsig(Signal::SIGKILL).map_err(system("ask for a signal at the parent's death"))
}

/// A command and its arguments; the user's shell if there is none.
fn command_words(command: &[OsString]) -> Vec<OsString> {
    let shell = || env::var_os("SHELL").filter(|shell| !shell.is_empty());
    match command {
        [] => vec![shell().unwrap_or_else(|| "/bin/sh".into())],
        words => words.to_vec(),
    }
}

fn arguments(command: &[OsString]) -> Result<Vec<CString>> {
    let words = command_words(command).into_iter();
    words
        .map(|word| CString::new(word.into_vec()))
        .collect::<Result<_, _>>()
        .map_err(|_| Error::usage("an argument has a NUL byte in it"))
}

/// Executes the command. Returns only if that fails, with the exit status and the reason.
fn execute(arguments: &[CString]) -> (i32, Error) {
    let Some(program) = arguments.first() else {
        return (EXIT_NOT_FOUND, Error::usage("there is no command"));
    };
    let Err(errno) = execvp(program, arguments);
    // A directory of PATH that may not be searched makes "not found" read "permission denied".
    let errno = match errno {
        Errno::EACCES if !is_on_path(program) => Errno::ENOENT,
        errno => errno,
    };
    let status = match errno {
        Errno::ENOENT => EXIT_NOT_FOUND,
        _ => EXIT_NOT_RUNNABLE,
    };
    let error = system(format_args!("run '{}'", program.to_string_lossy()))(errno);
    (status, error)
}

fn is_on_path(program: &CStr) -> bool {
    let program = OsStr::from_bytes(program.to_bytes());
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs = env::split_paths(&path);
    program.as_bytes().contains(&b'/') || dirs.any(|dir| dir.join(program).exists())
}
