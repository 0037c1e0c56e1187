//! Packets of one interface, as the kernel sees them: a packet socket with a ring (packet(7),
//! Documentation/networking/packet_mmap.rst).
//!
//! # Theory of operation
//!
//! The kernel writes packets into memory that it shares with this process, in blocks
//! (`TPACKET_V3`). When a block is full, or its first packet is older than [`TIMEOUT`], the kernel
//! gives it to this process, which gives it back when it has read it. So a capture costs no system
//! call for each packet. While all blocks are this process's, the kernel drops packets of the
//! capture before it copies them, and counts them; the network itself never waits.
//!
//! The socket was made in the interface's network namespace, and stays in it. It is not bound to
//! the interface before it has its filter and its ring, so that no packet passes that should not.
//!
//! A packet that leaves through the interface is seen as `PACKET_OUTGOING`. The kernel keeps a VLAN
//! tag beside a packet; it is put back, as the packet has it on the wire.

use std::ffi::CString;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{getsockopt, sockopt};

use super::filter::Filter;
use super::pcapng::{Direction, Reception};
use crate::error::{Result, system};
use crate::sys::packet_socket;

/// The size of a block, in bytes: a few of the longest frames.
const BLOCK: usize = 256 << 10;

/// How long a packet waits in a block that is not full.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(40);

/// A packet in the ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Captured<'a> {
    /// When it was seen, in nanoseconds since 1970.
    pub time: u64,
    /// How long it was, in bytes, without the tag.
    pub length: u32,
    /// Its first bytes, without the tag.
    pub bytes: &'a [u8],
    /// The VLAN tag that it has behind its Ethernet addresses.
    pub tag: Option<[u8; 4]>,
    pub direction: Direction,
    pub reception: Reception,
}

/// Packets that the filter let pass, and those of them that were dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub received: u64,
    pub dropped: u64,
}

/// The socket and its ring.
#[derive(Debug)]
pub(crate) struct Ring {
    socket: OwnedFd,
    memory: Memory,
    /// The block that is read next.
    next: usize,
    counters: Counters,
}

impl Ring {
    /// Starts to capture on the interface `name`. `socket` is a packet socket of its network
    /// namespace that is bound to nothing. The ring takes up to `memory` bytes.
    ///
    /// # Errors
    /// There is no such interface, or the kernel refuses the filter or the memory.
    pub(crate) fn start(
        socket: OwnedFd,
        name: &str,
        filter: &Filter,
        memory: usize,
    ) -> Result<Self> {
        let index =
            index(&socket, name).map_err(system(format_args!("find the interface {name}")))?;
        attach(&socket, filter)
            .map_err(system(format_args!("use the filter '{}'", filter.text)))?;
        let memory = Memory::map(&socket, (memory / BLOCK).max(2))
            .map_err(system("share memory with the kernel"))?;
        packet_socket::bind(&socket, libc::ETH_P_ALL, index)
            .map_err(system(format_args!("capture on the interface {name}")))?;
        Ok(Self {
            socket,
            memory,
            next: 0,
            counters: Counters::default(),
        })
    }

