//! What a C plugin would do to the process that it is a guest in.
//!
//! * Signals are the host's to handle, so the thread in which the plugin is called blocks them, and with it
//!   the threads that the plugin starts. A program that it starts gets them back.
//! * A plugin that calls exit(3) has failed: the process aborts instead, so that its status is not taken for
//!   the host's word.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{getpid, gettid};
use vdens_plugin_kit::log;

/// The signals by which hosts are told to end, or that a child has ended.
const HOSTS: [Signal; 5] = [
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGCHLD,
];

/// Prepares the process; to be called once, before the first plugin is.
pub(crate) fn prepare() {
    // SAFETY: both functions stay loaded as long as the process lives, as this library does.
    unsafe {
        libc::pthread_atfork(None, None, Some(in_child));
        libc::atexit(at_exit);
    }
}

/// Leaves the host's signals to the host's own thread.
pub(crate) fn block_signals() {
    let mut set = SigSet::empty();
    HOSTS.into_iter().for_each(|signal| set.add(signal));
    // It fails for an unknown operation only.
    let _ = pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&set), None);
}

/// A child of fork(2) is to become another program: it starts with the usual signals.
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
