//! The contenders, and how they are wired.
//!
//! Theory of operation. A [`Contender`] is data: who made the two ends, what is between them, and
//! which user owns them. [`Contender::wire`] makes the namespaces, plugs them together, gives them
//! addresses and waits until they reach each other. Dropping the [`Network`] ends everything. The
//! caller's own network namespace stays as it is: veth pairs, bridges and taps are made inside
//! namespaces that exist for this.

use std::path::Path;

use crate::Result;
use crate::lab::{Lab, Maker, Node, PATIENCE, Who, installed, is_root};
use crate::process::{Proc, Procs, wait_for};

/// What is between the ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Medium {
    /// A veth pair, without vdens.
    Veth,
    /// A kernel bridge with veth pairs, without vdens.
    Bridge,
    Ptp,
    /// A cable, whose first end goes through `netem://`.
    Netem,
    /// `vde_plug null:// switch://…`
    Plug(Maker),
    /// A VLAN of `switch://…[vlans=10]`.
    Vlan,
    /// `switch://…[stp]`.
    Tree,
    VdeSwitch,
    /// A persistent tap of root's is the first end.
    Tap,
    /// `udp://` through the loopback interface of a bare namespace.
    Udp,
    /// `vxlan://` between two bare namespaces on a veth pair.
    Vxlan,
}

/// A way to connect namespaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Contender {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// Who made the vdens of the first end, and that of all others.
    pub(crate) makers: [Maker; 2],
    pub(crate) medium: Medium,
    /// Whether ours may use the panel.
    pub(crate) panel: bool,
    /// Whether ours are given `--big-tcp`.
    pub(crate) big_tcp: bool,
    /// Whether the ends are two users'.
    pub(crate) two_users: bool,
    /// Whether ports of our switch may flood without a limit.
    pub(crate) unlimited: bool,
    /// The contender that does the same with Debian's programs.
    pub(crate) rival: Option<&'static str>,
}

/// Namespaces that reach each other.
#[derive(Debug)]
pub(crate) struct Network<'lab> {
    pub(crate) nodes: Vec<Node>,
    // In the order in which they are to end.
    members: Procs<'lab>,
    between: Procs<'lab>,
}

impl Contender {
    const fn new(
        id: &'static str,
        title: &'static str,
        makers: [Maker; 2],
        medium: Medium,
    ) -> Self {
        Self {
            id,
            title,
            makers,
            medium,
            panel: true,
            big_tcp: false,
            two_users: false,
            unlimited: false,
            rival: None,
        }
    }

    pub(crate) const fn ours(id: &'static str, title: &'static str, medium: Medium) -> Self {
        Self::new(id, title, [Maker::Ours; 2], medium)
    }

    pub(crate) const fn debian(id: &'static str, title: &'static str, medium: Medium) -> Self {
        Self::new(id, title, [Maker::Debian; 2], medium)
    }

    pub(crate) const fn mixed(id: &'static str, title: &'static str, medium: Medium) -> Self {
        Self::new(id, title, [Maker::Ours, Maker::Debian], medium)
    }

    pub(crate) const fn without_panel(self) -> Self {
        Self {
            panel: false,
            ..self
        }
    }

    pub(crate) const fn with_big_tcp(self) -> Self {
        Self {
            big_tcp: true,
            ..self
        }
    }

    pub(crate) const fn of_two_users(self) -> Self {
        Self {
            two_users: true,
            ..self
        }
    }

    /// With nothing that limits floods, as in a kernel's bridge and Debian's switches.
    pub(crate) const fn unlimited(self) -> Self {
        Self {
            unlimited: true,
            ..self
        }
    }

    pub(crate) const fn versus(self, rival: &'static str) -> Self {
        Self {
            rival: Some(rival),
            ..self
        }
    }

    fn has(&self, maker: Maker) -> bool {
        let bare = matches!(self.medium, Medium::Veth | Medium::Bridge);
        self.medium == Medium::Plug(maker) || (!bare && self.makers.contains(&maker))
    }

    /// Why this machine cannot do it.
    pub(crate) fn missing(&self, lab: &Lab) -> Option<String> {
        let mut needs = vec!["ip"];
        if self.has(Maker::Debian) {
            needs.push("vdens");
        }
        match self.medium {
            Medium::Plug(Maker::Debian) => needs.push("vde_plug"),
            Medium::VdeSwitch => needs.push("vde_switch"),
            Medium::Vxlan => needs.push("nft"),
            Medium::Tap if !is_root() => return Some("needs root, to make the tap".to_owned()),
            _ => {}
        }
        if let Some(program) = needs.into_iter().find(|program| !installed(program)) {
            return Some(format!("{program} is not installed"));
        }
        if self.two_users && !lab.has_two_users() {
            return Some("needs root and the users vdens-test and vdens-test2".to_owned());
        }
        if !self.panel && !lab.has_panel {
            return Some("this vdens has no --no-panel (and no panel)".to_owned());
        }
        None
    }

