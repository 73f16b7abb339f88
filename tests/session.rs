//! The session that programs embed: what it gives is what the engine gives, whatever the batches and the threads.

use serde_json::Value;
use std::{
    fs,
    ops::{ControlFlow, Range},
    path::{Path, PathBuf},
};
use tuco::{
    Error, ErrorKind, Result, Session, SessionOptions,
    backend::cpu::Cpu,
    checkpoint::Pair,
    engine::{Continued, Engine, Generation, LOGITS_AT_ONCE, Prompt, Sampling, Tokens, unheard, unobserved},
    job::Device,
    prompt::{Content, ContentRef},
    session::{Call, Completing, Logits, OfPrompt},
    twin::Branch,
};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn options(name: &str) -> SessionOptions {
    options_in(&golden(name))
}

fn options_in(dir: &Path) -> SessionOptions {
    let path = |side: &str| dir.join(side).display().to_string();
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

/// What all prompts have.
#[track_caller]
fn all<T>(outcomes: Result<Vec<OfPrompt<T>>>) -> Vec<T> {
    outcomes.unwrap().into_iter().map(|outcome| outcome.unwrap()).collect()
}

const CASE: &str = "llama_gqa_tied_bf16";

fn copy_of(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for side in ["base", "tuned"] {
        fs::create_dir(dir.path().join(side)).unwrap();
        for entry in fs::read_dir(golden(name).join(side)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(side).join(entry.file_name())).unwrap();
        }
    }
    dir
}

/// A pair of finite weights whose tuned model overflows wherever the token 5 is.
fn overflowing() -> tempfile::TempDir {
    let dir = copy_of("llama_mha_untied_f32");
    let path = dir.path().join("tuned/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let place = |name: &str| {
        let [start, end] = [0, 1].map(|i| header[name]["data_offsets"][i].as_u64().unwrap() as usize);
        8 + length + start..8 + length + end
    };
    let mut set = |place: Range<usize>, value: &dyn Fn(usize) -> f32| {
        for (i, element) in bytes[place].chunks_exact_mut(4).enumerate() {
            element.copy_from_slice(&value(i).to_le_bytes());
        }
    };
    // What the first MLP adds is too much for the largest numbers alone.
    set(place("model.layers.0.mlp.down_proj.weight"), &|_| 1e33);
    let row = place("model.embed_tokens.weight").start + 5 * 30 * size_of::<f32>();
    set(row..row + 30 * size_of::<f32>(), &|i| if i % 2 == 0 { -f32::MAX } else { f32::MAX });
    fs::write(&path, bytes).unwrap();
    dir
}

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
        assert_eq!(all(session.score(&prompts, &unobserved)), scores);
        assert_eq!(all(session.last_hidden(Branch::Pt, &prompts, &unobserved)), base);
        let found = session.logits(&prompts, &alphas, Tokens::All, &unobserved).unwrap();
        assert_eq!(found.shape, [alphas.len(), prompts.len(), session.spec().vocab_size]);
        assert_eq!(found.values, logits.concat().concat());
        assert_eq!(all(session.trace(&prompts, &unobserved)), traces);
        assert_eq!(session.logits_of_parts(&traces[0].split, &unobserved).unwrap(), says);
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
            let found = all(session.likelihoods(&texts, alpha, &unobserved));
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
    // Of large vocabularies few rows have their logits at a time.
    let session = Session::open(&options(CASE)).unwrap();
    let cpu = Cpu::new();
    let few = Engine::new(&cpu, session.pair()).with_logits_at_once(2 * session.spec().vocab_size);
    assert_eq!(
        few.likelihoods(&texts, 0.6, &unobserved).unwrap(),
        all(session.likelihoods(&texts, 0.6, &unobserved))
    );
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
    let expected = all(session.score(&prompts, &unobserved));
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..4).map(|_| scope.spawn(|| all(session.score(&prompts, &unobserved)))).collect();
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
    // Prompts are counted from the first, however many go together.
    let never = |_: f64| -> ControlFlow<()> { panic!("something is computed") };
    let alphas = vec![1.0; LOGITS_AT_ONCE / vocab_size as usize + 1];
    let error = session.logits(&[&[1], &[]], &alphas, Tokens::All, &never).unwrap_err();
    assert!(error.message.starts_with("prompt 1 has 0 tokens"), "{error}");
    let mut options = options(CASE);
    options.machine.batch_size = Some(1);
    let session = Session::open(&options).unwrap();
    let texts = [1, 3].map(|n_prompt| Continued { token_ids: &[1, 2], n_prompt });
    let error = session.likelihoods(&texts, 1.0, &never).unwrap_err();
    assert!(error.message.starts_with("text 1: 3 of its 2 tokens"), "{error}");
}

