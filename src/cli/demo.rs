//! `tuco demo --all`: every experiment on the pair that ships, by the command lines that a user would write.

use super::Cli;
use crate::{
    Error, Result,
    experiment::demo::{self, DemoOptions, EXPERIMENTS, Experiment},
    job::Caller,
    output::{self, read_summary, write_summary},
};
use clap::Parser;
use std::{fs, path::Path, sync::atomic::AtomicBool, time::Instant};

/// Runs every experiment and makes one report of them.
///
/// # Errors
/// Those of the experiments.
pub fn all(options: &DemoOptions, caller: Caller<'_>) -> Result<()> {
    let start = Instant::now();
    let output = &options.output;
    fs::create_dir_all(output).map_err(|error| Error::io("make", output, &error))?;
    let (dir, out) = (options.dir.display().to_string(), output.display().to_string());
    let mut summaries = Vec::new();
    let mut inputs = vec![out.clone()];
    for Experiment { name, arguments, result } in EXPERIMENTS {
        let place = |argument: &&str| argument.replace("DEMO", &dir).replace("OUT", &out);
        let pair = ["--base", "DEMO/base", "--tuned", "DEMO/tuned", "--overwrite", "--quiet", "-o", result];
        let arguments = [&[*name], *arguments, &pair].concat();
        run(&arguments.iter().map(place).collect::<Vec<String>>(), caller.stop)?;
        let result = result.replace("OUT", &out);
        if Path::new(&result).is_dir() {
            summaries.push(read_summary(Path::new(&result))?);
        }
        inputs.push(result);
    }
    let summary = demo::effects(&summaries, start.elapsed().as_secs_f64());
    write_summary(output, &summary)?;
    let page = format!("{out}/report.html");
    let report = [vec!["report".to_owned()], inputs, vec!["-o".into(), page.clone()]].concat();
    run(&report, caller.stop)?;
    let shown = demo::report(&summary).expect("its own summary").to_markdown();
    output::print(&format!("\n{shown}\nEverything is in {page}\n"))
}

/// Runs one command line, which is told.
fn run(arguments: &[String], stop: &AtomicBool) -> Result<()> {
    let quoted = |argument: &String| {
        if argument.contains([' ', '\'']) { format!("\"{argument}\"") } else { argument.clone() }
    };
    let told: Vec<String> = arguments.iter().map(quoted).collect();
    output::print(&format!("\n$ tuco {}\n\n", told.join(" ")))?;
    let command = [&["tuco".to_owned()], arguments].concat();
    let cli = Cli::try_parse_from(&command).map_err(|error| Error::usage(error.to_string()))?;
    cli.run(Caller { command: &command, stop })
}
