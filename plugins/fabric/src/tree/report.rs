//! The spanning tree as users see it.

use std::time::Instant;

use vdens_rstp::{PortNumber, PortState, Role, Time, Times};
use vdens_switch_control::{
    LOCAL_PORT, Mac, PAGE, StpPort, StpReport, StpRole, StpState, StpTimes,
};

use super::Tree;
use crate::forwarding::Fabric;
use crate::port::{BridgeKey, LOCAL, PortId};
use crate::switch::Switch;

impl Tree {
    /// The tree in a line: where its root is, and which ports do not forward.
    pub(crate) fn summary(&self, fabric: &Fabric) -> String {
        let root = self.bridge.root();
        let mut line = match root.port {
            None => "this switch is the root".to_owned(),
            Some(port) => {
                let port = self.label(port, fabric);
                format!("root {} by {port}, cost {}", root.root, root.cost)
            }
        };
        let states = self.ports.keys().filter_map(|number| {
            let state = self.bridge.port(*number)?.state;
            (state != PortState::Forwarding).then(|| self.label(*number, fabric))
        });
        let still: Vec<String> = states.collect();
        if !still.is_empty() {
            line += &format!("; not forwarding: {}", still.join(", "));
        }
        line
    }

    /// The number that users have for a port. A bridge on the panel has none.
    fn number_for_users(&self, number: PortNumber, fabric: &Fabric) -> Option<u32> {
        match *self.ports.get(&number)? {
            LOCAL => Some(LOCAL_PORT),
            id => fabric.ports.get(id).map(|port| port.number),
        }
    }

    /// What users call a port.
    pub(super) fn label(&self, number: PortNumber, fabric: &Fabric) -> String {
        let key = self.ports.get(&number).and_then(|id| id.bridge_key());
        let vlan = key.and_then(BridgeKey::vlan);
        match (self.number_for_users(number, fabric), vlan) {
            (_, Some(0)) => "the panel".to_owned(),
            (_, Some(vlan)) => format!("VLAN {vlan} of the panel"),
            (Some(LOCAL_PORT), _) => "the local port".to_owned(),
            (own, _) => format!("port {}", own.unwrap_or(u32::from(number))),
        }
    }

    /// What users are told of a port, under this number of theirs.
    fn port_report(&self, number: PortNumber, port: u32) -> Option<StpPort> {
        let status = self.bridge.port(number)?;
        Some(StpPort {
            port,
            role: role(status.role),
            state: state(status.state),
            cost: status.cost,
            priority: status.id.priority(),
            edge: status.is_edge,
            guarded: status.is_guarded,
        })
    }

    /// The ports on the panel. Each is in the tree as the bridge that it is on.
    fn on_panel<'a>(&'a self, fabric: &'a Fabric) -> impl Iterator<Item = StpPort> + 'a {
        let local = fabric.local.plugged.map(|key| (LOCAL_PORT, key));
        let clients = fabric
            .ports
            .iter()
            .filter_map(|(_, port)| Some((port.number, port.bridge()?)));
        local.into_iter().chain(clients).filter_map(|(port, key)| {
            let number = self.numbers.get(&PortId::bridge(key))?;
            self.port_report(*number, port)
        })
    }
}

impl Switch {
    /// The state of the tree, for those who ask, and its ports from this number on.
    pub(crate) fn stp_report(&self, from: u32, now: Instant) -> StpReport {
        let bridge = (self.fabric.settings.priority, self.mac);
        let Some(tree) = &self.fabric.tree else {
            return StpReport {
                bridge,
                root: bridge,
                times: self.fabric.settings.times,
                ..StpReport::default()
            };
        };
        let root = tree.bridge.root();
        let time = now.saturating_duration_since(tree.start);
        let served = tree.ports.keys().filter_map(|number| {
            let port = tree.number_for_users(*number, &self.fabric)?;
            tree.port_report(*number, port)
        });
        let all = served.chain(tree.on_panel(&self.fabric));
        let mut ports: Vec<StpPort> = all.filter(|port| port.port >= from).collect();
        ports.sort_unstable_by_key(|port| port.port);
        let next = ports.get(PAGE).map(|port| port.port);
        ports.truncate(PAGE);
        StpReport {
            enabled: true,
            bridge,
            root: (root.root.priority(), Mac(root.root.mac())),
            root_cost: root.cost,
            root_port: root
                .port
                .and_then(|number| tree.number_for_users(number, &self.fabric)),
            changes: root.changes,
            since: time
                .saturating_sub(root.last_change.unwrap_or_default())
                .as_secs(),
            times: times(&root.times),
            ports,
            from: next,
        }
    }
}

/// Whole seconds: those of a Linux bridge may have a fraction.
fn times(times: &Times) -> StpTimes {
    let seconds = |time: Time| u8::try_from(time.round()).unwrap_or(u8::MAX);
    StpTimes {
        hello: seconds(times.hello),
        max_age: seconds(times.max_age),
        forward_delay: seconds(times.forward_delay),
    }
}

fn role(role: Role) -> StpRole {
    match role {
        Role::Root => StpRole::Root,
        Role::Designated => StpRole::Designated,
        Role::Alternate => StpRole::Alternate,
        Role::Backup => StpRole::Backup,
        Role::Disabled => StpRole::Disabled,
    }
}

fn state(state: PortState) -> StpState {
    match state {
        PortState::Discarding => StpState::Discarding,
        PortState::Learning => StpState::Learning,
        PortState::Forwarding => StpState::Forwarding,
    }
}
