//! The request and the reply on a switch's control socket.

use fastrand::Rng;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use vdens_plugin_kit::wire::control::{
    ControlError, MAX_DESCRIPTION_LEN, MAX_PORT, MAX_REQUEST_LEN, Mark, REPLY_LEN,
    REQUEST_HEADER_LEN, Reply, Request, RequestKind,
};

use vdens_plugin_kit::wire::hello::Nonce;

use super::{Target, append, ensure, pick};

/// The longest path in a message, in bytes.
const LONGEST_PATH: usize = 108;

/// Appends a path as it stands in a message.
fn append_address(random: &mut Rng, input: &mut Vec<u8>) {
    input.extend(match random.usize(..16) {
        0 => [random.u8(..), 0],
        _ => (libc::AF_UNIX as u16).to_ne_bytes(),
    });
    let start = input.len();
    let len = *pick(random, &[0, 1, 12, 20, 107, 108]);
    match random.usize(..4) {
        0 => append(random, input, len),
        _ => input.extend((0..len).map(|at| b"/tmp/sw/.00042-00000"[at % 20])),
    }
    input.resize(start + LONGEST_PATH, 0);
}

/// Fields of a message, taken from an input: none, some or all of them allowed.
fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsStr::from_bytes(bytes))
}

fn is_path(bytes: &[u8]) -> bool {
    (1..=LONGEST_PATH).contains(&bytes.len()) && !bytes.contains(&0)
}

pub(crate) struct Requests;

impl Target for Requests {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        let kind = random.u64(..) as u32 & *pick(random, &[1, 0xff, 0xff01, u32::MAX]);
        for word in [0xfeed_face, 3, kind] {
            input.extend(word.to_ne_bytes());
        }
        append_address(random, input);
        let len = random.usize(..MAX_DESCRIPTION_LEN + 2);
        match random.usize(..3) {
            0 => append(random, input, len),
            1 => input.extend(b"vdens user=alice pid=77" as &[u8]),
            _ => {
                let panel = random.u64(..) >> random.usize(..64);
                let mark = Mark {
                    panel,
                    tells_place: random.bool(),
                    nonce: Nonce(random.u64(..) | 1),
                    is_plug: random.bool(),
                };
                input.extend(mark.to_string().as_bytes());
            }
        }
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        if let Ok(request) = Request::decode(input) {
            ensure(
                (REQUEST_HEADER_LEN..=MAX_REQUEST_LEN).contains(&input.len()),
                || "a wrong length passes".into(),
            )?;
            let bytes = request
                .encode()
                .map_err(|error| format!("{request:?}: {error}"))?;
            let again = Request::decode(&bytes);
            ensure(again.as_ref() == Ok(&request), || {
                format!("{request:?} becomes {again:?}")
            })?;
        }
        // The input as the fields of a request.
        let (head, rest) = input.split_at(input.len().min(5));
        let field = |at: usize| head.get(at).copied().unwrap_or(0);
        let (socket, description) = rest.split_at(rest.len().min(usize::from(field(0)) % 120));
        let request = Request {
            kind: match field(1) % 2 {
                0 => RequestKind::New,
                _ => RequestKind::Management,
            },
            port: u32::from_le_bytes([field(2), field(3), field(4), field(1) >> 7]),
            socket: path(socket),
            description: description
                .split(|byte| *byte == 0)
                .next()
                .unwrap_or_default()
                .to_vec(),
        };
        let allowed = is_path(socket)
            && request.port <= MAX_PORT
            && request.description.len() <= MAX_DESCRIPTION_LEN;
        match request.encode() {
            Ok(bytes) => {
                ensure(allowed, || format!("{request:?} is encoded"))?;
                let again = Request::decode(&bytes);
                ensure(again.as_ref() == Ok(&request), || {
                    format!("{request:?} becomes {again:?}")
                })?;
            }
            Err(error) => ensure(!allowed, || format!("{request:?}: {error}"))?,
        }
        let panel = input
            .iter()
            .fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte));
        let mut description = request.description;
        description.truncate(100);
        let mark = Mark {
            panel,
            tells_place: panel & 2 != 0,
            nonce: Nonce(!panel | 1),
            is_plug: panel & 1 != 0,
        };
        let text = description.len();
        description.extend(mark.to_string().as_bytes());
        let found = Mark::split(&description);
        let expected = std::str::from_utf8(&description).ok();
        ensure(found == expected.map(|all| (&all[..text], mark)), || {
            format!("the mark {mark:?} is read as {found:?}")
        })
    }
}

pub(crate) struct Replies;

impl Target for Replies {
    fn generate(&mut self, random: &mut Rng, input: &mut Vec<u8>) {
        append_address(random, input);
    }

    fn check(&mut self, input: &[u8]) -> Result<(), String> {
        match Reply::decode(input) {
            Ok(reply) => {
                ensure(input.len() >= REPLY_LEN, || "a short one passes".into())?;
                let bytes = reply
                    .encode()
                    .map_err(|error| format!("{reply:?}: {error}"))?;
                let again = Reply::decode(&bytes);
                ensure(again.as_ref() == Ok(&reply), || {
                    format!("{reply:?} becomes {again:?}")
                })?;
            }
            Err(ControlError::TooShort { got, need }) => {
                let is_so = got == input.len() && need == REPLY_LEN && got < need;
                ensure(is_so, || format!("{got} of {need} bytes"))?;
            }
            Err(_) => {}
        }
        let socket = &input[..input.len().min(LONGEST_PATH + 2)];
        let reply = Reply {
            socket: path(socket),
        };
        match reply.encode() {
            Ok(bytes) => {
                let again = Reply::decode(&bytes);
                let is_same = is_path(socket) && again.as_ref() == Ok(&reply);
                ensure(is_same, || format!("{reply:?} becomes {again:?}"))
            }
            Err(error) => ensure(!is_path(socket), || format!("{reply:?}: {error}")),
        }
    }
}
