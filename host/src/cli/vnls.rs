//! From the words of a command line to the VNL that is opened.
//!
//! * `scheme://…` is used as it is, a plain path is `vde://PATH`;
//! * an empty VNL (`vde://` for `vdens`) is the configuration's `defaults.vnl`, else the default
//!   switch ([`vnl_file`]);
//! * a path of a regular file, given or default, means the VNL in the file's first line, one level
//!   deep;
//! * for `vdens`, nothing, `''`, `-` and `no` mean no interface, and `=COMMAND` a vdestream to a
//!   command.

use std::path::Path;

use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::vnl_file::{self, Place};

use crate::error::{Error, Result};
use crate::worker::target::LinkTarget;

/// The end that an argument of `vdens` names. `None` if it asks for no interface.
///
/// # Errors
/// As for [`resolve`].
pub(crate) fn interface(argument: &str, default: Option<&str>) -> Result<Option<LinkTarget>> {
    match argument {
        "" | "-" | "no" => Ok(None),
        _ => match argument.strip_prefix('=') {
            Some("") => Err(Error::usage("'=' names no command").hint("write =COMMAND")),
            Some(command) => Ok(Some(LinkTarget::Command(command.to_owned()))),
            None => resolve(argument, default).map(|vnl| Some(LinkTarget::Vnl(vnl))),
        },
    }
}

/// The VNL that `argument` means. `default` is the configuration's.
///
/// # Errors
/// The scheme is malformed, there is no default, or a file that should hold a VNL holds none or is
/// not trusted.
pub(crate) fn resolve(argument: &str, default: Option<&str>) -> Result<String> {
    let vnl = Vnl::parse(argument)?;
    if vnl.scheme != "vde" {
        return Ok(argument.to_owned());
    }
    let place = match (vnl.argument, default) {
        ("", Some(default)) => Place::Vnl(default.to_owned()),
        ("", None) => vnl_file::default_switch()?,
        (path, _) => vnl_file::named(Path::new(path))?,
    };
    match place {
        Place::Directory(path) => Ok(format!("vde://{}", path.display())),
        Place::Vnl(vnl) => {
            let parsed = Vnl::parse(&vnl)?;
            Ok(format!("{}://{}", parsed.scheme, parsed.argument))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_become_ends() {
        let vnl = |text: &str| Some(LinkTarget::Vnl(text.into()));
        for (argument, end) in [
            ("", None),
            ("-", None),
            ("no", None),
            (
                "=vde_plug x",
                Some(LinkTarget::Command("vde_plug x".into())),
            ),
            ("/run/sw[3]", vnl("vde:///run/sw[3]")),
            ("sw", vnl("vde://sw")),
            ("ptp:///tmp/a", vnl("ptp:///tmp/a")),
        ] {
            assert_eq!(interface(argument, None).unwrap(), end);
        }
        assert!(interface("=", None).is_err());
        assert!(interface("Bad://x", None).is_err());
    }

    #[test]
    fn files_and_defaults_stand_for_a_vnl_one_level_deep() {
        let dir = tempfile::tempdir().unwrap();
        let (file, second) = (dir.path().join("f"), dir.path().join("g"));
        std::fs::write(&file, format!("{}\nrest", second.display())).unwrap();
        std::fs::write(&second, "ptp:///tmp/a\n").unwrap();
        let first = file.display().to_string();
        assert_eq!(
            resolve(&first, None).unwrap(),
            format!("vde://{}", second.display())
        );
        let second = second.display().to_string();
        assert_eq!(resolve(&second, None).unwrap(), "ptp:///tmp/a");
        assert_eq!(resolve("vde://", Some("/run/x")).unwrap(), "vde:///run/x");
        std::fs::write(&file, "\n").unwrap();
        assert!(resolve(&first, None).is_err());
    }
}
