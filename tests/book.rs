//! The book under `docs/`: its commands run, its excerpts are what they print, its exercises are
//! solved by their solutions, and its contents name each page.
//!
//! A command is a line of a `sh` block that starts with `rackflow`; what is too slow for a test is
//! written in a `console` block. A `text` block after it holds lines of what it printed, without the
//! bars. `<!-- check: training.bubble_fraction < 0.05 -->` must hold for the JSON report of the last
//! command before it; a path goes through lists by `[0]` or `[cause=shape]`. After
//! `<!-- picture: waterfall.svg as 01-roofline.svg -->` the second file, beside the page, must be the first
//! of what that command writes; `UPDATE=1 cargo test -p rackflow --test book` draws it anew.

use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// All files under a folder, as paths relative to `docs`, with `/` between their parts.
fn files_under(folder: &Path, prefix: &str, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type().expect("a type").is_dir() {
            files_under(&entry.path(), &format!("{name}/"), found);
        } else {
            found.insert(name);
        }
    }
}

fn documentation() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    files_under(&root().join("docs"), "", &mut found);
    found
}

/// What a page asks of a test, in its order.
#[derive(Debug, PartialEq)]
enum Step {
    Run(String),
    Prints(String),
    Check(String),
    /// A file that the command writes, and its name beside the page.
    Picture(String, String),
}

fn steps(page: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut fence: Option<&str> = None;
    for line in page.lines() {
        let line = line.trim();
        if let Some(language) = line.strip_prefix("```") {
            fence = match fence {
                None => Some(language),
                Some(_) => None,
            };
        } else if fence == Some("sh") && line.starts_with("rackflow ") {
            steps.push(Step::Run(line.to_owned()));
        } else if fence == Some("text")
            && matches!(steps.last(), Some(Step::Run(_) | Step::Prints(_)))
        {
            steps.push(Step::Prints(line.to_owned()));
        } else if fence.is_none()
            && let Some(note) = line.strip_prefix("<!-- ")
        {
            let note = note.strip_suffix("-->").expect("a note ends on its line");
            if let Some(check) = note.strip_prefix("check:") {
                steps.push(Step::Check(check.trim().to_owned()));
            } else if let Some(picture) = note.strip_prefix("picture:") {
                let (written, shown) = picture.split_once(" as ").expect("a picture as a file");
                steps.push(Step::Picture(
                    written.trim().to_owned(),
                    shown.trim().to_owned(),
                ));
            }
        }
    }
    steps
}

/// A folder with the scenarios and the pages in it, in which commands may also write.
fn scratch(test: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(test);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("a scratch folder");
    for name in ["docs", "scenarios"] {
        let target = root().join(name);
        std::os::unix::fs::symlink(target, folder.join(name)).expect("a link");
    }
    folder
}

/// Runs a command line by the shell, with this build's binary in front of the path.
fn output(line: &str, folder: &Path) -> String {
    let binary = Path::new(env!("CARGO_BIN_EXE_rackflow"));
    let mut path = binary.parent().expect("a folder").as_os_str().to_owned();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", line])
        .current_dir(folder)
        .env("PATH", path)
        .output()
        .expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{line}\n{errors}");
    String::from_utf8(output.stdout).expect("output is text")
}

/// A line of a report without bars and repeated blanks, which depend on the width of the terminal.
fn plain(line: &str) -> String {
    let words = line.split_whitespace();
    words
        .filter(|word| !word.chars().all(|c| "█▌▐▏▎▍▋▊▉·─".contains(c)))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The value at `a.b[0].c[key=text].d`.
fn value_at<'a>(report: &'a Value, path: &str) -> Option<&'a Value> {
    path.split(['.', '['])
        .try_fold(report, |value, part| match part.strip_suffix(']') {
            None => value.get(part),
            Some(selector) => match selector.split_once('=') {
                None => value.get(selector.parse::<usize>().ok()?),
                Some((key, text)) => value
                    .as_array()?
                    .iter()
                    .find(|item| item[key].as_str() == Some(text)),
            },
        })
}

/// Whether `path < number` or `path > number` holds.
fn holds(report: &Value, check: &str) -> Result<(), String> {
    let words: Vec<&str> = check.split_whitespace().collect();
    let [path, relation, bound] = words[..] else {
        return Err(format!("`{check}` is not `path < number`"));
    };
    let bound: f64 = bound
        .parse()
        .map_err(|_| format!("`{bound}` is no number"))?;
    let value = value_at(report, path)
        .and_then(Value::as_f64)
        .ok_or_else(|| format!("the report has no number at `{path}`"))?;
    let true_of_it = match relation {
        "<" => value < bound,
        ">" => value > bound,
        _ => return Err(format!("`{relation}` is neither < nor >")),
    };
    if true_of_it {
        Ok(())
    } else {
        Err(format!("`{check}` does not hold: it is {value}"))
    }
}