    /// Connects `count` namespaces.
    pub(crate) fn wire<'lab>(&self, lab: &'lab Lab, count: usize) -> Result<Network<'lab>> {
        let mut network = Network {
            nodes: Vec::new(),
            members: Procs::default(),
            between: Procs::default(),
        };
        // A new path each time, so that a failed contender leaves nothing in the way.
        let place = lab.unique(self.id);
        match self.medium {
            Medium::Veth => veth(lab, &mut network)?,
            Medium::Bridge => bridge(lab, &mut network, count)?,
            Medium::Tap => self.tap(lab, &mut network)?,
            Medium::Udp => self.udp(lab, &mut network)?,
            Medium::Vxlan => self.vxlan(lab, &mut network)?,
            Medium::Ptp => {
                let mode = if self.two_users { "[mode=0777]" } else { "" };
                self.members(lab, &mut network, count, &format!("ptp://{place}{mode}"))?;
            }
            Medium::Netem => {
                let cable = format!("ptp://{place}");
                for (number, vnl) in [&format!("netem://{{{cable}}}"), &cable]
                    .into_iter()
                    .enumerate()
                {
                    let (program, words) = self.vdens(lab, number, vnl);
                    let command = lab.command(Who::First, &program, words);
                    network.members.0.push(Proc::spawn(command));
                    network.add_node(lab, number, Who::First, number)?;
                }
            }
            Medium::Plug(maker) => {
                self.plug(lab, &mut network, maker, &place, &[])?;
                self.members(lab, &mut network, count, &format!("vde://{place}"))?;
            }
            Medium::Vlan => {
                self.plug(lab, &mut network, Maker::Ours, &place, &["vlans=10"])?;
                self.members(lab, &mut network, count, &format!("vde://{place}[vlan=10]"))?;
            }
            Medium::Tree => {
                self.plug(lab, &mut network, Maker::Ours, &place, &["stp"])?;
                self.members(lab, &mut network, count, &format!("vde://{place}"))?;
            }
            Medium::VdeSwitch => {
                let switch = lab.program(Maker::Debian, "vde_switch");
                let ports = (count + 2).max(32).to_string();
                network.start_switch(
                    Proc::spawn(lab.command(Who::First, &switch, ["-s", &place, "-n", &ports])),
                    &place,
                )?;
                self.members(lab, &mut network, count, &format!("vde://{place}"))?;
            }
        }
        for node in &network.nodes {
            let (address, interface) = (&node.address, &node.interface);
            lab.sh(
                node,
                &format!(
                    "ip addr add {address}/16 broadcast 10.77.255.255 dev {interface}
                     ip link set {interface} up; ip link set lo up"
                ),
            )?;
        }
        if self.medium == Medium::Vxlan {
            use_group_address(lab, &network)?;
        }
        network.reach(lab)?;
        Ok(network)
    }

    /// Starts `vde_plug null:// switch://…`.
    fn plug<'lab>(
        &self,
        lab: &'lab Lab,
        network: &mut Network<'lab>,
        maker: Maker,
        place: &str,
        keys: &[&str],
    ) -> Result<()> {
        let storm = self.unlimited && lab.has_storm_guard;
        let given = [
            self.two_users.then_some("mode=0777"),
            storm.then_some("storm=off"),
        ];
        let keys: Vec<&str> = given
            .into_iter()
            .flatten()
            .chain(keys.iter().copied())
            .collect();
        let mut vnl = format!("switch://{place}");
        if !keys.is_empty() {
            vnl += &format!("[{}]", keys.join("/"));
        }
        let plug = lab.program(maker, "vde_plug");
        let switch = Proc::spawn(lab.command(Who::First, &plug, ["null://", &vnl]));
        network.start_switch(switch, place)
    }

    /// Starts vdens `count` times.
    fn members<'lab>(
        &self,
        lab: &'lab Lab,
        network: &mut Network<'lab>,
        count: usize,
        vnl: &str,
    ) -> Result<()> {
        let owner = |number| match self.two_users && number > 0 {
            true => Who::Second,
            false => Who::First,
        };
        let first = network.members.0.len();
        for number in 0..count {
            let (program, words) = self.vdens(lab, number, vnl);
            let command = lab.command(owner(number), &program, words);
            network.members.0.push(Proc::spawn(command));
            // The first comer decides how both ends speak, so it has to be the first.
            if number == 0 {
                network.add_node(lab, first, owner(0), 0)?;
            }
        }
        for number in 1..count {
            network.add_node(lab, first + number, owner(number), number)?;
        }
        Ok(())
    }

    /// The program and the arguments of the vdens with a number.
    fn vdens(&self, lab: &Lab, number: usize, vnl: &str) -> (std::path::PathBuf, Vec<String>) {
        let maker = self.makers[number.min(1)];
        let option = |given: bool, name| (maker == Maker::Ours && given).then_some(name);
        let options = [
            option(!self.panel, "--no-panel"),
            option(self.big_tcp, "--big-tcp"),
        ];
        let options = options.into_iter().flatten();
        let words = options.chain([vnl, "sleep", "86400"]);
        (
            lab.program(maker, "vdens"),
            words.map(str::to_owned).collect(),
        )
    }

    /// A persistent tap in a namespace of root's as the one end, vdens as the other.
    fn tap<'lab>(&self, lab: &'lab Lab, network: &mut Network<'lab>) -> Result<()> {
        let (holder, mut host) = lab.bare_node(0)?;
        network.between.0.push(holder);
        host.interface = "vb0".to_owned();
        let user = lab.user();
        lab.sh(
            &host,
            &format!("ip tuntap add dev vb0 mode tap user {user}"),
        )?;
        let (program, words) = self.vdens(lab, 1, "tap://vb0");
        let vdens = lab.inside(&host, Who::First, &program, words);
        network.nodes.push(host);
        network.members.0.push(Proc::spawn(vdens));
        network.add_node(lab, 0, Who::First, 1)
    }

    /// Both ends on one machine, which is a namespace.
    fn udp<'lab>(&self, lab: &'lab Lab, network: &mut Network<'lab>) -> Result<()> {
        let (holder, machine) = lab.bare_node(0)?;
        network.between.0.push(holder);
        lab.sh(&machine, "ip link set lo up")?;
        let vnls = [
            "udp://127.0.0.1:7001->127.0.0.1:7002",
            "udp://127.0.0.1:7002->127.0.0.1:7001",
        ];
        self.machines(lab, network, [&machine, &machine], vnls)
    }

    /// Each end on a machine of its own, since libvdeplug's needs the port for itself.
    fn vxlan<'lab>(&self, lab: &'lab Lab, network: &mut Network<'lab>) -> Result<()> {
        veth(lab, network)?;
        let machines: Vec<Node> = network.nodes.drain(..).collect();
        let [first, second] = &machines[..] else {
            return Err("no two machines".into());
        };
        for (number, machine) in machines.iter().enumerate() {
            // Room for the headers of VXLAN, so that an inner MTU of 1500 means no fragments.
            lab.sh(
                machine,
                &format!(
                    "ip addr add 10.78.0.{}/24 dev vde0; ip link set vde0 mtu 1600 up",
                    number + 1
                ),
            )?;
        }
        let vnl = "vxlan://239.78.0.1/vni=78/if=vde0";
        self.machines(lab, network, [first, second], [vnl, vnl])
    }

    /// Starts a vdens on each of two machines.
    fn machines<'lab>(
        &self,
        lab: &'lab Lab,
        network: &mut Network<'lab>,
        machines: [&Node; 2],
        vnls: [&str; 2],
    ) -> Result<()> {
        for (number, (machine, vnl)) in machines.into_iter().zip(vnls).enumerate() {
            let (program, words) = self.vdens(lab, number, vnl);
            let vdens = lab.inside(machine, Who::First, &program, words);
            network.members.0.push(Proc::spawn(vdens));
            network.add_node(lab, number, Who::First, number)?;
        }
        Ok(())
    }
}

