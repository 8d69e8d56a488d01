//! The folder of a sweep. Every file in it is whole or absent, and a case is finished when its
//! `case.json` is there with the hash of all that the case depends on; that file is written last.

use super::Work;
use crate::failure::Failure;
use crate::files;
use rackflow_report::sweep::{Cell, Table};
use rackflow_scenario::Sweep;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

/// A case as meant, or why it cannot be simulated, under the hash of all that its result depends on.
pub struct Planned {
    /// 128 bits, in hexadecimal.
    pub hash: String,
    /// What to simulate.
    pub work: Result<Work, String>,
}

/// The record that a case is finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseFile {
    /// Of all that the result depends on: the scenario as meant, and the program.
    pub hash: String,
    /// Name of the case.
    pub case: String,
    /// `done` or `infeasible`.
    pub status: String,
    /// Why it is infeasible, as the program tells it.
    pub reason: Option<String>,
    /// What was chosen.
    pub parameters: Vec<(String, String)>,
    /// The row of the results, without what was chosen.
    pub metrics: Vec<Cell>,
}

/// What the folder holds, written before the first case runs and after the last.
#[derive(Debug, Serialize)]
struct Manifest<'m> {
    schema_version: u32,
    program: &'static str,
    scenario: &'m str,
    parameters: &'m [String],
    cases: Vec<Entry<'m>>,
}

#[derive(Debug, Serialize)]
struct Entry<'m> {
    case: &'m str,
    hash: &'m str,
    status: String,
}

/// An output folder that no other sweep writes into while this one lives.
pub struct Folder {
    path: PathBuf,
    /// Released by the system when the process ends, however it ends.
    _lock: File,
    /// Name and hash of every case.
    planned: Vec<(String, String)>,
    scenario: String,
    parameters: Vec<String>,
}

const MANIFEST: &str = "manifest.json";

impl Folder {
    /// Makes the folder, or takes up one of an earlier run.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let made = |path: &Path| {
            fs::create_dir_all(path).map_err(|error| Failure::file("created", path, &error))
        };
        made(path)?;
        refuse_foreign(path)?;
        for part in ["cases", "figures"] {
            made(&path.join(part))?;
        }
        let lock_path = path.join(".lock");
        let lock = File::create(&lock_path)
            .map_err(|error| Failure::file("written", &lock_path, &error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Failure::run(format_args!(
                    "another sweep is writing into {}",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => {
                return Err(Failure::file("locked", &lock_path, &error));
            }
        }
        files::remove_unfinished(path);
        files::remove_unfinished(&path.join("figures"));
        for case in fs::read_dir(path.join("cases"))
            .into_iter()
            .flatten()
            .flatten()
        {
            files::remove_unfinished(&case.path());
        }
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
            planned: Vec::new(),
            scenario: String::new(),
            parameters: Vec::new(),
        })
    }

    /// The folder as messages call it.
    pub fn shown(&self) -> String {
        self.path.display().to_string()
    }

    /// Writes the manifest before anything runs.
    pub fn plan(
        &mut self,
        scenario: &str,
        sweep: &Sweep,
        planned: &[Planned],
    ) -> Result<(), Failure> {
        let cases = sweep.cases.iter().zip(planned);
        self.planned = cases
            .map(|(case, planned)| (case.name.clone(), planned.hash.clone()))
            .collect();
        scenario.clone_into(&mut self.scenario);
        self.parameters.clone_from(&sweep.parameters);
        self.write_manifest(|name, hash| {
            let finished = self.read(name).filter(|finished| finished.hash == hash);
            finished.map_or_else(|| "open".to_owned(), |finished| finished.status)
        })
    }

    /// Writes the manifest after the last case.
    pub fn finished(&self, results: &Table) -> Result<(), Failure> {
        self.write_manifest(|name, _| {
            let row = (0..results.rows.len()).find(|row| results.text(*row, "case") == name);
            row.map_or_else(|| "open".to_owned(), |row| results.text(row, "status"))
        })
    }

    fn write_manifest(&self, status: impl Fn(&str, &str) -> String) -> Result<(), Failure> {
        let manifest = Manifest {
            schema_version: 1,
            program: concat!("rackflow ", env!("CARGO_PKG_VERSION")),
            scenario: &self.scenario,
            parameters: &self.parameters,
            cases: self
                .planned
                .iter()
                .map(|(case, hash)| Entry {
                    case,
                    hash,
                    status: status(case, hash),
                })
                .collect(),
        };
        let text = serde_json::to_string_pretty(&manifest).expect("a manifest has text keys");
        self.write(MANIFEST, text + "\n")
    }

    /// Whether this case is finished.
    pub fn holds(&self, case: &str, hash: &str) -> bool {
        self.read(case)
            .is_some_and(|finished| finished.hash == hash)
    }

    /// The record of a finished case.
    pub fn read(&self, case: &str) -> Option<CaseFile> {
        let text = fs::read_to_string(self.case_path(case).join("case.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes the record that makes a case finished. Nothing of the case is written after it.
    pub fn finish(&self, finished: &CaseFile) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(finished).expect("a record has text keys");
        self.write_case(&finished.case, "case.json", &(text + "\n"))
    }

    /// Writes one file of a case.
    pub fn write_case(&self, case: &str, name: &str, text: &str) -> Result<(), Failure> {
        let folder = self.case_path(case);
        fs::create_dir_all(&folder).map_err(|error| Failure::file("created", &folder, &error))?;
        files::write_atomically(&folder.join(name), text.as_bytes())
    }

    /// Writes one file of the whole sweep.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<(), Failure> {
        files::write_atomically(&self.path.join(name), content.as_ref())
    }

    fn case_path(&self, case: &str) -> PathBuf {
        self.path.join("cases").join(case)
    }
}

