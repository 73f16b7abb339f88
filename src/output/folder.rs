//! The folder that an experiment leaves behind: rows, summary, plots, report.

use super::{Report, page, write_whole};
use crate::{Error, Result};
use serde_json::Value;
use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

const ROWS: &str = "rows.jsonl";
const SUMMARY: &str = "summary.json";

/// A folder that rows are appended to.
pub struct Folder {
    dir: PathBuf,
    rows: BufWriter<File>,
    errors: u64,
}

impl Folder {
    /// Makes the folder.
    ///
    /// # Errors
    /// A usage error where it holds an experiment and is not to be overwritten; I/O errors.
    pub fn create(dir: &Path, overwrite: bool) -> Result<Self> {
        let path = dir.join(ROWS);
        if path.exists() && !overwrite {
            return Err(Error::usage(format!(
                "-o {} holds an experiment already; choose another folder, or --overwrite to start again",
                dir.display()
            )));
        }
        fs::create_dir_all(dir).map_err(|error| Error::io("make", dir, &error))?;
        if dir.join(SUMMARY).exists() {
            fs::remove_file(dir.join(SUMMARY)).map_err(|error| Error::io("remove", dir, &error))?;
        }
        let file = File::create(&path).map_err(|error| Error::io("write", &path, &error))?;
        Ok(Self { dir: dir.to_path_buf(), rows: BufWriter::new(file), errors: 0 })
    }

    /// Appends rows and makes sure that they are on the disk.
    pub fn append(&mut self, rows: &[Value]) -> Result<()> {
        let mut write = || {
            for row in rows {
                serde_json::to_writer(&mut self.rows, row)?;
                self.rows.write_all(b"\n")?;
            }
            self.rows.flush()?;
            self.rows.get_ref().sync_data()
        };
        write().map_err(|error| Error::io("write", &self.dir.join(ROWS), &error))?;
        self.errors += rows.iter().filter(|row| row.get("error").is_some()).count() as u64;
        Ok(())
    }

    /// How many of the rows so far are errors.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Writes summary, plots and report: the summary last, so that it is only there when all is.
    pub fn finish(self, summary: &Value, report: &Report) -> Result<()> {
        for (index, (_, svg)) in report.plots.iter().enumerate() {
            self.write(&if index == 0 { "plot.svg".into() } else { format!("plot-{}.svg", index + 1) }, svg)?;
        }
        self.write("report.html", &page(std::slice::from_ref(report)))?;
        write_summary(&self.dir, summary)
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_text(&self.dir.join(name), text)
    }
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |file| {
        file.write_all(text.as_bytes()).map_err(|error| Error::io("write", path, &error))
    })
}

/// Writes the summary into an experiment's folder.
pub fn write_summary(dir: &Path, summary: &Value) -> Result<()> {
    write_text(&dir.join(SUMMARY), &format!("{summary:#}\n"))
}

/// The summary that an experiment left: of its folder, or the file itself.
pub fn read_summary(path: &Path) -> Result<Value> {
    let file = if path.is_dir() { path.join(SUMMARY) } else { path.to_path_buf() };
    let text = fs::read(&file).map_err(|error| Error::unreadable(&file, &error))?;
    let summary: Value = serde_json::from_slice(&text)
        .map_err(|error| Error::usage(format!("{} is not valid JSON: {error}", file.display())))?;
    match summary.get("experiment") {
        Some(Value::String(_)) => Ok(summary),
        _ => Err(Error::usage(format!(
            "{} is no experiment's {SUMMARY}: it has no field experiment",
            file.display()
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_summary_is_replaced_and_never_half_written() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str| write_summary(dir.path(), &json!({ "experiment": name })).unwrap();
        write("first");
        // Another name of the file shows whether its bytes were written over.
        let other = dir.path().join("other.json");
        fs::hard_link(dir.path().join(SUMMARY), &other).unwrap();
        write("second");
        assert_eq!(read_summary(&other).unwrap()["experiment"], "first");
        assert_eq!(read_summary(dir.path()).unwrap()["experiment"], "second");
    }
}
