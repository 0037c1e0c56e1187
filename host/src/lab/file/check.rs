//! What a word of a lab file must be, by itself: names, commands, kernel parameters, VNLs,
//! impairments and times.

use std::time::Duration;

use vdens_impairment::{Keys, Settings};
use vdens_plugin_kit::tap::{MAX_INTERFACE_NAME, check_interface_name};
use vdens_plugin_kit::vnl::Vnl;

use crate::error::{Error, Result};
use crate::plugins::search::similar;

/// The longest name of a lab, node or switch, in bytes: that of a session's.
const LONGEST_NAME: usize = 32;

/// The parameters below net.core that each network namespace has for itself
/// (net/core/sysctl_net_core.c, netns_core_table).
const OWN_CORE: [&str; 5] = [
    "optmem_max",
    "rps_default_mask",
    "somaxconn",
    "tstamp_allow_data",
    "txrehash",
];

/// The directories below net, and whether a network namespace has one of its own.
const NET: [&str; 9] = [
    "bridge",
    "core",
    "ipv4",
    "ipv6",
    "mpls",
    "mptcp",
    "netfilter",
    "sctp",
    "unix",
];

/// The parameters in the other directories that belong to the whole machine, or cannot be written
/// in a network namespace of a user's; one that ends in `_` stands for all that start so. Of Linux
/// 6.18.
const SHARED: [&str; 34] = [
    "net.ipv4.cipso_cache_bucket_size",
    "net.ipv4.cipso_cache_enable",
    "net.ipv4.cipso_rbm_optfmt",
    "net.ipv4.cipso_rbm_strictvalid",
    "net.ipv4.fib_sync_mem",
    "net.ipv4.inet_peer_maxttl",
    "net.ipv4.inet_peer_minttl",
    "net.ipv4.inet_peer_threshold",
    "net.ipv4.ipfrag_secret_interval",
    "net.ipv4.route.error_",
    "net.ipv4.route.gc_",
    "net.ipv4.route.max_size",
    "net.ipv4.route.redirect_",
    "net.ipv4.tcp_allowed_congestion_control",
    "net.ipv4.tcp_available_",
    "net.ipv4.tcp_ehash_entries",
    "net.ipv4.tcp_low_latency",
    "net.ipv4.tcp_max_orphans",
    "net.ipv4.tcp_mem",
    "net.ipv4.udp_hash_entries",
    "net.ipv4.udp_mem",
    "net.ipv6.calipso_",
    "net.ipv6.ip6frag_secret_interval",
    "net.ipv6.mld_",
    "net.ipv6.route.flush",
    "net.ipv6.route.gc_",
    "net.ipv6.route.min_adv_mss",
    "net.ipv6.route.mtu_expires",
    "net.ipv6.route.skip_notify_on_dev_down",
    "net.mptcp.available_",
    "net.netfilter.nf_conntrack_buckets",
    "net.netfilter.nf_conntrack_count",
    "net.netfilter.nf_conntrack_expect_max",
    "net.netfilter.nf_conntrack_max",
];

/// Checks the name of a `kind`, which is also what a session's name can be.
///
/// # Errors
/// It is empty, too long, or has other characters.
pub(super) fn name(kind: &str, name: &str) -> Result<()> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let starts_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if starts_well && name.len() <= LONGEST_NAME && name.bytes().all(is_allowed) {
        return Ok(());
    }
    let message = format!("'{}' cannot be the name of a {kind}", name.escape_debug());
    Err(Error::usage(message).hint(format!(
        "a name has up to {LONGEST_NAME} letters, digits, '.', '_' and '-', and starts with a \
         letter or digit"
    )))
}

/// Checks the name of a node's interface.
///
/// # Errors
/// The kernel refuses it, or has such an interface in each namespace.
pub(super) fn interface(name: &str) -> Result<()> {
    match name {
        "" => {
            Err(Error::usage("the interface has no name").hint("write NODE:INTERFACE, as r1:eth0"))
        }
        "lo" => Err(Error::usage("each node has the interface lo already")
            .hint("name the interface otherwise, such as eth0")),
        // Directories of /proc/sys/net/ipv4/conf.
        "all" | "default" => Err(
            Error::usage(format!("'{name}' cannot be an interface name"))
                .hint("name the interface otherwise, such as eth0"),
        ),
        _ => check_interface_name(name).map_err(|error| match error.hint.is_empty() {
            true => error.hint("take a shorter one, such as eth0"),
            false => error,
        }),
    }
}

/// Checks that a tap can be named after a machine's interface.
///
/// # Errors
/// The name is too long.
pub(super) fn interface_of_machine(name: &str, suffix: &str) -> Result<()> {
    let longest = MAX_INTERFACE_NAME - suffix.len();
    if name.len() <= longest {
        return Ok(());
    }
    let message = format!("'{name}' is too long for the interface of a virtual machine");
    Err(Error::usage(message).hint(format!("at most {longest} bytes fit, such as eth0")))
}

