//! What to open: the VNL's keys, or else the command line's options.

use std::env;
use std::path::PathBuf;

use nix::unistd::{Gid, Uid, User};
use vdens_plugin_kit::user::AllowedUser;
use vdens_plugin_kit::vnl::{Keys, Spec, group_id};
use vdens_plugin_kit::vnl_file::{Place, default_switch};
use vdens_plugin_kit::wire::control::{MAX_DESCRIPTION_LEN, MAX_PORT, Mark};
use vdens_plugin_kit::{Error, OpenOptions, Result};

const KEYS: Keys = Keys::new(&[
    "port",
    "vlan",
    "group",
    "mode",
    "descr",
    "description",
    "user",
])
.default_key("port");

/// The highest VLAN identifier (IEEE 802.1Q, table 9-2).
const MAX_VLAN: u16 = 4094;

/// The description of a link without one.
const DEFAULT_DESCRIPTION: &str = "vdens";

/// The port to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Any that is free.
    Any,
    /// This number.
    Number(u32),
    /// Any of a named group, which has a control socket of its own.
    Group(String),
}

/// A switch, the port to ask for, and how the client presents itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) directory: PathBuf,
    pub(crate) port: Port,
    /// The VLAN to choose, if the switch offers it.
    pub(crate) vlan: Option<u16>,
    /// The group that the client's socket is to belong to.
    pub(crate) group: Option<Gid>,
    /// The permission bits of the client's socket.
    pub(crate) mode: Option<u32>,
    /// What the switch shows for the port; there is room for a mark at its end.
    pub(crate) description: Vec<u8>,
    /// Which user's switch may be joined.
    pub(crate) user: AllowedUser,
}

impl Target {
    pub(crate) fn new(argument: &str, options: &OpenOptions) -> Result<Self> {
        let spec = Spec::path_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        let description = spec
            .get("description")
            .or(spec.get("descr"))
            .unwrap_or(&options.description);
        let port = match spec.get("port") {
            Some(port) => parse_port(port)?,
            None => options.port.map_or(Ok(Port::Any), number)?,
        };
        let vlan = spec.get("vlan").map(parse_vlan).transpose()?;
        if let (Port::Group(name), Some(vlan)) = (&port, vlan) {
            let message = format!("the group of ports '{name}' and VLAN {vlan} exclude each other");
            return Err(Error::usage(message).hint("name one of them"));
        }
        Ok(Self {
            directory: match spec.target().as_os_str().is_empty() {
                true => default_directory()?,
                false => spec.absolute_path()?,
            },
            port,
            vlan,
            group: spec
                .get("group")
                .or(options.group.as_deref())
                .map(|name| group_id(name).map(Gid::from_raw))
                .transpose()?,
            mode: spec.mode("mode")?.or(options.mode),
            description: describe(description),
            user: AllowedUser::of_key(spec.get("user"))?,
        })
    }
}

/// The default switch's directory.
fn default_directory() -> Result<PathBuf> {
    match default_switch()? {
        Place::Directory(directory) => Ok(directory),
        Place::Vnl(_) => Err(Error::usage(
            "the default switch is a file with a VNL, and a directory is wanted here",
        )
        .hint("write the VNL itself")),
    }
}

fn number(port: u32) -> Result<Port> {
    match port {
        0 => Ok(Port::Any),
        1..=MAX_PORT => Ok(Port::Number(port)),
        _ => Err(Error::usage(format!(
            "port {port} is out of range, the highest is {MAX_PORT}"
        ))),
    }
}

fn parse_port(port: &str) -> Result<Port> {
    if let Ok(port) = port.parse() {
        return number(port);
    }
    let is_name = !port.contains('/') && !matches!(port, "" | "." | "..");
    if !is_name || port.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::usage(format!(
            "'{}' is neither a port number nor the name of a group of ports",
            port.escape_debug()
        ))
        .hint(format!("port numbers are 1 to {MAX_PORT}")));
    }
    Ok(Port::Group(port.to_owned()))
}

