//! The gateway's packet rules, written with nf_tables over netlink, so that the machine needs no
//! `nft` (linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c).
//!
//! One table per address family, `ip vdens` and `ip6 vdens`, with two chains at prerouting:
//!
//! - `hold`, first: the first packet of a TCP connection waits in a queue (NFQUEUE) for the proxy,
//!   which connects to the far side meanwhile. It comes back with mark 0 if the far side accepted,
//!   or with the mark of how to refuse it.
//! - `divert`: refuses what is marked so; TCP and UDP go to the transparent sockets whatever their
//!   destination (tproxy); echo requests are delivered here, too, where a raw socket reads them.
//!
//! What is diverted gets the mark 1, and a rule and a route in [`super::routes`] deliver everything
//! with that mark to this machine. Only frames that were sent to the gateway's own Ethernet address
//! are diverted, so broadcasts reach the DHCP server as usual.
//!
//! Some kernels have nf_tables' own queue expression, others x_tables' NFQUEUE, which nf_tables can
//! use (nft_compat.c). Each is tried. Without either, the proxy accepts connections first.

use std::io;

use serde::{Deserialize, Serialize};
use vdens_netfilter::message::Message;
use vdens_netfilter::numbers::*;
use vdens_netfilter::{Netfilter, Transaction, missing};

use super::services::DHCP_SERVER;

/// Diverted packets.
pub(crate) const MARK_DIVERT: u32 = 1;
/// A held connection that is refused with a TCP reset.
pub(crate) const MARK_RESET: u32 = 2;
/// A held connection to a host that cannot be reached.
pub(crate) const MARK_HOST: u32 = 3;
/// A held connection to a network that cannot be reached.
pub(crate) const MARK_NETWORK: u32 = 4;
/// A held connection that an administrator forbids.
pub(crate) const MARK_PROHIBITED: u32 = 5;

/// The port of the transparent TCP socket.
pub(crate) const TCP_PORT: u16 = 5555;
/// The port of the transparent UDP socket.
pub(crate) const UDP_PORT: u16 = 5556;
/// The number of the queue of held connections.
pub(crate) const QUEUE: u16 = 0;

const TABLE: &str = "vdens";

/// What it means that a kernel can hold no connection.
pub(crate) const NO_HOLD: &str = "the kernel has neither nft_queue nor xt_NFQUEUE: connections are accepted before the far side has answered";

/// How a connection waits until its far side has answered.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Hold {
    /// nf_tables' own expression.
    Queue,
    /// NFQUEUE of x_tables.
    Compat,
    /// Not at all: the kernel has neither.
    None,
}

/// The address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    /// `NFPROTO_*`.
    fn number(self) -> u8 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }

    /// The protocol number of ICMP, and the type of its echo requests.
    fn echo(self) -> (u8, u8) {
        match self {
            Self::V4 => (1, 8),
            Self::V6 => (58, 128),
        }
    }
}

/// Writes the rules for what comes in at `interface`, for IPv4 and IPv6.
///
/// # Errors
/// The kernel has no nf_tables, or no tproxy: the message says which.
pub(crate) fn install(interface: &str, ipv6: bool) -> io::Result<Hold> {
    let mut socket = Rules(Netfilter::open()?);
    let mut families = vec![Family::V4];
    if ipv6 {
        families.push(Family::V6);
    }
    for &family in &families {
        socket.table(family)?;
        socket.divert(family, interface)?;
    }
    for hold in [Hold::Queue, Hold::Compat] {
        if families
            .iter()
            .all(|&family| socket.hold(family, interface, hold).is_ok())
        {
            return Ok(hold);
        }
    }
    Ok(Hold::None)
}

/// What the gateway asks of nf_tables.
struct Rules(Netfilter);

impl Rules {
    fn table(&mut self, family: Family) -> io::Result<()> {
        self.batch(family, |batch| {
            batch.table(0);
            batch.prerouting("hold", -160);
            batch.prerouting("divert", -150);
        })
        .map_err(|e| missing("nf_tables", &e))
    }

