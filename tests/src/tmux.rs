//! A terminal with a shell, as a user has it.

use std::cell::Cell;

use crate::{Lab, PATIENCE, becomes_true};

/// A terminal with a shell in it, driven through tmux.
#[derive(Debug)]
pub struct Tmux<'lab> {
    lab: &'lab Lab,
    socket: String,
    asked: Cell<u32>,
}

impl<'lab> Tmux<'lab> {
    pub(crate) fn new(lab: &'lab Lab) -> Self {
        let socket = format!("{}/tmux", lab.home().display());
        let tmux = Self {
            lab,
            socket,
            asked: Cell::default(),
        };
        // Without a prompt: it would stand in the answer to a command that was typed ahead of it.
        tmux.tell(&[
            "new-session",
            "-d",
            "-x",
            "150",
            "-y",
            "50",
            "env",
            "PS1=",
            "/bin/sh",
        ]);
        tmux
    }

    /// Types letters.
    #[track_caller]
    pub fn type_text(&self, text: &str) {
        self.tell(&["send-keys", "-l", "--", text]);
    }

    /// Types a line and the return key.
    #[track_caller]
    pub fn type_line(&self, line: &str) {
        self.type_text(line);
        self.tell(&["send-keys", "Enter"]);
    }

    /// Presses a key, by tmux's name for it.
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tell(&["send-keys", key]);
    }

    /// What the terminal shows, with what has scrolled away.
    #[track_caller]
    pub fn screen(&self) -> String {
        self.tell(&["capture-pane", "-p", "-J", "-S", "-"])
    }

    /// Types a command and waits for its end; what it wrote, and its status.
    #[track_caller]
    pub fn ask(&self, command: &str) -> (String, i32) {
        let number = self.asked.get() + 1;
        self.asked.set(number);
        // Quoted, so that the terminal's echo of the command does not match the answer.
        let (typed, answer) = (format!("st''atus{number}="), format!("status{number}="));
        self.type_line(&format!("{command}; echo {typed}$?="));
        self.wait_for(&answer);
        let screen = self.screen();
        let (text, rest) = screen.split_once(&answer).expect("it is there");
        let text = text.rsplit_once(&typed).expect("it was typed").1;
        let text = text.split_once('\n').expect("the answer has its line").1;
        let status = rest.split('=').next().and_then(|code| code.parse().ok());
        (text.to_owned(), status.expect("a number"))
    }

    /// Waits until the terminal shows `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) {
        let shown = becomes_true(PATIENCE, || self.screen().contains(text));
        assert!(shown, "{text:?} does not appear:\n{}", self.screen());
    }

    #[track_caller]
    fn tell(&self, words: &[&str]) -> String {
        self.lab
            .command("tmux", ["-f", "/dev/null", "-S", &self.socket])
            .args(words)
            .ok()
    }
}

impl Drop for Tmux<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the terminal\n{}---", self.screen());
        }
        self.tell(&["kill-server"]);
    }
}
