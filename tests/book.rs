//! The book under `docs/`: its commands run, its excerpts are what they print, its exercises are
//! solved by their solutions, and its contents name each page.
//!
//! A command is a line of a `sh` block that starts with `rackflow`; one that takes more than a few
//! seconds stands in a `console` block, which `cargo test -p rackflow --test book -- --ignored` runs.
//! Each page has a folder of its own to run in. After `<!-- file: my.yaml -->` the next block is written
//! into it. After `<!-- refused -->` the next command must end with status 2, and what it says is what it
//! prints. A `text` block after a command holds lines of what it printed, without the bars.
//! `<!-- check: training.bubble_fraction < 0.05 -->` must hold for the JSON report of the last
//! command before it; a path goes through lists by `[0]` or `[cause=shape]`. After
//! `<!-- picture: waterfall.svg as 01-roofline.svg -->` the second file, beside the page, must be the first
//! of what that command writes.
//!
//! `UPDATE=1 cargo test -p rackflow --test book` draws the pictures anew, and writes into the excerpts what
//! is printed now in place of lines that differ in their figures alone.

mod common;

use common::{root, scratch};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

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
    /// Write this text into this file.
    File(String, String),
    Run(String),
    /// A command that takes long.
    RunSlowly(String),
    /// The next command is to be refused.
    Refused,
    Prints(String),
    Check(String),
    /// A file that the command writes, and its name beside the page.
    Picture(String, String),
}

/// What a page asks, or what is wrong with how it asks.
fn steps(page: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    let mut fence: Option<&str> = None;
    let mut file: Option<(String, String)> = None;
    for line in page.lines() {
        let (raw, line) = (line, line.trim());
        let after_command = matches!(
            steps.last(),
            Some(Step::Run(_) | Step::RunSlowly(_) | Step::Prints(_))
        );
        if let Some(language) = line.strip_prefix("```") {
            if fence.is_some()
                && let Some((name, text)) = file.take()
            {
                steps.push(Step::File(name, text));
            }
            fence = match fence {
                None => Some(language),
                Some(_) => None,
            };
        } else if let (Some(_), Some((_, text))) = (fence, &mut file) {
            text.push_str(raw);
            text.push('\n');
        } else if let Some(language) = fence {
            match language {
                "sh" if line.starts_with("rackflow ") => steps.push(Step::Run(line.to_owned())),
                "console" if line.starts_with("rackflow ") => {
                    steps.push(Step::RunSlowly(line.to_owned()));
                }
                "text" if after_command => steps.push(Step::Prints(line.to_owned())),
                // What `--help` prints stands in a generated page.
                "help" => {}
                _ if line.starts_with("rackflow ") => {
                    return Err(format!("`{line}` is in a block that no test runs"));
                }
                _ => {}
            }
        } else if let Some(note) = line.strip_prefix("<!-- ") {
            let note = note.strip_suffix("-->").unwrap_or(note).trim();
            if let Some(check) = note.strip_prefix("check:") {
                steps.push(Step::Check(check.trim().to_owned()));
            } else if let Some(picture) = note.strip_prefix("picture:") {
                let (written, shown) = picture
                    .split_once(" as ")
                    .ok_or_else(|| format!("`{line}` is not `picture: a as b`"))?;
                steps.push(Step::Picture(
                    written.trim().to_owned(),
                    shown.trim().to_owned(),
                ));
            } else if let Some(name) = note.strip_prefix("file:") {
                file = Some((name.trim().to_owned(), String::new()));
            } else if note == "refused" {
                steps.push(Step::Refused);
            }
        }
    }
    Ok(steps)
}

/// A folder with the scenarios and the pages in it, in which commands may also write.
fn place(test: &str) -> PathBuf {
    let folder = scratch(test);
    for name in ["docs", "scenarios"] {
        let target = root().join(name);
        std::os::unix::fs::symlink(target, folder.join(name)).expect("a link");
    }
    folder
}

