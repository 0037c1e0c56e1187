//! The keys of a `switch://` or `hub://` VNL, with the command line's options behind them.

use std::collections::BTreeSet;
use std::path::PathBuf;

use nix::sys::stat::Mode;
use nix::unistd::{Gid, Uid, User};
use vdens_plugin_kit::vnl::{Keys, Spec, group_id};
use vdens_plugin_kit::{Error, OpenOptions, Result};
use vdens_switch_control::{MAX_VLAN, Mac, NoMac, StormLimit};

use crate::Kind;

const KEYS: Keys = Keys::new(&[
    "mode",
    "dirmode",
    "group",
    "grp",
    "expiretime",
    "hashsize",
    "hashseed",
    "userports",
    "memory",
    "vlans",
    "vlan",
    "trunk",
    "storm",
    "stp",
    "priority",
    "hello",
    "maxage",
    "fdelay",
    "mac",
]);

const DEFAULT_MODE: u32 = 0o600;
const DEFAULT_EXPIRY: u64 = 120;
const DEFAULT_USER_PORTS: u64 = 64;
/// In MiB. Enough for 16 ports that are congested at a time to have the longest queues.
const DEFAULT_MEMORY: u64 = 64;

/// In frames a second. Hundreds of hosts stay far below it, and so does a multicast of video.
const DEFAULT_STORM: u32 = 20_000;

/// How a switch or hub is to be set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) kind: Kind,
    pub(crate) directory: PathBuf,
    /// Permission bits of the sockets: who may plug in.
    pub(crate) mode: Mode,
    pub(crate) directory_mode: Mode,
    /// The group that sockets and directory are to belong to.
    pub(crate) group: Option<Gid>,
    /// Seconds for which a station is remembered after its last frame: a hub remembers none.
    pub(crate) expiry: u32,
    /// How many ports each user may have, but for root and the switch's own.
    pub(crate) user_ports: usize,
    /// The frames that each port may flood in a second.
    pub(crate) storm: StormLimit,
    /// Whether the switch takes part in a spanning tree.
    pub(crate) stp: bool,
    /// Its priority there.
    pub(crate) priority: Option<u16>,
    /// The seconds between two BPDUs there.
    pub(crate) hello: Option<u8>,
    /// The seconds for which what a BPDU has said counts.
    pub(crate) max_age: Option<u8>,
    /// The seconds in which a port without a handshake goes one state further.
    pub(crate) forward_delay: Option<u8>,
    /// What all queues together may take, in bytes.
    pub(crate) memory: usize,
    /// VLANs that clients can choose.
    pub(crate) vlans: BTreeSet<u16>,
    /// The VLAN of untagged frames on the own side.
    pub(crate) untagged: Option<u16>,
    /// The VLANs whose frames are tagged on the own side.
    pub(crate) trunk: BTreeSet<u16>,
    /// The switch's address, if it is not to be any.
    pub(crate) mac: Option<Mac>,
}