/// Checks an amount of memory.
///
/// # Errors
/// It is no number with a unit.
pub(super) fn memory(text: &str) -> Result<()> {
    let number = text.strip_suffix(['M', 'G']).unwrap_or_default();
    let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
    match is_number && number.trim_start_matches('0').len().clamp(1, 7) == number.len() {
        true if !number.is_empty() => Ok(()),
        _ => {
            let message = format!("'{}' is no amount of memory", text.escape_debug());
            Err(Error::usage(message).hint("write a number of M or G, such as 512M"))
        }
    }
}

/// Checks a shell command.
///
/// # Errors
/// It is empty, or cannot be passed to a program.
pub(super) fn command(text: &str) -> Result<()> {
    if text.trim().is_empty() {
        return Err(
            Error::usage("the command is empty").hint("write one for the shell, or remove it")
        );
    }
    match text.contains('\0') {
        true => Err(Error::usage("the command has a NUL character").hint("remove the character")),
        false => Ok(()),
    }
}

/// Checks the name of a kernel parameter. Returns the interface that it is for, if it is for one.
///
/// # Errors
/// It is malformed, or a node has none of its own.
pub(super) fn sysctl(key: &str) -> Result<Option<&str>> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    let words: Vec<&str> = key.split('.').collect();
    if !words
        .iter()
        .all(|word| !word.is_empty() && word.bytes().all(is_allowed))
    {
        let message = format!("'{}' is no kernel parameter", key.escape_debug());
        return Err(
            Error::usage(message).hint("write one as sysctl has it, as net.ipv4.ip_forward")
        );
    }
    let not_own = |hint: &str| {
        let message = format!("{key} belongs to the whole machine, and a node has none of its own");
        Err(Error::usage(message).hint(hint))
    };
    let (directory, rest) = match *words {
        ["kernel", "hostname"] => return not_own("write hostname = …"),
        ["net", directory, ref rest @ ..] if !rest.is_empty() => (directory, rest),
        ["net", ..] => {
            return not_own("leave it out; what a node has starts with net.ipv4 or net.ipv6");
        }
        _ => return not_own("leave it out: only parameters below net. are a node's"),
    };
    if !NET.contains(&directory) {
        let meant = similar(directory, NET.map(str::to_owned));
        let meant = meant.map(|meant| format!("did you mean net.{meant}?"));
        let known = || format!("those of a node are below net. in {}", NET.join(", "));
        return Err(
            Error::usage(format!("there is no kernel parameter net.{directory}"))
                .hint(meant.unwrap_or_else(known)),
        );
    }
    let is_shared = SHARED.iter().any(|shared| match shared.ends_with('_') {
        true => key.starts_with(shared),
        false => key == *shared,
    });
    if is_shared || directory == "core" && !OWN_CORE.contains(&rest[0]) {
        return not_own("set it for the whole machine as root, or leave it out");
    }
    Ok(match (directory, rest) {
        ("ipv4" | "ipv6" | "mpls", ["conf" | "neigh", interface, _])
            if !matches!(*interface, "all" | "default" | "lo") =>
        {
            Some(interface)
        }
        _ => None,
    })
}

/// Checks the value of a kernel parameter.
///
/// # Errors
/// It is empty, or not one line.
pub(super) fn sysctl_value(text: &str) -> Result<()> {
    match text.trim().is_empty() || text.contains(|c: char| c.is_control() && c != '\t') {
        true => Err(Error::usage(format!(
            "'{}' is no value of a parameter",
            text.escape_debug()
        ))
        .hint("write a number, or several in one string: \"4096 16384 65536\"")),
        false => Ok(()),
    }
}

/// Checks the name of a test.
///
/// # Errors
/// It is empty, or not one line.
pub(super) fn title(text: &str) -> Result<()> {
    match text.trim().is_empty() || text.contains(char::is_control) {
        true => Err(
            Error::usage(format!("'{}' is no name of a test", text.escape_debug()))
                .hint("write name = \"a line of text\""),
        ),
        false => Ok(()),
    }
}

/// Checks a VNL as far as nothing needs to be opened: `has_scheme` tells whether there is a plugin.
///
/// # Errors
/// It is malformed, or nothing serves its scheme.
pub(super) fn vnl(text: &str, has_scheme: &dyn Fn(&str) -> Result<()>) -> Result<()> {
    let shown = text.escape_debug();
    if !text.contains("://") {
        return Err(Error::usage(format!("'{shown}' is no VNL"))
            .hint("write its scheme too: nat://, or vde:///PATH for a switch"));
    }
    if text.contains('\0') {
        return Err(
            Error::usage(format!("the VNL '{shown}' has a NUL character"))
                .hint("remove the character"),
        );
    }
    has_scheme(Vnl::parse(text)?.scheme)
}

/// Checks impairments.
///
/// # Errors
/// A value is wrong, or has no meaning with the others.
pub(super) fn impairments(keys: &Keys) -> Result<()> {
    // A table is read when the lab starts: nothing is opened here.
    let mut keys = keys.clone();
    for key in ["distribution", "tx.distribution", "rx.distribution"] {
        if keys.get(key).is_some_and(|table| table.starts_with('/')) {
            keys.change(&format!("{key}=normal"))?;
        }
    }
    Settings::of(&keys).map(drop)
}