impl<'lab> Network<'lab> {
    fn add_node(&mut self, lab: &Lab, member: usize, who: Who, number: usize) -> Result<()> {
        let node = lab.node_of(&self.members.0[member], who, number)?;
        self.nodes.push(node);
        Ok(())
    }

    fn start_switch(&mut self, switch: Proc<'lab>, place: &str) -> Result<()> {
        self.between.0.push(switch);
        let socket = Path::new(place).join("ctl");
        wait_for("the switch's socket", PATIENCE, || {
            socket.symlink_metadata().ok()
        })?;
        Ok(())
    }

    /// Waits until every node gets an answer from the first.
    fn reach(&self, lab: &Lab) -> Result<()> {
        let (first, others) = self.nodes.split_first().ok_or("no namespaces")?;
        for node in others {
            let words = format!("probe {} {}", first.address, PATIENCE.as_millis());
            lab.tool_inside(node, &words).output(PATIENCE * 2)?;
        }
        Ok(())
    }

    /// The processes of the vdens, in the order of the nodes.
    pub(crate) fn members(&self) -> impl Iterator<Item = i32> {
        self.members.0.iter().map(Proc::id)
    }

    /// The processes of what is between them.
    pub(crate) fn between(&self) -> impl Iterator<Item = i32> {
        self.between.0.iter().map(Proc::id)
    }

