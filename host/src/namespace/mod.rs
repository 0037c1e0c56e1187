//! The namespace child: it makes the session's namespaces and interfaces, and becomes the command.
//!
//! The order of the steps follows from what each one needs:
//!
//! 1. If there is a panel, enter its user namespace, so that the session's becomes a child of it.
//!    Make a user namespace. It gives all capabilities over the namespaces that are made with it:
//!    network, UTS, and a mount namespace if something is to be mounted or the command may mount.
//! 2. Map the caller's ids to themselves, so that files keep their owners. First deny `setgroups`,
//!    which the kernel requires of an unprivileged gid map.
//! 3. Set the host name and mount `/sys` and resolv.conf, with those capabilities. Send the network
//!    namespace to the supervisor. The supervisor makes the interfaces that are on the panel, and
//!    replies which ones are to be made here, as taps.
//! 4. Configure the interfaces. Send the taps and the watch over the carrier to the supervisor, and
//!    wait until it says that the links are open.
//! 5. Make the network capabilities ambient, so that they survive the exec. The process loses all
//!    others, even if it runs as root.
//! 6. Execute the command. The kernel kills it if the supervisor dies first.

pub(crate) mod auto;
pub(crate) mod resolv;
mod sysfs;

pub(crate) use sysfs::mount_fresh as mount_fresh_sysfs;

use std::env;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::iter;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::time::Duration;

use caps::{CapSet, Capability, CapsHashSet};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, execvp, geteuid, getppid, sethostname};
use vdens_plugin_kit::tap::Tap;

use crate::error::{
    EXIT_FAILURE, EXIT_NOT_FOUND, EXIT_NOT_RUNNABLE, Error, ErrorKind, Result, system,
};
use crate::ipc::{Channel, FromNamespace, ToNamespace, malformed};
use crate::namespace::resolv::Resolv;
use crate::output::complain;
use crate::panel::{self, Panel};
use crate::sys::netlink::{Mac, Netlink};
use crate::sys::signals::{self, Signals};
use crate::sys::user_namespace::{unshare_mapped, unshare_when_there_is_room};
use crate::worker::carrier::LinkWatch;

/// A parameter of mount(2) that is not given.
const NOTHING: Option<&str> = None;

/// An interface to be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Interface {
    /// Its name, valid and unique.
    pub name: String,
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
    /// Whether the command may mount and do other things that CAP_SYS_ADMIN allows.
    pub(crate) sysadmin: bool,
    /// The command and its arguments; the user's shell if empty.
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

/// The namespace child's end of its channel to the supervisor.
pub(crate) type NamespaceChannel = Channel<FromNamespace, ToNamespace>;