fn parse_vlan(vlan: &str) -> Result<u16> {
    let number = vlan.parse().ok();
    let number = number.filter(|number| (1..=MAX_VLAN).contains(number));
    number.ok_or_else(|| {
        Error::usage(format!("'{}' is no VLAN", vlan.escape_debug()))
            .hint(format!("VLANs are 1 to {MAX_VLAN}"))
    })
}

/// `NAME user=USER pid=PID[ SSH=ADDRESS]`, the name cut so that all of it and a mark fit.
fn describe(name: &str) -> Vec<u8> {
    let uid = Uid::current();
    let user = match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    let mut identity = format!(" user={user} pid={}", std::process::id());
    let ssh = env::var("SSH_CLIENT").unwrap_or_default();
    if let Some(address) = ssh.split_whitespace().next() {
        identity.push_str(" SSH=");
        identity.push_str(address);
    }
    let name = if name.is_empty() {
        DEFAULT_DESCRIPTION
    } else {
        name
    };
    let length = MAX_DESCRIPTION_LEN - Mark::MAX_LEN;
    let room = length.saturating_sub(identity.len());
    let mut description: Vec<u8> = name.bytes().filter(|b| *b != 0).take(room).collect();
    description.extend(identity.bytes().filter(|b| *b != 0));
    description.truncate(length);
    description
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(argument: &str) -> Result<Target> {
        Target::new(argument, &OpenOptions::default())
    }

    #[test]
    fn the_vnl_wins_over_the_options() {
        let options = OpenOptions {
            description: "from options".into(),
            port: Some(7),
            group: Some("0".into()),
            mode: Some(0o640),
        };
        let got = Target::new("/tmp/sw", &options).unwrap();
        assert_eq!(got.port, Port::Number(7));
        assert_eq!(got.group, Some(Gid::from_raw(0)));
        assert_eq!(got.mode, Some(0o640));
        assert!(got.description.starts_with(b"from options user="));
        let got = Target::new("/tmp/sw[3/mode=700/descr=mine]", &options).unwrap();
        assert_eq!(got.port, Port::Number(3));
        assert_eq!(got.mode, Some(0o700));
        assert!(got.description.starts_with(b"mine user="));
    }

    #[test]
    fn ports() {
        let port = |argument: &str| target(argument).map(|t| t.port);
        assert_eq!(port("/sw").unwrap(), Port::Any);
        assert_eq!(port("/sw[0]").unwrap(), Port::Any);
        assert_eq!(port("/sw[3]").unwrap(), Port::Number(3));
        assert_eq!(port("/sw[staff]").unwrap(), Port::Group("staff".to_owned()));
        for bad in ["16777216", "99999999999", "", "..", "a%2fb"] {
            assert!(port(&format!("/sw[port={bad}]")).is_err(), "{bad}");
        }
        assert!(target("/sw[group=no such group]").is_err());
        assert!(target("/sw{vde://}").is_err());
    }

    #[test]
    fn vlans() {
        let got = target("/sw[vlan=10/port=3]").unwrap();
        assert_eq!((got.vlan, got.port), (Some(10), Port::Number(3)));
        assert_eq!(target("/sw").unwrap().vlan, None);
        for bad in ["vlan=0", "vlan=4095", "vlan=x", "staff/vlan=10"] {
            assert!(target(&format!("/sw[{bad}]")).is_err(), "{bad}");
        }
    }

    #[test]
    fn users() {
        assert_eq!(target("/sw").unwrap().user, AllowedUser::First);
        assert_eq!(target("/sw[user=0]").unwrap().user, AllowedUser::Only(0));
        assert_eq!(target("/sw[3/user=any]").unwrap().user, AllowedUser::Any);
        assert!(target("/sw[user=no such user]").is_err());
    }

    #[test]
    fn descriptions_fit() {
        let long = describe(&"x".repeat(300));
        assert_eq!(long.len() + Mark::MAX_LEN, MAX_DESCRIPTION_LEN);
        let pid = format!("pid={}", std::process::id());
        assert!(String::from_utf8(long).unwrap().contains(&pid));
        assert!(describe("").starts_with(b"vdens user="));
    }
}
