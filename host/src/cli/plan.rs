//! Plans a session from the command line and the configuration: the namespace's [`Plan`] and a
//! [`Job`] for each link. Every mistake that can be found without making anything is found here.

use std::collections::HashSet;
use std::env;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use vdens_plugin_kit::tap::{MAX_INTERFACE_NAME, check_interface_name};

use crate::cli::config::Config;
use crate::cli::mistakes::{self, CommandLine};
use crate::cli::values::Numbered;
use crate::cli::vnls;
use crate::cli::{Vdens, text};
use crate::error::{Error, Result};
use crate::ipc::MAX_FDS;
use crate::namespace::resolv::Resolv;
use crate::namespace::{Interface, Plan, machine_tap};
use crate::sys::names;
use crate::sys::user_namespace::Ids;
use crate::worker::Job;
use crate::worker::target::LinkTarget;

/// The most links of a session: one message carries their taps and one descriptor more.
const MAX_LINKS: usize = MAX_FDS - 1;

/// The longest host name, in bytes (`__NEW_UTS_LEN` in <linux/utsname.h>).
const MAX_HOSTNAME: usize = 64;

/// The default MTU of an interface, in bytes.
const DEFAULT_MTU: u32 = 1500;

/// The plan of a session.
#[derive(Debug)]
pub struct Session {
    /// The namespace.
    pub plan: Plan,
    /// The links, one for each of the plan's interfaces.
    pub jobs: Vec<Job>,
}

impl Session {
    /// Plans the session that the command line asks for.
    ///
    /// # Errors
    /// The command line or the configuration asks for something impossible: a bad name, address or
    /// VNL, or a scheme without a plugin.
    pub fn new(cli: &Vdens, config: &Config) -> Result<Self> {
        let defaults = &config.defaults;
        let (arguments, command) = cli.split_rest()?;
        let plugins = cli.links.plugins(&cli.common, config)?;
        let line = match cli.multi {
            true => CommandLine::Multi,
            false => CommandLine::Vdens,
        };
        let target = |argument: &String| {
            mistakes::check(argument, line, &plugins, cli.links.wait.is_some())?;
            vnls::interface(argument, defaults.vnl.as_deref())
                .map_err(|error| mistakes::explain(argument, error))
        };
        let targets = arguments
            .iter()
            .map(target)
            .filter_map(Result::transpose)
            .collect::<Result<Vec<LinkTarget>>>()?;
        if targets.len() > MAX_LINKS {
            let message = format!(
                "{} links are too many: a session has at most {MAX_LINKS}",
                targets.len()
            );
            return Err(Error::usage(message).hint("start another vdens for the rest"));
        }
        for scheme in targets.iter().filter_map(LinkTarget::scheme) {
            plugins.check(scheme)?;
        }
        cli.hostname.as_deref().map_or(Ok(()), check_hostname)?;
        let prefix = cli.iface.as_deref().or(defaults.iface.as_deref());
        let mut interfaces = name_interfaces(prefix.unwrap_or("vde"), targets.len())?;
        let label = label(&interfaces, &targets);
        let welcome = welcome(&interfaces, &targets);
        if cli.tap {
            put_behind_taps(&mut interfaces)?;
        }
        for_each(&cli.mtu, interfaces.len(), "--mtu", |at, mtu| {
            let all = if at.is_some() {
                0..0
            } else {
                0..interfaces.len()
            };
            all.chain(at)
                .for_each(|at| interfaces[at].mtu = Some(mtu.0));
            Ok(())
        })?;
        for_each(&cli.mac, interfaces.len(), "--mac", |at, mac| {
            let interface = interfaces
                .get_mut(at.unwrap_or(0))
                .ok_or_else(|| none("--mac"))?;
            interface.mac = Some(mac.0);
            Ok(())
        })?;
        for_each(&cli.addr, interfaces.len(), "--addr", |at, address| {
            let count = interfaces.len();
            let interface = interfaces
                .get_mut(at.unwrap_or(0))
                .ok_or_else(|| none("--addr"))?;
            let mut before = interface.addresses.iter();
            if at.is_none() && count > 1 && before.any(|net| is_same_family(*net, address.0)) {
                log::warn!(
                    "--addr {0} is one more address of {1}; for interface 1 write --addr 1:{0}",
                    address.0,
                    interface.name
                );
            }
            interface.addresses.push(address.0);
            Ok(())
        })?;
        let pairs = interfaces.iter().zip(&targets);
        let jobs = pairs.map(|(interface, target)| Job {
            interface: interface.name.clone(),
            label: interface.name.clone(),
            mtu: interface.mtu.unwrap_or(DEFAULT_MTU),
            target: target.clone(),
            wait: cli.links.wait.unwrap_or_default(),
            plugins: plugins.clone(),
            panel_address: None,
            nearby: None,
        });
        let jobs = jobs.collect();
        let auto = cli
            .auto
            .or((defaults.auto == Some(true)).then_some(Duration::from_secs(10)))
            .filter(|_| !cli.tap);
        let up = cli.up
            || defaults.up == Some(true)
            || !cli.addr.is_empty()
            || !cli.gateway.is_empty()
            || auto.is_some()
            || cli.wait_carrier.is_some();
        cli.name.as_deref().map_or(Ok(()), names::check)?;
        let ids = match (cli.root, cli.map_auto) {
            (_, true) => Ids::Subordinate,
            (true, false) => Ids::Root,
            (false, false) => Ids::Own,
        };
        let plan = Plan {
            label,
            up,
            gateways: gateways(&cli.gateway)?,
            hostname: cli.hostname.clone(),
            resolv: resolv(cli, config)?,
            auto,
            sysadmin: cli.sysadm,
            ids,
            own_pids: cli.pid || cli.detach,
            name: cli.name.clone(),
            is_detached: cli.detach,
            wait_carrier: cli.wait_carrier,
            // The panel's members have one id.
            panel: cli.links.uses_panel(config) && ids != Ids::Subordinate,
            big_tcp: cli.big_tcp || defaults.big_tcp == Some(true),
            welcome: (command.is_empty() && !cli.common.quiet && !cli.detach).then_some(welcome),
            command,
            interfaces,
        };
        Ok(Self { plan, jobs })
    }
}

