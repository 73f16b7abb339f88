//! Scores prompts: `cargo run --release --example score -- BASE TUNED PROMPT...`

use std::process::ExitCode;
use tuco::{Result, Session, SessionOptions, engine::unobserved, prompt::ContentRef};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, tuned, prompts @ ..] = arguments.as_slice() else {
        eprintln!("usage: score BASE TUNED PROMPT...");
        return ExitCode::from(2);
    };
    match score(base, tuned, prompts) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn score(base: &str, tuned: &str, prompts: &[String]) -> Result<()> {
    let session = Session::open(&SessionOptions::new(base, tuned))?;
    let rows: Vec<ContentRef<'_>> = prompts.iter().map(|prompt| ContentRef::Prompt(prompt)).collect();
    let encoded = session.encode(&rows)?.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    let token_ids: Vec<&[u32]> = encoded.iter().map(|encoded| encoded.token_ids.as_slice()).collect();
    for (score, prompt) in session.score(&token_ids, &unobserved)?.iter().zip(prompts) {
        match score {
            Ok(score) => println!("TuCo {:.4}  β {:.4}  {prompt}", score.tuco(), score.beta()),
            Err(error) => println!("{error}  {prompt}"),
        }
    }
    Ok(())
}
