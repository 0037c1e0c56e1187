//! `tcp=auto` and `udp=auto`: forwards that follow what listens in the session's namespace.
//!
//! The proxy is outside that namespace. The kernel shows the network of every process in
//! `/proc/PID/net` though, to whoever may see the process (proc_pid_net(5)). So once a second the
//! proxy reads the tables of sockets of the session's command, and forwards what is new there.
//! Listening sockets are at the head of TCP's tables, so reading ends where connections begin.
//!
//! A service on the loopback inside cannot be reached from the gateway, so it is not forwarded.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use crate::forward::{Forward, Protocol};

/// How often it is looked what listens.
const LOOK: Duration = Duration::from_secs(1);

/// How many looks may find no process in the session's namespace, before that is reported.
const MISSES: u32 = 10;

/// The first port that the kernel gives to sockets which ask for none (ip_local_port_range, ip(7)).
/// A socket of UDP is no service for having such a port.
const EPHEMERAL: u16 = 32_768;

/// The ports of DHCP's clients, IPv4 and IPv6.
const DHCP_CLIENTS: [u16; 2] = [68, 546];

/// States of sockets (net/tcp_states.h): TCP's that listen, and UDP's that have no peer.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// What there is for one protocol and one address to listen on.
#[derive(Default)]
struct Followed {
    made: BTreeSet<Forward>,
    /// What could not be forwarded, which has been reported.
    refused: BTreeSet<Forward>,
}

/// What is to be changed.
#[derive(Default)]
pub(crate) struct Changes {
    pub gone: Vec<Forward>,
    pub new: Vec<Forward>,
}

/// What is followed.
pub(crate) struct Follow {
    /// Processes of which one is in the session's namespace.
    inside: Vec<u32>,
    /// The networks inside.
    nets: Vec<IpNet>,
    followed: BTreeMap<(Protocol, IpAddr), Followed>,
    next: Option<Instant>,
    misses: u32,
}

impl Follow {
    pub(crate) fn new(inside: Vec<u32>, nets: Vec<IpNet>) -> Self {
        Self {
            inside,
            nets,
            followed: BTreeMap::new(),
            next: None,
            misses: 0,
        }
    }

    /// Begins to follow.
    ///
    /// # Errors
    /// There is no namespace whose sockets could be meant, or no IPv4 address to lead to.
    pub(crate) fn add(&mut self, protocol: Protocol, listen: IpAddr) -> io::Result<()> {
        let key = protocol.key();
        if self.inside.is_empty() {
            return Err(io::Error::other(format!(
                "{key}=auto follows what listens in one namespace, but this gateway serves a whole network: name the ports, as in {key}=8080:10.0.2.20:80"
            )));
        }
        if !self.nets.iter().any(|net| matches!(net, IpNet::V4(_))) {
            return Err(io::Error::other(format!(
                "{key}=auto needs IPv4 inside: leave out ipv4=no, or name the ports, as in {key}=8080:[fd00::5]:80"
            )));
        }
        self.followed.entry((protocol, listen)).or_default();
        self.next = Some(Instant::now());
        Ok(())
    }

    /// Ends that; the forwards that end with it.
    ///
    /// # Errors
    /// It is not followed.
    pub(crate) fn remove(
        &mut self,
        protocol: Protocol,
        listen: IpAddr,
    ) -> io::Result<BTreeSet<Forward>> {
        let ended = self.followed.remove(&(protocol, listen));
        if self.followed.is_empty() {
            self.next = None;
        }
        ended
            .map(|followed| followed.made)
            .ok_or_else(|| io::Error::other("it is not forwarded"))
    }

    /// What is followed, for a person.
    pub(crate) fn list(&self) -> impl Iterator<Item = String> {
        self.followed
            .keys()
            .map(|(protocol, listen)| format!("{} {listen}: auto", protocol.key()))
    }

