//! Virtual machines in labs: QEMU in a node, with a network card for each of the node's interfaces.
//!
//! # Theory of operation
//!
//! The node of a machine is as any other, so its links are impaired, captured and drawn like those
//! of others. Behind each of its interfaces is a tap, plugged in as `vdens --tap` does it
//! ([`machine_tap`]). QEMU is a service of the node, and its command line names the taps. So it
//! starts when the links are there, ends with the node, and is started again when a changed file
//! says other things of it. An interface that is made again is plugged into its tap again.
//!
//! The card has the Ethernet address that the file or the interface's name gives. The interface has
//! another one, because a bridge takes frames for its ports' own addresses out of the way.
//!
//! The guest's serial line is a socket in the node's network namespace
//! ([`console`](crate::tools::console)).

use std::os::fd::AsFd;

use super::model::Machine;
use super::shape::Plug;
use super::wiring::Network;
use crate::error::Result;
use crate::namespace::machine_tap::{self, Names};
use crate::panel::Panel;
use crate::sys::netlink::{Mac, Netlink};
use crate::tools::console;

/// The program, unless the file names another.
pub(crate) const PROGRAM: &str = "qemu-system-x86_64";

/// The memory of the guest, unless the file says how much.
pub(crate) const MEMORY: &str = "512M";

/// What follows an interface's name in that of its tap.
pub(crate) const TAP: &str = ".vm";

/// The shell command that is the machine, with a card for each of the plugs.
pub(super) fn command(machine: &Machine, plugs: &[Plug]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut add = |option: &str, value: String| words.extend([option.to_owned(), value]);
    add("-machine", "accel=kvm:tcg".into());
    add("-cpu", "max".into());
    add("-m", machine.memory.clone());
    add("-smp", machine.cpus.to_string());
    add("-display", "none".into());
    add("-monitor", "none".into());
    let socket = format!(
        "socket,id=console,path={},abstract=on,server=on,wait=off",
        console::SOCKET
    );
    add("-chardev", socket);
    add("-serial", "chardev:console".into());
    let files = [
        ("-kernel", &machine.kernel),
        ("-initrd", &machine.initrd),
        ("-append", &machine.append),
    ];
    for (option, value) in files {
        if let Some(value) = value {
            add(option, value.clone());
        }
    }
    if let Some(image) = &machine.image {
        let snapshot = if machine.keep { "off" } else { "on" };
        let image = image.replace(',', ",,");
        add(
            "-drive",
            format!("file={image},if=virtio,snapshot={snapshot}"),
        );
    }
    for (number, plug) in plugs.iter().enumerate() {
        let tap = names(&plug.interface.name).tap;
        let mac = plug.mac.map(|byte| format!("{byte:02x}")).join(":");
        let netdev = format!("tap,id=n{number},ifname={tap},script=no,downscript=no");
        add("-netdev", netdev);
        let card = format!("virtio-net-pci,netdev=n{number},mac={mac},romfile=");
        add("-device", card);
    }
    words.extend(machine.args.iter().cloned());
    let words = words.iter().map(|word| quoted(word));
    let words: Vec<String> = words.collect();
    format!("exec {} {}", quoted(&machine.program), words.join(" "))
}

/// A shell command that fails, and says why, if the machine cannot start.
pub(super) fn check(machine: &Machine) -> String {
    let program = quoted(&machine.program);
    let mut line = format!(
        "command -v {program} >/dev/null || {{ echo {program} is not installed; exit 1; }}"
    );
    let files = [&machine.image, &machine.kernel, &machine.initrd];
    for file in files.into_iter().flatten() {
        let file = quoted(file);
        line += &format!("; test -r {file} || {{ echo cannot read {file}; exit 1; }}");
    }
    line
}

/// A word as the shell reads it.
fn quoted(word: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    match !word.is_empty() && word.chars().all(is_plain) {
        true => word.to_owned(),
        false => format!("'{}'", word.replace('\'', r"'\''")),
    }
}

/// Plugs an interface of a machine's node, which is there, into its tap. Makes the tap if there is
/// none yet.
///
/// # Errors
/// The kernel has no taps or no bridges.
pub(super) fn plug_in(plug: &Plug, panel: &Panel, network: &Network) -> Result<()> {
    panel.in_network(network.namespace.as_fd(), || {
        let netlink = Netlink::open()?;
        netlink.set_mac(&plug.interface.name, behind(plug.mac))?;
        machine_tap::make(&netlink, &names(&plug.interface.name), plug.mtu)?;
        Ok(Vec::new())
    })?;
    Ok(())
}

/// The names of what is behind an interface.
fn names(interface: &str) -> Names {
    Names {
        link: interface.to_owned(),
        tap: format!("{interface}{TAP}"),
        bridge: format!("{interface}.br"),
    }
}

/// The Ethernet address of the interface of a card that has this one. Both are locally
/// administered, or both are not.
fn behind(mac: Mac) -> Mac {
    let [first, rest @ ..] = mac;
    let mut other = [first ^ 0x80, 0, 0, 0, 0, 0];
    other[1..].copy_from_slice(&rest);
    other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lab::shape::Interface;

    #[test]
    fn a_machine_is_a_shell_command() {
        let machine = Machine {
            program: "qemu".into(),
            image: Some("it's a disk, mine.img".into()),
            memory: "1G".into(),
            cpus: 2,
            append: Some("console=ttyS0 quiet".into()),
            args: vec!["-s".into()],
            ..Machine::default()
        };
        let plug = Plug {
            interface: Interface {
                node: "vm".into(),
                name: "eth0".into(),
            },
            mac: [2, 0, 0, 0, 0, 7],
            mtu: None,
        };
        let line = command(&machine, &[plug]);
        for part in [
            "exec qemu -machine accel=kvm:tcg ",
            " -m 1G -smp 2 ",
            " -append 'console=ttyS0 quiet' ",
            r" -drive 'file=it'\''s a disk,, mine.img,if=virtio,snapshot=on' ",
            " -netdev tap,id=n0,ifname=eth0.vm,script=no,downscript=no ",
            " -device virtio-net-pci,netdev=n0,mac=02:00:00:00:00:07,romfile= -s",
        ] {
            assert!(line.contains(part), "{part} in {line}");
        }
        assert_ne!(behind([2, 0, 0, 0, 0, 7]), [2, 0, 0, 0, 0, 7]);
    }
}