#[test]
fn an_overflow_is_told_of_its_prompt_alone() {
    let dir = overflowing();
    let mut options = options_in(dir.path());
    options.machine.batch_size = Some(1);
    let session = Session::open(&options).unwrap();
    let ids: [&[u32]; 3] = [&[1, 3], &[1, 5, 3], &[2]];
    let told = |error: Error, message: &str| {
        assert_eq!((error.kind, error.exit_code()), (ErrorKind::NotFinite, 42));
        assert!(error.message.starts_with(message), "{error}");
    };
    /// The second's error; the others have something.
    fn second<T: std::fmt::Debug>(outcomes: Vec<OfPrompt<T>>) -> Error {
        let [Ok(_), Err(error), Ok(_)] = &outcomes[..] else { panic!("{outcomes:?}") };
        error.clone().into()
    }
    told(second(session.score(&ids, &unobserved).unwrap()), "the hidden state overflowed: |P| is ");
    let states = session.last_hidden(Branch::Ft, &ids, &unobserved).unwrap();
    told(second(states), "the tuned model's own hidden state overflowed");
    // The base's own blocks do not overflow.
    all(session.last_hidden(Branch::Pt, &ids, &unobserved));
    assert_eq!(session.logits(&ids, &[0.0], Tokens::All, &unobserved).unwrap().errors, []);
    let Logits { values, shape, errors } =
        session.logits(&ids, &[0.0, 1.0], Tokens::All, &unobserved).unwrap();
    let by_row: Vec<bool> = values.chunks(shape[2]).map(|row| row.iter().all(|v| v.is_finite())).collect();
    assert_eq!(by_row, [true, false, true, true, false, true]);
    let [(1, error)] = &errors[..] else { panic!("{errors:?}") };
    told(error.clone().into(), "the logits under alpha 1 are not numbers");
    let texts = ids.map(|token_ids| Continued { token_ids, n_prompt: 1 });
    let likelihoods = session.likelihoods(&texts, 1.0, &unobserved).unwrap();
    // The last has nothing to tell.
    told(second(likelihoods), "the logits under alpha 1 are not numbers");

    told(second(session.trace(&ids, &unobserved).unwrap()), "the hidden state overflowed: |P| is ");
    let pair = Pair::open(&dir.path().join("base"), &dir.path().join("tuned"), None).unwrap();
    let cpu = Cpu::new();
    let traces = Engine::new(&cpu, &pair).trace(&ids, &unobserved).unwrap();
    assert!(session.logits_of_parts(&traces[0].split, &unobserved).is_ok());
    told(
        session.logits_of_parts(&traces[1].split, &unobserved).unwrap_err(),
        "the logits of the hidden state's parts",
    );

    let prompts = ids.map(|token_ids| Prompt { token_ids, seed: 0 });
    let generation = Generation { max_new_tokens: 3, ..Generation::default() };
    let completing = Completing { generation, stop: Vec::new(), seed: 0 };
    let completions = session.generate(&prompts, &completing, &unobserved).unwrap();
    told(second(completions), "the logits of a next token are not numbers");
}

