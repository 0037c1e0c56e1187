//! The filter of a capture: a program of the kernel's classic BPF (linux/filter.h).
//!
//! tcpdump translates expressions (`tcpdump -ddd EXPRESSION`), so this program needs no compiler of
//! its own and no library. What tcpdump prints can also be given in a file. Its form is a count and
//! then an instruction a line, each of four decimal numbers.
//!
//! The kernel checks a program when it is attached. What it would only call invalid is checked here
//! first: the count, the numbers, and that no jump leaves the program.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::error::{Error, ErrorKind, Result};

/// The most instructions (`BPF_MAXINSNS` of linux/bpf_common.h).
const LONGEST: usize = 4096;

/// The longest file, in bytes: an instruction has 28 at the most.
const LONGEST_TEXT: u64 = 32 * LONGEST as u64;

/// Classes of instructions and their variants (linux/bpf_common.h).
const CLASS: u16 = 0x07;
const JUMP: u16 = 0x05;
const JUMP_ALWAYS: u16 = 0x05;
const RETURN: u16 = 0x06;

/// An instruction (`struct sock_filter` of linux/filter.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub operand: u32,
}

/// A filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    /// What the user wrote.
    pub text: String,
    pub program: Vec<Instruction>,
}

impl Filter {
    /// The filter that a user asks for: an expression of pcap-filter(7), or `@FILE` with what
    /// `tcpdump -ddd` prints. A packet's first `snaplen` bytes are kept.
    ///
    /// # Errors
    /// tcpdump is not there or does not understand the expression, or the file has no program.
    pub(crate) fn new(text: &str, snaplen: u32) -> Result<Self> {
        let program = match text.strip_prefix('@') {
            Some(path) => read(Path::new(path))?,
            None => compile(text)?,
        };
        Ok(Self {
            text: text.to_owned(),
            program: shortened(program, snaplen),
        })
    }

    /// The filter that lets each packet pass.
    pub(crate) fn all(snaplen: u32) -> Self {
        Self {
            text: String::new(),
            program: vec![Instruction {
                code: RETURN,
                jump_true: 0,
                jump_false: 0,
                operand: snaplen,
            }],
        }
    }
}

/// Lets a program that returns a constant keep `snaplen` bytes at most.
fn shortened(mut program: Vec<Instruction>, snaplen: u32) -> Vec<Instruction> {
    let returns = program
        .iter_mut()
        .filter(|instruction| instruction.code == RETURN);
    returns.for_each(|instruction| instruction.operand = instruction.operand.min(snaplen));
    program
}

fn read(path: &Path) -> Result<Vec<Instruction>> {
    let cannot = |error: io::Error| Error::path("read the filter", path, &error);
    let mut text = String::new();
    let file = File::open(path).map_err(cannot)?;
    file.take(LONGEST_TEXT)
        .read_to_string(&mut text)
        .map_err(cannot)?;
    parse(&text).map_err(|why| {
        let message = format!("{} is no filter: {why}", path.display());
        Error::usage(message).hint("write it with tcpdump -y EN10MB -ddd EXPRESSION")
    })
}

/// Has tcpdump translate an expression.
fn compile(expression: &str) -> Result<Vec<Instruction>> {
    let mut command = Command::new("tcpdump");
    command.args(["-y", "EN10MB", "-ddd", "--", expression]);
    let output = command.stdin(Stdio::null()).output().map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => {
                "install tcpdump, or give --filter @FILE with what \
                                        tcpdump -y EN10MB -ddd EXPRESSION prints elsewhere"
            }
            _ => "",
        };
        Error::io("translate the filter with tcpdump", &error).hint(hint)
    })?;
    if !output.status.success() {
        // The last line says what is wrong; those before it may be warnings.
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().rfind(|line| !line.trim().is_empty());
        let why = why
            .unwrap_or("no reason was given")
            .trim_start_matches("tcpdump: ");
        let shown = expression.escape_debug();
        let message = format!("tcpdump does not understand the filter '{shown}': {why}");
        return Err(Error::usage(message).hint("see man 7 pcap-filter"));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    parse(&text).map_err(|why| {
        Error::new(
            ErrorKind::Protocol,
            format!("tcpdump's translation of the filter: {why}"),
        )
    })
}

