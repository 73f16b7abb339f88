//! The session that programs embed: what it gives is what the engine gives, whatever the batches and the threads.

use serde_json::Value;
use std::{
    fs,
    ops::ControlFlow,
    path::{Path, PathBuf},
};
use tuco::{
    ErrorKind, Session, SessionOptions,
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Continued, Engine, Generation, Prompt, Sampling, Tokens, unheard, unobserved},
    job::Device,
    prompt::{Content, ContentRef},
    session::Completing,
    twin::Branch,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn options(name: &str) -> SessionOptions {
    let path = |side: &str| golden(name).join(side).display().to_string();
    let mut options = SessionOptions::new(path("base"), path("tuned"));
    options.machine.device = Device::Cpu;
    options.machine.threads = Some(2);
    options
}

fn prompts(name: &str) -> Vec<Vec<u32>> {
    let gold: Value = serde_json::from_slice(&fs::read(golden(name).join("gold.json")).unwrap()).unwrap();
    let ids = |prompt: &Value| serde_json::from_value(prompt["token_ids"].clone()).unwrap();
    gold["prompts"].as_array().unwrap().iter().map(ids).collect()
}

const CASE: &str = "llama_gqa_tied_bf16";

#[test]
fn a_session_gives_what_the_engine_gives_in_batches_of_any_size() {
    let prompts = prompts(CASE);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let pair = Pair::open(&golden(CASE).join("base"), &golden(CASE).join("tuned"), None).unwrap();
    let cpu = Cpu::new();
    let engine = Engine::new(&cpu, &pair);
    let alphas = [0.0, 1.0, 1.3];
    let scores = engine.score(&prompts, &unobserved).unwrap();
    let base = engine.plain(Branch::Pt, &prompts, &unobserved).unwrap();
    let logits = engine.steer(&prompts, &alphas, Tokens::All, &unobserved).unwrap();
    let traces = engine.trace(&prompts, &unobserved).unwrap();
    let says = engine.logits_of_parts(&traces[0].split).unwrap();
    for (batch_size, batch_tokens) in [(None, 32_768), (Some(1), 32_768), (Some(3), 20)] {
        let mut options = options(CASE);
        options.machine.batch_size = batch_size;
        options.machine.max_batch_tokens = batch_tokens;
        let session = Session::open(&options).unwrap();
        assert_eq!(session.score(&prompts, &unobserved).unwrap(), scores);
        assert_eq!(session.last_hidden(Branch::Pt, &prompts, &unobserved).unwrap(), base);
        let found = session.logits(&prompts, &alphas, Tokens::All, &unobserved).unwrap();
        assert_eq!(found.shape, [alphas.len(), prompts.len(), session.spec().vocab_size]);
        assert_eq!(found.values, logits.concat().concat());
        assert_eq!(session.trace(&prompts, &unobserved).unwrap(), traces);
        assert_eq!(session.logits_of_parts(&traces[0].split).unwrap(), says);
    }
}

/// Against the logits of every beginning; texts share rows, and some have nothing to tell.
#[test]
fn likelihoods_are_those_that_logits_say() {
    let prompts = prompts(CASE);
    let long = &prompts.iter().max_by_key(|prompt| prompt.len()).unwrap()[..];
    let other: Vec<u32> = long[..5].iter().copied().chain([3, 9, 4]).collect();
    let texts: Vec<Continued<'_>> =
        [(long, 1), (long, 4), (&other[..], 2), (&other[..6], 5), (&other[..], 8), (&long[..1], 1)]
            .into_iter()
            .map(|(token_ids, n_prompt)| Continued { token_ids, n_prompt })
            .collect();
    for (batch_size, batch_tokens) in [(None, 32_768), (Some(1), 32_768), (Some(2), 20)] {
        let mut options = options(CASE);
        options.machine.batch_size = batch_size;
        options.machine.max_batch_tokens = batch_tokens;
        let session = Session::open(&options).unwrap();
        for alpha in [0.0, 0.6, 1.0] {
            let found = session.likelihoods(&texts, alpha, &unobserved).unwrap();
            for (text, found) in texts.iter().zip(found) {
                assert_eq!(found.len(), text.token_ids.len() - text.n_prompt);
                for (at, found) in (text.n_prompt..).zip(found) {
                    let logits = session
                        .logits(&[&text.token_ids[..at]], &[alpha], Tokens::All, &unobserved)
                        .unwrap()
                        .values;
                    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
                    let logit = logits[text.token_ids[at] as usize];
                    assert!((found.log_likelihood - (logit - sum.ln())).abs() < 1e-5, "{found:?}");
                    assert_eq!(found.is_greedy, logits.iter().all(|other| *other <= logit));
                }
            }
        }
    }
    let session = Session::open(&options(CASE)).unwrap();
    let told = |token_ids: &[u32], n_prompt| {
        session.likelihoods(&[Continued { token_ids, n_prompt }], 1.0, &unobserved).unwrap_err().message
    };
    assert!(told(&[1, 2], 0).contains("expected at least 1"), "{}", told(&[1, 2], 0));
    assert!(told(&[1, 2], 3).contains("no more than there are"));
    assert!(told(&[1, 60_000], 1).contains("token 1 has id 60000"));
    assert!(told(&[], 0).contains("0 tokens"));
}