/// In a process of its own, whose simulated device is small.
#[cfg(feature = "sim")]
#[test]
fn a_prompt_that_the_device_does_not_hold_loses_no_other() {
    const MEMORY: &str = "TUCO_SIM_MEMORY";
    if std::env::var_os(MEMORY).is_none() {
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        again.args(["--exact", "a_prompt_that_the_device_does_not_hold_loses_no_other"]);
        let ran = again.env(MEMORY, "340000").output().unwrap();
        let told = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success() && told.contains("1 passed"), "{told}");
        return;
    }
    let mut options = options(CASE);
    options.machine.device = "sim".parse().unwrap();
    let session = Session::open(&options).unwrap();
    let long: Vec<u32> = (1..=118).map(|i| i % 90 + 1).collect();
    let ids: [&[u32]; 3] = [&[1, 2, 3], &long, &[4, 5]];
    let outcomes = session.score(&ids, &unobserved).unwrap();
    let [Ok(_), Err(error), Ok(_)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(error.kind.as_str(), "out_of_memory");
    assert!(
        error.message.starts_with("the prompt needs room for 118 tokens and does not fit alone"),
        "{error}"
    );
    assert_eq!(Error::from(error.clone()).kind, ErrorKind::OutOfMemory);
    // Batches that did not fit are told, and what was found is what is found of each alone.
    assert!(session.take_warnings().iter().any(|warning| warning.contains("--max-batch-tokens")));
    assert_eq!(outcomes[2], session.score(&ids[2..], &unobserved).unwrap()[0]);
}

/// Memory is what the process has of it, other tests' too: too little is told with what would do, and then holds what it should.
#[cfg(target_os = "linux")]
#[test]
fn little_memory_gives_the_same_and_prompts_that_do_not_fit_have_their_places() {
    let within = |limit: &str| {
        let mut options = options(CASE);
        options.memory.max_memory = Some(limit.parse().unwrap());
        Session::open(&options)
    };
    let told = within("1M").err().unwrap();
    assert_eq!(told.kind, ErrorKind::Usage);
    let (_, least) = told.message.split_once("the least is ").unwrap();
    let least: u64 = least.split_once("M:").unwrap().0.parse().unwrap();
    let (small, free) =
        (within(&format!("{}M", least + 400)).unwrap(), Session::open(&options(CASE)).unwrap());
    let prompts = prompts(CASE);
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let alphas = [0.0, 1.0, 1.3];
    assert_eq!(all(small.score(&prompts, &unobserved)), all(free.score(&prompts, &unobserved)));
    assert_eq!(all(small.trace(&prompts, &unobserved)), all(free.trace(&prompts, &unobserved)));
    let steered = |session: &Session| session.logits(&prompts, &alphas, Tokens::All, &unobserved).unwrap();
    assert_eq!(steered(&small), steered(&free));
    let texts: Vec<_> = prompts.iter().map(|ids| Continued { token_ids: ids, n_prompt: 1 }).collect();
    let likelihoods = |session: &Session| all(session.likelihoods(&texts, 0.5, &unobserved));
    assert_eq!(likelihoods(&small), likelihoods(&free));
}

