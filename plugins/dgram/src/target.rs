//! What to open: the VNL's paths and keys.

use std::path::{Path, PathBuf};

use vdens_plugin_kit::bound_socket::Access;
use vdens_plugin_kit::user::AllowedUser;
use vdens_plugin_kit::vnl::{Keys, Spec, check_socket_path, group_id};
use vdens_plugin_kit::{Error, OpenOptions, Result};

const KEYS: Keys = Keys::new(&["mode", "group", "user", "vfkit"]);

/// Two paths, and who may use them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The path of this end.
    pub(crate) own: PathBuf,
    /// The peer's; `None` if the peer is to come to this end.
    pub(crate) far: Option<PathBuf>,
    /// Who may send to this end.
    pub(crate) access: Access,
    /// Whose socket may be joined.
    pub(crate) user: AllowedUser,
    /// Whether this end sends vfkit's first datagram.
    pub(crate) sends_vfkit: bool,
}

impl Target {
    pub(crate) fn parse(argument: &str, options: &OpenOptions) -> Result<Self> {
        let spec = Spec::path_grammar(argument, &KEYS)?;
        spec.no_nested()?;
        let (own, far) = match spec.target_str()?.split_once("->") {
            Some((own, far)) => (own, Some(far)),
            None => (spec.target_str()?, None),
        };
        let mode = spec.mode("mode")?.or(options.mode);
        let group = spec.get("group").or(options.group.as_deref());
        let sends_vfkit = spec.has("vfkit");
        if sends_vfkit && far.is_none() {
            return Err(
                Error::usage("the key 'vfkit' is for a link that has a path to send to")
                    .hint("write dgram://OWN->FAR[vfkit]"),
            );
        }
        Ok(Self {
            own: path(own)?,
            far: far.map(path).transpose()?,
            access: Access {
                mode: mode.unwrap_or(0o700) & 0o777,
                group: group.map(group_id).transpose()?,
            },
            user: AllowedUser::of_key(spec.get("user"))?,
            sends_vfkit,
        })
    }
}

/// An absolute path for a socket.
fn path(text: &str) -> Result<PathBuf> {
    if text.is_empty() {
        return Err(Error::usage("a path is missing in dgram://")
            .hint("write dgram://OWN->FAR, with quotes around it in a shell"));
    }
    let path = std::path::absolute(text)
        .map_err(|error| Error::path("make an absolute path of", Path::new(text), &error))?;
    check_socket_path(&path)?;
    Ok(path)
}
