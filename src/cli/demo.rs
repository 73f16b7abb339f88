//! `tuco demo --all`: every experiment on the pair that ships, by the command lines that a user would write.

use super::Cli;
use crate::{
    Error, ErrorKind, Result,
    experiment::demo::{self, DemoRun, RUNS},
    job::{Caller, DemoOptions},
    output::{self, read_summary, write_summary},
};
use serde_json::json;
use std::{fs, path::Path, sync::atomic::AtomicBool, time::Instant};

/// Runs every experiment and makes one report of them.
///
/// # Errors
/// Those of the experiments.
pub fn all(options: &DemoOptions, caller: Caller<'_>) -> Result<()> {
    let start = Instant::now();
    let output = &options.output;
    output::make_folder(output)?;
    let is_empty = fs::read_dir(output).map_err(|error| Error::io("read", output, &error))?.next().is_none();
    if !is_empty && !read_summary(output).is_ok_and(|summary| summary["experiment"] == demo::NAME) {
        return Err(Error::usage(format!(
            "-o {} holds something else than an earlier demo, which would be lost; choose another folder",
            output.display()
        )));
    }
    write_summary(output, &json!({ "experiment": demo::NAME }))?;
    let place = |argument: &&str| placed(argument, &options.dir, output);
    let mut summaries = Vec::new();
    let mut inputs = vec![output.display().to_string()];
    for DemoRun { name, arguments, result } in RUNS {
        let pair = ["--base", "DEMO/base", "--tuned", "DEMO/tuned", "--overwrite", "--quiet", "-o", result];
        let arguments = [&[*name], *arguments, &pair].concat();
        run(&arguments.iter().map(place).collect::<Vec<String>>(), caller.stop).map_err(of_all)?;
        let (place_of, result) = (*result, place(result));
        if Path::new(&result).is_dir() {
            summaries.push((place_of, read_summary(Path::new(&result))?));
        }
        inputs.push(result);
    }
    let summary = demo::effects(&summaries, start.elapsed().as_secs_f64());
    write_summary(output, &summary)?;
    let page = place(&"OUT/report.html");
    let report = [vec!["report".to_owned()], inputs, vec!["-o".into(), page.clone()]].concat();
    run(&report, caller.stop)?;
    let shown = demo::report(&summary).expect("its own summary").to_markdown();
    output::print(&format!("\n{shown}\nEverything is in {page}\n"))
}

/// What an experiment says of its own command line when it is stopped is no help here.
fn of_all(error: Error) -> Error {
    match error.kind {
        ErrorKind::Interrupted => Error::new(error.kind, "stopped; the same command begins again"),
        _ => error,
    }
}

/// `DEMO/…` and `OUT/…` as paths in these folders; any other word as it is.
fn placed(argument: &str, dir: &Path, output: &Path) -> String {
    let folder = |name: &str| match name {
        "DEMO" => Some(dir),
        "OUT" => Some(output),
        _ => None,
    };
    let path = argument.split_once('/').and_then(|(name, rest)| Some(folder(name)?.join(rest)));
    path.map_or_else(|| argument.to_owned(), |path| path.display().to_string())
}

/// Runs one command line, which is told. It says all: what the user's environment has for other runs is not read.
fn run(arguments: &[String], stop: &AtomicBool) -> Result<()> {
    let quoted = |argument: &String| {
        if argument.contains([' ', '\'']) { format!("\"{argument}\"") } else { argument.clone() }
    };
    let told: Vec<String> = arguments.iter().map(quoted).collect();
    output::print(&format!("\n$ tuco {}\n\n", told.join(" ")))?;
    let command = [&["tuco".to_owned()], arguments].concat();
    Cli::of_program(&command)?.run(Caller { command: &command, stop })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leading_folder_is_a_placeholder() {
        let place = |argument| placed(argument, Path::new("LAYOUT/DEMO"), Path::new("OUT/x"));
        assert_eq!(place("DEMO/base"), "LAYOUT/DEMO/base");
        assert_eq!(place("OUT/sweep"), "OUT/x/sweep");
        for word in ["--by", "DEMO", "DEMOS/base", "a/OUT/b", "How do I get OUT of DEMO/base?"] {
            assert_eq!(place(word), word);
        }
    }
}
