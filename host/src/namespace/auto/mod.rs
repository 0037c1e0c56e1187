//! `--auto`: an interface is configured as its network says, before the command starts.
//!
//! # Theory of operation
//!
//! Each interface asks for both address families at once. For IPv4 it is a DHCP client ([`dhcp4`]);
//! the answer's address and route are set here. For IPv6 it solicits router advertisements: the
//! kernel makes addresses and routes from them, and [`ipv6`] reads the name servers and whether
//! DHCPv6 has more. Questions are repeated, at first after a tenth of a second, because the first
//! ones may be lost while the link is being made.
//!
//! An interface is configured when one family is. The other one then has [`GRACE`] to answer, since
//! most networks have both or will never have it. When nothing has answered within the limit, that
//! is an error. Leases are extended while the session runs ([`renew`]).

mod changes;
mod dhcp4;
mod dhcp6;
mod early;
mod ipv6;
mod renew;

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::error::{Error, ErrorKind, Result, system};
use crate::namespace::Interface;
use crate::sys::netlink::{Mac, Netlink};
use changes::Changes;

use dhcp4::{Dhcp4, Lease};
use ipv6::Ipv6;
use renew::{Held, Leased};

pub(super) use renew::start as keep;

/// How long the second address family may answer after the first one has.
const GRACE: Duration = Duration::from_millis(500);

/// After how long a question is first repeated.
const FIRST: Duration = Duration::from_millis(100);

/// The longest time between a question and its repetition.
const LONGEST: Duration = Duration::from_secs(4);

/// What a network says of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The name servers, as resolv.conf(5) has them: one of the link has the interface behind a
    /// `%`.
    pub servers: Vec<String>,
    /// The domains that names are looked for in.
    pub search: Vec<String>,
}

impl Names {
    fn add_server(&mut self, server: IpAddr, interface: &str) {
        let server = match server {
            IpAddr::V6(v6) if v6.is_unicast_link_local() => format!("{v6}%{interface}"),
            other => other.to_string(),
        };
        if !self.servers.contains(&server) {
            self.servers.push(server);
        }
    }

    /// Adds a search domain, unless it has what no domain has and what could be more than a word in
    /// a file.
    fn add_domain(&mut self, domain: &str) {
        let domain = domain.trim_end_matches('.');
        let is_valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_');
        let known = self.search.iter().any(|known| known == domain);
        if !known && (1..=253).contains(&domain.len()) && domain.bytes().all(is_valid) {
            self.search.push(domain.to_owned());
        }
    }

    fn add(&mut self, other: &Self) {
        for server in &other.servers {
            if !self.servers.contains(server) {
                self.servers.push(server.clone());
            }
        }
        for domain in &other.search {
            if !self.search.contains(domain) {
                self.search.push(domain.clone());
            }
        }
    }
}

/// When a question is asked again.
#[derive(Clone, Copy, Debug)]
struct Repeat {
    next: Instant,
    pause: Duration,
    longest: Duration,
}

impl Repeat {
    /// At once, and then in growing distances.
    fn new(now: Instant) -> Self {
        Self {
            next: now,
            pause: FIRST,
            longest: LONGEST,
        }
    }

    /// At once, and then in distances that are not shorter than `shortest` and become `pause`; less
    /// if that is less.
    fn rarely(now: Instant, shortest: Duration, pause: Duration) -> Self {
        let shortest = shortest.min(pause);
        Self {
            next: now,
            pause: shortest,
            longest: pause,
        }
    }

    /// Whether it is time to ask.
    fn is_due(&mut self, now: Instant) -> bool {
        let due = now >= self.next;
        if due {
            self.next = now + self.pause;
            self.pause = (self.pause * 2).min(self.longest);
        }
        due
    }
}

/// One interface's questions.
struct Client {
    name: String,
    dhcp4: Dhcp4,
    lease: Option<(Lease, Instant)>,
    ipv6: Option<Ipv6>,
    /// When the first family was configured.
    since: Option<Instant>,
}

impl Client {
    /// Asks again at once what has not been answered: the link has just come up.
    fn ask_again(&mut self, now: Instant) {
        self.dhcp4.ask_again(now);
        if let Some(ipv6) = &mut self.ipv6 {
            ipv6.ask_again(now);
        }
    }

    /// The leases that end.
    fn held(self) -> impl Iterator<Item = Held> {
        let v4 = self
            .lease
            .map(|(lease, since)| (Leased::V4(self.dhcp4, lease), since));
        let v6 = self.ipv6.and_then(Ipv6::leased);
        let v6 = v6.map(|(dhcp6, lease, since)| (Leased::V6(Box::new(dhcp6), lease), since));
        let all = [v4, v6].into_iter().flatten();
        all.filter_map(move |(leased, since)| Held::new(self.name.clone(), leased, since))
    }

    fn silence(&self, limit: Duration) -> Error {
        let v6 = self
            .ipv6
            .as_ref()
            .map(|ipv6| format!(", and {}", ipv6.silence()));
        let message = format!(
            "cannot configure {} by --auto within {} s: {}{}",
            self.name,
            limit.as_secs(),
            self.dhcp4.silence(),
            v6.unwrap_or_default()
        );
        Error::new(ErrorKind::NotFound, message).hint(
            "check that the network has a server, or give addresses with --addr and --gateway",
        )
    }

