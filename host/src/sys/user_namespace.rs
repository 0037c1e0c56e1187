//! Makes user namespaces, and explains why the kernel refuses one.
//!
//! A session's namespace and the panel's are both made here. An unprivileged process may map its
//! own uid and gid alone, and only after it has denied itself setgroups(2) (user_namespaces(7)).
//! With the setuid programs newuidmap(1) and newgidmap(1) it can map the subordinate ids, too, that
//! /etc/subuid and /etc/subgid give its user. They must run in the parent's namespace, so a child
//! is forked for them before the namespace is made.
//! What forbids a user namespace differs by distribution, so an error names the setting that
//! decides.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Pid, Uid, User, getegid, geteuid};

use crate::error::{Error, ErrorKind, Result, system};
use crate::sys::child::{Child, Exit, exit_child};

/// How long the kernel may take to remove namespaces without processes. It removes the network
/// namespaces of the whole machine one after the other.
const LEAVING: Duration = Duration::from_secs(2);

/// Under which ids the user appears in a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Ids {
    /// Under its own uid and gid. There are no others.
    #[default]
    Own,
    /// As root, uid and gid 0. There are no others.
    Root,
    /// As root; the user's subordinate ids are 1, 2, ….
    Subordinate,
}

/// As [`unshare_as`], with the caller's ids mapped to themselves.
///
/// # Errors
/// As for [`unshare_as`].
pub(crate) fn unshare_mapped(flags: CloneFlags) -> Result<()> {
    unshare_as(Ids::Own, flags)
}

/// Makes the namespaces of `flags`, a user namespace among them, with the ids mapped, and enters
/// them. For processes with one thread.
///
/// # Errors
/// The kernel or a limit does not allow it; the hint says which setting decides.
pub(crate) fn unshare_as(ids: Ids, flags: CloneFlags) -> Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    match ids {
        Ids::Own | Ids::Root => {
            unshare(flags).map_err(no_namespace)?;
            let root = (Uid::from_raw(0), Gid::from_raw(0));
            let inside = if ids == Ids::Root { root } else { (uid, gid) };
            map_ids(inside, (uid, gid))
        }
        Ids::Subordinate => {
            let mapper = Mapper::start()?;
            unshare(flags).map_err(no_namespace)?;
            mapper.map()
        }
    }
}

/// Maps the ids that this process had outside of its new user namespace.
///
/// # Errors
/// The kernel does not allow it; the hint says which setting decides.
pub(crate) fn map_ids(inside: (Uid, Gid), outside: (Uid, Gid)) -> Result<()> {
    write_map("setgroups", "deny")?;
    write_map("uid_map", &format!("{} {} 1", inside.0, outside.0))?;
    write_map("gid_map", &format!("{} {} 1", inside.1, outside.1))
}

/// Maps all ids of this process's user namespace to themselves in the one of a child, in which that
/// waits.
///
/// # Errors
/// The kernel does not allow it.
pub(crate) fn map_all_ids(child: Pid) -> Result<()> {
    for file in ["uid_map", "gid_map"] {
        let own = format!("/proc/self/{file}");
        let text = fs::read_to_string(&own);
        let text = text.map_err(|error| Error::io(format_args!("read {own}"), &error))?;
        // Each line has the first id inside and outside, and how many there are.
        let map: String = text
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let (first, count) = (words.next()?, words.nth(1)?);
                Some(format!("{first} {first} {count}\n"))
            })
            .collect();
        let path = format!("/proc/{child}/{file}");
        fs::write(&path, map).map_err(|error| Error::io(format_args!("write {path}"), &error))?;
    }
    Ok(())
}

/// As [`unshare_as`], but where there are too many namespaces it waits for room. The kernel still
/// counts those of a panel that this process has left a moment ago.
///
/// # Errors
/// As for [`unshare_as`].
pub(crate) fn unshare_when_there_is_room(ids: Ids, flags: CloneFlags) -> Result<()> {
    let deadline = Instant::now() + LEAVING;
    loop {
        match unshare_as(ids, flags) {
            Err(error)
                if is_crowded(&error)
                    && forbidding_limit().is_none()
                    && Instant::now() < deadline =>
            {
                sleep(Duration::from_millis(5));
            }
            outcome => return outcome,
        }
    }
}

