//! `libvdeplug://VNL`: every transport that libvdeplug, VDE's library, has a C plugin for.
//!
//! The VNL behind the scheme goes to the library as it is. The host also brings VNLs here for whose scheme
//! there is no plugin of vdens; those go to the library whole.
//!
//! Theory of operation. The library is no dependency: `library` loads it when a link is opened. C
//! plugins may block in any call, so a `connection` lives in a thread of its own, which `ferry` is the loop of,
//! and a socket pair joins it to the `link` that the host polls. What a plugin does to the process
//! itself is dealt with in `process`; a crash ends the worker, and the supervisor starts another.

mod connection;
mod ferry;
mod library;
mod link;
mod process;

use vdens_plugin_api::vnl::Vnl;
use vdens_plugin_api::{Link, OpenRequest, Result, export_plugin};

const SCHEME: &str = "libvdeplug";

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let vnl = match Vnl::parse(request.vnl)?.scheme {
        SCHEME => request.argument(),
        _ => request.vnl,
    };
    let library = library::get()?;
    Ok(Box::new(link::Bridge::open(
        library,
        vnl,
        &request.options,
    )?))
}

export_plugin! {
    scheme: SCHEME,
    description: "the C plugins of libvdeplug",
    open: open,
}
