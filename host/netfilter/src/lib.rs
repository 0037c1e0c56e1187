//! Packet rules of the kernel's nf_tables, written over netlink, so that a machine needs no `nft`
//! (linux/netfilter/nf_tables.h, net/netfilter/nf_tables_api.c).
//!
//! # Theory of operation
//!
//! A [`Netfilter`] is a socket of the network namespace in which it was opened. It sends
//! [`Transaction`]s: messages that make a table, chains and rules, of which the kernel executes all
//! or none. A rule is a list of [`Expressions`]: each goes on to the next or ends the rule, and the
//! last one says what becomes of the packet.

mod expressions;
pub mod message;
pub mod numbers;

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

pub use expressions::Expressions;
use message::Message;
use numbers::*;

/// A netlink socket of netfilter.
pub struct Netfilter {
    socket: Socket,
    sequence: u32,
}

impl Netfilter {
    /// Opens a socket in the calling process's network namespace.
    ///
    /// # Errors
    /// The kernel has no nfnetlink.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(|e| missing("nfnetlink", &e))?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends a transaction on a table of an address family (`NFPROTO_*`): all of it holds, or
    /// nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn perform(
        &mut self,
        family: u8,
        table: &str,
        fill: impl FnOnce(&mut Transaction<'_>),
    ) -> io::Result<()> {
        let batch = Transaction::new(family, table, self.sequence, fill);
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

/// The messages of a transaction.
pub struct Transaction<'a> {
    family: u8,
    table: &'a str,
    sequence: u32,
    bytes: Vec<u8>,
    /// The messages whose acknowledgement is to come.
    expected: Vec<u32>,
}

impl<'a> Transaction<'a> {
    fn new(family: u8, table: &'a str, sequence: u32, fill: impl FnOnce(&mut Self)) -> Self {
        let mut batch = Self {
            family,
            table,
            sequence,
            bytes: Vec::new(),
            expected: Vec::new(),
        };
        batch.control(NFNL_MSG_BATCH_BEGIN);
        fill(&mut batch);
        batch.control(NFNL_MSG_BATCH_END);
        batch
    }

    fn control(&mut self, kind: u16) {
        self.sequence += 1;
        // The subsystem of the messages within, most significant byte first.
        let header = [0, 0, 0, NFNL_SUBSYS_NFTABLES as u8];
        let message = Message::new(kind, NLM_F_REQUEST, self.sequence, &header);
        self.bytes.extend(message.finish());
    }

    fn add(&mut self, kind: u16, flags: u16, fill: impl FnOnce(&mut Message)) {
        self.sequence += 1;
        let header = [self.family, 0, 0, 0];
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let mut message = Message::new(kind, flags, self.sequence, &header);
        fill(&mut message);
        self.bytes.extend(message.finish());
        self.expected.push(self.sequence);
    }

    /// Makes the table. With the flag `NLM_F_EXCL` it is an error (EEXIST) if the table exists.
    pub fn table(&mut self, flags: u16) {
        let table = self.table;
        self.add(NFT_MSG_NEWTABLE, NLM_F_CREATE | flags, |message| {
            message.put_str(NFTA_TABLE_NAME, table);
        });
    }

    /// Makes a chain for what comes in, before it is routed or bridged.
    pub fn prerouting(&mut self, chain: &str, priority: i32) {
        let table = self.table;
        self.add(NFT_MSG_NEWCHAIN, NLM_F_CREATE, |message| {
            message
                .put_str(NFTA_CHAIN_TABLE, table)
                .put_str(NFTA_CHAIN_NAME, chain);
            message.nest(NFTA_CHAIN_HOOK, |hook| {
                hook.put_be32(NFTA_HOOK_HOOKNUM, NF_INET_PRE_ROUTING)
                    .put(NFTA_HOOK_PRIORITY, &priority.to_be_bytes());
            });
            message.put_str(NFTA_CHAIN_TYPE, "filter");
        });
    }

    /// Adds a rule at the end of a chain.
    pub fn rule(&mut self, chain: &str, fill: impl FnOnce(&mut Expressions<'_>)) {
        let table = self.table;
        self.add(NFT_MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, |message| {
            message
                .put_str(NFTA_RULE_TABLE, table)
                .put_str(NFTA_RULE_CHAIN, chain);
            message.nest(NFTA_RULE_EXPRESSIONS, |list| fill(&mut Expressions(list)));
        });
    }
}

/// The acknowledgements and errors (`NLMSG_ERROR`) in a packet: sequence number and code.
pub fn errors(mut packet: &[u8]) -> Vec<(u32, i32)> {
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

/// The error of a kernel that does not know a message (it lacks the subsystem) or an expression (it
/// lacks the module, and may load none).
pub fn missing(module: &str, error: &io::Error) -> io::Error {
    let kind = match error.raw_os_error() {
        Some(libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::ENOENT | libc::EINVAL) => {
            io::ErrorKind::Unsupported
        }
        _ => error.kind(),
    };
    io::Error::new(kind, format!("the kernel has no {module} ({error})"))
}
