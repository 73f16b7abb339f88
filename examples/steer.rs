//! What a pair would say next with less and with more fine-tuning, the three likeliest tokens for each alpha:
//! `cargo run --release --example steer -- BASE TUNED MESSAGE`

use serde_json::json;
use std::process::ExitCode;
use tuco::{
    Result, Session, SessionOptions,
    engine::{Tokens, unobserved},
    prompt::Content,
};

const ALPHAS: [f64; 4] = [0.0, 0.5, 1.0, 1.5];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [base, tuned, message] = arguments.as_slice() else {
        eprintln!("usage: steer BASE TUNED MESSAGE");
        return ExitCode::from(2);
    };
    match steer(base, tuned, message) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn steer(base: &str, tuned: &str, message: &str) -> Result<()> {
    let session = Session::open(&SessionOptions::new(base, tuned))?;
    let encoder = session.encoder();
    let messages = Content::Messages(vec![json!({"role": "user", "content": message})]);
    let prompt = encoder.encode(&messages)?;
    let logits = session.logits(&[&prompt.token_ids], &ALPHAS, Tokens::All, &unobserved)?;
    if let Some((_, error)) = logits.errors.into_iter().next() {
        return Err(error.into());
    }
    let [_, _, vocab_size] = logits.shape;
    for (alpha, logits) in ALPHAS.iter().zip(logits.values.chunks(vocab_size)) {
        let mut tokens: Vec<usize> = (0..vocab_size).collect();
        tokens.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let text = |token: &usize| encoder.text_of(*token as u32).unwrap_or_else(|| token.to_string());
        let likeliest: Vec<String> =
            tokens.iter().take(3).map(|token| format!("{:?} {:.2}", text(token), logits[*token])).collect();
        println!("alpha {alpha}: {}", likeliest.join(", "));
    }
    Ok(())
}
