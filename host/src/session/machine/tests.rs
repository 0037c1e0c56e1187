//! Sessions, event by event.

use std::fs::File;

use super::*;
use crate::error::EXIT_FAILURE;
use crate::ipc::status::Service;
use crate::ipc::{FromWorker, ReportReply};
use crate::worker::EXIT_NO_INTERFACE;

/// The phases in which something is waited for, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
enum Reached {
    NamespacePending,
    Opening,
    InterfacesPending,
    Settling,
    Running,
}

use Reached::{InterfacesPending, NamespacePending, Opening, Running, Settling};

const BEFORE_RUNNING: [Reached; 4] = [NamespacePending, Opening, InterfacesPending, Settling];
const PHASES: [Reached; 5] = [
    NamespacePending,
    Opening,
    InterfacesPending,
    Settling,
    Running,
];

struct Session {
    machine: Machine,
    now: Instant,
    links: usize,
}

fn fd() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

/// Actions, to be compared.
fn short(actions: Vec<Action>) -> Vec<String> {
    let short = |action| match action {
        Action::MakePorts(_, links) => format!("MakePorts({links:?})"),
        Action::TakeInterfaces(fds) => format!("TakeInterfaces({})", fds.len()),
        Action::HoldNetlink(_) => "HoldNetlink".into(),
        Action::HoldFirstProcess(pid, _) => format!("HoldFirstProcess({pid})"),
        Action::LeavePanel(error) => format!("LeavePanel({})", error.message),
        Action::Finish(Err(Failure::Error(status, error))) => {
            format!("Finish({status}: {})", error.message)
        }
        Action::Link(index, LinkAction::Warn(error)) => format!("{index}: Warn({})", error.message),
        Action::Link(index, action) => format!("{index}: {action:?}"),
        action => format!("{action:?}"),
    };
    actions.into_iter().map(short).collect()
}

impl Session {
    /// One that has just been started, and its actions.
    fn start(links: usize, has_panel: bool) -> (Self, Vec<String>) {
        let now = Instant::now();
        let names = (0..links).map(|index| format!("vde{index} (x://)"));
        let (machine, actions) = Machine::start(names, Duration::ZERO, has_panel, now);
        let session = Self {
            machine,
            now,
            links,
        };
        (session, short(actions))
    }

    /// One that has reached a phase; its first link is on the panel.
    fn at(phase: Reached, links: usize) -> Self {
        let (mut session, _) = Self::start(links, true);
        if phase >= Opening {
            session.namespace(FromNamespace::NamespaceMade, 2);
        }
        if phase >= InterfacesPending {
            for index in 0..links {
                let wants_panel = index == 0;
                session.message(index, FromWorker::Open { wants_panel });
            }
            session.step(Event::PortsMade { refused: vec![] });
        }
        if phase >= Settling {
            session.namespace(FromNamespace::InterfacesMade, links);
        }
        if phase >= Running {
            for index in 0..links {
                session.message(index, FromWorker::Settled);
            }
            session.step(Event::NamespaceClosed);
            assert!(session.machine.is_running());
        }
        session
    }

    fn step(&mut self, event: Event) -> Vec<String> {
        short(self.machine.step(event, self.now))
    }

    fn namespace(&mut self, message: FromNamespace, fds: usize) -> Vec<String> {
        self.step(Event::Namespace(message, (0..fds).map(|_| fd()).collect()))
    }

    fn message(&mut self, link: usize, message: FromWorker) -> Vec<String> {
        self.step(Event::Worker(link, WorkerEvent::Message(message)))
    }

    fn worker_ends(&mut self, link: usize, exit: Exit) -> Vec<String> {
        let is_deleted = false;
        self.step(Event::Worker(link, WorkerEvent::Ended { exit, is_deleted }))
    }

    /// Time passes.
    fn after(&mut self, time: Duration) -> Vec<String> {
        self.now += time;
        self.step(Event::Time)
    }

