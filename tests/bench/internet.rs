//! The ways to the Internet, and an Internet for them.
//!
//! ```text
//! [client] == the way == [host] --veth, MTU 1500-- [server]
//!                       192.0.2.2                  192.0.2.1, 198.51.100.1
//! ```
//!
//! Theory of operation. Root makes the host and the server, two bare network namespaces, so nothing
//! leaves the machine. A [`Way`] starts as an ordinary user's program in the host, and makes the
//! client's namespace. Only kernel NAT, the reference, is root's. [`Way::open`] waits until the
//! client has had an answer from the server. Dropping the [`Uplink`] ends everything.

use std::path::Path;

use crate::Result;
use crate::lab::{Lab, Maker, Node, PATIENCE, Who, installed, is_root};
use crate::network::{bare_sibling, wait_for_port};
use crate::process::{Proc, Procs, wait_for};
use vdens_tests::name;

/// The server's address, which is no neighbour of the host's.
pub(crate) const SERVER: &str = "198.51.100.1";
/// Where the server answers requests.
pub(crate) const ANSWERS: u16 = 7010;

/// What connects clients with the Internet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Forwarding and masquerading, by root.
    Kernel,
    /// `vdens nat://`, on the panel or without it.
    Nat {
        panel: bool,
    },
    /// vdens on a switch that has `nat://`.
    Switch,
    Pasta,
    Slirp4netns,
    /// libvdeplug's plugin, on our vdens.
    Slirp,
}

/// Clients that reach the server.
#[derive(Debug)]
pub(crate) struct Uplink<'lab> {
    pub(crate) clients: Vec<Node>,
    pub(crate) host: Node,
    pub(crate) server: Node,
    // In the order in which they are to end.
    holders: Procs<'lab>,
    programs: Procs<'lab>,
    _surroundings: Procs<'lab>,
}

impl Way {
    /// Why this machine cannot do it.
    pub(crate) fn missing(self, lab: &Lab) -> Option<String> {
        if !is_root() {
            return Some("needs root, to make the Internet and the user's network".to_owned());
        }
        let (needed, package) = match self {
            Self::Kernel => ("nft", "nftables"),
            Self::Pasta => ("pasta", "passt"),
            Self::Slirp4netns => ("slirp4netns", "slirp4netns"),
            Self::Slirp => return slirp_missing(),
            Self::Nat { .. } | Self::Switch => return nat_missing(lab),
        };
        let missing = format!("{needed} is not installed (Debian: {package})");
        (!installed(needed)).then_some(missing)
    }

    /// Connects `count` clients.
    pub(crate) fn open(self, lab: &Lab, count: usize) -> Result<Uplink<'_>> {
        let mut uplink = internet(lab)?;
        match self {
            Self::Kernel => uplink.kernel(lab, count)?,
            Self::Slirp4netns => uplink.slirp4netns(lab)?,
            Self::Switch => uplink.switch(lab, count)?,
            Self::Nat { .. } | Self::Pasta | Self::Slirp => {
                let (program, words) = self.command(lab, &["sleep", "86400"]);
                uplink.start_client(lab, &program, &words)?;
            }
        }
        for client in &uplink.clients {
            lab.sh(client, "ip link set lo up")?;
            let words = format!("first {SERVER}:{ANSWERS} {}", PATIENCE.as_millis());
            lab.tool_inside(client, &words).output(PATIENCE * 2)?;
        }
        Ok(uplink)
    }

    /// The program and the arguments that run a command in a client.
    pub(crate) fn command(self, lab: &Lab, command: &[&str]) -> (std::path::PathBuf, Vec<String>) {
        let vdens = || lab.program(Maker::Ours, "vdens");
        let (program, options) = match self {
            Self::Pasta => ("/usr/bin/pasta".into(), "--config-net -q --"),
            Self::Slirp => (
                vdens(),
                "--addr 10.0.2.15/24 --gateway 10.0.2.2 libvdeplug://slirp://",
            ),
            Self::Nat { panel: false } => (vdens(), "--no-panel --auto nat://"),
            _ => (vdens(), "--auto nat://"),
        };
        let words = options.split(' ').chain(command.iter().copied());
        (program, words.map(str::to_owned).collect())
    }
}

fn nat_missing(lab: &Lab) -> Option<String> {
    let plugin = lab.program(Maker::Ours, "libvdens_nat.so");
    (!plugin.exists()).then(|| "these programs have no nat://".to_owned())
}

fn slirp_missing() -> Option<String> {
    let libraries = std::fs::read_dir("/usr/lib")
        .into_iter()
        .flatten()
        .flatten();
    let mut plugins = libraries.map(|entry| entry.path().join("vdeplug/libvdeplug_slirp.so"));
    let missing = "libvdeplug's slirp is not installed (Debian: libvdeplug-slirp)";
    (!plugins.any(|plugin| plugin.exists())).then(|| missing.to_owned())
}

