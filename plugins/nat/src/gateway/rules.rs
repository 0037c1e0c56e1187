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

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use serde::{Deserialize, Serialize};

use super::message::Message;
use super::nft::*;
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
    let mut socket = Netfilter::open()?;
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

/// A rule's expressions in the making.
struct Expressions<'a>(&'a mut Message);

impl Expressions<'_> {
    /// Adds an expression: its name, and its attributes.
    fn add(&mut self, name: &str, fill: impl FnOnce(&mut Message)) -> &mut Self {
        self.0.nest(NFTA_LIST_ELEM, |element| {
            element
                .put_str(NFTA_EXPR_NAME, name)
                .nest(NFTA_EXPR_DATA, fill);
        });
        self
    }

    /// Goes on if a key of the packet's metadata (`NFT_META_*`) has a value.
    fn meta_is(&mut self, key: u32, value: &[u8]) -> &mut Self {
        self.add("meta", |data| {
            data.put_be32(NFTA_META_DREG, NFT_REG_1)
                .put_be32(NFTA_META_KEY, key);
        });
        self.is(value)
    }

    /// Goes on if bytes of the transport header have a value, under a mask.
    fn transport_is(&mut self, offset: u32, mask: Option<&[u8]>, value: &[u8]) -> &mut Self {
        let length = value.len() as u32;
        self.add("payload", |data| {
            data.put_be32(NFTA_PAYLOAD_DREG, NFT_REG_1);
            data.put_be32(NFTA_PAYLOAD_BASE, NFT_PAYLOAD_TRANSPORT_HEADER);
            data.put_be32(NFTA_PAYLOAD_OFFSET, offset);
            data.put_be32(NFTA_PAYLOAD_LEN, length);
        });
        if let Some(mask) = mask {
            self.add("bitwise", |data| {
                data.put_be32(NFTA_BITWISE_SREG, NFT_REG_1)
                    .put_be32(NFTA_BITWISE_DREG, NFT_REG_1)
                    .put_be32(NFTA_BITWISE_LEN, length);
                data.nest(NFTA_BITWISE_MASK, |d| {
                    d.put(NFTA_DATA_VALUE, mask);
                });
                data.nest(NFTA_BITWISE_XOR, |d| {
                    d.put(NFTA_DATA_VALUE, &vec![0; mask.len()]);
                });
            });
        }
        self.is(value)
    }

    fn is(&mut self, value: &[u8]) -> &mut Self {
        self.add("cmp", |data| {
            data.put_be32(NFTA_CMP_SREG, NFT_REG_1)
                .put_be32(NFTA_CMP_OP, NFT_CMP_EQ);
            data.nest(NFTA_CMP_DATA, |d| {
                d.put(NFTA_DATA_VALUE, value);
            });
        })
    }

    /// Sets the packet's mark.
    fn set_mark(&mut self, mark: u32) -> &mut Self {
        self.add("immediate", |data| {
            data.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            data.nest(NFTA_IMMEDIATE_DATA, |d| {
                d.put(NFTA_DATA_VALUE, &mark.to_ne_bytes());
            });
        });
        self.add("meta", |data| {
            data.put_be32(NFTA_META_KEY, NFT_META_MARK)
                .put_be32(NFTA_META_SREG, NFT_REG_1);
        })
    }

    /// Diverts to a transparent socket's port.
    fn tproxy(&mut self, family: Family, port: u16) -> &mut Self {
        self.add("immediate", |data| {
            data.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_1);
            data.nest(NFTA_IMMEDIATE_DATA, |d| {
                d.put(NFTA_DATA_VALUE, &port.to_be_bytes());
            });
        });
        self.add("tproxy", |data| {
            data.put_be32(NFTA_TPROXY_FAMILY, u32::from(family.number()))
                .put_be32(NFTA_TPROXY_REG_PORT, NFT_REG_1);
        })
    }

    /// Ends the chain: the packet goes on.
    fn accept(&mut self) -> &mut Self {
        self.add("immediate", |data| {
            data.put_be32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
            data.nest(NFTA_IMMEDIATE_DATA, |d| {
                d.nest(NFTA_DATA_VERDICT, |verdict| {
                    verdict.put_be32(NFTA_VERDICT_CODE, NF_ACCEPT);
                });
            });
        })
    }
}