/// A child in the parent's namespace that maps the subordinate ids of this process's namespace,
/// once that is made.
struct Mapper {
    child: Child,
    /// Where it waits, and what it says: nothing if it has mapped the ids.
    channel: UnixStream,
}

impl Mapper {
    fn start() -> Result<Self> {
        let cannot = |error| Error::io("start a process that maps ids", &error);
        let commands = [
            map_command("newuidmap", "/etc/subuid", geteuid().as_raw())?,
            map_command("newgidmap", "/etc/subgid", getegid().as_raw())?,
        ];
        let (channel, mut theirs) = UnixStream::pair().map_err(cannot)?;
        if let Some(child) = Child::fork()? {
            return Ok(Self { child, channel });
        }
        drop(channel);
        exit_child(|| {
            // The end of the file says that the namespace could not be made.
            if theirs.read(&mut [0]).unwrap_or(0) == 0 {
                return 0;
            }
            let mut outcomes = commands.into_iter().map(run_map_command);
            let complaint = outcomes.find_map(Result::err).unwrap_or_default();
            i32::from(theirs.write_all(complaint.as_bytes()).is_err())
        })
    }

    fn map(mut self) -> Result<()> {
        let mut complaint = String::new();
        let asked = self.channel.write_all(b"!");
        asked
            .and_then(|()| self.channel.read_to_string(&mut complaint))
            .map_err(|error| Error::io("map subordinate ids", &error))?;
        let exit = self.child.wait(None);
        match (complaint.trim(), exit) {
            ("", Some(Exit::Status(0))) => Ok(()),
            ("", _) => Err(Error::closed("the process that maps ids has died")),
            (complaint, _) => {
                let message = format!("cannot map subordinate ids: {complaint}");
                Err(Error::new(ErrorKind::Permission, message))
            }
        }
    }
}

/// The command that maps 0 to `id`, and 1, 2, … to the ids that `file` gives this user.
fn map_command(program: &'static str, file: &str, id: u32) -> Result<Command> {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten().map(|user| user.name);
    let user = user.unwrap_or_else(|| uid.to_string());
    let text = fs::read_to_string(file).unwrap_or_default();
    let Some((first, count)) = subordinate_ids(&text, &user, uid.as_raw()) else {
        let message = format!("{file} has no subordinate ids for {user}");
        return Err(Error::new(ErrorKind::Permission, message).hint(format!(
            "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}"
        )));
    };
    let mut command = Command::new(program);
    let numbers = [std::process::id(), 0, id, 1, 1, first, count];
    command.args(numbers.map(|number| number.to_string()));
    Ok(command)
}

/// The first range of ids that a file like /etc/subuid gives a user, and its length (subuid(5)).
fn subordinate_ids(text: &str, user: &str, uid: u32) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        fields.next().filter(|name| [user, &uid].contains(name))?;
        let first = fields.next()?.trim().parse().ok()?;
        let count = fields.next()?.trim().parse().ok()?;
        (count > 0).then_some((first, count))
    })
}

/// Runs it; what is to be said if it fails.
fn run_map_command(mut command: Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.stdin(Stdio::null()).output();
    let output = output.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("{program} is not installed; sudo apt-get install uidmap")
        }
        _ => format!("{program}: {error}"),
    })?;
    match output.status.success() {
        true => Ok(()),
        false => {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().next().unwrap_or_default().to_owned();
            Err(match said.is_empty() {
                true => format!("{program} ended with {}", output.status),
                false => said,
            })
        }
    }
}

/// Whether an error says that there are too many namespaces.
pub(crate) fn is_crowded(error: &Error) -> bool {
    error.errno == libc::ENOSPC
}