impl Config {
    pub(crate) fn new(kind: Kind, argument: &str, options: &OpenOptions) -> Result<Self> {
        let spec = Spec::path_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        // VDE's switches have these keys. The forwarding database here needs no tuning.
        positive(&spec, "hashsize")?;
        spec.number::<u64>("hashseed")?;
        let expiry = positive(&spec, "expiretime")?.unwrap_or(DEFAULT_EXPIRY);
        let mode = spec.mode("mode")?.or(options.mode).unwrap_or(DEFAULT_MODE);
        let directory_mode = spec.mode("dirmode")?;
        let user_ports = positive(&spec, "userports")?.unwrap_or(DEFAULT_USER_PORTS);
        let memory = positive(&spec, "memory")?.unwrap_or(DEFAULT_MEMORY);
        Ok(Self {
            kind,
            directory: match spec.target().as_os_str().is_empty() {
                true => default_directory(),
                false => spec.absolute_path()?,
            },
            mode: Mode::from_bits_truncate(mode),
            directory_mode: Mode::from_bits_truncate(
                directory_mode.unwrap_or_else(|| searchable(mode)),
            ),
            group: spec
                .get("group")
                .or(spec.get("grp"))
                .or(options.group.as_deref())
                .map(|name| group_id(name).map(Gid::from_raw))
                .transpose()?,
            expiry: u32::try_from(expiry).unwrap_or(u32::MAX),
            user_ports: usize::try_from(user_ports).unwrap_or(usize::MAX),
            storm: match spec.get("storm") {
                Some("off") => StormLimit::Off,
                _ => {
                    let frames = positive(&spec, "storm")?.and_then(|n| u32::try_from(n).ok());
                    StormLimit::Frames(frames.unwrap_or(DEFAULT_STORM))
                }
            },
            stp: match spec.get("stp") {
                None | Some("off") => false,
                Some("" | "on") => true,
                Some(other) => {
                    return Err(Error::usage(format!("stp is on or off, not '{other}'")));
                }
            },
            priority: spec.number("priority")?,
            hello: spec.number("hello")?,
            max_age: spec.number("maxage")?,
            forward_delay: spec.number("fdelay")?,
            memory: usize::try_from(memory << 20).unwrap_or(usize::MAX),
            vlans: vlans(&spec, "vlans")?,
            untagged: spec.get("vlan").map(|_| vlan(&spec, "vlan")).transpose()?,
            trunk: vlans(&spec, "trunk")?,
            mac: spec.get("mac").map(address).transpose()?,
        })
    }
}

/// The directory's default permission bits: users who may use the sockets can reach them.
fn searchable(mode: u32) -> u32 {
    let group = if mode & 0o060 != 0 { 0o010 } else { 0 };
    let others = if mode & 0o006 != 0 { 0o001 } else { 0 };
    0o2700 | group | others
}

/// The address of a station: not of a group.
fn address(text: &str) -> Result<Mac> {
    let wrong = |why: &str| Error::usage(format!("mac={text}: {why}"));
    let mac: Mac = text
        .parse()
        .map_err(|error: NoMac| wrong(&error.to_string()))?;
    match mac.0[0] & 1 {
        0 => Ok(mac),
        _ => Err(wrong("it is the address of a group")),
    }
}

fn positive(spec: &Spec, key: &str) -> Result<Option<u64>> {
    match spec.number::<u32>(key)? {
        Some(0) => Err(Error::usage(format!("{key} cannot be 0"))),
        number => Ok(number.map(u64::from)),
    }
}

/// The VLAN that a key names.
fn vlan(spec: &Spec, key: &str) -> Result<u16> {
    let text = spec.get(key).unwrap_or_default();
    number_of_vlan(text).ok_or_else(|| no_vlan(key, text))
}

/// The VLANs that a key lists: identifiers and ranges of them, with commas between.
fn vlans(spec: &Spec, key: &str) -> Result<BTreeSet<u16>> {
    let mut vlans = BTreeSet::new();
    for part in spec.get(key).iter().flat_map(|list| list.split(',')) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (number_of_vlan(first), number_of_vlan(last)) {
            (Some(first), Some(last)) if first <= last => vlans.extend(first..=last),
            _ => return Err(no_vlan(key, part)),
        }
    }
    Ok(vlans)
}

fn number_of_vlan(text: &str) -> Option<u16> {
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
    let vlan = text.parse().ok().filter(|_| is_number);
    vlan.filter(|vlan| (1..=MAX_VLAN).contains(vlan))
}

fn no_vlan(key: &str, text: &str) -> Error {
    Error::usage(format!("{key}: '{}' is no VLAN", text.escape_debug()))
        .hint(format!("VLANs are 1 to {MAX_VLAN}, for example {key}=10"))
}