/// A netlink socket of netfilter.
struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(|e| missing("nfnetlink", &e))?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    fn table(&mut self, family: Family) -> io::Result<()> {
        self.batch(family, |batch| {
            batch.add(NFT_MSG_NEWTABLE, NLM_F_CREATE, |m| {
                m.put_str(NFTA_TABLE_NAME, TABLE);
            });
            for (name, priority) in [("hold", -160), ("divert", -150)] {
                batch.add(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |m| {
                    m.put_str(NFTA_CHAIN_TABLE, TABLE)
                        .put_str(NFTA_CHAIN_NAME, name);
                    m.nest(NFTA_CHAIN_HOOK, |hook| {
                        hook.put_be32(NFTA_HOOK_HOOKNUM, NF_INET_PRE_ROUTING)
                            .put(NFTA_HOOK_PRIORITY, &i32::to_be_bytes(priority));
                    });
                    m.put_str(NFTA_CHAIN_TYPE, "filter");
                });
            }
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
                        .tproxy(family, port);
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

    /// Sends a transaction: all of it holds, or nothing.
    fn batch(&mut self, family: Family, fill: impl FnOnce(&mut Transaction)) -> io::Result<()> {
        let mut batch = Transaction {
            family,
            sequence: self.sequence,
            bytes: Vec::new(),
            expected: Vec::new(),
        };
        batch.control(NFNL_MSG_BATCH_BEGIN);
        fill(&mut batch);
        batch.control(NFNL_MSG_BATCH_END);
        self.sequence = batch.sequence;
        self.socket.send(&batch.bytes, 0)?;
        let mut result = Ok(());
        let mut left = batch.expected.len();
        while left > 0 {
            let (packet, _) = self.socket.recv_from_full()?;
            for (sequence, code) in errors(&packet) {
                if batch.expected.contains(&sequence) {
                    left -= 1;
                }
                if code != 0 && result.is_ok() {
                    result = Err(io::Error::from_raw_os_error(-code));
                }
            }
            if result.is_err() {
                // What else comes is of a number that is never asked for again.
                break;
            }
        }
        result
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

/// The messages of a transaction.
struct Transaction {
    family: Family,
    sequence: u32,
    bytes: Vec<u8>,
    /// The messages whose acknowledgement is to come.
    expected: Vec<u32>,
}

impl Transaction {
    fn control(&mut self, kind: u16) {
        self.sequence += 1;
        // The subsystem of the messages within, most significant byte first.
        let header = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
        let message = Message::new(kind, NLM_F_REQUEST, self.sequence, &header);
        self.bytes.extend(message.finish());
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) {
        self.sequence += 1;
        let header = [self.family.number(), 0, 0, 0];
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = Message::new(kind, flags, self.sequence, &header);
        fill(&mut message);
        self.bytes.extend(message.finish());
        self.expected.push(self.sequence);
    }

    fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions<'_>)) {
        self.add(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            message
                .put_str(NFTA_RULE_TABLE, TABLE)
                .put_str(NFTA_RULE_CHAIN, chain);
            message.nest(NFTA_RULE_EXPRESSIONS, |list| fill(&mut Expressions(list)));
        });
    }
}

/// The acknowledgements and errors (`NLMSG_ERROR`) in a packet: sequence number and code.
pub(crate) fn errors(mut packet: &[u8]) -> Vec<(u32, i32)> {
    let mut found = Vec::new();
    while let Some((header, _)) = packet.split_first_chunk::<16>() {
        let word = |at: usize| [header[at], header[at + 1], header[at + 2], header[at + 3]];
        let length = u32::from_ne_bytes(word(0)) as usize;
        let Some(message) = packet.get(16..length) else {
            break;
        };
        if u16::from_ne_bytes([header[4], header[5]]) == 2
            && let Some(code) = message.first_chunk()
        {
            found.push((u32::from_ne_bytes(word(8)), i32::from_ne_bytes(*code)));
        }
        packet = packet.get(length.next_multiple_of(4)..).unwrap_or(&[]);
    }
    found
}

/// An interface's name as rules compare it: 16 bytes (`IFNAMSIZ`).
fn interface_name(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    let length = name.len().min(15);
    bytes[..length].copy_from_slice(&name.as_bytes()[..length]);
    bytes
}

/// The error of a kernel that does not know a message (it lacks the subsystem) or an expression (it
/// lacks the module, and may load none).
fn missing(module: &str, error: &io::Error) -> io::Error {
    let kind = match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL) => {
            io::ErrorKind::Unsupported
        }
        _ => error.kind(),
    };
    io::Error::new(kind, format!("the kernel has no {module} ({error})"))
}
