//! The request and the reply on the control socket of a VDE switch.
//!
//! # Theory of operation
//!
//! A client connects to the switch's stream socket and writes one [`Request`]: the path of a
//! datagram socket that it has bound, the port that it wants, and a description of itself. The
//! switch answers with one [`Reply`]: the path of the datagram socket that serves the port. From
//! then on the stream carries nothing. When it ends, the port is gone.
//!
//! Both ends are on one machine, so everything is packed and in host byte order:
//!
//! | bytes | request |
//! |---|---|
//! | 0..4 | magic, `0xfeedface` |
//! | 4..8 | version, 3 |
//! | 8..12 | type: [`RequestKind`] in the low byte, port number above it |
//! | 12..122 | `sockaddr_un` of the client's datagram socket |
//! | 122.. | description, at most 128 bytes, ended by the end of the message |
//!
//! A reply is a `sockaddr_un`: the family (2 bytes) and 108 bytes of path, which ends at a NUL
//! unless it fills them. A request has no length: it is what one `read` into [`MAX_REQUEST_LEN`]` +
//! 1` bytes returns. The extra byte reveals a request that is too long.
//!
//! A client of ours ends its description with a [`Mark`]. A switch of ours then sends a hello (see
//! [`hello`](super::hello)) as the first datagram on the data socket. It sends the hello before the
//! reply, so that the client finds it. The hello has the panel address of a bridge that the client
//! may plug into. Next the switch announces the offloads that it takes. It sends super-frames to a
//! client that announces the same. A client that answers such a hello with one that names its own
//! place says so in its mark.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind};
use crate::wire::hello::Nonce;

/// Bytes of a request before its description.
pub const REQUEST_HEADER_LEN: usize = 12 + ADDRESS_LEN;
/// The longest description, in bytes.
pub const MAX_DESCRIPTION_LEN: usize = 128;
/// Bytes of the longest request.
pub const MAX_REQUEST_LEN: usize = REQUEST_HEADER_LEN + MAX_DESCRIPTION_LEN;
/// Bytes of a reply.
pub const REPLY_LEN: usize = ADDRESS_LEN;
/// The highest port number that a request can carry.
pub const MAX_PORT: u32 = u32::MAX >> 8;

const MAGIC: u32 = 0xfeed_face;
const VERSION: u32 = 3;
const FAMILY: u16 = libc::AF_UNIX as u16;
const PATH_LEN: usize = 108;
const ADDRESS_LEN: usize = 2 + PATH_LEN;

/// The end of the description of a client of ours: ` vdens=PANEL:NONCE`. A client that tells its
/// place has a `+` before the panel, and a plug has a `0` in front of its digits. To a switch that
/// knows neither it is the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The panel on which the client's interface can be plugged
    /// ([`PanelAddress::panel`](crate::PanelAddress::panel)); 0 for none.
    pub panel: u64,
    /// Whether the client tells a switch that offers a bridge where on the panel its interface is.
    pub tells_place: bool,
    /// The client's nonce, which each message of the switch must carry.
    pub nonce: Nonce,
    /// Whether the client is a plug and no interface: another switch may be at its other end.
    pub is_plug: bool,
}

impl Mark {
    const NAME: &str = " vdens=";

    /// The bytes of the longest mark.
    pub const MAX_LEN: usize = Self::NAME.len() + 2 + 20 + 1 + 16;

    /// Splits a description into its text and its mark; `None` if it has no mark.
    pub fn split(description: &[u8]) -> Option<(&str, Self)> {
        let text = std::str::from_utf8(description).ok()?;
        let (text, mark) = text.rsplit_once(Self::NAME)?;
        let (panel, nonce) = mark.split_once(':')?;
        let digits = panel.strip_prefix('+');
        let mark = Self {
            panel: panel.parse().ok()?,
            tells_place: digits.is_some(),
            nonce: Nonce(u64::from_str_radix(nonce, 16).ok()?),
            is_plug: matches!(digits.unwrap_or(panel).as_bytes(), [b'0', _, ..]),
        };
        (mark.nonce != Nonce::UNKNOWN).then_some((text, mark))
    }
}

