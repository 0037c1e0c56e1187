//! Receive offload of the gateway's interface: datagrams that follow each other in one flow go up
//! the kernel's layers as one packet (the feature `rx-udp-gro-forwarding` of ethtool(8)), and to
//! the proxy as one piece.
//!
//! The kernel numbers features as it likes, so the number is found by name (linux/ethtool.h).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

const FEATURE: &[u8] = b"rx-udp-gro-forwarding";

const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_SGRO: u32 = 0x2c;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETHTOOL_SFEATURES: u32 = 0x3b;

/// The set of the features' names.
const ETH_SS_FEATURES: u32 = 4;

/// The words of a name (`ETH_GSTRING_LEN`).
const NAME: usize = 32 / size_of::<u32>();

/// Switches the offload on.
///
/// # Errors
/// The kernel has none.
pub(super) fn enable(interface: &str) -> io::Result<()> {
    let ethtool = Ethtool {
        socket: socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        )?,
        interface,
    };
    ethtool.call(&mut [ETHTOOL_SGRO, 1])?;
    let number = ethtool.feature()?;
    let mut message = vec![ETHTOOL_SFEATURES, number as u32 / 32 + 1];
    // Of each 32 features, which ones are set, and to what.
    message.resize(2 + 2 * (number / 32 + 1), 0);
    let bit = 1 << (number % 32);
    message[2 + 2 * (number / 32)..].copy_from_slice(&[bit, bit]);
    ethtool.call(&mut message)
}

struct Ethtool<'a> {
    socket: OwnedFd,
    interface: &'a str,
}

impl Ethtool<'_> {
    /// The feature's number.
    fn feature(&self) -> io::Result<usize> {
        let mut count = [ETHTOOL_GSSET_INFO, 0, 0, 0, 0];
        // A 64-bit mask of sets, then the length of each.
        let (mask, length) = (1_u64 << ETH_SS_FEATURES, 4);
        for (word, bytes) in count[2..4].iter_mut().zip(mask.to_ne_bytes().as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        self.call(&mut count)?;
        let count = count[length] as usize;
        let mut names = vec![ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count as u32];
        names.resize(3 + count * NAME, 0);
        self.call(&mut names)?;
        let mut names = names[3..].chunks(NAME).map(|words| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            bytes.split(|&byte| byte == 0).next() == Some(FEATURE)
        });
        let found = names.position(|is_it| is_it);
        found.ok_or_else(|| io::ErrorKind::Unsupported.into())
    }

    /// Sends a message to the kernel, which writes its answer there.
    fn call(&self, message: &mut [u32]) -> io::Result<()> {
        // SAFETY: an all-zero ifreq is a valid one: its members are bytes, numbers and pointers.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        let name = self.interface.bytes().take(libc::IFNAMSIZ - 1);
        for (to, from) in request.ifr_name.iter_mut().zip(name) {
            *to = from as libc::c_char;
        }
        request.ifr_ifru.ifru_data = message.as_mut_ptr().cast();
        let fd = self.socket.as_raw_fd();
        // SAFETY: `request` and `message` are live and writable for the call. The kernel reads and
        // writes as much of `message` as its first words say, which is its length.
        let result = unsafe { libc::ioctl(fd, libc::SIOCETHTOOL as _, &raw mut request) };
        Ok(Errno::result(result).map(drop)?)
    }
}
