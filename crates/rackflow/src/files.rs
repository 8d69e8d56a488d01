//! Files are written whole or not at all.

use crate::failure::Failure;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes files into a folder, which is made where it is missing, and tells the name of each.
pub fn write_folder(folder: &Path, files: &[(&str, &[u8])]) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|error| Failure::file("created", folder, &error))?;
    for (name, bytes) in files {
        let path = folder.join(name);
        write_atomically(&path, bytes)?;
        tell(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Writes `bytes` to `path` so that a reader sees the old file or the new one, never a part: it is
/// written beside its place and then renamed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let unfinished = unfinished_name(path);
    let result = write_and_rename(&unfinished, path, bytes);
    if result.is_err() {
        // Removal may fail because nothing was created; the first error is the one to tell.
        let _ = fs::remove_file(&unfinished);
    }
    result.map_err(|error| Failure::file("written", path, &error))
}

/// Creates the file that [`finish`] will give its name, beside it.
pub fn begin(path: &Path) -> Result<(fs::File, PathBuf), Failure> {
    let unfinished = unfinished_name(path);
    match fs::File::create(&unfinished) {
        Ok(file) => Ok((file, unfinished)),
        Err(error) => Err(Failure::file("written", path, &error)),
    }
}

/// Gives a file that is written its name, or removes it where writing failed.
pub fn finish(unfinished: &Path, path: &Path, written: io::Result<()>) -> Result<(), Failure> {
    let result = written.and_then(|()| fs::rename(unfinished, path));
    if result.is_err() {
        let _ = fs::remove_file(unfinished);
    }
    result.map_err(|error| Failure::file("written", path, &error))
}

fn write_and_rename(unfinished: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = fs::File::create(unfinished)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    drop(file);
    fs::rename(unfinished, path)
}

/// A name in the same folder, hidden, and of this process only.
fn unfinished_name(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.unfinished", std::process::id()))
}

/// Removes what a killed process left unfinished in this folder.
pub fn remove_unfinished(folder: &Path) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(".unfinished") {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Writes to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::ReaderGone),
        Err(error) => Err(Failure::run(format_args!(
            "standard output cannot be written: {error}"
        ))),
        Ok(()) => Ok(()),
    }
}

/// Writes to standard error; when that is gone too, there is nobody to tell.
pub fn tell(text: &str) {
    if !text.is_empty() {
        let _ = writeln!(io::stderr().lock(), "{}", text.trim_end());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_cannot_be_renamed_leaves_nothing_behind() {
        let folder = std::env::temp_dir().join(format!("rackflow-files-{}", std::process::id()));
        let taken = folder.join("report.json");
        fs::create_dir_all(taken.join("not empty")).expect("a scratch folder");
        write_atomically(&taken, b"text").expect_err("the name is taken by a folder");
        let names: Vec<_> = fs::read_dir(&folder).expect("the scratch folder").collect();
        assert_eq!(names.len(), 1, "{names:?}");
        fs::remove_dir_all(&folder).expect("the scratch folder");
    }
}
