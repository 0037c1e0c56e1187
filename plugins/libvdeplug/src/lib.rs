//! `libvdeplug://VNL`: every transport that libvdeplug, VDE's library, has a C plugin for.
//!
//! The VNL behind the scheme goes to the library unchanged. If vdens has no plugin for a scheme,
//! the host brings the whole VNL here.
//!
//! For a path without a scheme, the library reads a VNL from the file at the path, whoever wrote
//! it. So such paths are resolved here, by the host's rules ([`vnl_file`]). They are refused in the
//! braces of other VNLs.
//!
//! # Theory of operation
//!
//! vdens does not depend on the library: `library` loads it when a link is opened. C plugins may
//! block in any call. So each `connection` has a thread of its own, which runs the loop in `relay`.
//! A socket pair joins the thread to the `link` that the host polls. `process` limits what a plugin
//! can do to this process. A crash ends the worker, and the supervisor starts another.

mod connection;
mod library;
mod link;
mod process;
mod relay;

use std::path::Path;

use vdens_plugin_kit::vnl::Vnl;
use vdens_plugin_kit::vnl_file::{self, Place};
use vdens_plugin_kit::{Error, Link, OpenRequest, Result, export_plugin};

const SCHEME: &str = "libvdeplug";

/// The VNL to give the library for `vnl`. It has a scheme, and so have all VNLs nested in it.
fn with_scheme(vnl: &str) -> Result<String> {
    let Vnl { scheme, argument } = Vnl::parse(vnl)?;
    let place = match (scheme, argument) {
        ("vde", "") => vnl_file::default_switch()?,
        ("vde", path) if !vnl.contains("://") => vnl_file::named(Path::new(path))?,
        _ => Place::Vnl(vnl.to_owned()),
    };
    let vnl = match place {
        Place::Directory(path) => format!("vde://{}", path.display()),
        Place::Vnl(vnl) if !vnl.contains("://") => format!("vde://{vnl}"),
        Place::Vnl(vnl) => vnl,
    };
    // The braces of a command are the shell's.
    let nests = !vnl.starts_with("cmd://");
    let lacks_scheme = |text: &str| {
        !text
            .split('}')
            .next()
            .is_some_and(|vnl| vnl.contains("://"))
    };
    if nests && vnl.split('{').skip(1).any(lacks_scheme) {
        let message = format!("a VNL in braces has no scheme: {}", vnl.escape_debug());
        return Err(Error::usage(message).hint("write vde://PATH for a path"));
    }
    Ok(vnl)
}

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let vnl = match Vnl::parse(request.vnl)?.scheme {
        SCHEME => request.argument(),
        _ => request.vnl,
    };
    let vnl = with_scheme(vnl)?;
    let library = library::get()?;
    Ok(Box::new(link::CLink::open(
        library,
        &vnl,
        &request.options,
    )?))
}

export_plugin! {
    scheme: SCHEME,
    description: "the C plugins of libvdeplug",
    needs: "anything",
    open: open,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_given_no_path_without_a_scheme() {
        for (vnl, given) in [
            ("/nowhere/sw", "vde:///nowhere/sw"),
            ("vde:///nowhere/sw[3]", "vde:///nowhere/sw[3]"),
            ("slirp://", "slirp://"),
            (
                "agno:///k{vlan://1{vde:///sw}}",
                "agno:///k{vlan://1{vde:///sw}}",
            ),
            ("cmd://sh -c '{ true; }'", "cmd://sh -c '{ true; }'"),
        ] {
            assert_eq!(with_scheme(vnl).unwrap(), given);
        }
        for vnl in [
            "agno:///k{/tmp/sw}",
            "agno:///k{}",
            "vlan://{vlan://{x}}",
            "a://{",
        ] {
            assert!(with_scheme(vnl).is_err(), "{vnl}");
        }
    }
}