    /// The time until something is due.
    fn is_due_after(&self) -> Duration {
        self.machine.deadline().unwrap() - self.now
    }

    fn service(&self, link: usize) -> Service {
        self.machine.link(link).service().0
    }

    /// It ends its children after an event, and then like this.
    #[track_caller]
    fn ends(mut self, event: Event, how: &str) {
        assert_eq!(self.step(event), ["EndChildren"]);
        // What else comes does not matter.
        assert!(self.ignores_the_rest());
        assert_eq!(self.machine.deadline(), None);
        let actions = self.step(Event::ChildrenEnded);
        assert_eq!(actions.len(), 1);
        assert!(actions[0].contains(how), "{actions:?}");
        assert!(self.ignores_the_rest());
        assert!(self.step(Event::ChildrenEnded).is_empty());
    }

    /// Whether nothing more follows from what a session in its end may see.
    fn ignores_the_rest(&mut self) -> bool {
        let mut actions = self.step(Event::Signal(Signal::SIGTERM));
        actions.extend(self.step(Event::StatusQuery));
        actions.extend(self.step(Event::CommandEnded(Exit::Status(3))));
        actions.extend(self.after(Duration::from_secs(100)));
        for index in 0..self.links {
            actions.extend(self.worker_ends(index, Exit::Status(1)));
        }
        actions.is_empty()
    }
}

fn failed(status: i32) -> FromNamespace {
    let error = Error::closed("that is why");
    FromNamespace::Failed { status, error }
}

fn crowded() -> Event {
    let error = Error::closed("no room");
    let error = Error {
        errno: libc::ENOSPC,
        ..error
    };
    let status = EXIT_FAILURE;
    Event::Namespace(FromNamespace::Failed { status, error }, Vec::new())
}

#[test]
fn a_session_starts_and_ends() {
    let (mut session, actions) = Session::start(2, true);
    assert_eq!(actions, ["StartNamespace", "0: Start", "1: Start"]);
    let on_panel = FromWorker::Open { wants_panel: true };
    assert!(session.message(1, on_panel).is_empty());
    let made = session.namespace(FromNamespace::NamespaceMade, 2);
    assert_eq!(made, ["HoldNetlink"]);
    let as_tap = FromWorker::Open { wants_panel: false };
    assert_eq!(session.message(0, as_tap), ["MakePorts([1])"]);
    assert_eq!(
        session.step(Event::PortsMade { refused: vec![] }),
        ["ToNamespace(MakeInterfaces([true, false]))"]
    );
    assert_eq!(
        session.namespace(FromNamespace::InterfacesMade, 2),
        ["TakeInterfaces(2)", "0: GiveSide", "1: GiveSide"]
    );
    assert!(session.message(0, FromWorker::Settled).is_empty());
    assert_eq!(
        session.message(1, FromWorker::Settled),
        ["ToNamespace(Run)", "GiveBackMemory"]
    );
    assert_eq!(session.step(Event::NamespaceClosed), ["Announce"]);
    session.ends(Event::CommandEnded(Exit::Status(7)), "Finish(Ok(7))");
}

#[test]
fn a_session_without_a_link_runs_at_once() {
    let (mut session, actions) = Session::start(0, false);
    assert_eq!(actions, ["StartNamespace", "GiveBackMemory"]);
    assert_eq!(session.machine.deadline(), None);
    assert_eq!(session.step(Event::StatusQuery), ["AnswerStatus"]);
    session.ends(
        Event::CommandEnded(Exit::Signal(Signal::SIGKILL)),
        "Finish(Ok(137))",
    );
}

#[test]
fn the_exit_status_is_the_commands() {
    for (exit, status) in [
        (Exit::Status(0), 0),
        (Exit::Status(255), 255),
        (Exit::Signal(Signal::SIGKILL), 137),
        (Exit::Signal(Signal::SIGTERM), 143),
    ] {
        let finish = format!("Finish(Ok({status}))");
        Session::at(Running, 1).ends(Event::CommandEnded(exit), &finish);
    }
}

