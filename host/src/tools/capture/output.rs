//! Where a capture goes: a file, a ring of files, or standard output.
//!
//! # Theory of operation
//!
//! Blocks are appended to a buffer ([`Output::append`]) that is written when it is large enough,
//! and when the capture has nothing else to do ([`Output::flush`]). A pipe takes as much as it has
//! room for. Until it takes the rest, the capture reads no further packets
//! ([`Output::is_blocked`]), and the kernel drops what does not fit into its rings.
//!
//! When a file cannot be written, because the disk is full say, it is cut behind its last whole
//! block: so it stays readable.
//!
//! A ring of files numbers them, `NAME_00001.pcapng`. Each begins with the same header. When there
//! are more than asked for, the oldest is removed.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::pcapng::whole_blocks;
use crate::error::{Error, Result};

/// From this size on, in bytes, the buffer is written.
const FULL: usize = 256 << 10;

/// Where a capture goes, as the user says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// A pipe or a file that is there already.
    Stdout,
    File(PathBuf),
    /// Files that are `size` bytes long or a little longer, of which the newest `keep` stay.
    Ring {
        path: PathBuf,
        size: u64,
        keep: Option<NonZeroUsize>,
    },
}

/// What became of what was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// It goes on.
    Open,
    /// Nobody reads any more.
    Closed,
}

/// The open end of a capture.
#[derive(Debug)]
pub(crate) struct Output {
    sink: Sink,
    file: File,
    /// Whether what was written can be cut.
    is_regular: bool,
    /// What each file begins with.
    header: Vec<u8>,
    buffer: Vec<u8>,
    /// Bytes in the file.
    written: u64,
    /// The files of a ring, oldest first, and the number of the newest.
    files: VecDeque<PathBuf>,
    number: u32,
}

impl Output {
    /// Opens it.
    ///
    /// # Errors
    /// The file cannot be made, or standard output is a terminal.
    pub(crate) fn open(sink: Sink) -> Result<Self> {
        let (path, number) = match &sink {
            Sink::Stdout => (PathBuf::from("/proc/self/fd/1"), 0),
            Sink::File(path) => (path.clone(), 0),
            Sink::Ring { path, .. } => (numbered(path, 1), 1),
        };
        let file = match &sink {
            Sink::Stdout if io::stdout().is_terminal() => {
                let message = "a capture is not for a terminal";
                return Err(Error::usage(message)
                    .hint("write it to a file with -w FILE, or pipe it: … -w - | tshark -i -"));
            }
            Sink::Stdout => stdout()?,
            _ => create(&path)?,
        };
        let is_regular = file.metadata().is_ok_and(|meta| meta.is_file());
        Ok(Self {
            sink,
            file,
            is_regular,
            header: Vec::new(),
            buffer: Vec::new(),
            written: 0,
            files: VecDeque::from([path]),
            number,
        })
    }

    /// Begins with the blocks that each file begins with.
    pub(crate) fn begin(&mut self, header: Vec<u8>) {
        self.buffer.extend(&header);
        self.header = header;
    }