    /// When [`Follow::look`] has something to do.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.next
    }

    /// What listens inside and is not forwarded, and the other way round. `first_client` is the
    /// address of services that listen on all addresses.
    pub(crate) fn look(&mut self, now: Instant, first_client: Ipv4Addr) -> Changes {
        let mut changes = Changes::default();
        if self.next.is_none_or(|next| now < next) {
            return changes;
        }
        self.next = Some(now + LOOK);
        let Some(process) = self.process() else {
            self.misses += 1;
            return changes;
        };
        for (&(protocol, listen), followed) in &mut self.followed {
            let Ok(services) = services(process, protocol, &self.nets, first_client) else {
                // The process has just ended.
                continue;
            };
            let wanted: BTreeSet<_> = services
                .into_iter()
                .map(|(port, to)| Forward {
                    protocol,
                    listen: SocketAddr::new(listen, port),
                    to,
                })
                .collect();
            changes.gone.extend(followed.made.difference(&wanted));
            changes.new.extend(wanted.difference(&followed.made));
            followed.made.retain(|forward| wanted.contains(forward));
            followed.refused.retain(|forward| wanted.contains(forward));
        }
        changes
    }

    /// Notes what became of a new forward; what to report, the first time that it fails.
    pub(crate) fn tried(&mut self, forward: Forward, added: io::Result<()>) -> Option<String> {
        let key = (forward.protocol, forward.listen.ip());
        let followed = self.followed.get_mut(&key)?;
        match added {
            Ok(()) => {
                followed.made.insert(forward);
                followed.refused.remove(&forward);
                None
            }
            Err(error) => followed
                .refused
                .insert(forward)
                .then(|| format!("{}=auto: {error}", forward.protocol.key())),
        }
    }

    /// What to report of looks that found nothing to look at.
    pub(crate) fn blindness(&mut self) -> Option<String> {
        if self.misses < MISSES {
            return None;
        }
        self.next = None;
        self.misses = 0;
        let text = "auto cannot see what listens inside: no process of the session can be examined; name the ports instead, as in tcp=8080:80";
        Some(text.to_owned())
    }

    /// The process that is in another network namespace than this one.
    fn process(&mut self) -> Option<u32> {
        let namespace = |process: &str| {
            let file = fs::metadata(format!("/proc/{process}/ns/net")).ok()?;
            Some((file.dev(), file.ino()))
        };
        let own = namespace("self")?;
        let found = self
            .inside
            .iter()
            .copied()
            .find(|id| namespace(&id.to_string()).is_some_and(|other| other != own))?;
        self.inside = vec![found];
        Some(found)
    }
}

/// The ports at which something listens in a process's network, and where each leads to.
fn services(
    process: u32,
    protocol: Protocol,
    nets: &[IpNet],
    first_client: Ipv4Addr,
) -> io::Result<BTreeMap<u16, SocketAddr>> {
    let mut found = BTreeMap::new();
    for family in ["", "6"] {
        let path = format!("/proc/{process}/net/{}{family}", protocol.key());
        let table = match File::open(path) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && family == "6" => continue,
            table => BufReader::new(table?),
        };
        for address in listening(table, protocol)? {
            let ip = match address.ip() {
                ip if ip.is_unspecified() => first_client.into(),
                ip if nets.iter().any(|net| net.contains(&ip)) => ip,
                _ => continue,
            };
            let to = SocketAddr::new(ip, address.port());
            found.entry(address.port()).or_insert(to);
        }
    }
    Ok(found)
}

/// The addresses of the services in a table of sockets (`/proc/net/tcp` and its like,
/// proc_pid_net(5)). TCP's end with the first socket that does not listen.
fn listening(table: impl BufRead, protocol: Protocol) -> io::Result<Vec<SocketAddr>> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        let line = line?;
        let mut words = line.split_whitespace().skip(1);
        let (Some(local), Some(_), Some(state)) = (words.next(), words.next(), words.next()) else {
            continue;
        };
        match protocol {
            Protocol::Tcp if state != LISTEN => break,
            Protocol::Udp if state != CLOSE => continue,
            _ => {}
        }
        let is_service = |port| protocol == Protocol::Tcp || is_udp_service(port);
        found.extend(address(local).filter(|address| is_service(address.port())));
    }
    Ok(found)
}