    /// Passes on the packets of the blocks that are ready, of `most` blocks at most, and gives the
    /// blocks back. Returns whether more blocks may be ready.
    ///
    /// # Errors
    /// What `take` returns. The packet's block is not given back.
    pub(crate) fn read(
        &mut self,
        most: usize,
        mut take: impl FnMut(Captured<'_>) -> Result<()>,
    ) -> Result<bool> {
        for _ in 0..most {
            let Some(block) = self.memory.ready(self.next) else {
                return Ok(false);
            };
            block.packets().try_for_each(&mut take)?;
            block.give_back();
            self.next = (self.next + 1) % self.memory.blocks;
        }
        Ok(true)
    }

    /// What became of the packets until now.
    pub(crate) fn counters(&mut self) -> Counters {
        // SAFETY: an all-zero structure is a valid one: its members are numbers.
        let mut new: libc::tpacket_stats_v3 = unsafe { zeroed() };
        let mut length = size_of::<libc::tpacket_stats_v3>() as libc::socklen_t;
        // SAFETY: `new` is writable for `length` bytes, and the kernel keeps neither pointer.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut new).cast(),
                &raw mut length,
            )
        };
        // The kernel starts to count anew at each call.
        if result == 0 {
            self.counters.received += u64::from(new.tp_packets);
            self.counters.dropped += u64::from(new.tp_drops);
        }
        self.counters
    }

    /// Whether the interface is gone. Reading the socket's error makes it pollable again: an
    /// interface that is only down has one, too.
    pub(crate) fn is_gone(&self) -> bool {
        let _ = getsockopt(&self.socket, sockopt::SocketError);
        // SAFETY: an all-zero address is a valid one: its members are numbers.
        let mut address: libc::sockaddr_ll = unsafe { zeroed() };
        let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: `address` is writable for `length` bytes, and the kernel keeps neither pointer.
        let result = unsafe {
            libc::getsockname(
                self.socket.as_raw_fd(),
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        result != 0 || address.sll_ifindex <= 0
    }

    /// The interface's Ethernet address.
    pub(crate) fn mac(&self, name: &str) -> Option<[u8; 6]> {
        let request = interface_request(&self.socket, name, libc::SIOCGIFHWADDR).ok()?;
        // SAFETY: SIOCGIFHWADDR has filled in this member.
        let bytes = unsafe { request.ifr_ifru.ifru_hwaddr }.sa_data;
        Some(std::array::from_fn(|at| bytes[at] as u8))
    }
}

impl AsFd for Ring {
    /// Readable when a block is ready.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Asks for something about an interface of the socket's namespace (netdevice(7)).
fn interface_request(socket: &OwnedFd, name: &str, what: libc::Ioctl) -> nix::Result<libc::ifreq> {
    let name = CString::new(name).map_err(|_| Errno::ENODEV)?;
    let name = name.as_bytes_with_nul();
    if name.len() > libc::IFNAMSIZ {
        return Err(Errno::ENODEV);
    }
    // SAFETY: an all-zero request is a valid one: its members are numbers.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name) {
        *to = *from as libc::c_char;
    }
    // SAFETY: the kernel reads and writes `request`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), what, &raw mut request) };
    Errno::result(result).map(|_| request)
}

fn index(socket: &OwnedFd, name: &str) -> nix::Result<i32> {
    let request = interface_request(socket, name, libc::SIOCGIFINDEX)?;
    // SAFETY: SIOCGIFINDEX has filled in this member.
    Ok(unsafe { request.ifr_ifru.ifru_ifindex })
}

fn attach(socket: &OwnedFd, filter: &Filter) -> nix::Result<()> {
    let mut program: Vec<_> = filter
        .program
        .iter()
        .map(|instruction| libc::sock_filter {
            code: instruction.code,
            jt: instruction.jump_true,
            jf: instruction.jump_false,
            k: instruction.operand,
        })
        .collect();
    let program = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    set(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)
}

fn set<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> nix::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel reads `length` bytes of `value`, and keeps no pointer. What a program's
    // pointer leads to lives as long as its vector, which is the caller's.
    let result = unsafe {
        let value = ptr::from_ref(value).cast();
        libc::setsockopt(socket.as_raw_fd(), level, option, value, length)
    };
    Errno::result(result).map(drop)
}

/// The memory of a ring: blocks that follow each other.
#[derive(Debug)]
struct Memory {
    start: NonNull<u8>,
    blocks: usize,
}

impl Memory {
    /// Makes a ring of `blocks` blocks, or of fewer if the kernel has no memory for as many.
    fn map(socket: &OwnedFd, mut blocks: usize) -> nix::Result<Self> {
        let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
        set(socket, libc::SOL_PACKET, libc::PACKET_VERSION, &version)?;
        loop {
            let request = libc::tpacket_req3 {
                tp_block_size: BLOCK as u32,
                tp_block_nr: blocks as u32,
                // A unit that has no meaning in this version, but must fit.
                tp_frame_size: 2048,
                tp_frame_nr: (BLOCK / 2048 * blocks) as u32,
                tp_retire_blk_tov: TIMEOUT.as_millis() as u32,
                tp_sizeof_priv: 0,
                tp_feature_req_word: 0,
            };
            match set(socket, libc::SOL_PACKET, libc::PACKET_RX_RING, &request) {
                Err(Errno::ENOMEM) if blocks > 2 => blocks /= 2,
                result => break result?,
            }
        }
        // SAFETY: the kernel chooses an address that is free. Nothing else maps the socket.
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                blocks * BLOCK,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(Errno::last());
        }
        let start = NonNull::new(start.cast()).ok_or(Errno::ENOMEM)?;
        Ok(Self { start, blocks })
    }

    /// A block, if it is this process's.
    fn ready(&self, number: usize) -> Option<Block<'_>> {
        debug_assert!(number < self.blocks);
        // SAFETY: the block is within the mapping, which starts at a page and lives as long as
        // `self`.
        let start = unsafe { self.start.add(number * BLOCK) };
        let block = Block {
            start,
            _memory: self,
        };
        // What the kernel wrote before it gave the block away is seen after this.
        let status = block.status().load(Ordering::Acquire);
        (status & libc::TP_STATUS_USER != 0).then_some(block)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no block outlives it.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.blocks * BLOCK) };
    }
}

