//! What a VNL says: `[GROUP-OR-PEER]/key=value/…`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use vdens_plugin_kit::udp::resolve;
use vdens_plugin_kit::vnl::{Keys, Spec};
use vdens_plugin_kit::{Error, Result};

const KEYS: Keys = Keys::new(&[
    "port",
    "vni",
    "ttl",
    "if",
    "local",
    "expiretime",
    "v4",
    "v6",
    "hashsize",
]);

/// The groups that libvdeplug uses when none is named.
const GROUP_V4: Ipv4Addr = Ipv4Addr::new(239, 0, 0, 1);
const GROUP_V6: Ipv6Addr = Ipv6Addr::new(0xff05, 0x56de, 0, 0, 0, 0, 0, 1);

/// The port that IANA assigned to VXLAN.
const PORT: u16 = 4789;
/// The largest network identifier: 24 bits.
const MAX_VNI: u32 = 0xff_ffff;
/// As for a switch.
const EXPIRY: Duration = Duration::from_secs(120);

/// A VNL, taken apart and looked up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// The group, or the one peer.
    pub(crate) far: SocketAddr,
    /// The address to send from, or the unspecified one, and the port to receive at.
    pub(crate) local: SocketAddr,
    pub(crate) vni: u32,
    /// Time to live (hop limit) of datagrams; `None` is 1 for a group, and the system's for a peer.
    pub(crate) ttl: Option<u8>,
    pub(crate) interface: Option<String>,
    pub(crate) expiry: Duration,
}

impl Config {
    pub(crate) fn parse(argument: &str) -> Result<Self> {
        let spec = Spec::address_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        let port = spec.number("port")?.unwrap_or(PORT);
        let vni = spec.number("vni")?.unwrap_or(1);
        if port == 0 || vni > MAX_VNI {
            let message = format!("port {port} or vni {vni} is out of range");
            return Err(Error::usage(message).hint(format!(
                "ports are 1 to 65535, network identifiers 0 to {MAX_VNI}"
            )));
        }
        spec.number::<u32>("hashsize")?;
        let ttl = spec.number("ttl")?;
        if ttl == Some(0) {
            return Err(Error::usage("ttl=0 would let no datagram out").hint("ttl is 1 to 255"));
        }
        let far = far(&spec, port)?;
        let any = match far {
            SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let local = match spec.get("local") {
            None => SocketAddr::new(any, port),
            Some(_) if far.ip().is_multicast() => {
                return Err(Error::usage("local= does not go with a group")
                    .hint("say with if=NAME by which interface the group is reached"));
            }
            Some(host) => pick(host, port, |address| address.is_ipv4() == far.is_ipv4())?,
        };
        let expiry = spec.number("expiretime")?.map(Duration::from_secs);
        Ok(Self {
            far,
            local,
            vni,
            ttl,
            interface: spec.get("if").map(str::to_owned),
            expiry: expiry.unwrap_or(EXPIRY),
        })
    }
}

/// The group or peer.
fn far(spec: &Spec, port: u16) -> Result<SocketAddr> {
    let (v4, v6) = (spec.has("v4"), spec.has("v6"));
    if v4 && v6 {
        return Err(Error::usage("v4 and v6 exclude each other"));
    }
    let text = match (spec.target_str()?, v6) {
        ("", true) => return Ok(SocketAddr::new(GROUP_V6.into(), port)),
        ("", false) => return Ok(SocketAddr::new(GROUP_V4.into(), port)),
        (text, _) => text,
    };
    pick(text, port, |address| match address {
        SocketAddr::V4(_) => !v6,
        SocketAddr::V6(_) => !v4,
    })
}

/// The first suitable address of a host. An IPv6 address may do without brackets, as in libvdeplug.
fn pick(host: &str, port: u16, suits: impl Fn(&SocketAddr) -> bool) -> Result<SocketAddr> {
    let found = match host.parse::<Ipv6Addr>() {
        Ok(literal) => vec![SocketAddr::new(literal.into(), port)],
        Err(_) => resolve(host, port)?,
    };
    found.into_iter().find(suits).ok_or_else(|| {
        let message = format!(
            "'{}' has no address of the family wanted",
            host.escape_debug()
        );
        Error::usage(message).hint("v4 is IPv4 and v6 IPv6; both ends must be of one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_and_what_is_not() {
        let default = Config {
            far: "239.0.0.1:4789".parse().unwrap(),
            local: "0.0.0.0:4789".parse().unwrap(),
            vni: 1,
            ttl: None,
            interface: None,
            expiry: EXPIRY,
        };
        assert_eq!(Config::parse("").unwrap(), default);
        assert_eq!(Config::parse("/v4/hashsize=7").unwrap(), default);
        let v6 = Config::parse("/v6").unwrap();
        assert_eq!(v6.far, "[ff05:56de::1]:4789".parse().unwrap());
        assert_eq!(v6.local, "[::]:4789".parse().unwrap());
        for argument in ["ff15::3/port=12345/vni=42", "[ff15::3]/port=12345/vni=42"] {
            let config = Config::parse(argument).unwrap();
            assert_eq!(config.far, "[ff15::3]:12345".parse().unwrap());
            assert_eq!((config.vni, config.ttl), (42, None));
        }
        let all = "127.0.0.1/local=127.0.0.2/ttl=9/if=lo/expiretime=5/vni=16777215";
        let expected = Config {
            far: "127.0.0.1:4789".parse().unwrap(),
            local: "127.0.0.2:4789".parse().unwrap(),
            vni: MAX_VNI,
            ttl: Some(9),
            interface: Some("lo".into()),
            expiry: Duration::from_secs(5),
        };
        assert_eq!(Config::parse(all).unwrap(), expected);
    }

    #[test]
    fn nonsense_is_named() {
        for (argument, words) in [
            ("239.0.0.1/vnid=3", "unknown key 'vnid'"),
            ("239.0.0.1/vni=16777216", "out of range"),
            ("239.0.0.1/vni=x", "bad value 'x' for key 'vni'"),
            ("239.0.0.1/port=0", "out of range"),
            ("239.0.0.1/port=65536", "bad value '65536'"),
            ("239.0.0.1/ttl=256", "bad value '256'"),
            ("239.0.0.1/ttl=0", "ttl is 1 to 255"),
            ("239.0.0.1/v6", "no address of the family"),
            ("/v4/v6", "exclude each other"),
            ("239.0.0.1/local=127.0.0.1", "if=NAME"),
            ("127.0.0.1/local=[::1]", "no address of the family"),
            ("no.such.host.invalid", "cannot find the address"),
            ("239.0.0.1{ptp://x}", "unexpected nested VNL"),
        ] {
            let error = Config::parse(argument).unwrap_err().to_string();
            assert!(error.contains(words), "{argument}: {error}");
        }
    }
}