#[test]
fn a_namespace_child_that_ends_early_ends_the_session() {
    for phase in BEFORE_RUNNING {
        let died = "Finish(125: cannot run the command";
        Session::at(phase, 2).ends(Event::CommandEnded(Exit::Status(0)), died);
        Session::at(phase, 2).ends(Event::NamespaceClosed, died);
    }
    // What it has sent last says more than its end.
    for phase in PHASES {
        for status in [125, 127] {
            let why = format!("Finish({status}: that is why)");
            let last = Event::Namespace(failed(status), Vec::new());
            Session::at(phase, 2).ends(last, &why);
        }
    }
}

#[test]
fn the_first_process_of_a_pid_namespace_takes_the_childs_place() {
    // With a link, and without one, where the session runs already.
    for links in [1, 0] {
        let (mut session, _) = Session::start(links, false);
        let first = session.namespace(FromNamespace::FirstProcess { pid: 7 }, 1);
        assert_eq!(first, ["HoldFirstProcess(7)"]);
        assert_eq!(session.machine.is_running(), links == 0);
    }
}

#[test]
fn a_message_of_the_namespace_child_that_is_not_its_turn_is_malformed() {
    use FromNamespace::{InterfacesMade, NamespaceMade};
    for phase in PHASES {
        for (message, turn) in [
            (NamespaceMade, NamespacePending),
            (InterfacesMade, InterfacesPending),
        ] {
            if phase != turn {
                let event = Event::Namespace(message, vec![fd(), fd()]);
                Session::at(phase, 1).ends(event, "malformed message");
            }
        }
    }
    for fds in [vec![], vec![fd()]] {
        let event = Event::Namespace(NamespaceMade, fds);
        Session::at(NamespacePending, 1).ends(event, "malformed message");
    }
    let event = Event::Namespace(FromNamespace::FirstProcess { pid: 7 }, Vec::new());
    Session::at(NamespacePending, 1).ends(event, "malformed message");
}

#[test]
fn a_worker_that_ends_before_the_command_runs_ends_the_session() {
    for phase in BEFORE_RUNNING {
        let exit = Exit::Signal(Signal::SIGSEGV);
        let is_deleted = false;
        let ended = WorkerEvent::Ended { exit, is_deleted };
        let why = "Finish(125: vde1 (x://): its process ended with signal SIGSEGV)";
        Session::at(phase, 2).ends(Event::Worker(1, ended), why);
        // What it has sent last says more than its end.
        let last = WorkerEvent::Message(FromWorker::Failed(Error::closed("that is why")));
        Session::at(phase, 2).ends(Event::Worker(1, last), "Finish(125: that is why)");
        // Closing a channel is no end yet.
        let mut session = Session::at(phase, 2);
        let closed = Event::Worker(1, WorkerEvent::Closed);
        assert_eq!(session.step(closed), ["1: Kill"]);
        session.message(0, FromWorker::Open { wants_panel: false });
        session.message(0, FromWorker::Settled);
        assert!(!session.machine.is_running());
        let ended = WorkerEvent::Ended { exit, is_deleted };
        session.ends(Event::Worker(1, ended), why);
    }
}

