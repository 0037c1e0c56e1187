//! The packet rule of the panel that keeps frames of VLANs off ports without tags.
//!
//! A plain bridge passes a frame with a tag as any other. So the ports of some bridges are in a
//! group of interfaces ([`UNTAGGED`]), and one rule for the whole panel drops what comes in there
//! with a tag of 802.1Q that names a VLAN. A tag of priority only names none (VLAN 0). For a frame
//! of any other port, the rule ends with its first comparison.
//!
//! Whether the kernel keeps the tag in the frame or beside it makes no difference to nf_tables
//! (`nft_payload_copy_vlan` in net/netfilter/nft_payload.c).

use vdens_netfilter::numbers::{NFT_META_IIFGROUP, NLM_F_EXCL};
use vdens_netfilter::{Netfilter, Transaction, missing};

use crate::error::{Error, Result};
use crate::sys::netlink::UNTAGGED;

/// The address family of bridges (`NFPROTO_BRIDGE`).
const BRIDGE: u8 = 7;

const TABLE: &str = "vdens";
const CHAIN: &str = "untagged";

/// Before br_netfilter (`NF_BR_PRI_BRNF`, 0), which would look into the frame.
const PRIORITY: i32 = -200;

/// The first bytes of a tag (IEEE 802.1Q), behind the addresses, and the bits behind them that are
/// the VLAN.
const TPID: [u8; 2] = [0x81, 0x00];
const TPID_AT: u32 = 12;
const VLAN_MASK: [u8; 2] = [0x0f, 0xff];
const VLAN_AT: u32 = 14;

/// Adds the rule in the calling process's network namespace, unless it is there.
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::error::ErrorKind::Unsupported): the kernel has no such rules.
pub(crate) fn drop_tagged() -> Result<()> {
    let added = Netfilter::open().and_then(|mut netfilter| {
        let added = netfilter.perform(BRIDGE, TABLE, write);
        added.map_err(|error| match error.raw_os_error() {
            Some(libc::EEXIST) => error,
            _ => missing("nf_tables for bridges", &error),
        })
    });
    match added {
        Err(error) if error.raw_os_error() != Some(libc::EEXIST) => {
            Err(Error::io("drop frames of VLANs on the panel", &error))
        }
        _ => Ok(()),
    }
}

fn write(rules: &mut Transaction<'_>) {
    // Who has made the table has made the rest with it.
    rules.table(NLM_F_EXCL);
    rules.prerouting(CHAIN, PRIORITY);
    rules.rule(CHAIN, |rule| {
        rule.meta_is(NFT_META_IIFGROUP, &UNTAGGED.to_ne_bytes())
            .ethernet_is(TPID_AT, &TPID)
            .ethernet_is_not(VLAN_AT, &VLAN_MASK, &[0, 0])
            .drop();
    });
}