/// Whether a socket of UDP that has this port is a service.
fn is_udp_service(port: u16) -> bool {
    port < EPHEMERAL && !DHCP_CLIENTS.contains(&port)
}

/// An address in a table: hexadecimal words of 32 bits, each in the machine's byte order, and the
/// port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let mut bytes = Vec::new();
    for word in ip.as_bytes().chunks(8) {
        let word = u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip: IpAddr = match bytes.len() {
        4 => Ipv4Addr::from(bytes.first_chunk::<4>().copied()?).into(),
        16 => Ipv6Addr::from(bytes.first_chunk::<16>().copied()?).to_canonical(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n";

    fn read(protocol: Protocol, rows: &[&str]) -> Vec<String> {
        let table = format!("{HEAD}{}", rows.join("\n"));
        let found = listening(table.as_bytes(), protocol).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn tables_of_sockets() {
        // Little-endian words, as a machine of this kind writes them.
        let ten = format!("{:08X}", u32::from_ne_bytes([10, 0, 2, 15]));
        let any = "0".repeat(32);
        let rows = [
            &*format!("   0: {ten}:0050 00000000:0000 0A 00000000:00000000 00:00000000"),
            &format!("   1: {any}:1F90 {any}:0000 0A 00000000:00000000 00:00000000"),
            "   2: 00000000:0007 0100007F:8888 01 00000000:00000000 00:00000000",
            "   3: 00000000:0008 00000000:0000 0A",
        ];
        assert_eq!(read(Protocol::Tcp, &rows), ["10.0.2.15:80", "[::]:8080"]);
        let rows = [
            "  1: 00000000:0035 00000000:0000 07 00000000:00000000",
            "  2: 00000000:0036 0100007F:0035 01 00000000:00000000",
            "  3: 00000000:9C40 00000000:0000 07 00000000:00000000",
            "  4: 00000000:0044 00000000:0000 07 00000000:00000000",
            "x",
            "  5: 0:zz 0 07",
        ];
        assert_eq!(read(Protocol::Udp, &rows), ["0.0.0.0:53"]);
        assert_eq!(read(Protocol::Tcp, &[]), [""; 0]);
    }

    #[test]
    fn a_failure_is_reported_once() {
        let nets = vec!["10.0.2.0/24".parse().unwrap()];
        let mut follow = Follow::new(vec![1], nets);
        let listen = Ipv4Addr::LOCALHOST.into();
        follow.add(Protocol::Tcp, listen).unwrap();
        let forward = Forward {
            protocol: Protocol::Tcp,
            listen: "127.0.0.1:80".parse().unwrap(),
            to: "10.0.2.15:80".parse().unwrap(),
        };
        let failed = || Err(io::Error::other("it is taken"));
        assert!(follow.tried(forward, failed()).is_some());
        assert_eq!(follow.tried(forward, failed()), None);
        assert_eq!(follow.tried(forward, Ok(())), None);
        assert_eq!(follow.remove(Protocol::Tcp, listen).unwrap().len(), 1);
        assert!(follow.remove(Protocol::Tcp, listen).is_err());
        assert_eq!(follow.due(), None);
    }

    #[test]
    fn a_whole_network_has_no_sockets() {
        let mut follow = Follow::new(Vec::new(), vec!["10.0.2.0/24".parse().unwrap()]);
        let error = follow.add(Protocol::Udp, Ipv4Addr::LOCALHOST.into());
        let text = error.unwrap_err().to_string();
        assert!(
            text.contains("whole network") && text.contains("udp=8080"),
            "{text}"
        );
    }
}