#[test]
fn a_worker_that_ends_while_the_command_runs_is_started_again_ever_later() {
    let mut session = Session::at(Running, 2);
    let killed = Exit::Signal(Signal::SIGKILL);
    for milliseconds in [100, 200, 400, 800, 1600, 3200, 5000, 5000] {
        let delay = Duration::from_millis(milliseconds);
        let warning = format!("1: AwaitRestart {{ exit: Signal(SIGKILL), delay: {delay:?} }}");
        assert_eq!(session.worker_ends(1, killed), [warning]);
        assert_eq!(session.service(1), Service::Restarting);
        let early = session.after(delay - Duration::from_millis(1));
        assert!(!early.contains(&"1: Start".into()), "{early:?}");
        // The other link's worker answers.
        session.message(0, FromWorker::Pong);
        assert!(session.is_due_after() <= Duration::from_millis(1));
        let actions = session.after(Duration::from_millis(1));
        assert!(actions.contains(&"1: Start".into()), "{actions:?}");
        assert_eq!(session.service(1), Service::Served);
        session.message(0, FromWorker::Pong);
    }
    // It gets the interface that there is.
    let open = FromWorker::Open { wants_panel: true };
    assert_eq!(session.message(1, open), ["1: GiveSide"]);
    let restarted = session.machine.link(1).service();
    assert_eq!(restarted, (Service::Served, 8, "signal SIGKILL".into()));
    // Once it has lived for a while, its end is taken for the first again.
    session.now += Duration::from_secs(10);
    let first = "1: AwaitRestart { exit: Status(125), delay: 100ms }";
    assert_eq!(session.worker_ends(1, Exit::Status(EXIT_FAILURE)), [first]);
}

#[test]
fn a_worker_that_fails_while_the_command_runs_costs_a_warning() {
    let mut session = Session::at(Running, 1);
    let failure = FromWorker::Failed(Error::closed("that is why"));
    assert_eq!(session.message(0, failure), ["0: Warn(that is why)"]);
    let closed = Event::Worker(0, WorkerEvent::Closed);
    assert_eq!(session.step(closed), ["0: Kill"]);
    let restart = "0: AwaitRestart { exit: Status(125), delay: 100ms }";
    assert_eq!(
        session.worker_ends(0, Exit::Status(EXIT_FAILURE)),
        [restart]
    );
    // Late events of a worker that has ended do nothing.
    assert!(session.message(0, FromWorker::Pong).is_empty());
}

#[test]
fn a_link_whose_interface_was_deleted_is_closed_for_good() {
    for (exit, is_deleted) in [
        (Exit::Status(EXIT_NO_INTERFACE), false),
        (Exit::Signal(Signal::SIGKILL), true),
    ] {
        let mut session = Session::at(Running, 1);
        let ended = Event::Worker(0, WorkerEvent::Ended { exit, is_deleted });
        assert_eq!(session.step(ended), ["0: Close"]);
        assert_eq!(session.service(0), Service::Closed);
        assert_eq!(session.machine.deadline(), None);
        assert!(session.after(Duration::from_secs(100)).is_empty());
        session.ends(Event::CommandEnded(Exit::Status(0)), "Finish(Ok(0))");
    }
}

#[test]
fn a_worker_that_does_not_answer_is_killed() {
    let ping = ["0: CheckInterface", "0: Send(Ping)"];
    let mut session = Session::at(Running, 1);
    assert_eq!(session.is_due_after(), BEAT);
    for answer in 0..3 {
        assert_eq!(session.after(BEAT), ping, "{answer}");
        session.message(0, FromWorker::Pong);
    }
    // For three seconds it does not matter.
    assert_eq!(session.after(BEAT), ping);
    for _ in 0..3 {
        assert_eq!(session.after(BEAT), ["0: CheckInterface"]);
    }
    session.message(0, FromWorker::Pong);
    assert_eq!(session.after(BEAT), ping);
    for _ in 0..5 {
        assert_eq!(session.after(BEAT), ["0: CheckInterface"]);
        // A malformed message is no answer.
        session.step(Event::Worker(0, WorkerEvent::Malformed));
    }
    let kill = ["0: CheckInterface", "0: KillHanging"];
    assert_eq!(session.after(BEAT), kill);
    assert_eq!(session.service(0), Service::Served);
    assert_eq!(session.after(BEAT), ["0: CheckInterface"]);
    // While the supervisor itself was stopped, no worker is late.
    let mut session = Session::at(Running, 1);
    assert_eq!(session.after(Duration::from_secs(100)), ping);
    assert_eq!(
        session.after(Duration::from_secs(100)),
        ["0: CheckInterface"]
    );
    // One that opens its link has more time.
    session.worker_ends(0, Exit::Signal(Signal::SIGKILL));
    assert_eq!(session.after(FIRST_RESTART), ["0: Start"]);
    session.after(BEAT);
    for _ in 0..10 {
        assert_eq!(session.after(BEAT), ["0: CheckInterface"]);
    }
    assert_eq!(session.after(BEAT), kill);
}