fn write_map(file: &str, text: &str) -> Result<()> {
    let path = format!("/proc/self/{file}");
    match fs::write(&path, text) {
        Ok(()) => Ok(()),
        Err(error) => {
            let failure = Error::io(format_args!("write '{text}' to {path}"), &error);
            let is_for_root = text.starts_with("0 ") && !apparmor_restricts();
            Err(match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => failure.hint(READ_ONLY_HINT),
                io::ErrorKind::PermissionDenied if is_for_root => failure.hint(ROOT_HINT),
                _ => blame_apparmor(failure),
            })
        }
    }
}

/// Adds a hint at AppArmor to an error, if it restricts user namespaces.
pub(crate) fn blame_apparmor(error: Error) -> Error {
    match apparmor_restricts() {
        true => error.hint(format!("AppArmor forbids it: {}", apparmor_remedy())),
        false => error,
    }
}

/// What makes AppArmor allow user namespaces: the profile that an installation has brought
/// (host/packaging/apparmor), or the setting.
pub(crate) fn apparmor_remedy() -> String {
    let program = std::env::current_exe().unwrap_or_default();
    let loader = program
        .ancestors()
        .nth(2)
        .map(|above| above.join("apparmor"));
    match loader.filter(|loader| loader.is_file()) {
        Some(loader) => format!("sudo {} load", loader.display()),
        None => "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, \
            or give vdens a profile that allows userns"
            .to_owned(),
    }
}

/// A kernel setting that is a number, by its path below /proc/sys; `None` if this kernel does not
/// have it.
pub(crate) fn sysctl(name: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/sys/{name}")).ok()?;
    text.trim().parse().ok()
}

const READ_ONLY_HINT: &str =
    "in a container or sandbox, mount a /proc of its own there (bwrap --proc /proc)";
/// The rule is in user_namespaces(7), "Defining user and group ID mappings", since Linux 5.12.
const ROOT_HINT: &str =
    "uid 0 of a container or sandbox needs CAP_SETFCAP: allow it there, or use another uid";

/// Whether AppArmor forbids user namespaces to programs without a profile.
pub(crate) fn apparmor_restricts() -> bool {
    sysctl("kernel/apparmor_restrict_unprivileged_userns") == Some(1)
}

/// Whether a seccomp filter is in force for this process (proc_pid_status(5)).
fn is_filtered() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line == "Seccomp:\t2")
}

/// The limit that allows no namespace at all, if one does.
fn forbidding_limit() -> Option<String> {
    let mut kinds = ["user", "net", "uts", "mnt"].into_iter();
    let kind = kinds.find(|kind| sysctl(&format!("user/max_{kind}_namespaces")) == Some(0))?;
    Some(format!("user.max_{kind}_namespaces"))
}

/// The error when no namespace can be made, with the setting that decides it.
fn no_namespace(errno: Errno) -> Error {
    let error = system("make a user and network namespace")(errno);
    if let Some(name) = forbidding_limit() {
        return error.hint(format!("{name} is 0: sudo sysctl {name}=10000"));
    }
    match errno {
        Errno::ENOSPC => error.hint(
            "too many namespaces, or nested too deeply: see user.max_user_namespaces and the other \
             user.max_*_namespaces",
        ),
        Errno::EPERM if sysctl("kernel/unprivileged_userns_clone") == Some(0) => {
            error.hint("sudo sysctl kernel.unprivileged_userns_clone=1")
        }
        Errno::EPERM | Errno::EACCES if apparmor_restricts() => blame_apparmor(error),
        Errno::EPERM if is_filtered() => error
            .hint("a container's seccomp filter may forbid it: allow unshare(CLONE_NEWUSER) there"),
        Errno::EPERM => {
            error.hint("not possible in a chroot, nor where a security module forbids it")
        }
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let text = "other:100000:65536\n# a comment\nme:165536:65536\n1000:300000:10\nno:x:1\n";
        let ids = |user, uid| subordinate_ids(text, user, uid);
        assert_eq!(ids("me", 7), Some((165_536, 65_536)));
        assert_eq!(ids("somebody", 1000), Some((300_000, 10)));
        assert_eq!(ids("no", 7), None);
        assert_eq!(ids("m", 7), None);
    }
}