    /// An error if anything of the network has ended.
    pub(crate) fn check(&self) -> Result<()> {
        for proc in self.members.0.iter().chain(&self.between.0) {
            proc.check()?;
        }
        Ok(())
    }
}

/// Waits until a process' network namespace has a socket at a port.
pub(crate) fn wait_for_port(proc: &Proc<'_>, protocol: &str, port: u16) -> Result<()> {
    let mark = format!(":{port:04X} ");
    wait_for("a server's socket", PATIENCE, || {
        // Not before the process has joined its namespace, which is when it is no longer ours.
        let own = std::fs::read_link("/proc/self/ns/net").ok()?;
        let its = std::fs::read_link(format!("/proc/{}/ns/net", proc.id())).ok()?;
        let bound = |family: &str| {
            let path = format!("/proc/{}/net/{protocol}{family}", proc.id());
            let table = std::fs::read_to_string(path).unwrap_or_default();
            let local = |line: &str| {
                line.split_whitespace()
                    .nth(1)
                    .map(|word| format!("{word} "))
            };
            table
                .lines()
                .any(|line| local(line).is_some_and(|local| local.ends_with(&mark)))
        };
        (own != its && (bound("") || bound("6"))).then_some(())
    })
}

/// Makes two nodes send everything to a group of stations, and take what comes for it as if it were
/// for them alone. Debian's `vxlan://` loses what it sends to a single station, and TCP ignores
/// what came for a group.
fn use_group_address(lab: &Lab, network: &Network<'_>) -> Result<()> {
    let [first, second] = &network.nodes[..] else {
        return Err("not two namespaces".into());
    };
    for (node, peer) in [(first, second), (second, first)] {
        lab.sh(
            node,
            &format!(
                "ip neigh replace {} lladdr 33:33:00:00:00:01 nud permanent dev {}
                 nft 'table ip bench {{ chain in {{ type filter hook prerouting priority raw; meta pkttype set host; }}; }}'",
                peer.address, node.interface
            ),
        )?;
    }
    Ok(())
}

/// Another bare namespace beside one: for an ordinary user in the same user namespace, so that a
/// veth pair may connect them.
pub(crate) fn bare_sibling<'lab>(
    lab: &'lab Lab,
    node: &Node,
    number: usize,
) -> Result<(Proc<'lab>, Node)> {
    if is_root() {
        return lab.bare_node(number);
    }
    let unshare = Path::new("/usr/bin/unshare");
    let holder = lab.inside(node, Who::First, unshare, ["-n", "sleep", "86400"]);
    let holder = Proc::spawn(holder);
    let node = lab.node_of(&holder, Who::First, number)?;
    Ok((holder, node))
}

fn veth<'lab>(lab: &'lab Lab, network: &mut Network<'lab>) -> Result<()> {
    let (holder, first) = lab.bare_node(0)?;
    network.between.0.push(holder);
    let (holder, second) = bare_sibling(lab, &first, 1)?;
    network.between.0.push(holder);
    lab.sh(
        &first,
        &format!(
            "ip link add vde0 type veth peer name vde0 netns {}",
            second.pid
        ),
    )?;
    network.nodes.extend([first, second]);
    Ok(())
}

fn bridge<'lab>(lab: &'lab Lab, network: &mut Network<'lab>, count: usize) -> Result<()> {
    let (holder, hub) = lab.bare_node(count)?;
    network.between.0.push(holder);
    lab.sh(
        &hub,
        "ip link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0; ip link set br0 up",
    )?;
    for number in 0..count {
        let (holder, node) = bare_sibling(lab, &hub, number)?;
        network.between.0.push(holder);
        lab.sh(
            &hub,
            &format!(
                "ip link add p{number} type veth peer name vde0 netns {}
                 ip link set p{number} master br0 up",
                node.pid
            ),
        )?;
        network.nodes.push(node);
    }
    Ok(())
}