/// The host and the server, without a client yet.
pub(crate) fn internet(lab: &Lab) -> Result<Uplink<'_>> {
    let (holder, host) = lab.bare_node(0)?;
    let mut surroundings = Procs(vec![holder]);
    let (holder, mut server) = lab.bare_node(0)?;
    surroundings.0.push(holder);
    server.address = SERVER.to_owned();
    lab.sh(
        &host,
        &format!(
            "ip link set lo up
             ip link add vde0 type veth peer name vde0 netns {}
             ip addr add 192.0.2.2/24 dev vde0
             ip link set vde0 up",
            server.pid
        ),
    )?;
    // Servers for any address answer from the one that was asked.
    lab.sh(
        &server,
        "ip link set lo up
         ip addr add 198.51.100.1/32 dev lo
         ip addr add 192.0.2.1/24 dev vde0
         ip link set vde0 up
         ip route change 192.0.2.0/24 dev vde0 src 198.51.100.1",
    )?;
    lab.sh(&host, "ip route add default via 192.0.2.1")?;
    let answers = lab.tool_inside(&server, &format!("answer {ANSWERS}"));
    wait_for_port(&answers, "tcp", ANSWERS)?;
    surroundings.0.push(answers);
    Ok(Uplink {
        clients: Vec::new(),
        host,
        server,
        holders: Procs::default(),
        programs: Procs::default(),
        _surroundings: surroundings,
    })
}

impl<'lab> Uplink<'lab> {
    /// Starts a program of the user's in the host's network.
    fn start(&mut self, lab: &'lab Lab, program: &Path, words: &[String]) -> &Proc<'lab> {
        let command = lab.inside(&self.host, Who::First, program, words);
        self.programs.0.push(Proc::spawn(command));
        &self.programs.0[self.programs.0.len() - 1]
    }

    /// Starts a program that makes a client's namespace.
    fn start_client(&mut self, lab: &'lab Lab, program: &Path, words: &[String]) -> Result<()> {
        let number = self.clients.len();
        let proc = self.start(lab, program, words);
        let node = lab.node_of(proc, Who::First, number)?;
        self.clients.push(node);
        Ok(())
    }

    fn kernel(&mut self, lab: &'lab Lab, count: usize) -> Result<()> {
        lab.sh(
            &self.host,
            "echo 1 > /proc/sys/net/ipv4/ip_forward
             nft 'table ip bench { chain out { type nat hook postrouting priority srcnat; oifname vde0 masquerade; }; }'",
        )?;
        for number in 0..count {
            let (holder, client) = bare_sibling(lab, &self.host, number)?;
            self.holders.0.push(holder);
            lab.sh(
                &self.host,
                &format!(
                    "ip link add c{number} type veth peer name vde0 netns {}
                     ip addr add 10.9.{number}.1/24 dev c{number}
                     ip link set c{number} up",
                    client.pid
                ),
            )?;
            lab.sh(
                &client,
                &format!(
                    "ip addr add 10.9.{number}.2/24 dev vde0
                     ip link set vde0 up
                     ip route add default via 10.9.{number}.1"
                ),
            )?;
            self.clients.push(client);
        }
        Ok(())
    }

    /// A namespace that is there already, and slirp4netns, which is told its process.
    fn slirp4netns(&mut self, lab: &'lab Lab) -> Result<()> {
        let unshare = Path::new("/usr/bin/unshare");
        let holder = lab.inside(&self.host, Who::First, unshare, ["-Urn", "sleep", "86400"]);
        let holder = Proc::spawn(holder);
        let client = lab.node_of(&holder, Who::First, 0)?;
        let words = ["--configure", &client.pid.to_string(), "tap0"].map(str::to_owned);
        self.holders.0.push(holder);
        self.clients.push(client);
        self.start(lab, Path::new("/usr/bin/slirp4netns"), &words);
        Ok(())
    }

    fn switch(&mut self, lab: &'lab Lab, count: usize) -> Result<()> {
        let place = lab.unique("uplink");
        let vnls = ["nat://".to_owned(), format!("switch://{place}")];
        let switch = self.start(lab, &lab.program(Maker::Ours, "vde_plug"), &vnls);
        let control = Path::new(&place).join("ctl");
        wait_for("the switch", PATIENCE, || {
            (control.exists() || switch.check().is_err()).then_some(())
        })?;
        switch.check()?;
        let vnl = format!("vde://{place}");
        let words = ["--auto", &vnl, "sleep", "86400"].map(str::to_owned);
        for _ in 0..count {
            self.start_client(lab, &lab.program(Maker::Ours, "vdens"), &words)?;
        }
        Ok(())
    }

    /// The contender's processes, without clients' commands and the benchmark's own.
    pub(crate) fn processes(&self, lab: &Lab) -> Vec<i32> {
        let ours = ["sleep", "tool"];
        let is_its = |id: &i32| !name(*id).is_some_and(|name| ours.contains(&&*name));
        lab.remains().into_iter().filter(is_its).collect()
    }

    /// An error if any of the programs has ended.
    pub(crate) fn check(&self) -> Result<()> {
        self.programs.0.iter().try_for_each(Proc::check)
    }
}
