//! What to open: the VNL's address and keys.

use std::fmt;
use std::path::PathBuf;

use vdens_plugin_kit::bound_socket::Access;
use vdens_plugin_kit::user::AllowedUser;
use vdens_plugin_kit::vnl::{Keys, Spec, check_socket_path, group_id};
use vdens_plugin_kit::{Error, OpenOptions, Result};

const PATH_KEYS: Keys = Keys::new(&["listen", "connect", "mode", "group", "user"]);
const TCP_KEYS: Keys = Keys::new(&["listen", "connect"]);

/// The host of an address without one: only this machine's processes can connect.
const LOOPBACK: &str = "127.0.0.1";

/// Where the ends meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// A UNIX socket.
    Path(PathBuf),
    /// A TCP port.
    Tcp { host: String, port: u16 },
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Tcp { host, port } => write!(f, "{}:{port}", host.escape_debug()),
        }
    }
}

/// What this end does there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// It waits for the peer. These may connect to its path.
    Listen(Access),
    /// It connects to the peer, which may be this user's.
    Connect(AllowedUser),
}

/// An address, and what to do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: Address,
    pub(crate) side: Side,
}

impl Target {
    pub(crate) fn parse(argument: &str, options: &OpenOptions) -> Result<Self> {
        let (spec, address) = match is_tcp(argument) {
            true => {
                let spec = Spec::address_grammar(argument, &TCP_KEYS)?;
                let address = tcp(spec.target_str()?)?;
                (spec, address)
            }
            false => {
                let spec = Spec::path_grammar(argument, &PATH_KEYS)?;
                let path = spec.absolute_path().map_err(|error| {
                    error.hint("write stream://PATH, or stream://HOST:PORT for TCP")
                })?;
                check_socket_path(&path)?;
                (spec, Address::Path(path))
            }
        };
        spec.no_nested()?;
        let side = match (spec.has("connect"), spec.has("listen")) {
            (true, true) => {
                let message = format!("stream://{argument} is to both listen and connect");
                return Err(Error::usage(message).hint("leave out one of the two keys"));
            }
            (true, false) => {
                only("group", &spec, "listens")?;
                only("mode", &spec, "listens")?;
                Side::Connect(AllowedUser::of_key(spec.get("user"))?)
            }
            (false, _) => {
                only("user", &spec, "connects")?;
                let mode = spec.mode("mode")?.or(options.mode);
                let group = spec.get("group").or(options.group.as_deref());
                Side::Listen(Access {
                    mode: mode.unwrap_or(0o700) & 0o777,
                    group: group.map(group_id).transpose()?,
                })
            }
        };
        Ok(Self { address, side })
    }
}

/// Refuses a key that is for a link that `does` something else.
fn only(key: &str, spec: &Spec, does: &str) -> Result<()> {
    match spec.has(key) {
        false => Ok(()),
        true => Err(Error::usage(format!(
            "the key '{key}' is for a link that {does}, and this one does not"
        ))
        .hint("a link listens, unless the key 'connect' is there")),
    }
}

/// Whether an argument starts with a host, a colon and digits. A relative path that does is written
/// with `./` in front.
fn is_tcp(argument: &str) -> bool {
    let host = match argument.starts_with('[') {
        true => argument.find(']').unwrap_or(0),
        false => 0,
    };
    let address = argument[host..].split(['/', '[', '{']).next();
    let port = address.and_then(|address| address.rsplit_once(':'));
    port.is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// The address in `HOST:PORT`.
fn tcp(text: &str) -> Result<Address> {
    let (host, port) = text.rsplit_once(':').unwrap_or((text, ""));
    let number = port.parse().ok().filter(|port| *port > 0);
    let port = number.ok_or_else(|| {
        let port = port.escape_debug();
        Error::usage(format!("'{port}' is no port from 1 to 65535"))
            .hint("write stream://HOST:PORT, and keys behind it: stream://HOST:PORT/connect")
    })?;
    let host = match host {
        "" => LOOPBACK,
        host => host,
    };
    Ok(Address::Tcp {
        host: host.to_owned(),
        port,
    })
}
