//! The folder that an experiment leaves behind: rows, summary, plots, report.

use super::{Manifest, Report, Sink, has_rows, make_folder, page, remove, write_whole};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

const ROWS: &str = "rows.jsonl";
pub const SUMMARY: &str = "summary.json";
const REPORT: &str = "report.html";

/// A folder that rows are appended to.
pub struct Folder {
    dir: PathBuf,
    /// `None`: all rows come at once.
    rows: Option<Sink>,
    errors: u64,
}

impl Folder {
    /// Where the rows of a folder lie.
    pub fn rows_in(dir: &Path) -> PathBuf {
        dir.join(ROWS)
    }

    /// Makes the folder for a run that `manifest` describes, or goes on with one that the same run began.
    ///
    /// # Errors
    /// As [`Sink::create`].
    pub fn open(dir: &Path, manifest: Manifest, overwrite: bool) -> Result<Self> {
        make_folder(dir)?;
        let rows = Sink::create(&Self::rows_in(dir), manifest, overwrite, || remove_findings(dir))?;
        Ok(Self { dir: dir.to_path_buf(), rows: Some(rows), errors: 0 })
    }

    /// A folder for rows that come at once. Nothing is written before they do.
    ///
    /// # Errors
    /// A usage error where it holds an experiment and is not to be overwritten.
    pub fn of_one_batch(dir: &Path, overwrite: bool) -> Result<Self> {
        if Self::rows_in(dir).exists() && !overwrite {
            return Err(Error::usage(format!(
                "-o {} holds an experiment already; choose another folder, or --overwrite to start again",
                dir.display()
            )));
        }
        Ok(Self { dir: dir.to_path_buf(), rows: None, errors: 0 })
    }

    /// Whether a run that is stopped can go on.
    pub fn goes_on(&self) -> bool {
        self.rows.is_some()
    }

    /// The next row that an earlier run wrote, in order, which must be the one with this id; `None` when there is none left.
    ///
    /// # Errors
    /// A mismatch where it is another.
    pub fn next_written(&mut self, id: &Value) -> Result<Option<Map<String, Value>>> {
        let Some(row) = self.next_row()? else { return Ok(None) };
        if row["id"] != *id {
            return Err(
                self.does_not_belong(&format!("it has a row with id {} in the place of {id}", row["id"]))
            );
        }
        self.errors += u64::from(row.contains_key("error"));
        Ok(Some(row))
    }

    fn next_row(&mut self) -> Result<Option<Map<String, Value>>> {
        self.rows.as_mut().map_or(Ok(None), Sink::next_written)
    }

    /// Appends rows and makes sure that they are on the disk, after those of an earlier run; or writes them, where they come at once.
    pub fn append(&mut self, rows: &[Value]) -> Result<()> {
        self.errors += rows.iter().filter(|row| row.get("error").is_some()).count() as u64;
        if let Some(sink) = &mut self.rows {
            return sink.append(rows).map(|_| ());
        }
        make_folder(&self.dir)?;
        remove_findings(&self.dir)?;
        // It would be that of other rows.
        remove(&Manifest::path_beside(&Self::rows_in(&self.dir)))?;
        write_text(&Self::rows_in(&self.dir), &rows.iter().map(|row| format!("{row}\n")).collect::<String>())
    }

    /// How many of the rows so far are errors.
    pub fn errors(&self) -> u64 {
        self.errors
    }

    /// Writes summary, plots and report: the summary last, so that it is only there when all is.
    ///
    /// # Errors
    /// A mismatch where an earlier run wrote rows that were not asked for; I/O errors.
    pub fn finish(mut self, summary: &Value, report: &Report) -> Result<()> {
        if let Some(extra) = self.next_row()? {
            return Err(
                self.does_not_belong(&format!("it has a row with id {} beyond the last", extra["id"]))
            );
        }
        for (index, (_, svg)) in report.plots.iter().enumerate() {
            self.write(&if index == 0 { "plot.svg".into() } else { format!("plot-{}.svg", index + 1) }, svg)?;
        }
        self.write(REPORT, &page(std::slice::from_ref(report)))?;
        write_summary(&self.dir, summary)
    }

    fn does_not_belong(&self, why: &str) -> Error {
        let path = Self::rows_in(&self.dir);
        Error::mismatch(format!(
            "{} does not belong to these inputs: {why}; --overwrite starts again",
            path.display()
        ))
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        write_text(&self.dir.join(name), text)
    }
}

/// Removes what was found from earlier rows, if there are some, the summary first: it is only there when all else is.
fn remove_findings(dir: &Path) -> Result<()> {
    let rows = Folder::rows_in(dir);
    if !has_rows(&rows) && !Manifest::path_beside(&rows).exists() {
        return Ok(());
    }
    remove(&dir.join(SUMMARY))?;
    remove(&dir.join(REPORT))?;
    for entry in fs::read_dir(dir).map_err(|error| Error::io("read", dir, &error))? {
        let path = entry.map_err(|error| Error::io("read", dir, &error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name.strip_prefix("plot").and_then(|rest| rest.strip_suffix(".svg"));
        let is_plot = |number: &str| {
            number.is_empty() || number.strip_prefix('-').is_some_and(|number| number.parse::<u32>().is_ok())
        };
        if number.is_some_and(is_plot) {
            remove(&path)?;
        }
    }
    Ok(())
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