/// What fails on a page.
fn failures(page: &str, text: &str, folder: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    let mut command = String::new();
    let mut printed: BTreeSet<String> = BTreeSet::new();
    let mut excerpt_follows = false;
    for step in steps(text) {
        match step {
            Step::Run(line) => {
                if excerpt_follows {
                    printed.clear();
                }
                excerpt_follows = false;
                printed.extend(output(&line, folder).lines().map(plain));
                command = line;
            }
            Step::Prints(line) => {
                excerpt_follows = true;
                if !printed.contains(&plain(&line)) {
                    failures.push(format!("{page}: `{command}` does not print `{line}`"));
                }
            }
            Step::Picture(written, shown) => {
                output(&format!("{command} -o drawn"), folder);
                let drawn =
                    fs::read_to_string(folder.join("drawn").join(written)).expect("a picture");
                let kept = root().join("docs").join(page).with_file_name(&shown);
                if std::env::var_os("UPDATE").is_some() {
                    fs::write(&kept, &drawn).expect("the picture is written");
                }
                if fs::read_to_string(&kept).unwrap_or_default() != drawn {
                    failures.push(format!(
                        "{page}: {shown} is not what `{command}` draws; see the top of this test"
                    ));
                }
                if !text.contains(&format!("]({shown})")) {
                    failures.push(format!("{page} does not show {shown}"));
                }
            }
            Step::Check(check) => {
                let report = output(&format!("{} --format json", command), folder);
                let report = serde_json::from_str(&report).expect("the report is JSON");
                if let Err(why) = holds(&report, &check) {
                    failures.push(format!("{page}: {why}"));
                }
            }
        }
    }
    failures
}

#[test]
fn the_commands_of_every_page_run_and_their_claims_hold() {
    let folder = scratch("book");
    let mut failed = Vec::new();
    for page in documentation().iter().filter(|name| name.ends_with(".md")) {
        let text = fs::read_to_string(root().join("docs").join(page)).expect("a page");
        failed.extend(failures(page, &text, &folder));
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn every_lesson_has_a_question_an_excerpt_and_an_exercise_that_is_checked() {
    let pages = documentation();
    let lessons: Vec<&String> = pages
        .iter()
        .filter(|name| name.starts_with("lessons/") && name.ends_with(".md"))
        .collect();
    assert!(lessons.len() >= 10, "{lessons:?}");
    let mut used = String::new();
    for lesson in lessons {
        let text = fs::read_to_string(root().join("docs").join(lesson)).expect("a page");
        for part in [
            "**Guess first.**",
            "## Why",
            "## Exercise",
            "**Solution.**",
            "# expect:",
        ] {
            assert!(text.contains(part), "{lesson} lacks {part}");
        }
        let steps = steps(&text);
        assert!(
            steps.iter().any(|step| matches!(step, Step::Prints(_))),
            "{lesson}"
        );
        assert!(
            steps.iter().any(|step| matches!(step, Step::Picture(..))),
            "{lesson}"
        );
        assert!(matches!(steps.last(), Some(Step::Check(_))), "{lesson}");
        used.push_str(&text);
    }
    for scenario in pages.iter().filter(|name| name.ends_with(".yaml")) {
        assert!(
            used.contains(&format!("docs/{scenario}")),
            "no lesson runs {scenario}"
        );
    }
}

#[test]
fn every_page_of_the_documentation_is_listed() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("the contents");
    let listed: Vec<String> = summary
        .split("](")
        .skip(1)
        .filter_map(|rest| Some(rest.split_once(')')?.0.to_owned()))
        .collect();
    let unique: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), unique.len(), "a page is listed twice");
    let pages: BTreeSet<String> = documentation()
        .into_iter()
        .filter(|name| name != "SUMMARY.md" && (name.ends_with(".md") || name.ends_with(".json")))
        .collect();
    assert_eq!(unique, pages, "left: docs/SUMMARY.md, right: the folder");
}

#[test]
fn checks_and_excerpts_can_fail() {
    let report =
        serde_json::json!({ "a": [{ "cause": "x", "f": 0.25 }, { "cause": "y", "f": 0.5 }] });
    assert_eq!(holds(&report, "a[cause=y].f > 0.4"), Ok(()));
    assert_eq!(holds(&report, "a[0].f < 3e-1"), Ok(()));
    for wrong in [
        "a[cause=y].f < 0.4",
        "a[cause=z].f > 0",
        "a[7].f > 0",
        "a > 0",
        "a[0].f = 0.25",
        "b",
    ] {
        assert!(holds(&report, wrong).is_err(), "{wrong}");
    }
    let page = "```sh\nrackflow --version\n```\n```text\nrackflow of tomorrow\n```\n";
    assert_eq!(failures("page", page, &scratch("book-fails")).len(), 1);
    assert_eq!(plain("Bubble   ▐█▌   -48.0 %"), "Bubble -48.0 %");
}