fn default_directory() -> PathBuf {
    let uid = Uid::current();
    let user = match User::from_uid(uid) {
        Ok(Some(user)) => user.name,
        _ => uid.to_string(),
    };
    PathBuf::from(format!("/tmp/vdenode_{user}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(argument: &str) -> Result<Config> {
        Config::new(Kind::Switch, argument, &OpenOptions::default())
    }

    #[test]
    fn defaults() {
        let got = config("/tmp/sw").unwrap();
        assert_eq!(got.mode.bits(), 0o600);
        assert_eq!(got.directory_mode.bits(), 0o2700);
        assert_eq!((got.group, got.expiry), (None, 120));
        assert_eq!((got.user_ports, got.memory), (64, 64 << 20));
        let default = config("").unwrap().directory;
        assert!(default.to_str().unwrap().starts_with("/tmp/vdenode_"));
    }

    #[test]
    fn keys() {
        let got = config("/sw[mode=666/grp=0/expiretime=5/hashsize=64/hashseed=7]").unwrap();
        assert_eq!(got.mode.bits(), 0o666);
        assert_eq!(got.directory_mode.bits(), 0o2711);
        assert_eq!(got.group, Some(Gid::from_raw(0)));
        assert_eq!(got.expiry, 5);
        let got = config("/sw[mode=660/dirmode=2770]").unwrap();
        assert_eq!(got.directory_mode.bits(), 0o2770);
        let got = config("/sw[mac=2:0:0:0:0:7]").unwrap();
        assert_eq!(got.mac, Some(Mac([2, 0, 0, 0, 0, 7])));
        let got = config("/sw[userports=1/memory=2]").unwrap();
        assert_eq!((got.user_ports, got.memory), (1, 2 << 20));
        let got = config("/sw[vlans=10,20-22/vlan=5/trunk=10,30]").unwrap();
        assert_eq!(got.vlans, [10, 20, 21, 22].into());
        assert_eq!((got.untagged, got.trunk), (Some(5), [10, 30].into()));
        assert_eq!(got.storm, StormLimit::Frames(20_000));
        assert_eq!(config("/sw[storm=off]").unwrap().storm, StormLimit::Off);
        assert_eq!(config("/sw[storm=5]").unwrap().storm, StormLimit::Frames(5));
        let got = config("/sw[stp/priority=4096]").unwrap();
        assert_eq!((got.stp, got.priority), (true, Some(4096)));
        assert!(!config("/sw[stp=off]").unwrap().stp);
        for bad in [
            "vlans=",
            "vlans=0",
            "vlans=10,,20",
            "vlans=20-10",
            "vlans=1-4095",
            "vlan=10,20",
            "vlan=+1",
            "trunk=x",
            "storm=0",
            "stp=maybe",
            "priority=65536",
            "hello=x",
            "maxage=256",
            "storm=on",
            "mode=8",
            "expiretime=0",
            "expiretime=-1",
            "hashsize=0",
            "hashsize=x",
            "hashseed=y",
            "group=no such group",
            "userports=0",
            "memory=0",
            "memory=64M",
            "port=3",
            "mac=2:0:0:0:0",
            "mac=01:00:00:00:00:01",
        ] {
            assert!(config(&format!("/sw[{bad}]")).is_err(), "{bad}");
        }
        assert!(config("/sw{null://}").is_err());
    }

    #[test]
    fn a_hub_takes_the_same_keys() {
        let hub = |argument| Config::new(Kind::Hub, argument, &OpenOptions::default());
        let got = hub("/hub[mode=666/expiretime=5/hashsize=64]").unwrap();
        assert_eq!(got.mode.bits(), 0o666);
        assert!(hub("/hub[expiretime=soon]").is_err());
        assert!(hub("/hub[port=3]").is_err());
    }

    #[test]
    fn options_stand_behind_the_vnl() {
        let options = OpenOptions {
            mode: Some(0o640),
            group: Some("0".into()),
            ..OpenOptions::default()
        };
        let got = Config::new(Kind::Switch, "/sw", &options).unwrap();
        assert_eq!(got.mode.bits(), 0o640);
        assert_eq!(got.group, Some(Gid::from_raw(0)));
        let got = Config::new(Kind::Switch, "/sw[mode=600]", &options).unwrap();
        assert_eq!(got.mode.bits(), 0o600);
    }
}