/// After this time a worker that has ended once is started again.
const FIRST_RESTART: Duration = Duration::from_millis(100);

#[test]
fn a_status_query_is_answered_in_each_phase() {
    let file = || FromWorker::Report(ReportReply::File);
    let none = || FromWorker::Report(ReportReply::None("why".into()));
    let asked = ["0: Send(SendReport)", "1: Send(SendReport)"];
    let answered = ["AnswerStatus"];
    for phase in PHASES {
        // When all have reported.
        let mut session = Session::at(phase, 2);
        assert_eq!(session.step(Event::StatusQuery), asked);
        assert!(session.message(0, file()).is_empty());
        // A second one gets what both report then.
        assert_eq!(session.step(Event::StatusQuery), ["0: Send(SendReport)"]);
        assert!(session.message(1, none()).is_empty());
        assert_eq!(session.message(0, file()), answered);
        // When the time is up. What comes later is used for the next.
        assert_eq!(session.step(Event::StatusQuery), asked);
        session.message(1, file());
        assert_eq!(session.is_due_after(), REPORT_LIMIT);
        assert_eq!(session.after(REPORT_LIMIT), answered);
        assert_eq!(session.service(0), Service::Silent);
        assert_eq!(session.service(1), Service::Served);
        assert_eq!(session.step(Event::StatusQuery), ["1: Send(SendReport)"]);
        session.message(1, file());
        assert_eq!(session.message(0, file()), answered);
        // A malformed message may have been the report.
        assert_eq!(session.step(Event::StatusQuery), asked);
        session.message(0, file());
        let malformed = Event::Worker(1, WorkerEvent::Malformed);
        assert_eq!(session.step(malformed), answered);
        // A worker that is about to end reports no more.
        session.step(Event::StatusQuery);
        session.message(0, file());
        let closed = Event::Worker(1, WorkerEvent::Closed);
        assert_eq!(session.step(closed), ["1: Kill", "AnswerStatus"]);
        assert_eq!(session.service(1), Service::Silent);
    }
    let mut session = Session::at(Running, 1);
    session.step(Event::StatusQuery);
    let lost = session.worker_ends(0, Exit::Status(1));
    assert_eq!(lost.last().map(String::as_str), Some("AnswerStatus"));
}

#[test]
fn a_signal_ends_the_session_or_goes_to_the_command() {
    use Signal::{SIGHUP, SIGINT, SIGPWR, SIGQUIT, SIGTERM};
    for signal in [SIGTERM, SIGHUP, SIGPWR, SIGINT, SIGQUIT] {
        for phase in BEFORE_RUNNING {
            let finish = format!("Finish(Err(Signal({signal:?})))");
            Session::at(phase, 1).ends(Event::Signal(signal), &finish);
        }
        let actions = Session::at(Running, 1).step(Event::Signal(signal));
        match signal {
            SIGTERM | SIGHUP | SIGPWR => assert_eq!(actions, [format!("PassOn({signal:?})")]),
            // The terminal sends these to the command itself.
            _ => assert!(actions.is_empty(), "{actions:?}"),
        }
    }
}