/// Reads a program; the error says what is wrong with it.
pub(crate) fn parse(text: &str) -> std::result::Result<Vec<Instruction>, String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let count = lines.next().and_then(|line| line.parse::<usize>().ok());
    let count = count.ok_or("it does not start with the number of instructions")?;
    let program: Vec<_> = lines
        .map(instruction)
        .collect::<std::result::Result<_, _>>()?;
    if program.len() != count || !(1..=LONGEST).contains(&count) {
        let found = program.len();
        return Err(format!(
            "it has {found} instructions, not {count} of at most {LONGEST}"
        ));
    }
    for (at, instruction) in program.iter().enumerate() {
        let left = (count - at - 1) as u64;
        let furthest = match instruction.code {
            code if code & CLASS == RETURN => continue,
            JUMP_ALWAYS => u64::from(instruction.operand),
            code if code & CLASS == JUMP => {
                u64::from(instruction.jump_true.max(instruction.jump_false))
            }
            _ => 0,
        };
        if furthest >= left {
            return Err(format!("instruction {at} leads out of the program"));
        }
    }
    Ok(program)
}

fn instruction(line: &str) -> std::result::Result<Instruction, String> {
    let bad = || format!("'{}' is no instruction", line.escape_debug());
    let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
    let mut next = || {
        numbers
            .next()
            .and_then(std::result::Result::ok)
            .ok_or_else(bad)
    };
    let (code, jump_true, jump_false, operand) = (next()?, next()?, next()?, next()?);
    match (
        code.try_into(),
        jump_true.try_into(),
        jump_false.try_into(),
        numbers.next(),
    ) {
        (Ok(code), Ok(jump_true), Ok(jump_false), None) => Ok(Instruction {
            code,
            jump_true,
            jump_false,
            operand,
        }),
        _ => Err(bad()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tcpdump -y EN10MB -ddd icmp`.
    const ICMP: &str = "6\n40 0 0 12\n21 0 3 2048\n48 0 0 23\n21 0 1 1\n6 0 0 262144\n6 0 0 0\n";

    #[test]
    fn programs_are_read_and_keep_the_bytes_asked_for() {
        let program = parse(ICMP).unwrap();
        let jump = Instruction {
            code: 21,
            jump_true: 0,
            jump_false: 3,
            operand: 2048,
        };
        assert_eq!((program.len(), program[1]), (6, jump));
        let returned: Vec<_> = shortened(program, 96)[4..]
            .iter()
            .map(|i| i.operand)
            .collect();
        assert_eq!(returned, [96, 0]);
        assert!(parse(&format!("1\n{}", "6 0 0 4294967295")).is_ok());
    }

    #[test]
    fn what_is_no_program_is_refused() {
        for (text, words) in [
            ("", "number of instructions"),
            ("x", "number of instructions"),
            ("0", "0 instructions"),
            ("2\n6 0 0 0", "1 instructions, not 2"),
            ("1\n6 0 0", "'6 0 0' is no instruction"),
            ("1\n6 0 0 0 0", "no instruction"),
            ("1\n6 0 256 0", "no instruction"),
            ("1\n70000 0 0 0", "no instruction"),
            ("1\n6 0 0 4294967296", "no instruction"),
            ("2\n21 0 1 1\n6 0 0 0", "instruction 0 leads out"),
            ("2\n5 0 0 4294967295\n6 0 0 0", "instruction 0 leads out"),
            ("2\n6 0 0 0\n40 0 0 12", "instruction 1 leads out"),
            ("5000\n", "at most 4096"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