impl fmt::Display for Mark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.tells_place { "+" } else { "" };
        let zero = if self.is_plug { "0" } else { "" };
        let (panel, nonce) = (self.panel, self.nonce.0);
        write!(f, "{}{sign}{zero}{panel}:{nonce:x}", Self::NAME)
    }
}

/// What a client wants of the switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RequestKind {
    /// A port of its own.
    New = 0,
    /// The management port, port 0.
    Management = 1,
}

/// The message of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the client wants.
    pub kind: RequestKind,
    /// The port number that the client wants, at most [`MAX_PORT`]; 0 for any.
    pub port: u32,
    /// The datagram socket that the client has bound.
    pub socket: PathBuf,
    /// The description of the client, for users; at most [`MAX_DESCRIPTION_LEN`] bytes, no NUL.
    pub description: Vec<u8>,
}

/// The answer of a switch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The switch's datagram socket for this port.
    pub socket: PathBuf,
}

/// Why a message is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlError {
    /// It ends early.
    TooShort {
        /// Bytes that are there.
        got: usize,
        /// Bytes that are needed.
        need: usize,
    },
    /// It does not begin with the magic number.
    WrongMagic(u32),
    /// A version of the protocol other than 3.
    WrongVersion(u32),
    /// A type that is neither a new connection nor a management one.
    UnknownKind(u8),
    /// A port number that does not fit its 24 bits.
    PortOutOfRange(u32),
    /// The address is not that of a UNIX socket.
    BadFamily(u16),
    /// The socket has no name, an abstract one, or (to be sent) one that is too long or has a NUL.
    BadPath,
    /// The description exceeds its limit.
    DescriptionTooLong(usize),
}

impl fmt::Display for ControlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooShort { got, need } => write!(
                f,
                "control message of {got} bytes is too short, {need} are needed"
            ),
            Self::WrongMagic(magic) => {
                write!(f, "not a VDE control request: it begins with {magic:#010x}")
            }
            Self::WrongVersion(version) => write!(
                f,
                "VDE control protocol version {version} is not supported, only version 3 is"
            ),
            Self::UnknownKind(kind) => write!(f, "unknown kind {kind} of VDE control request"),
            Self::PortOutOfRange(port) => write!(
                f,
                "port number {port} is out of range, the highest is {MAX_PORT}"
            ),
            Self::BadFamily(family) => write!(
                f,
                "socket address of family {family} where a UNIX socket's is due"
            ),
            Self::BadPath => write!(
                f,
                "the socket path is empty, abstract, or longer than {PATH_LEN} bytes"
            ),
            Self::DescriptionTooLong(length) => write!(
                f,
                "description of {length} bytes is too long, the limit is {MAX_DESCRIPTION_LEN}"
            ),
        }
    }
}

impl std::error::Error for ControlError {}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        Self::new(ErrorKind::Protocol, error.to_string())
    }
}

impl Request {
    /// The bytes to send, in one `write`.
    ///
    /// # Errors
    /// A field exceeds its limit.
    pub fn encode(&self) -> Result<Vec<u8>, ControlError> {
        if self.port > MAX_PORT {
            return Err(ControlError::PortOutOfRange(self.port));
        }
        check_description(&self.description)?;
        let kind = self.port << 8 | self.kind as u32;
        let mut bytes = Vec::with_capacity(REQUEST_HEADER_LEN + self.description.len());
        for word in [MAGIC, VERSION, kind] {
            bytes.extend_from_slice(&word.to_ne_bytes());
        }
        bytes.extend_from_slice(&encode_address(&self.socket)?);
        bytes.extend_from_slice(&self.description);
        Ok(bytes)
    }

    /// Decodes one whole request. The description ends at its first NUL, if it has one.
    ///
    /// # Errors
    /// The request is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let too_short = ControlError::TooShort {
            got: bytes.len(),
            need: REQUEST_HEADER_LEN,
        };
        let (magic, rest) = bytes.split_first_chunk().ok_or(too_short)?;
        let magic = u32::from_ne_bytes(*magic);
        if magic != MAGIC {
            return Err(ControlError::WrongMagic(magic));
        }
        let (version, rest) = rest.split_first_chunk().ok_or(too_short)?;
        let version = u32::from_ne_bytes(*version);
        if version != VERSION {
            return Err(ControlError::WrongVersion(version));
        }
        let (kind, rest) = rest.split_first_chunk().ok_or(too_short)?;
        let (address, description) = rest.split_first_chunk().ok_or(too_short)?;
        let kind = u32::from_ne_bytes(*kind);
        check_description(description)?;
        Ok(Self {
            kind: match kind.to_le_bytes()[0] {
                0 => RequestKind::New,
                1 => RequestKind::Management,
                other => return Err(ControlError::UnknownKind(other)),
            },
            port: kind >> 8,
            socket: decode_address(address)?,
            description: until_nul(description).to_vec(),
        })
    }
}

