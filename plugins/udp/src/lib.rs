//! `udp://[SOURCE:]PORT->DESTINATION:PORT`: a cable through an IP network, one frame a datagram.
//!
//! The socket is connected, so the kernel delivers only the far end's datagrams. There is no
//! handshake. The link cannot know whether the far end is there, and always has carrier. [`Socket`]
//! moves the batches; this module parses the VNL and chooses the addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::BorrowedFd;

use vdens_plugin_kit::udp::{Socket, resolve};
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{Error, Link, OpenRequest, Result, RxBatch, TxBatch, export_plugin, log};

const KEYS: Keys = Keys::new(&[]);

/// The addresses of both ends, as the VNL has them.
#[derive(Debug, PartialEq, Eq)]
struct Addresses {
    /// Without a host, the kernel chooses the address.
    near: (Option<String>, u16),
    far: (String, u16),
}

impl Addresses {
    fn parse(argument: &str) -> Result<Self> {
        let spec = Spec::address_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        let text = spec.target_str()?;
        let bad = |what: &str| {
            Error::usage(format!("{what} in udp://{}", text.escape_debug())).hint(
                "write udp://[SOURCE:]PORT->DESTINATION:PORT, with quotes around it in a shell",
            )
        };
        let (near, far) = text.split_once("->").ok_or_else(|| bad("no '->'"))?;
        let (far_host, far_port) = far.rsplit_once(':').ok_or_else(|| bad("no destination"))?;
        let (near_host, near_port) = match near.rsplit_once(':') {
            Some((host, port)) => (Some(host), port),
            None => (None, near),
        };
        let port = |text: &str| {
            let number = text.parse().ok().filter(|port| *port > 0);
            number.ok_or_else(|| {
                bad(&format!(
                    "'{}' is no port from 1 to 65535,",
                    text.escape_debug()
                ))
            })
        };
        Ok(Self {
            near: (near_host.map(str::to_owned), port(near_port)?),
            far: (far_host.to_owned(), port(far_port)?),
        })
    }

    /// A socket between the first addresses of both ends that are of one family.
    fn connect(&self) -> Result<UdpSocket> {
        let fars = resolve(&self.far.0, self.far.1)?;
        let nears = match &self.near {
            (Some(host), port) => resolve(host, *port)?,
            (None, port) => [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()]
                .map(|address: IpAddr| SocketAddr::new(address, *port))
                .to_vec(),
        };
        let mut failure =
            Error::usage("the two ends have no addresses of one family, IPv4 or IPv6");
        for far in fars {
            for near in nears.iter().filter(|near| near.is_ipv4() == far.is_ipv4()) {
                match connect(*near, far) {
                    Ok(socket) => return Ok(socket),
                    Err(error) => failure = error,
                }
            }
        }
        Err(failure)
    }
}

fn connect(near: SocketAddr, far: SocketAddr) -> Result<UdpSocket> {
    let socket = UdpSocket::bind(near).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::AddrInUse => "another program has that port",
            std::io::ErrorKind::AddrNotAvailable => "the source must be an address of this machine",
            std::io::ErrorKind::PermissionDenied => "take a source port from 1024 on",
            _ => "",
        };
        Error::io(format_args!("use UDP port {near}"), &error).hint(hint)
    })?;
    socket
        .connect(far)
        .map_err(|error| Error::io(format_args!("send from {near} to {far}"), &error))?;
    log::debug!("UDP from {near} to {far}");
    Ok(socket)
}

struct Udp(Socket);

impl Link for Udp {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }

    fn send_fd(&self) -> BorrowedFd<'_> {
        self.0.send_fd()
    }

    fn recv(&mut self, batch: &mut RxBatch<'_>) -> Result<()> {
        self.0.recv(batch, |_, datagram| Some(datagram))
    }

    fn send(&mut self, batch: &mut TxBatch<'_>) -> Result<usize> {
        self.0.send(batch, &[], |_| None)
    }
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let ends = Addresses::parse(request.argument())?;
    Ok(Box::new(Udp(Socket::new(ends.connect()?)?)))
}

export_plugin! {
    scheme: "udp",
    description: "a cable through an IP network: udp://[SOURCE:]PORT->DESTINATION:PORT",
    needs: "network",
    open: open,
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdens_plugin_kit::Batch;

    fn ends(near: (Option<&str>, u16), far: (&str, u16)) -> Addresses {
        Addresses {
            near: (near.0.map(str::to_owned), near.1),
            far: (far.0.to_owned(), far.1),
        }
    }

    #[test]
    fn ends_are_hosts_and_ports() {
        for (argument, expected) in [
            ("1->h:2", ends((None, 1), ("h", 2))),
            ("s:65535->h.org:2", ends((Some("s"), 65535), ("h.org", 2))),
            (
                "[::1]:1->[fe80::1%25eth0]:2",
                ends((Some("[::1]"), 1), ("[fe80::1%eth0]", 2)),
            ),
        ] {
            assert_eq!(Addresses::parse(argument).unwrap(), expected);
        }
        for (argument, words) in [
            ("", "no '->'"),
            ("2000", "no '->'"),
            ("1->2", "no destination"),
            ("1->h:0", "'0' is no port"),
            ("1->h:65536", "'65536' is no port"),
            ("->h:1", "'' is no port"),
            ("x->h:1", "'x' is no port"),
            ("1->h:2/mtu=1", "unknown key 'mtu'"),
            ("1->h:2{ptp://x}", "unexpected nested VNL"),
        ] {
            let error = Addresses::parse(argument).unwrap_err().to_string();
            assert!(error.contains(words), "{argument}: {error}");
        }
    }

    #[test]
    fn addresses_go_together_or_the_reason_is_told() {
        for (argument, words) in [
            ("127.0.0.1:2->[::1]:3", "one family"),
            (
                "192.0.2.1:2->127.0.0.1:3",
                "cannot use UDP port 192.0.2.1:2",
            ),
            ("2->::1:3", "in brackets"),
            (":2->127.0.0.1:3", "is no host"),
            (
                "2->no.such.host.invalid:3",
                "cannot find the address of 'no.such.host.invalid'",
            ),
        ] {
            let error = Addresses::parse(argument)
                .unwrap()
                .connect()
                .unwrap_err()
                .to_string();
            assert!(error.contains(words), "{argument}: {error}");
        }
    }

    #[test]
    fn only_the_far_ends_frames_are_received() {
        let [far, stranger] = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
        let near = UdpSocket::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let ends = ends(
            (Some("localhost"), near.port()),
            ("127.0.0.1", far.local_addr().unwrap().port()),
        );
        let mut link = Udp(Socket::new(ends.connect().unwrap()).unwrap());
        stranger.send_to(&[1; 60], near).unwrap();
        far.send_to(&[2; 60], near).unwrap();
        let mut batch = Batch::new();
        link.recv(&mut batch.rx()).unwrap();
        assert_eq!(batch.len(), 1);
        assert_eq!(batch.tx(0).frame(0).unwrap().bytes(), [2; 60]);
        assert_eq!(link.send(&mut batch.tx(0)).unwrap(), 1);
        let mut got = [0; 100];
        assert_eq!(far.recv_from(&mut got).unwrap(), (60, near));
    }
}