#[test]
fn each_phase_before_the_command_has_a_limit_of_time() {
    for (phase, limit, complaint) in [
        (
            NamespacePending,
            NAMESPACE_LIMIT,
            "the namespace was not made within 30s",
        ),
        (
            Opening,
            OPENING_LIMIT,
            "vde0 (x://): the plugin has not opened the link within 10s",
        ),
        (
            InterfacesPending,
            NAMESPACE_LIMIT,
            "the interfaces were not made within 30s",
        ),
        (
            Settling,
            OPENING_LIMIT,
            "vde0 (x://): the link does not settle within 10s",
        ),
    ] {
        let mut session = Session::at(phase, 2);
        assert_eq!(session.is_due_after(), limit, "{phase:?}");
        let early = session.after(limit - Duration::from_millis(1));
        assert!(early.is_empty(), "{early:?}");
        session.now += Duration::from_millis(1);
        session.ends(Event::Time, complaint);
    }
    // The link that is late is named.
    let mut session = Session::at(Opening, 2);
    session.message(0, FromWorker::Open { wants_panel: false });
    session.now += OPENING_LIMIT;
    session.ends(Event::Time, "vde1 (x://): the plugin");
    // `--wait` takes its time, however long.
    for wait in [Duration::from_secs(60), Duration::MAX] {
        let (mut session, _) = Session::start(1, true);
        session.machine.opening_limit = OPENING_LIMIT.saturating_add(wait);
        session.namespace(FromNamespace::NamespaceMade, 2);
        assert!(session.after(Duration::from_secs(69)).is_empty());
    }
}

#[test]
fn a_session_starts_over_without_the_panel_if_there_is_no_room_for_both() {
    let mut session = Session::at(NamespacePending, 1);
    session.message(0, FromWorker::Open { wants_panel: true });
    assert_eq!(session.step(crowded()), ["EndChildren"]);
    assert!(session.ignores_the_rest());
    assert_eq!(
        session.step(Event::ChildrenEnded),
        ["LeavePanel(no room)", "StartNamespace", "0: Start"]
    );
    assert_eq!(session.is_due_after(), NAMESPACE_LIMIT);
    assert_eq!(session.service(0), Service::Served);
    session.namespace(FromNamespace::NamespaceMade, 2);
    // It is another worker, which opens the link again.
    let open = FromWorker::Open { wants_panel: false };
    assert_eq!(session.message(0, open), ["MakePorts([])"]);

    // There is no third time, nor a second one without a panel to leave.
    let mut session = Session::at(NamespacePending, 1);
    session.step(crowded());
    session.step(Event::ChildrenEnded);
    session.ends(crowded(), "Finish(125: no room)");
    let (session, _) = Session::start(1, false);
    session.ends(crowded(), "Finish(125: no room)");
    Session::at(InterfacesPending, 1).ends(crowded(), "Finish(125: no room)");
    // Other failures have nothing to do with the panel.
    let other = Event::Namespace(failed(EXIT_FAILURE), Vec::new());
    Session::at(NamespacePending, 1).ends(other, "Finish(125: that is why)");
}

#[test]
fn a_link_that_the_panel_refuses_gets_a_tap() {
    let open = |session: &mut Session| {
        for index in [0, 1, 2] {
            let wants_panel = index != 2;
            session.message(index, FromWorker::Open { wants_panel });
        }
    };
    let error = Error::closed("refused");
    let mut session = Session::at(Opening, 3);
    open(&mut session);
    let refused = vec![(1, error.clone())];
    assert_eq!(
        session.step(Event::PortsMade { refused }),
        ["ToNamespace(MakeInterfaces([false, true, true]))"]
    );
    // Without descriptors there is no tap either.
    let mut session = Session::at(Opening, 3);
    open(&mut session);
    let lack = Error {
        errno: libc::EMFILE,
        ..error.clone()
    };
    let refused = vec![(0, error), (1, lack)];
    session.ends(Event::PortsMade { refused }, "Finish(125: refused)");
}

#[test]
fn what_there_is_no_session_without_ends_it_in_each_phase() {
    for phase in PHASES {
        let failure = Event::Failed(Error::closed("that is why"));
        Session::at(phase, 1).ends(failure, "Finish(125: that is why)");
    }
}