/// Each prompt goes alone, so that all devices have some.
#[cfg(feature = "sim")]
#[test]
fn several_devices_give_what_one_gives() {
    use std::{
        collections::HashSet,
        sync::{Condvar, Mutex},
        time::Duration,
    };
    let open = |device: &str| {
        let mut options = options(CASE);
        options.machine.device = device.parse().unwrap();
        options.machine.batch_size = Some(1);
        Session::open(&options).unwrap()
    };
    let (one, several) = (open("sim"), open("sim:0,2,1"));
    let prompts = prompts(CASE);
    let ids: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    assert_eq!(one.score(&ids, &unobserved).unwrap(), several.score(&ids, &unobserved).unwrap());
    assert_eq!(one.trace(&ids, &unobserved).unwrap(), several.trace(&ids, &unobserved).unwrap());
    let logits = |session: &Session| session.logits(&ids, &[0.3, 1.0], Tokens::All, &unobserved).unwrap();
    assert_eq!(logits(&one), logits(&several));
    let seeded: Vec<Prompt<'_>> =
        prompts.iter().zip(0..).map(|(token_ids, seed)| Prompt { token_ids, seed }).collect();
    let generation = Generation { max_new_tokens: 3, ..Generation::default() };
    let completing = Completing { generation, stop: Vec::new(), seed: 0 };
    let completions = |session: &Session| session.generate(&seeded, &completing, &unobserved).unwrap();
    assert_eq!(completions(&one), completions(&several));
    // Each device has a thread of its own; the first that is heard waits for another.
    let (heard, another) = (Mutex::new(HashSet::new()), Condvar::new());
    let listen = |_: f64| {
        let mut heard = heard.lock().unwrap();
        heard.insert(std::thread::current().id());
        another.notify_all();
        let is_alone = |heard: &mut HashSet<_>| heard.len() < 2;
        let (_heard, waited) = another.wait_timeout_while(heard, Duration::from_secs(20), is_alone).unwrap();
        assert!(!waited.timed_out(), "one device does it all");
        ControlFlow::Continue(())
    };
    several.score(&ids, &listen).unwrap();
    // Who stops one stops all.
    let stopped = several.score(&ids, &|_| ControlFlow::Break(())).unwrap_err();
    assert_eq!(stopped.kind, ErrorKind::Interrupted);
}

#[test]
fn a_light_trace_stops_in_its_second_pass_too() {
    let session = Session::open(&options("light_f32")).unwrap();
    let prompts = prompts("light_f32");
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    // That pass counts no tokens.
    let stop = |tokens: f64| match tokens == 0.0 {
        true => ControlFlow::Break(()),
        false => ControlFlow::Continue(()),
    };
    assert_eq!(session.trace(&prompts, &stop).unwrap_err().kind, ErrorKind::Interrupted);
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
fn what_has_begun_is_cancelled_and_what_begins_later_is_not() {
    let session = Session::open(&options(CASE)).unwrap();
    let rows: [&[u32]; 2] = [&[1, 2, 3], &[4, 5]];
    let working = session.begin();
    let score = |call: &Call| session.score(&rows, &|_| call.go_on());
    let stopped = session.score(&rows, &|_| {
        // One waits for its turn meanwhile.
        std::thread::scope(|scope| {
            let waiting = session.begin();
            session.cancel();
            let waiting = scope.spawn(move || score(&waiting));
            assert_eq!(waiting.join().unwrap().err().unwrap().kind, ErrorKind::Interrupted);
        });
        working.go_on()
    });
    assert_eq!(stopped.err().unwrap().kind, ErrorKind::Interrupted);
    assert_eq!(all(score(&session.begin())).len(), rows.len());
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
        let found = all(session.generate(&seeded, &completing, &unobserved));
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

/// As transformers reads it: a model of a tied family whose head was trained and saved without telling the config.
#[test]
fn a_head_that_differs_from_the_embedding_is_read_whatever_the_config_says() {
    let case = "llama_mha_untied_f32";
    let dir = copy_of(case);
    for side in ["base", "tuned"] {
        let config = dir.path().join(side).join("config.json");
        let mut fields: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        fields["tie_word_embeddings"] = true.into();
        fs::write(&config, fields.to_string()).unwrap();
    }
    let logits = |dir: &Path| {
        let session = Session::open(&options_in(dir)).unwrap();
        session.logits(&[&[1, 2, 3]], &[1.0], Tokens::All, &unobserved).unwrap().values
    };
    assert_eq!(logits(dir.path()), logits(&golden(case)));
}