/// A block that is this process's.
struct Block<'a> {
    start: NonNull<u8>,
    _memory: &'a Memory,
}

impl<'a> Block<'a> {
    fn header(&self) -> *mut libc::tpacket_hdr_v1 {
        let block: *mut libc::tpacket_block_desc = self.start.as_ptr().cast();
        // SAFETY: a block starts with its description, and the union's only member is this one.
        unsafe { &raw mut (*block).hdr.bh1 }
    }

    fn status(&self) -> &AtomicU32 {
        // SAFETY: the status is aligned, lives as long as the mapping, and both this process and
        // the kernel access it atomically.
        unsafe { AtomicU32::from_ptr(&raw mut (*self.header()).block_status) }
    }

    /// The packets in it.
    fn packets(&self) -> impl Iterator<Item = Captured<'a>> {
        // SAFETY: the kernel does not write to a block that is this process's.
        let (count, first) = unsafe {
            let header = self.header();
            ((*header).num_pkts, (*header).offset_to_first_pkt)
        };
        let mut at = first as usize;
        let start = self.start;
        (0..count).map_while(move |_| {
            let headers = at.checked_add(size_of::<libc::tpacket3_hdr>() + ADDRESS)?;
            if headers > BLOCK {
                return None;
            }
            // SAFETY: the header is within the block, as was just checked. It is a copy of numbers.
            let header: libc::tpacket3_hdr =
                unsafe { ptr::read_unaligned(start.as_ptr().add(at).cast()) };
            let address = at + size_of::<libc::tpacket3_hdr>().next_multiple_of(ALIGNMENT);
            let (data, length) = (at + usize::from(header.tp_mac), header.tp_snaplen as usize);
            if data + length > BLOCK || address + ADDRESS > BLOCK {
                return None;
            }
            // SAFETY: both are within the block, as was just checked, and the kernel does not write
            // to it while it is this process's. The block is given back after the last packet.
            let (address, bytes) = unsafe {
                let address: libc::sockaddr_ll =
                    ptr::read_unaligned(start.as_ptr().add(address).cast());
                let bytes = std::slice::from_raw_parts(start.as_ptr().add(data), length);
                (address, bytes)
            };
            at += header.tp_next_offset as usize;
            Some(captured(&header, &address, bytes))
        })
    }

    fn give_back(self) {
        self.status()
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

/// The size of the address behind a packet's header, and what it is aligned to
/// (`TPACKET_ALIGNMENT` of linux/if_packet.h).
const ADDRESS: usize = size_of::<libc::sockaddr_ll>();
const ALIGNMENT: usize = 16;

fn captured<'a>(
    header: &libc::tpacket3_hdr,
    address: &libc::sockaddr_ll,
    bytes: &'a [u8],
) -> Captured<'a> {
    let has = |status: u32| header.tp_status & status != 0;
    let tag = has(libc::TP_STATUS_VLAN_VALID).then(|| {
        let protocol = match has(libc::TP_STATUS_VLAN_TPID_VALID) {
            true => header.hv1.tp_vlan_tpid,
            false => libc::ETH_P_8021Q as u16,
        };
        let [a, b] = protocol.to_be_bytes();
        let [c, d] = (header.hv1.tp_vlan_tci as u16).to_be_bytes();
        [a, b, c, d]
    });
    let reception = match address.sll_pkttype {
        libc::PACKET_HOST => Reception::Unicast,
        libc::PACKET_BROADCAST => Reception::Broadcast,
        libc::PACKET_MULTICAST => Reception::Multicast,
        libc::PACKET_OTHERHOST => Reception::Promiscuous,
        _ => Reception::Unknown,
    };
    Captured {
        time: u64::from(header.tp_sec) * 1_000_000_000 + u64::from(header.tp_nsec),
        length: header.tp_len,
        bytes,
        tag,
        direction: match address.sll_pkttype {
            libc::PACKET_OUTGOING => Direction::Outbound,
            _ => Direction::Inbound,
        },
        reception,
    }
}