    fn is_done(&self, now: Instant) -> bool {
        let both = self.dhcp4.is_done() && self.ipv6.as_ref().is_none_or(Ipv6::is_done);
        both || self
            .since
            .is_some_and(|since| now.duration_since(since) >= GRACE)
    }
}

/// Configures interfaces that are up. Returns what the network says of names, and the leases that
/// are to be extended in time.
///
/// # Errors
/// Nothing has answered within `limit`, or the kernel refuses what has.
pub(super) fn configure(interfaces: &[Interface], limit: Duration) -> Result<(Names, Vec<Held>)> {
    let netlink = Netlink::open()?;
    let start = Instant::now();
    let mut names = Names::default();
    let mut clients = Vec::new();
    for interface in interfaces {
        let name = &*interface.name;
        let mac = mac(name)?;
        clients.push(Client {
            name: name.to_owned(),
            lease: None,
            dhcp4: Dhcp4::open(name, mac, interface.mtu.is_some(), start)?,
            ipv6: Ipv6::open(name, mac, start)?,
            since: None,
        });
    }
    let watch = Changes::open()?;
    loop {
        let now = Instant::now();
        if watch.take() {
            clients.iter_mut().for_each(|client| client.ask_again(now));
        }
        let mut wake = start + limit;
        for client in clients.iter_mut().filter(|client| !client.is_done(now)) {
            let leased = client.dhcp4.advance(now)?;
            if let Some(lease) = &leased {
                lease.apply(&netlink, &client.name)?;
                names.add(&lease.names);
                client.lease = Some((lease.clone(), now));
            }
            let advertised = match &mut client.ipv6 {
                Some(ipv6) => ipv6.advance(&netlink, &client.name, now)?,
                None => None,
            };
            if let Some(told) = &advertised {
                names.add(told);
            }
            if client.since.is_none() && (leased.is_some() || advertised.is_some()) {
                client.since = Some(now);
                client.ask_again(now);
            }
            let grace = client.since.map(|since| since + GRACE);
            let due = [
                client.dhcp4.due(),
                client.ipv6.as_ref().and_then(Ipv6::due),
                grace,
            ];
            wake = due.into_iter().flatten().fold(wake, Instant::min);
        }
        let open: Vec<_> = clients
            .iter()
            .filter(|client| !client.is_done(now))
            .collect();
        let silent = open.iter().find(|client| client.since.is_none());
        if let Some(client) = silent.filter(|_| now >= start + limit) {
            return Err(client.silence(limit));
        }
        if open.is_empty() || now >= start + limit {
            adapt_tcp(&netlink, &clients);
            return Ok((names, clients.into_iter().flat_map(Client::held).collect()));
        }
        wait(&watch, &open, wake.saturating_duration_since(now))?;
    }
}

/// Adapts TCP to cables to gateways of `nat://`. These end all connections, in this kernel's
/// memory: frames may be as long as the kernel can make them, and there is no congestion to look
/// for. With BBR, which sends by the clock, a stream takes a quarter more processor time. That
/// setting is one for all interfaces, so it is left alone beside others. What fails only costs
/// speed.
fn adapt_tcp(netlink: &Netlink, clients: &[Client]) {
    let is_cable = |client: &&Client| {
        let lease = client.lease.as_ref();
        lease.is_some_and(|(lease, _)| lease.is_cable)
    };
    for client in clients.iter().filter(is_cable) {
        let _ = netlink.set_big_tcp(&client.name);
        if clients.len() == 1 {
            let _ = fs::write("/proc/sys/net/ipv4/tcp_congestion_control", "reno");
        }
    }
}

fn wait(watch: &Changes, clients: &[&Client], limit: Duration) -> Result<()> {
    let fds = clients.iter().flat_map(|client| {
        let v6 = client.ipv6.iter().flat_map(Ipv6::fds);
        std::iter::once(client.dhcp4.fd())
            .chain(v6)
            .collect::<Vec<BorrowedFd<'_>>>()
    });
    let mut fds: Vec<_> = fds
        .chain([watch.as_fd()])
        .map(|fd| PollFd::new(fd, PollFlags::POLLIN))
        .collect();
    let timeout =
        PollTimeout::try_from(limit + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
    match poll(&mut fds, timeout) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(system("wait for the network's answers")(errno)),
    }
}

/// The Ethernet address of an interface.
fn mac(interface: &str) -> Result<Mac> {
    let all = getifaddrs().map_err(system("list interfaces"))?;
    let mut own = all.filter(|address| address.interface_name == interface);
    own.find_map(|a| a.address.as_ref()?.as_link_addr()?.addr())
        .ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{interface} has no Ethernet address"),
            )
        })
}

/// What a message says of names, whatever kind of message it is: for the fuzzer.
pub(crate) fn names_in(message: &[u8]) -> Vec<Names> {
    let found = [
        dhcp4::names_in(message),
        dhcp6::names_in(message),
        ipv6::names_in(message),
    ];
    found.into_iter().flatten().collect()
}