    fn divert(&mut self, family: Family, interface: &str) -> io::Result<()> {
        let name = interface_name(interface);
        self.batch(family, |batch| {
            let refusals = [
                (MARK_RESET, Refusal::Reset),
                (MARK_HOST, Refusal::Host),
                (MARK_NETWORK, Refusal::Network),
                (MARK_PROHIBITED, Refusal::Prohibited),
            ];
            for (mark, refusal) in refusals {
                batch.rule("divert", |e| {
                    e.meta_is(NFT_META_MARK, &mark.to_ne_bytes());
                    e.add("reject", |data| refusal.put(family, data));
                });
            }
        })
        .map_err(|e| missing("nft_reject", &e))?;
        self.batch(family, |batch| {
            if family == Family::V4 {
                // Clients that extend their leases ask the gateway's address.
                batch.rule("divert", |e| {
                    e.meta_is(NFT_META_IIFNAME, &name)
                        .meta_is(NFT_META_L4PROTO, &[17]);
                    e.transport_is(2, None, &DHCP_SERVER.to_be_bytes()).accept();
                });
            }
            for (protocol, port) in [(6_u8, TCP_PORT), (17, UDP_PORT)] {
                batch.rule("divert", |e| {
                    e.meta_is(NFT_META_IIFNAME, &name)
                        .meta_is(NFT_META_PKTTYPE, &[0]);
                    e.meta_is(NFT_META_L4PROTO, &[protocol])
                        .tproxy(family.number(), port);
                    e.set_mark(MARK_DIVERT).accept();
                });
            }
            let (protocol, kind) = family.echo();
            batch.rule("divert", |e| {
                e.meta_is(NFT_META_IIFNAME, &name)
                    .meta_is(NFT_META_PKTTYPE, &[0]);
                e.meta_is(NFT_META_L4PROTO, &[protocol])
                    .transport_is(0, None, &[kind]);
                e.set_mark(MARK_DIVERT).accept();
            });
        })
        .map_err(|e| missing("nft_tproxy", &e))
    }

    fn hold(&mut self, family: Family, interface: &str, hold: Hold) -> io::Result<()> {
        let name = interface_name(interface);
        self.batch(family, |batch| {
            batch.rule("hold", |e| {
                e.meta_is(NFT_META_IIFNAME, &name)
                    .meta_is(NFT_META_PKTTYPE, &[0]);
                e.meta_is(NFT_META_L4PROTO, &[6]);
                // Of FIN, SYN, RST and ACK only SYN: the first packet of a connection.
                e.transport_is(13, Some(&[0x17]), &[0x02]);
                match hold {
                    Hold::Queue => e.add("queue", |data| {
                        data.put(NFTA_QUEUE_NUM, &QUEUE.to_be_bytes())
                            .put(NFTA_QUEUE_TOTAL, &1_u16.to_be_bytes());
                    }),
                    Hold::Compat => e.add("target", |data| {
                        // struct xt_NFQ_info, in the machine's byte order, aligned to 8 bytes.
                        let mut info = [0; 8];
                        info[..2].copy_from_slice(&QUEUE.to_ne_bytes());
                        data.put_str(NFTA_TARGET_NAME, "NFQUEUE");
                        data.put_be32(NFTA_TARGET_REV, 0)
                            .put(NFTA_TARGET_INFO, &info);
                    }),
                    Hold::None => e,
                };
            });
        })
    }

    fn batch(&mut self, family: Family, fill: impl FnOnce(&mut Transaction<'_>)) -> io::Result<()> {
        self.0.perform(family.number(), TABLE, fill)
    }
}

/// How a held connection is refused.
#[derive(Clone, Copy)]
enum Refusal {
    Reset,
    Host,
    Network,
    Prohibited,
}

impl Refusal {
    /// The attributes of a reject expression (`NFT_REJECT_*`, and codes of RFC 792 and RFC 4443).
    fn put(self, family: Family, data: &mut Message) {
        let code = match (self, family) {
            (Self::Reset, _) => {
                data.put_be32(NFTA_REJECT_TYPE, NFT_REJECT_TCP_RST);
                return;
            }
            (Self::Host, Family::V4) => 1,
            (Self::Network, Family::V4) => 0,
            (Self::Prohibited, Family::V4) => 13,
            (Self::Host, Family::V6) => 3,
            (Self::Network, Family::V6) => 0,
            (Self::Prohibited, Family::V6) => 1,
        };
        data.put_be32(NFTA_REJECT_TYPE, NFT_REJECT_ICMP_UNREACH)
            .put(NFTA_REJECT_ICMP_CODE, &[code]);
    }
}

/// An interface's name as rules compare it: 16 bytes (`IFNAMSIZ`).
fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}