impl Reply {
    /// The bytes to send.
    ///
    /// # Errors
    /// The path is empty, too long, or has a NUL.
    pub fn encode(&self) -> Result<[u8; REPLY_LEN], ControlError> {
        encode_address(&self.socket)
    }

    /// Decodes a reply from the first [`REPLY_LEN`] bytes.
    ///
    /// # Errors
    /// The reply is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, ControlError> {
        let address = bytes.first_chunk().ok_or(ControlError::TooShort {
            got: bytes.len(),
            need: REPLY_LEN,
        })?;
        Ok(Self {
            socket: decode_address(address)?,
        })
    }
}

fn check_description(description: &[u8]) -> Result<(), ControlError> {
    match description.len() {
        0..=MAX_DESCRIPTION_LEN => Ok(()),
        length => Err(ControlError::DescriptionTooLong(length)),
    }
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

fn encode_address(path: &Path) -> Result<[u8; ADDRESS_LEN], ControlError> {
    let path = path.as_os_str().as_bytes();
    if path.is_empty() || path.len() > PATH_LEN || path.contains(&0) {
        return Err(ControlError::BadPath);
    }
    let mut address = [0; ADDRESS_LEN];
    address[..2].copy_from_slice(&FAMILY.to_ne_bytes());
    address[2..2 + path.len()].copy_from_slice(path);
    Ok(address)
}

fn decode_address(address: &[u8; ADDRESS_LEN]) -> Result<PathBuf, ControlError> {
    let [low, high, path @ ..] = address;
    let family = u16::from_ne_bytes([*low, *high]);
    if family != FAMILY {
        return Err(ControlError::BadFamily(family));
    }
    match until_nul(path) {
        // An abstract name begins with a NUL.
        [] => Err(ControlError::BadPath),
        path => Ok(PathBuf::from(OsStr::from_bytes(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            kind: RequestKind::New,
            port: 3,
            socket: PathBuf::from("/tmp/sw/.01234-00000"),
            description: b"vdens: me".to_vec(),
        }
    }

    /// The request above as a little-endian machine sends it, spelt out.
    fn vector() -> Vec<u8> {
        let mut bytes =
            b"\xce\xfa\xed\xfe\x03\0\0\0\x00\x03\0\0\x01\0/tmp/sw/.01234-00000".to_vec();
        bytes.resize(122, 0);
        bytes.extend_from_slice(b"vdens: me");
        bytes
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn request_vector() {
        assert_eq!(request().encode().unwrap(), vector());
        assert_eq!(Request::decode(&vector()).unwrap(), request());

        let management = Request {
            kind: RequestKind::Management,
            port: MAX_PORT,
            description: Vec::new(),
            ..request()
        };
        let bytes = management.encode().unwrap();
        assert_eq!(bytes[8..12], *b"\x01\xff\xff\xff");
        assert_eq!(bytes.len(), 122);
        assert_eq!(Request::decode(&bytes).unwrap(), management);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn reply_vector() {
        let reply = Reply {
            socket: PathBuf::from("/tmp/sw/001.8"),
        };
        let mut bytes = b"\x01\0/tmp/sw/001.8".to_vec();
        bytes.resize(110, 0);
        assert_eq!(reply.encode().unwrap(), *bytes);
        assert_eq!(Reply::decode(&bytes).unwrap(), reply);
        let short = Reply::decode(&bytes[..109]).unwrap_err();
        assert_eq!(
            short,
            ControlError::TooShort {
                got: 109,
                need: 110
            }
        );
        // What a C peer leaves behind the NUL is noise.
        bytes[20..].fill(0x5a);
        assert_eq!(Reply::decode(&bytes).unwrap(), reply);
    }

    #[test]
    fn paths() {
        for (length, fits) in [
            (0, false),
            (1, true),
            (107, true),
            (108, true),
            (109, false),
        ] {
            let reply = Reply {
                socket: PathBuf::from("x".repeat(length)),
            };
            match reply.encode() {
                Ok(bytes) => {
                    assert!(fits);
                    assert_eq!(Reply::decode(&bytes), Ok(reply));
                }
                Err(e) => assert_eq!((e, fits), (ControlError::BadPath, false)),
            }
        }
        let nul = Reply {
            socket: PathBuf::from("a\0b"),
        };
        assert_eq!(nul.encode(), Err(ControlError::BadPath));
        let bytes = Reply {
            socket: PathBuf::from(OsStr::from_bytes(b"/\xff\xfe")),
        };
        assert_eq!(Reply::decode(&bytes.encode().unwrap()), Ok(bytes));
    }

    #[test]
    fn refusals() {
        let good = request().encode().unwrap();
        let with = |at: usize, new: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + new.len()].copy_from_slice(new);
            Request::decode(&bytes).unwrap_err()
        };
        let wrong_magic = 0xfeed_beef_u32;
        assert_eq!(
            with(0, &wrong_magic.to_ne_bytes()),
            ControlError::WrongMagic(wrong_magic)
        );
        assert_eq!(with(4, &2_u32.to_ne_bytes()), ControlError::WrongVersion(2));
        assert_eq!(with(8, &2_u32.to_ne_bytes()), ControlError::UnknownKind(2));
        assert_eq!(
            with(12, &libc::AF_INET.to_ne_bytes()[..2]),
            ControlError::BadFamily(2)
        );
        assert_eq!(with(14, b"\0abstract"), ControlError::BadPath);
        for length in 0..REQUEST_HEADER_LEN {
            assert_eq!(
                Request::decode(&good[..length]),
                Err(ControlError::TooShort {
                    got: length,
                    need: REQUEST_HEADER_LEN
                })
            );
        }
        let mut long = good[..REQUEST_HEADER_LEN].to_vec();
        long.resize(MAX_REQUEST_LEN, b'x');
        assert_eq!(Request::decode(&long).unwrap().description, [b'x'; 128]);
        long.push(b'x');
        assert_eq!(
            Request::decode(&long),
            Err(ControlError::DescriptionTooLong(129))
        );
        let too_long = Request {
            description: vec![b'x'; 129],
            ..request()
        };
        assert_eq!(
            too_long.encode(),
            Err(ControlError::DescriptionTooLong(129))
        );
        let too_high = Request {
            port: MAX_PORT + 1,
            ..request()
        };
        assert_eq!(
            too_high.encode(),
            Err(ControlError::PortOutOfRange(1 << 24))
        );
        let error = Error::from(ControlError::WrongVersion(2));
        assert_eq!(error.kind, ErrorKind::Protocol);
        assert!(error.message.contains("version 2"), "{error}");
    }

    #[test]
    fn a_mark_is_found_at_the_end_only() {
        for (panel, nonce, is_plug) in [
            (0, 1, false),
            (0, 1, true),
            (4_026_532_345, 0xabc, true),
            (u64::MAX, u64::MAX, true),
        ] {
            let mark = Mark {
                panel,
                tells_place: panel != 0,
                nonce: Nonce(nonce),
                is_plug,
            };
            let description = format!("vdens vde0 pid=1{mark}");
            let split = Mark::split(description.as_bytes());
            assert_eq!(split, Some(("vdens vde0 pid=1", mark)));
            assert!(mark.to_string().len() <= Mark::MAX_LEN);
        }
        for other in [
            "",
            "vdens=",
            "a vdens=1:1 pid=2",
            "a vdens=x:1",
            "a xvdens=1:1",
            "a vdens=1",
            "a vdens=1:0",
            "a vdens=1:",
        ] {
            assert_eq!(Mark::split(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn description_ends_at_nul() {
        let mut bytes = request().encode().unwrap();
        bytes.extend_from_slice(b"\0noise");
        assert_eq!(Request::decode(&bytes).unwrap(), request());
    }
}
