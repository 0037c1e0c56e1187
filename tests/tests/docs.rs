//! What the documentation tells people to type works: every fenced block marked `sh` in README.md and docs/ is run as
//! it stands, by the user, in an empty directory. Blocks with prompts are marked otherwise and are not run.

use std::fs;
use std::path::{Path, PathBuf};

use vdens_tests::{Lab, need};

/// The top of the repository.
fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The Markdown files in a directory and below.
fn markdown(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let (directories, files): (Vec<_>, Vec<_>) = entries
        .map(|entry| entry.path())
        .partition(|path| path.is_dir());
    let is_markdown = |path: &PathBuf| path.extension().is_some_and(|end| end == "md");
    let own = files.into_iter().filter(is_markdown);
    own.chain(directories.iter().flat_map(|directory| markdown(directory)))
        .collect()
}

/// The blocks of a file to be run, each with the number of its first line.
fn blocks(text: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line == "```sh" {
            let block = lines
                .by_ref()
                .map(|(_, line)| line)
                .take_while(|line| *line != "```");
            blocks.push((number + 2, block.map(|line| format!("{line}\n")).collect()));
        }
    }
    blocks
}

#[track_caller]
fn run_all(files: &[PathBuf], at_least: usize) {
    let mut count = 0;
    for file in files {
        let text =
            fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for (line, block) in blocks(&text) {
            let lab = Lab::new();
            // What a block leaves in the background ends with the terminal it was typed at.
            let script = format!("trap 'set +e; kill $(jobs -p) 2>/dev/null; wait' EXIT\n{block}");
            let output = lab.command("bash", ["-euc", &script]).run();
            let place = format!("{}:{line}", file.display());
            assert!(output.status.success(), "{place}:\n{block}\n{output:#?}");
            count += 1;
        }
    }
    assert!(count >= at_least, "only {count} blocks were found");
}

#[test]
fn the_commands_of_the_readme() {
    need!("iptables");
    run_all(&[repository().join("README.md")], 5);
}

#[test]
fn the_commands_of_the_other_pages() {
    run_all(&markdown(&repository().join("docs")), 5);
}

#[test]
fn the_demonstration() {
    let lab = Lab::new();
    let script = fs::read(repository().join("docs/demo")).unwrap();
    let demo = lab.write("demo", script);
    let demo = lab.command("bash", [&demo]).env("VDENS_BIN", lab.bin());
    let text = demo.ok();
    assert!(text.contains(" 0% packet loss"), "{text}");
}