/// Reads a time.
///
/// # Errors
/// It has no unit, another one, or is over an hour.
pub(super) fn time(text: &str) -> Result<Duration> {
    let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
    let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
    let scale = match unit {
        "ms" => Some(1e-3),
        "s" => Some(1.0),
        "m" | "min" => Some(60.0),
        _ => None,
    };
    let seconds = number
        .parse()
        .ok()
        .zip(scale)
        .map(|(number, scale): (f64, f64)| number * scale);
    let time = seconds
        .filter(|seconds| *seconds <= 3600.0)
        .map(Duration::from_secs_f64);
    time.ok_or_else(|| {
        Error::usage(format!("'{}' is no time", text.escape_debug()))
            .hint("write up to an hour with its unit, such as 500ms, 10s or 2m")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused<T: std::fmt::Debug>(outcome: Result<T>, words: &str) {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(words) && error.contains("; "), "{error}");
    }

    #[test]
    fn names() {
        let longest = "x".repeat(32);
        for good in ["r1", "1", "R.2_b-c", &longest] {
            name("node", good).unwrap();
        }
        let too_long = "x".repeat(33);
        for bad in [
            "", ".r", "-r", "r 1", "r/1", "r:1", "ä", "r*", "r\n", &too_long,
        ] {
            refused(name("node", bad), "cannot be the name of a node");
        }
        interface("eth0").unwrap();
        for (bad, words) in [
            ("", "no name"),
            ("lo", "lo already"),
            ("all", "cannot be an interface name"),
            ("an-interface-name", "too long"),
            ("a b", "cannot be"),
        ] {
            refused(interface(bad), words);
        }
        command("true").unwrap();
        refused(command(" \n"), "is empty");
        refused(command("a\0"), "NUL");
    }

    #[test]
    fn kernel_parameters_are_those_of_a_network_namespace() {
        for (key, interface) in [
            ("net.ipv4.ip_forward", None),
            ("net.ipv4.conf.all.rp_filter", None),
            ("net.ipv4.conf.eth0.rp_filter", Some("eth0")),
            ("net.ipv6.neigh.r-1.retrans_time_ms", Some("r-1")),
            ("net.core.somaxconn", None),
            ("net.ipv4.route.min_pmtu", None),
            ("net.netfilter.nf_conntrack_acct", None),
        ] {
            assert_eq!(sysctl(key).unwrap(), interface, "{key}");
        }
        for (key, words) in [
            ("kernel.hostname", "write hostname"),
            ("kernel.pid_max", "belongs to the whole machine"),
            ("vm.swappiness", "only parameters below net."),
            ("net.core.rmem_max", "belongs to the whole machine"),
            ("net.ipv4.tcp_mem", "belongs to the whole machine"),
            ("net.ipv4.route.gc_timeout", "belongs to the whole machine"),
            ("net.nf_conntrack_max", "belongs to the whole machine"),
            ("net.ipv5.ip_forward", "did you mean net.ipv4?"),
            ("net.decnet.x", "those of a node are"),
            ("net", "belongs to the whole machine"),
            ("", "'' is no kernel parameter"),
            ("net.ipv4..x", "is no kernel parameter"),
            ("net.ipv4/../../x", "is no kernel parameter"),
        ] {
            refused(sysctl(key), words);
        }
    }

    #[test]
    fn vnls_have_a_scheme_that_is_served() {
        let served = |scheme: &str| match scheme {
            "vxlan" => Ok(()),
            _ => Err(Error::usage("no plugin").hint("x")),
        };
        vnl("vxlan://192.0.2.7/vni=5", &served).unwrap();
        refused(vnl("/tmp/sw", &served), "'/tmp/sw' is no VNL");
        refused(vnl("Nat://", &served), "bad scheme 'Nat'");
        refused(vnl("nut://", &served), "no plugin");
        refused(vnl("vxlan://\0", &served), "NUL");
    }

    #[test]
    fn impairments_are_those_of_netem_and_open_nothing() {
        let keys = |text: &str| Keys::parse(text).unwrap();
        impairments(&keys("delay=20ms/tx.loss=1%/rx.rate=50mbit")).unwrap();
        impairments(&keys("jitter=1ms/distribution='/nonexistent'")).unwrap();
        refused(
            impairments(&keys("delay=20")),
            "bad value '20' for key 'delay'",
        );
        refused(
            impairments(&keys("distribution=x/jitter=1ms")),
            "no distribution 'x'",
        );
    }

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in [("500ms", 500), ("1.5s", 1500), ("2m", 120_000), ("0s", 0)] {
            assert_eq!(time(text).unwrap(), Duration::from_millis(milliseconds));
        }
        for text in ["", "5", "s", "-1s", "1h", "61m", "1e9s", "1.2.3s", "NaNs"] {
            refused(time(text), "is no time; write");
        }
    }
}
