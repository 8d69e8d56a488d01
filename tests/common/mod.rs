//! What the tests of the command line share: they run the binary of this build from the root of the
//! repository and read what it prints.

#![allow(dead_code, reason = "every test file takes what it needs")]

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The root of the repository.
pub fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The binary with these arguments, in the root, with no say of the environment on colour.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackflow"));
    command
        .args(args)
        .current_dir(root())
        .env_remove("NO_COLOR")
        .env_remove("CLICOLOR_FORCE");
    command
}

pub fn rackflow(args: &[&str]) -> Output {
    command(args).output().expect("the binary starts")
}

/// Exit status, standard output and standard error.
pub fn outcome(args: &[&str]) -> (i32, String, String) {
    let output = rackflow(args);
    let text = |bytes| String::from_utf8(bytes).expect("output is text");
    (
        output.status.code().expect("it exits"),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Standard output of a command that must succeed.
pub fn fine(args: &[&str]) -> String {
    let (status, out, err) = outcome(args);
    assert_eq!(status, 0, "rackflow {args:?}: {err}");
    out
}

/// The JSON document that a command prints, which must succeed and say nothing else.
pub fn json(args: &[&str]) -> Value {
    let (status, out, err) = outcome(args);
    assert_eq!((status, err.as_str()), (0, ""), "rackflow {args:?}");
    serde_json::from_str(&out).expect("one JSON document")
}

/// Standard error of a command that must end with this status and print no result.
pub fn failed(args: &[&str], status: i32) -> String {
    let (found, out, err) = outcome(args);
    assert_eq!(found, status, "rackflow {args:?}: {err}");
    assert!(out.is_empty(), "a refusal prints no result");
    err
}

/// Standard error of a command whose input must be refused.
pub fn refused(args: &[&str]) -> String {
    failed(args, 2)
}

/// A folder of one test, empty at its start.
pub fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join(env!("CARGO_CRATE_NAME"))
        .join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a scratch folder");
    folder
}

/// A scratch path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("a scratch path is text")
}

/// A file with this content in a folder.
pub fn written(folder: &Path, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).expect("a file");
    path
}
