//! What the supervisor reports of the lab: everything as it is now.

use super::parts::Parts;
use crate::ipc::status::lab::{LabState, LabStatus, LinkEnd, LinkStatus, NodeStatus};
use crate::lab::shape::{Cable, Plug};

/// The lab of this name and file as it is now.
pub(super) fn report(parts: &Parts<'_>, name: &str, file: &str, state: LabState) -> LabStatus {
    let nodes = parts.nodes.status(&parts.shape);
    let links = parts.shape.cables.iter().map(|cable| LinkStatus {
        ends: ends(cable),
        impairments: cable.impairments().map(str::to_owned),
        is_down: parts.is_down(cable),
        carrier: match cable {
            Cable::Uplink { .. } => parts.has_carrier(cable),
            _ => cable.plugs().iter().all(|plug| has_carrier(plug, &nodes)),
        },
        worker: parts.outside.worker(cable),
    });
    LabStatus {
        name: name.to_owned(),
        file: file.to_owned(),
        state,
        links: links.collect(),
        switches: parts.shape.switches.iter().cloned().collect(),
        nodes,
    }
}

/// Whether an interface has carrier. The nodes are in the order of their names.
fn has_carrier(plug: &Plug, nodes: &[NodeStatus]) -> bool {
    let (node, name) = (&plug.interface.node, &plug.interface.name);
    let node = nodes.binary_search_by(|other| other.name.cmp(node)).ok();
    let interfaces = node.map(|at| &nodes[at].interfaces);
    let mut interfaces = interfaces.into_iter().flatten();
    interfaces.any(|view| view.name == *name && view.carrier)
}

/// The two ends of a cable.
fn ends(cable: &Cable) -> [LinkEnd; 2] {
    let interface = |plug: &Plug| LinkEnd::Interface {
        node: plug.interface.node.clone(),
        name: plug.interface.name.clone(),
    };
    match cable {
        Cable::Direct(plugs) | Cable::Impaired { plugs, .. } => plugs.each_ref().map(interface),
        Cable::Port { plug, switch } => [interface(plug), LinkEnd::Switch(switch.clone())],
        Cable::Outside { plug, vnl, .. } => [interface(plug), LinkEnd::Vnl(vnl.clone())],
        Cable::Uplink { switch, vnl, .. } => {
            [LinkEnd::Switch(switch.clone()), LinkEnd::Vnl(vnl.clone())]
        }
    }
}