/// Runs the namespace child. Returns only if the command could not be run, with the exit status.
pub(crate) fn run(
    plan: &Plan,
    panel: Option<&Panel>,
    channel: &NamespaceChannel,
    signals: &Signals,
    supervisor: Pid,
) -> i32 {
    let failure = |status, error| {
        // The supervisor reports the failure. If it has exited, nothing is left to do.
        let _ = channel.send(&FromNamespace::Failed { status, error }, &[]);
        status
    };
    match build(plan, panel).and_then(|()| interfaces(plan, channel)) {
        Ok(true) => {}
        Ok(false) => return EXIT_FAILURE,
        Err(error) => return failure(EXIT_FAILURE, error),
    }
    let configured = configure_by_network(plan, signals);
    match configured
        .and_then(|()| prepare(plan, signals, supervisor))
        .and_then(|()| arguments(&plan.command))
    {
        Err(error) => failure(EXIT_FAILURE, error),
        Ok(arguments) => {
            let is_at_terminal = io::stdin().is_terminal() && io::stderr().is_terminal();
            if let Some(welcome) = plan.welcome.as_ref().filter(|_| is_at_terminal) {
                complain(welcome);
            }
            let (status, error) = execute(&arguments);
            failure(status, error)
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
    channel.send(&FromNamespace::NamespaceMade, &[namespace.as_fd()])?;
    drop(namespace);
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
fn build(plan: &Plan, panel: Option<&Panel>) -> Result<()> {
    let mounts = plan.sysadmin || plan.resolv.is_some() || plan.auto.is_some();
    let mut flags = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS;
    flags.set(CloneFlags::CLONE_NEWNS, mounts);
    match panel {
        Some(panel) => {
            panel::enter(panel.user_namespace(), CloneFlags::CLONE_NEWUSER)?;
            unshare_mapped(flags)?;
        }
        None => unshare_when_there_is_room(flags)?,
    }
    if let Some(name) = &plan.hostname {
        sethostname(name).map_err(system(format_args!("set the host name to '{name}'")))?;
    }
    if mounts {
        let private = MsFlags::MS_REC | MsFlags::MS_SLAVE;
        mount(NOTHING, "/", NOTHING, private, NOTHING).map_err(system("make mounts private"))?;
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
pub(crate) fn skip_duplicate_detection() -> Result<()> {
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

/// Gives the process the state in which the command starts.
fn prepare(plan: &Plan, signals: &Signals, supervisor: Pid) -> Result<()> {
    keep_capabilities(plan.sysadmin)?;
    // SAFETY: no other thread exists in this forked child that could read the environment
    // meanwhile.
    unsafe { env::set_var("VDENS", &plan.label) };
    signals::default(Signal::SIGPIPE);
    signals.restore()?;
    set_pdeathsig(Signal::SIGKILL).map_err(system("ask for a signal at the parent's death"))?;
    match getppid() == supervisor {
        true => Ok(()),
        false => Err(Error::closed("the parent process is gone")),
    }
}

/// Keeps the network capabilities for what this process executes, and CAP_SYS_ADMIN with
/// `sysadmin`. It loses all others, even if it runs as root.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn keep_capabilities(sysadmin: bool) -> Result<()> {
    use Capability::{
        CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_BROADCAST, CAP_NET_RAW, CAP_SETFCAP,
        CAP_SYS_ADMIN,
    };
    let network = [
        CAP_NET_BIND_SERVICE,
        CAP_NET_BROADCAST,
        CAP_NET_ADMIN,
        CAP_NET_RAW,
    ];
    let sysadmin = sysadmin.then_some(CAP_SYS_ADMIN);
    // Since Linux 5.12 a process needs CAP_SETFCAP to map root into a user namespace that it makes
    // (user_namespaces(7)). Root's command needs that to start another vdens.
    let nesting = geteuid().is_root().then_some(CAP_SETFCAP);
    let kept: CapsHashSet = network.into_iter().chain(sysadmin).chain(nesting).collect();
    forget_root()?;
    caps::set(None, CapSet::Inheritable, &kept)
        .and_then(|()| caps::clear(None, CapSet::Ambient))
        .and_then(|()| {
            let mut kept = kept.iter();
            kept.try_for_each(|capability| caps::raise(None, CapSet::Ambient, *capability))
        })
        .map_err(|error| {
            Error::new(
                ErrorKind::Other,
                format!("cannot keep capabilities: {error}"),
            )
        })
}

/// Makes the exec of root give no capabilities, like the exec of any other user (SECBIT_NOROOT,
/// capabilities(7)). A user namespace that is made within starts with these bits cleared.
fn forget_root() -> Result<()> {
    let bits = libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED;
    // SAFETY: prctl(PR_SET_SECUREBITS) takes an integer and changes the credentials of this thread
    // alone.
    let outcome = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, bits as libc::c_ulong) };
    Errno::result(outcome)
        .map(drop)
        .map_err(system("set the secure bits"))
}

/// The command and its arguments; the user's shell if no command was given.
pub(crate) fn command_words(command: &[OsString]) -> Vec<OsString> {
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