    /// Appends whole blocks.
    ///
    /// # Errors
    /// As for [`Output::flush`].
    pub(crate) fn append(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> Result<Written> {
        if let Sink::Ring { size, .. } = self.sink
            && self.written + self.buffer.len() as u64 >= size
        {
            self.next_file()?;
        }
        write(&mut self.buffer);
        match self.buffer.len() >= FULL {
            true => self.flush(),
            false => Ok(Written::Open),
        }
    }

    /// Whether a pipe has no room for what was appended.
    pub(crate) fn is_blocked(&self) -> bool {
        self.buffer.len() >= FULL
    }

    /// Whether all is written.
    pub(crate) fn is_flushed(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Writes what was appended, or as much of it as there is room for.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn flush(&mut self) -> Result<Written> {
        let mut done = 0;
        let result = loop {
            if done == self.buffer.len() {
                break Ok(Written::Open);
            }
            match self.file.write(&self.buffer[done..]) {
                Ok(count) => done += count,
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted => {}
                    io::ErrorKind::WouldBlock => break Ok(Written::Open),
                    io::ErrorKind::BrokenPipe => break Ok(Written::Closed),
                    _ => break Err(error),
                },
            }
        };
        self.written += done as u64;
        if let Err(error) = result {
            let cut = (done - whole_blocks(&self.buffer[..done])) as u64;
            if self.is_regular {
                // What cannot be cut stays as it is.
                let _ = self.file.set_len(self.written - cut);
            }
            self.buffer.clear();
            let shown = self.files.back().map(|path| path.display().to_string());
            let shown = shown.filter(|_| self.sink != Sink::Stdout);
            let to = shown.unwrap_or_else(|| "standard output".to_owned());
            return Err(Error::io(format_args!("write the capture to {to}"), &error)
                .hint("what was written until now is readable"));
        }
        self.buffer.drain(..done);
        result.map_err(|error| Error::io("write the capture", &error))
    }

    /// Goes on in the next file of a ring.
    fn next_file(&mut self) -> Result<()> {
        let Sink::Ring { path, keep, .. } = self.sink.clone() else {
            return Ok(());
        };
        self.flush()?;
        self.number += 1;
        let next = numbered(&path, self.number);
        self.file = create(&next)?;
        self.written = 0;
        self.files.push_back(next);
        while keep.is_some_and(|keep| self.files.len() > keep.get()) {
            if let Some(oldest) = self.files.pop_front() {
                // The user may have removed it.
                let _ = fs::remove_file(oldest);
            }
        }
        self.buffer.extend(&self.header);
        Ok(())
    }
}

impl AsFd for Output {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// The name of a file of a ring: `NAME_00007.pcapng`.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let extension = path
        .extension()
        .map_or("pcapng".into(), |text| text.to_string_lossy());
    path.with_file_name(format!("{stem}_{number:05}.{extension}"))
}

fn create(path: &Path) -> Result<File> {
    let cannot = |error: io::Error| Error::path("write the capture to", path, &error);
    // A pipe with a name is waited for until somebody reads it, and must not block after that.
    let file = File::create(path).map_err(cannot)?;
    let is_pipe = file.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
    match is_pipe {
        true => non_blocking(path),
        false => Ok(file),
    }
}

/// Standard output, so that a pipe does not block. Others may have the same pipe open, so it is
/// opened anew for that.
fn stdout() -> Result<File> {
    let own = io::stdout().as_fd().try_clone_to_owned().map(File::from);
    let own = own.map_err(|error| Error::io("use standard output", &error))?;
    let is_pipe = own.metadata().is_ok_and(|meta| meta.file_type().is_fifo());
    match is_pipe {
        true => non_blocking(Path::new("/proc/self/fd/1")),
        false => Ok(own),
    }
}

fn non_blocking(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(libc::O_NONBLOCK);
    let opened = options.open(path);
    opened.map_err(|error| Error::path("write the capture to", path, &error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::capture::pcapng;

    fn section(out: &mut Vec<u8>) {
        pcapng::section_header(out, "program", "os");
    }

    #[test]
    fn a_ring_keeps_the_newest_files_and_each_has_its_header() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("c.pcapng");
        let sink = Sink::Ring {
            path,
            size: 200,
            keep: NonZeroUsize::new(2),
        };
        let mut output = Output::open(sink).unwrap();
        let mut header = Vec::new();
        section(&mut header);
        output.begin(header.clone());
        for _ in 0..12 {
            assert_eq!(output.append(section).unwrap(), Written::Open);
        }
        output.flush().unwrap();
        let mut names: Vec<_> = fs::read_dir(directory.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["c_00003.pcapng", "c_00004.pcapng"]);
        for name in names {
            let bytes = fs::read(directory.path().join(name)).unwrap();
            assert!(bytes.starts_with(&header) && bytes.len() < 200 + 2 * header.len());
            assert_eq!(whole_blocks(&bytes), bytes.len());
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let mut output = Output::open(Sink::File("/dev/full".into())).unwrap();
        output.begin(vec![0; 4]);
        let error = output.flush().unwrap_err().to_string();
        assert!(
            error.contains("write the capture to /dev/full: "),
            "{error}"
        );
    }

    #[test]
    fn files_of_a_ring_are_numbered_before_their_extension() {
        for (path, name) in [
            ("/tmp/a", "/tmp/a_00007.pcapng"),
            ("b.c.pcap", "b.c_00007.pcap"),
        ] {
            assert_eq!(numbered(Path::new(path), 7), Path::new(name));
        }
    }
}
