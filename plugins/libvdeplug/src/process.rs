//! What a C plugin can do to this process, and what is done about it.
//!
//! * Signals are the host's. The thread that calls the plugin blocks them, and so do the threads
//!   that the plugin starts. A program that it starts gets the usual signals.
//! * A plugin that calls exit(3) has failed. The process then aborts, so that the plugin's status
//!   is not taken for the host's.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{getpid, gettid};
use vdens_plugin_kit::log;

/// The signals that the host handles: to end, and a child's end.
const HOST_SIGNALS: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGCHLD,
];

/// Prepares the process. To be called once, before the first plugin runs.
pub(crate) fn prepare() {
    // SAFETY: this library, and so both functions, stay loaded as long as the process lives.
    unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
        libc::atexit(at_exit);
    }
}

/// Blocks the host's signals in this thread.
pub(crate) fn block_signals() {
    let mut set = SigSet::empty();
    HOST_SIGNALS.into_iter().for_each(|signal| set.add(signal));
    // It fails only for an unknown operation.
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
}

/// A child of fork(2) becomes another program, which starts with the usual signals.
extern "C" fn in_child() {
    let none = SigSet::empty();
    let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&none), None);
    // SAFETY: signal is async-signal-safe, and the default action runs no handler.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

extern "C" fn at_exit() {
    if gettid() != getpid() {
        log::error!("a plugin of libvdeplug called exit");
        std::process::abort();
    }
}