/// Runs a command line by the shell, with this build's binary in front of the path: its standard output,
/// or what it says when it is to be refused.
fn output(line: &str, folder: &Path, refused: bool) -> Result<String, String> {
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
    let expected = if refused { 2 } else { 0 };
    let errors = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(code) if code == expected && refused => Ok(errors.into_owned()),
        Some(code) if code == expected => {
            Ok(String::from_utf8(output.stdout).expect("output is text"))
        }
        status => Err(format!("`{line}` ends with {status:?}: {errors}")),
    }
}

/// A line without its figures: what stays when results change.
fn without_figures(line: &str) -> String {
    let plain = plain(line);
    let words = plain.split(' ');
    words
        .filter(|word| !word.chars().any(|c| c.is_ascii_digit()))
        .collect::<Vec<_>>()
        .join(" ")
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

fn updating() -> bool {
    std::env::var_os("UPDATE").is_some()
}

/// A page while its commands run.
struct Reader<'a> {
    page: &'a str,
    text: String,
    folder: PathBuf,
    /// Whether commands that take long are run.
    slowly: bool,
    /// The last command; none when it was not run.
    command: Option<String>,
    /// Lines that the last commands printed.
    printed: Vec<String>,
    failures: Vec<String>,
}

impl Reader<'_> {
    fn fails(&mut self, why: &str) {
        self.failures.push(format!("{}: {why}", self.page));
    }

    /// An excerpt's line, which the command must have printed.
    fn prints(&mut self, line: &str) {
        let Some(command) = &self.command else {
            return;
        };
        if self.printed.iter().any(|other| plain(other) == plain(line)) {
            return;
        }
        let mut alike = self
            .printed
            .iter()
            .filter(|other| without_figures(other) == without_figures(line));
        if updating()
            && let (Some(now), None) = (alike.next(), alike.next())
        {
            // An excerpt without bars stays without.
            let bare = line == plain(line);
            let now = if bare {
                plain(now)
            } else {
                now.trim().to_owned()
            };
            self.text = self.text.replacen(line, &now, 1);
            return;
        }
        let why = format!("`{command}` does not print `{line}`");
        self.fails(&why);
    }

    fn shows(&mut self, written: &str, shown: &str) {
        let Some(command) = self.command.clone() else {
            return;
        };
        if let Err(why) = output(&format!("{command} -o drawn"), &self.folder, false) {
            return self.fails(&why);
        }
        let drawn = fs::read_to_string(self.folder.join("drawn").join(written)).expect("a picture");
        let kept = root().join("docs").join(self.page).with_file_name(shown);
        if updating() {
            fs::write(&kept, &drawn).expect("the picture is written");
        }
        if fs::read_to_string(&kept).unwrap_or_default() != drawn {
            self.fails(&format!(
                "{shown} is not what `{command}` draws; see the top of this test"
            ));
        }
        if !self.text.contains(&format!("]({shown})")) {
            self.fails(&format!("it does not show {shown}"));
        }
    }

    fn checks(&mut self, check: &str) {
        let Some(command) = &self.command else {
            return;
        };
        let json = if command.contains("--format json") {
            ""
        } else {
            " --format json"
        };
        let found = output(&format!("{command}{json}"), &self.folder, false).and_then(|report| {
            let report = serde_json::from_str(&report).map_err(|why| why.to_string())?;
            holds(&report, check)
        });
        if let Err(why) = found {
            self.fails(&why);
        }
    }

    fn read(&mut self, steps: Vec<Step>) {
        let mut refused = false;
        let mut excerpt_follows = false;
        for step in steps {
            match step {
                Step::File(name, text) => {
                    fs::write(self.folder.join(name), text).expect("the file is written");
                }
                Step::Refused => refused = true,
                Step::RunSlowly(_) if !self.slowly => self.command = None,
                Step::Run(line) | Step::RunSlowly(line) => {
                    if std::mem::take(&mut excerpt_follows) {
                        self.printed.clear();
                    }
                    match output(&line, &self.folder, std::mem::take(&mut refused)) {
                        Ok(printed) => self.printed.extend(printed.lines().map(str::to_owned)),
                        Err(why) => self.fails(&why),
                    }
                    self.command = Some(line);
                }
                Step::Prints(line) => {
                    excerpt_follows = true;
                    self.prints(&line);
                }
                Step::Picture(written, shown) => self.shows(&written, &shown),
                Step::Check(check) => self.checks(&check),
            }
        }
    }
}