/// A folder that holds something else is not ours to write into.
fn refuse_foreign(path: &Path) -> Result<(), Failure> {
    let Ok(mut entries) = fs::read_dir(path) else {
        return Ok(());
    };
    let ours = [MANIFEST, ".lock"]
        .iter()
        .any(|name| path.join(name).exists());
    if !ours && entries.next().is_some() {
        return Err(Failure::Input(format!(
            "error: {} holds other files and no sweep\n  hint: name a folder that is new or empty",
            path.display()
        )));
    }
    Ok(())
}

/// What [`read_results`] needs of a manifest.
#[derive(Deserialize)]
struct Known {
    parameters: Vec<String>,
    cases: Vec<KnownCase>,
}

#[derive(Deserialize)]
struct KnownCase {
    case: String,
    hash: String,
}

/// The table of the finished cases of a folder, each row made by `row` from the parameters of the
/// sweep, those of the case, and what was measured. None where the folder holds no sweep.
pub fn read_results(
    path: &Path,
    row: impl Fn(&[String], &[(String, String)], &[Cell]) -> Vec<Cell>,
) -> Result<Option<Table>, Failure> {
    let manifest = path.join(MANIFEST);
    let Ok(text) = fs::read_to_string(&manifest) else {
        return Ok(None);
    };
    let known: Known = serde_json::from_str(&text).map_err(|error| {
        Failure::input(format_args!(
            "{} is no manifest of a sweep: {error}",
            manifest.display()
        ))
    })?;
    let finished = known.cases.iter().filter_map(|entry| {
        let path = path.join("cases").join(&entry.case).join("case.json");
        let text = fs::read_to_string(path).ok()?;
        let case: CaseFile = serde_json::from_str(&text).ok()?;
        (case.hash == entry.hash).then(|| row(&known.parameters, &case.parameters, &case.metrics))
    });
    let rows = finished.collect();
    Ok(Some(rackflow_report::sweep::table(&known.parameters, rows)))
}

/// What the program is, so that a newer one does not take up results of an older one.
pub fn program() -> Result<String, Failure> {
    let path = std::env::current_exe()
        .map_err(|error| Failure::run(format_args!("the program does not find itself: {error}")))?;
    let bytes = fs::read(&path).map_err(|error| Failure::file("read", &path, &error))?;
    Ok(hash_bytes([bytes.as_slice()]))
}

/// A hash of texts, of which none runs into the next.
pub fn hash<'t>(texts: impl IntoIterator<Item = &'t str>) -> String {
    hash_bytes(texts.into_iter().map(str::as_bytes))
}

/// FNV-1a over 128 bits (Fowler, Noll and Vo): wide enough that two cases of any sweep differ.
fn hash_bytes<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> String {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let mut hash = OFFSET;
    for text in texts {
        for byte in text
            .iter()
            .copied()
            .chain((text.len() as u64).to_le_bytes())
        {
            hash = (hash ^ u128::from(byte)).wrapping_mul(PRIME);
        }
    }
    format!("{hash:032x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_do_not_run_into_each_other() {
        assert_ne!(hash(["ab", "c"]), hash(["a", "bc"]));
        assert_ne!(hash(["a"]), hash(["a", ""]));
        assert_eq!(hash(["a"]).len(), 32);
    }
}