#[test]
fn threads_share_a_session() {
    let session = Session::open(&options(CASE)).unwrap();
    let prompts = prompts(CASE);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let expected = session.score(&prompts, &unobserved).unwrap();
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..4).map(|_| scope.spawn(|| session.score(&prompts, &unobserved).unwrap())).collect();
        running.into_iter().for_each(|running| assert_eq!(running.join().unwrap(), expected));
    });
}

#[test]
fn what_cannot_be_passed_is_told_before_anything_is_computed() {
    let session = Session::open(&options(CASE)).unwrap();
    let (vocab_size, context) = (session.spec().vocab_size as u32, session.spec().context_length);
    let told = |prompt: &[u32]| {
        let error = session.score(&[&[1, 2], prompt], &unobserved).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Usage);
        error.message
    };
    assert!(told(&[]).starts_with("prompt 1 has 0 tokens, expected 1 to"), "{}", told(&[]));
    assert!(told(&vec![0; context + 1]).contains(&format!("expected 1 to {context}")));
    assert!(told(&[0, vocab_size]).starts_with(&format!("prompt 1: token 1 has id {vocab_size}")));
    let of = |tokens: &[u32], alpha: f64| session.logits(&[&[1]], &[alpha], Tokens::Of(tokens), &unobserved);
    assert!(of(&[vocab_size], 1.0).unwrap_err().message.starts_with("tokens: token 0 has id"));
    assert!(of(&[1], -1.0).unwrap_err().message.contains("alpha is -1"));
    assert_eq!(of(&[], 1.0).unwrap().values, [0.0; 0]);
}

#[test]
fn an_observer_hears_every_token_and_stops_the_work() {
    let session = Session::open(&options(CASE)).unwrap();
    let heard = std::sync::Mutex::new(0.0);
    let listen = |tokens: f64| {
        *heard.lock().unwrap() += tokens;
        ControlFlow::Continue(())
    };
    session.score(&[&[1, 2, 3], &[4, 5]], &listen).unwrap();
    assert!((*heard.lock().unwrap() - 5.0_f64).abs() < 1e-9);
    let stopped = session.score(&[&[1, 2, 3]], &|_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(stopped.kind, ErrorKind::Interrupted);
}

#[test]
fn many_rows_are_encoded_in_order() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let path = |side: &str| dir.join(side).display().to_string();
    let session = Session::open(&SessionOptions::new(path("base"), path("tuned"))).unwrap();
    let texts: Vec<String> = (0..100).map(|i| format!("prompt number {i}")).collect();
    let rows: Vec<ContentRef<'_>> = texts.iter().map(|text| ContentRef::Prompt(text)).collect();
    let encoded = session.encode(&rows).unwrap();
    for (text, encoded) in texts.into_iter().zip(encoded) {
        assert_eq!(session.encoder().encode(&Content::Prompt(text)), encoded);
    }
}

#[test]
fn completions_do_not_depend_on_the_batches() {
    let prompts = prompts(CASE);
    let seeded: Vec<Prompt<'_>> =
        prompts.iter().zip(0..).map(|(token_ids, seed)| Prompt { token_ids, seed }).collect();
    let sampling = Sampling::new(0.9, Some(20), 1.0).unwrap();
    let generation = Generation {
        alpha: 0.5,
        max_new_tokens: 6,
        samples: 2,
        sampling,
        tuco: true,
        ..Generation::default()
    };
    let completing = Completing { generation, stop: Vec::new(), seed: 0 };
    let pair = Pair::open(&golden(CASE).join("base"), &golden(CASE).join("tuned"), None).unwrap();
    let cpu = Cpu::new();
    let engine = Engine::new(&cpu, &pair);
    let expected = engine.generate(&seeded, &completing.generation, &mut unheard, &unobserved).unwrap();
    for (batch_size, batch_tokens) in [(None, 32_768), (Some(1), 32_768), (Some(3), 40)] {
        let mut options = options(CASE);
        options.machine.batch_size = batch_size;
        options.machine.max_batch_tokens = batch_tokens;
        let session = Session::open(&options).unwrap();
        let found = session.generate(&seeded, &completing, &unobserved).unwrap();
        let found: Vec<Vec<_>> =
            found.into_iter().map(|of| of.into_iter().map(|text| text.completion).collect()).collect();
        assert_eq!(found, expected);
    }
    let session = Session::open(&options(CASE)).unwrap();
    let told = |completing: Completing| session.generate(&seeded, &completing, &unobserved).unwrap_err();
    let stop = |text: &str| Completing { stop: vec![text.into()], ..completing.clone() };
    assert_eq!(told(stop("")).message, "stop is empty, expected text");
    assert!(told(stop(".")).message.starts_with("stop needs a tokenizer"), "{}", told(stop(".")));
}