/// The resolv.conf that the command line asks for, else the environment, else the configuration.
fn resolv(cli: &Vdens, config: &Config) -> Result<Option<Resolv>> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    let choices = [
        (cli.resolvaddr.clone(), cli.resolvconf.clone()),
        (
            variable("VDE_RESOLVADDR")
                .map(|value| text(&value))
                .transpose()?,
            variable("VDE_RESOLVCONF").map(PathBuf::from),
        ),
        (config.defaults.resolvaddr.clone(), None),
    ];
    let made = choices
        .iter()
        .find(|(servers, file)| servers.is_some() || file.is_some());
    made.map_or(Ok(None), |(servers, file)| {
        Resolv::choose(servers.as_deref(), file.as_deref())
    })
}

fn name_interfaces(prefix: &str, count: usize) -> Result<Vec<Interface>> {
    if prefix.is_empty() {
        return Err(Error::usage("the interface prefix is empty").hint("give one with -i"));
    }
    let name = |number| {
        let name = format!("{prefix}{number}");
        if name.len() > MAX_INTERFACE_NAME {
            return Err(Error::usage(format!(
                "the interface prefix '{prefix}' is too long: '{name}' has {} bytes, and at most {MAX_INTERFACE_NAME} fit",
                name.len()
            ))
            .hint("give a shorter one with -i"));
        }
        check_interface_name(&name)?;
        let interface = Interface {
            name,
            ..Interface::default()
        };
        Ok(interface)
    };
    // A bad prefix is an error even if there are no interfaces.
    name(count.saturating_sub(1))?;
    (0..count).map(name).collect()
}

/// Gives the interfaces' names to taps, and the interfaces others.
fn put_behind_taps(interfaces: &mut [Interface]) -> Result<()> {
    for interface in interfaces {
        let link = machine_tap::link_name(&interface.name);
        if link.len() > MAX_INTERFACE_NAME {
            let message = format!(
                "with --tap the interface prefix is too long: '{link}' has {} bytes, and at most \
                 {MAX_INTERFACE_NAME} fit",
                link.len()
            );
            return Err(Error::usage(message).hint("give a shorter one with -i"));
        }
        interface.tap = Some(std::mem::replace(&mut interface.name, link));
    }
    Ok(())
}

/// Calls `set` for each value with the number of its interface.
fn for_each<T: Copy>(
    values: &[Numbered<T>],
    count: usize,
    option: &str,
    mut set: impl FnMut(Option<usize>, T) -> Result<()>,
) -> Result<()> {
    for value in values {
        let (at, value) = value.resolve(count).map_err(|number| {
            let message = format!("{option} is for interface {number}");
            match count {
                0 => none(option),
                1 => Error::usage(format!("{message}, and the only interface is number 0"))
                    .hint("leave the number out, or make more interfaces with --multi"),
                _ => Error::usage(format!("{message}, and there are {count}"))
                    .hint(format!("their numbers are 0 to {}", count - 1)),
            }
        })?;
        set(at, value)?;
    }
    Ok(())
}

fn is_same_family(a: IpNet, b: IpNet) -> bool {
    a.addr().is_ipv4() == b.addr().is_ipv4()
}

/// Checks a host name: labels as in RFC 1123, section 2.1, and no longer than the kernel's.
pub(crate) fn check_hostname(name: &str) -> Result<()> {
    let is_label = |label: &str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        (1..=63).contains(&label.len())
            && label.bytes().all(is_allowed)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME && name.split('.').all(is_label) {
        return Ok(());
    }
    Err(
        Error::usage(format!("'{name}' is no host name")).hint(format!(
            "it has letters, digits, '-' and '.', and at most {MAX_HOSTNAME} bytes"
        )),
    )
}

fn none(option: &str) -> Error {
    Error::usage(format!("{option} is given, and there is no interface")).hint("name a VNL")
}

fn gateways(gateways: &[IpAddr]) -> Result<Vec<IpAddr>> {
    let mut families = HashSet::new();
    match gateways
        .iter()
        .find(|gateway| !families.insert(gateway.is_ipv4()))
    {
        Some(second) => Err(Error::usage(format!(
            "--gateway {second} is the second of its IP version"
        ))),
        None => Ok(gateways.to_vec()),
    }
}

/// The line before the user's shell: what is plugged in, and how to leave.
fn welcome(interfaces: &[Interface], targets: &[LinkTarget]) -> String {
    let pairs = interfaces.iter().zip(targets);
    let words: Vec<String> = pairs
        .map(|(interface, target)| format!("{} on {target}", interface.name))
        .collect();
    let network = match &words[..] {
        [] => "no network".to_owned(),
        words => words.join(", "),
    };
    format!("{network}; type 'exit' to leave")
}

/// What `VDENS` is in the command's environment: `vde0=ptp:///tmp/a vde1=tap://tap0`.
fn label(interfaces: &[Interface], targets: &[LinkTarget]) -> String {
    let pairs = interfaces.iter().zip(targets);
    let words: Vec<String> = pairs
        .map(|(i, target)| format!("{}={target}", i.name))
        .collect();
    words.join(" ")
}