/// What fails on a page, whose text is brought up to date where that is asked for.
fn failures(page: &str, text: &mut String, folder: PathBuf, slowly: bool) -> Vec<String> {
    let steps = match steps(text) {
        Ok(steps) => steps,
        Err(why) => return vec![format!("{page}: {why}")],
    };
    let mut reader = Reader {
        page,
        text: std::mem::take(text),
        folder,
        slowly,
        command: None,
        printed: Vec::new(),
        failures: Vec::new(),
    };
    reader.read(steps);
    *text = reader.text;
    reader.failures
}

/// What fails on all pages.
fn failures_of_all(slowly: bool) -> Vec<String> {
    let mut failed = Vec::new();
    for page in documentation().iter().filter(|name| name.ends_with(".md")) {
        let path = root().join("docs").join(page);
        let mut text = fs::read_to_string(&path).expect("a page");
        let before = text.clone();
        if slowly && !before.contains("```console") {
            continue;
        }
        let folder = format!("book-{}-{slowly}", page.replace('/', "-"));
        failed.extend(failures(page, &mut text, place(&folder), slowly));
        if text != before {
            fs::write(path, text).expect("the page is written");
        }
    }
    failed
}

#[test]
fn the_commands_of_every_page_run_and_their_claims_hold() {
    let failed = failures_of_all(false);
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
#[ignore = "takes minutes; `cargo test -p rackflow --test book -- --ignored`"]
fn the_slow_commands_run_too() {
    let failed = failures_of_all(true);
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
        let steps = steps(&text).expect("its commands are run");
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

/// The name under which a heading can be linked to: as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        c if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

/// Where a page's links lead, without those to other sites.
fn links(text: &str) -> Vec<String> {
    let targets = text
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', '\n']).next());
    targets
        .filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut pages: Vec<PathBuf> = documentation()
        .iter()
        .filter(|name| name.ends_with(".md"))
        .map(|name| root().join("docs").join(name))
        .collect();
    pages.extend(["README.md", "ARCHITECTURE.md", "CHANGELOG.md"].map(|name| root().join(name)));
    let mut broken = Vec::new();
    for page in pages {
        let text = fs::read_to_string(&page).expect("a page");
        for link in links(&text) {
            let (path, fragment) = link.split_once('#').unwrap_or((&link, ""));
            let target = if path.is_empty() {
                page.clone()
            } else {
                page.with_file_name(path)
            };
            let found = match fs::read_to_string(&target) {
                _ if fragment.is_empty() => target.exists(),
                Ok(text) => text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor(line.trim_start_matches('#').trim()) == fragment),
                Err(_) => false,
            };
            if !found {
                broken.push(format!("{}: {link}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
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
    let found = |page: &str| failures("page", &mut page.to_owned(), place("book-fails"), false);
    let page = "```sh\nrackflow --version\n```\n```text\nrackflow of tomorrow\n```\n";
    assert_eq!(found(page).len(), 1);
    assert_eq!(found("```\nrackflow run my.yaml\n```\n").len(), 1);
    let page = "<!-- file: my.yaml -->\n```yaml\ncluster: {}\n```\n<!-- refused -->\n```sh\nrackflow check my.yaml\n```\n";
    assert_eq!(found(page), Vec::<String>::new());
    assert_eq!(links("[a](b.md#c) [x](https://y)"), ["b.md#c"]);
    assert_eq!(anchor("The `a` of b-c, d"), "the-a-of-b-c-d");
    assert_eq!(without_figures("Bubble   ▐█▌   -48.0 %"), "Bubble %");
    assert_eq!(plain("Bubble   ▐█▌   -48.0 %"), "Bubble -48.0 %");
}
