//! `cmd://COMMAND`: a vdestream on the standard input and output of a shell command.
//!
//! `/bin/sh -c` runs everything behind `cmd://`, so quoting follows the shell's rules.
//! [`CommandStream`] does the work: when the command ends, the link breaks, and when the link
//! closes, it ends the command.

use vdens_plugin_kit::stream::CommandStream;
use vdens_plugin_kit::{Error, Link, OpenRequest, Result, export_plugin};

fn open(request: &OpenRequest<'_>) -> Result<Box<dyn Link>> {
    let command = request.argument().trim();
    if command.is_empty() {
        return Err(Error::usage("cmd:// names no command").hint("write cmd://COMMAND"));
    }
    Ok(Box::new(CommandStream::shell(command)?))
}

export_plugin! {
    scheme: "cmd",
    description: "a command that speaks vdestream: cmd://COMMAND",
    needs: "anything",
    open: open,
}

#[cfg(test)]
mod tests {
    use super::*;
    use vdens_plugin_kit::{ErrorKind, Host, OpenOptions};

    fn open_vnl(vnl: &str) -> Result<Box<dyn Link>> {
        open(&OpenRequest {
            vnl,
            options: OpenOptions::default(),
            host: Host::without_services(),
        })
    }

    #[test]
    fn a_command_is_needed_and_quoted_by_the_shells_rules() {
        for vnl in ["cmd://", "cmd:// "] {
            let error = open_vnl(vnl).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Usage);
            assert!(error.to_string().contains("cmd://COMMAND"));
        }
        assert!(open_vnl("cmd://exec cat '/dev/null' | sed \"s/{a}/[b]%20/\"").is_ok());
    }
}
