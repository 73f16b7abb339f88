//! The program `tuco`.

use std::process::ExitCode;

fn main() -> ExitCode {
    tuco::cli::main(std::env::args_os()).into()
}
