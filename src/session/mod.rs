//! A pair that is open and ready to answer: what programs that embed `tuco` use. It owns everything a pass needs (mapped
//! weights, device, threads, tokenizer) and hides which backend computes.
//!
//! ```no_run
//! use tuco::{Session, SessionOptions, engine::unobserved, prompt::Content};
//!
//! let session = Session::open(&SessionOptions::new("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"))?;
//! let prompt = session.encoder().encode(&Content::Prompt("What is the capital of France?".into()))?;
//! for score in session.score(&[&prompt.token_ids], &unobserved)? {
//!     println!("TuCo {:.4}", score?.tuco());
//! }
//! # Ok::<(), tuco::Error>(())
//! ```
//!
//! What is wrong with one prompt stands in its place ([`OfPrompt`]); the others are computed. What no prompt should have is told before
//! anything is.
//!
//! Prompts are slices of token ids; [`Session::encoder`] makes them of text and conversations. Any number can be given: they
//! pass the layers in batches within the limits of [`MachineOptions`](crate::job::MachineOptions), and what a prompt gets does
//! not depend on the others. Calls from several threads take turns; [`Session::cancel`] stops those that ask for it.

mod batches;
mod call;
mod engines;
mod options;
mod turns;

pub use crate::experiment::generate::{Completing, Text};
pub use call::Call;
pub use options::SessionOptions;

use crate::{
    Error, ErrorKind, Result,
    checkpoint::Pair,
    engine::{
        AnyEngine, Continued, Footprint, LOGITS_AT_ONCE, Likelihood, Observer, PackLimits, Prompt, Score,
        Split, Tokens, Trace, check_alphas,
    },
    experiment::{filling::BatchLimits, queue, worker::Worker},
    job::{Computers, Size, memory_left, open_encoder, open_pair, thread_pool, thread_pools},
    model::{ModelSpec, PairWeights},
    prompt::{ContentRef, Encoded, Encoder, RowError},
    sync::lock,
    twin::Branch,
};
use batches::{Footprints, Passing, Room, TokenIds, batches};
use call::Cancels;
use engines::{Engines, Loaded};
use rayon::prelude::*;
use std::{
    ops::ControlFlow,
    sync::{Arc, Mutex, atomic::Ordering},
};
use turns::{Turn, Turns};

/// What comes of a prompt, or why nothing does: [`RowErrorKind::NotFinite`](crate::prompt::RowErrorKind) where it overflows,
/// [`RowErrorKind::OutOfMemory`](crate::prompt::RowErrorKind) where the device's memory does not hold it alone.
pub type OfPrompt<T> = Result<T, RowError>;

/// Logits, one after the other: alpha by alpha, prompt by prompt, token by token.
#[derive(Debug, Clone, PartialEq)]
pub struct Logits {
    /// NaN where a prompt has none.
    pub values: Vec<f64>,
    /// Alphas, prompts, tokens.
    pub shape: [usize; 3],
    /// The prompts that have none, in order, and why.
    pub errors: Vec<(usize, RowError)>,
}

impl Logits {
    /// These prompts' logits as those of some among `prompts`; the others have NaN.
    ///
    /// # Errors
    /// [`ErrorKind::OutOfMemory`] where memory does not hold them.
    pub fn among(self, places: &[usize], prompts: usize) -> Result<Self> {
        let [alphas, own, width] = self.shape;
        if own == prompts {
            return Ok(self);
        }
        let shape = [alphas, prompts, width];
        let mut values = not_numbers(shape)?;
        for (alpha, (index, place)) in
            (0..alphas).flat_map(|alpha| places.iter().enumerate().map(move |at| (alpha, at)))
        {
            let (from, to) = ((alpha * own + index) * width, (alpha * prompts + place) * width);
            values[to..to + width].copy_from_slice(&self.values[from..from + width]);
        }
        let errors = self.errors.into_iter().map(|(index, error)| (places[index], error)).collect();
        Ok(Self { values, shape, errors })
    }
}

/// An open pair.
///
/// Threads do not survive a fork: in a forked process every pass is a usage error.
pub struct Session {
    opened: Arc<Opened>,
}

struct Opened {
    engines: Engines,
    /// The threads of each device.
    pools: Vec<rayon::ThreadPool>,
    encoder: Encoder,
    limits: BatchLimits,
    /// What the process may have in memory, and how packs are made for it.
    memory: Option<(Size, PackLimits)>,
    device: String,
    /// The process whose threads these are.
    process: u32,
    turns: Turns,
    cancels: Cancels,
    warnings: Mutex<Vec<String>>,
}

impl Session {
    /// Opens a pair: checkpoints are mapped and proven to be a pair, the device is chosen, threads are started.
    ///
    /// # Errors
    /// Those of the command line with the same flags, in the same words: what is wrong with names and numbers
    /// ([`ErrorKind::Usage`]), checkpoints ([`ErrorKind::Checkpoint`]), the pair ([`ErrorKind::Mismatch`]) and the device
    /// ([`ErrorKind::Device`]).
    pub fn open(options: &SessionOptions) -> Result<Self> {
        let SessionOptions { pair: models, prompts, machine, memory } = options;
        let pool = thread_pool(machine)?;
        let warnings = Mutex::default();
        let pair = pool.install(|| open_pair(models, *memory))?;
        let tell = |text: &str| push(&warnings, text);
        pair.notices.iter().for_each(|notice| tell(notice));
        let computers = pool.install(|| Computers::choose(machine, &pair, &tell))?;
        let encoder = open_encoder(&pair, prompts, prompts.date(None), &tell)?;
        memory.check(&computers, &machine.device)?;
        let threads = pool.current_num_threads();
        let of_scores = |limits| Ok(Footprint::of_score(&pair, limits, threads));
        // What the caller had in memory at some time is nothing to the pair.
        let divided = memory.divide_now(pair.spec().ft, of_scores)?;
        let packs = divided.map(|(limits, _)| limits);
        let opened = Opened {
            device: computers.name(),
            pools: thread_pools(pool, computers.count())?,
            engines: engines::start(Loaded { pair, computers }, packs),
            memory: memory.max_memory.zip(packs),
            encoder,
            limits: machine.limits(None),
            process: std::process::id(),
            turns: Turns::default(),
            cancels: Cancels::default(),
            warnings,
        };
        Ok(Self { opened: Arc::new(opened) })
    }

    /// The tuned model's tokenizer and chat template.
    pub fn encoder(&self) -> &Encoder {
        &self.opened.encoder
    }

    /// The pair itself: checkpoints, shapes, notices.
    pub fn pair(&self) -> &Pair {
        &self.opened.engines.borrow_owner().pair
    }

    /// The tuned model's shape.
    pub fn spec(&self) -> &ModelSpec {
        self.pair().spec().ft
    }

    /// What computes, as manifests name it (`cpu`, `reference`, …).
    pub fn device(&self) -> &str {
        &self.opened.device
    }

    /// What the user should be told since the last call: differences within the pair, prompts with a doubled first
    /// token, batches that did not fit the device.
    pub fn take_warnings(&self) -> Vec<String> {
        let mut warnings = std::mem::take(&mut *lock(&self.opened.warnings));
        warnings.extend(self.opened.encoder.take_warnings());
        warnings
    }

    /// Begins what [`Session::cancel`] is to stop, be it several passes: their observer has to answer [`Call::go_on`].
    pub fn begin(&self) -> Call {
        self.opened.cancels.begin()
    }

    /// Stops all that has [begun](Session::begin), what waits for its turn too: it ends with [`ErrorKind::Interrupted`] before its next
    /// layer. What begins later is not stopped.
    pub fn cancel(&self) {
        self.opened.cancels.cancel();
    }

    /// The token ids of many rows, one by one as by [`Encoder::encode`], on the threads of the first device.
    ///
    /// # Errors
    /// As [`Session::score`] in a forked process; what is wrong with a row stands in its place.
    pub fn encode(&self, rows: &[ContentRef<'_>]) -> Result<Vec<Result<Encoded, RowError>>> {
        self.encode_before(rows, &|_| 0)
    }

    /// The same of rows that tokens are to follow, as many as `following` says of each, as by [`Encoder::encode_before`].
    ///
    /// # Errors
    /// As [`Session::encode`].
    pub fn encode_before(
        &self,
        rows: &[ContentRef<'_>],
        following: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Vec<Result<Encoded, RowError>>> {
        self.check_process()?;
        let encoder = self.encoder();
        let encode = |(index, row): (usize, &ContentRef<'_>)| encoder.encode_before(*row, following(index));
        Ok(self.opened.pools[0].install(|| rows.par_iter().enumerate().map(encode).collect()))
    }

    /// Scores prompts, in order. The observer hears every token once.
    ///
    /// # Errors
    /// A usage error for a prompt without tokens, with more than the model's context or with a token that the vocabulary does
    /// not have; [`ErrorKind::Interrupted`] when the observer stops the work; failures of the device.
    pub fn score(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<OfPrompt<Score>>> {
        self.pass(
            prompts,
            Room::of(&of_scores),
            observer,
            |engine, part, observer| engine.score(part, observer),
            |score| score.check_finite().map_err(RowError::not_finite),
        )
    }

    /// The last token's hidden state after the last layer of one model's blocks, run on their own from the tuned model's
    /// embedding, before the final norm: `[D]` for each prompt. With both models' states
    /// [`output_co`](crate::metrics::output_co) tells how far apart they are; the tuned model's is
    /// [`Score::last_hidden`].
    ///
    /// # Errors
    /// As [`Session::score`].
    pub fn last_hidden(
        &self,
        branch: Branch,
        prompts: &[&[u32]],
        observer: Observer<'_>,
    ) -> Result<Vec<OfPrompt<Vec<f64>>>> {
        let overflowed = match branch {
            Branch::Pt => "the base's own hidden state overflowed",
            Branch::Ft => "the tuned model's own hidden state overflowed",
        };
        self.pass(
            prompts,
            Room::of(&of_scores),
            observer,
            |engine, part, observer| engine.plain(branch, part, observer),
            |state| check_finite(state, || RowError::not_finite(overflowed)),
        )
    }

    /// Logits of the token after each prompt with `x + ptc + alpha · ftc` on all tokens: 1 is the tuned model, 0 the base's
    /// blocks between the tuned model's embedding and head.
    ///
    /// # Errors
    /// As [`Session::score`]; a usage error for an alpha that is negative or not finite and for chosen tokens that the
    /// vocabulary does not have; a checkpoint error where there is no head; [`ErrorKind::OutOfMemory`] where memory does not hold
    /// the logits.
    pub fn logits(
        &self,
        prompts: &[&[u32]],
        alphas: &[f64],
        tokens: Tokens<'_>,
        observer: Observer<'_>,
    ) -> Result<Logits> {
        check_alphas(alphas)?;
        self.check_prompts(prompts)?;
        let width = match tokens {
            Tokens::All => self.spec().vocab_size,
            Tokens::Of(tokens) => {
                self.check_ids("tokens", tokens)?;
                tokens.len()
            }
        };
        let shape = [alphas.len(), prompts.len(), width];
        let mut values = not_numbers(shape)?;
        let mut errors = Vec::new();
        let mut index = 0;
        let footprint =
            |pair: &Pair, limits, threads| Footprint::of_steering(pair, limits, threads, alphas, width);
        let room = Room {
            // A stream for each alpha is in memory.
            streams: alphas.len(),
            most_prompts: (LOGITS_AT_ONCE / (alphas.len() * width).max(1)).max(1),
            ..Room::of(&footprint)
        };
        let pass = |engine: &dyn AnyEngine, part: &[&[u32]], observer: Observer<'_>| {
            let by_alpha = engine.steer(part, alphas, tokens, observer)?;
            let of_prompt = |prompt: usize| by_alpha.iter().map(|rows| rows[prompt].clone()).collect();
            Ok((0..part.len()).map(of_prompt).collect::<Vec<Vec<Vec<f64>>>>())
        };
        let check = |by_alpha: &Vec<Vec<f64>>| {
            let mut rows = by_alpha.iter().zip(alphas);
            rows.try_for_each(|(row, alpha)| check_finite(row, || overflow_under(*alpha)))
        };
        self.pass_each(prompts, room, observer, pass, check, |outcome| {
            match outcome {
                Ok(by_alpha) => {
                    for (alpha, row) in by_alpha.iter().enumerate() {
                        let start = (alpha * prompts.len() + index) * width;
                        values[start..start + width].copy_from_slice(row);
                    }
                }
                Err(error) => errors.push((index, error)),
            }
            index += 1;
        })?;
        Ok(Logits { values, shape, errors })
    }

    /// The contributions of every layer, of its attention and of its MLP, to every token of each prompt.
    ///
    /// # Errors
    /// As [`Session::score`].
    pub fn trace(&self, prompts: &[&[u32]], observer: Observer<'_>) -> Result<Vec<OfPrompt<Trace>>> {
        self.pass(
            prompts,
            Room::of(&|pair, limits, threads| Ok(Footprint::of_traces(pair, limits, threads))),
            observer,
            |engine, part, observer| engine.trace(part, observer),
            |trace| trace.check_finite().map_err(RowError::not_finite),
        )
    }

    /// How likely every token is that follows a prompt, under alpha, see
    /// [`Engine::likelihoods`](crate::engine::Engine::likelihoods). All tokens but the last have to fit the context.
    ///
    /// # Errors
    /// As [`Session::score`] and [`Continued::check`]; a checkpoint error where there is no head.
    pub fn likelihoods(
        &self,
        texts: &[Continued<'_>],
        alpha: f64,
        observer: Observer<'_>,
    ) -> Result<Vec<OfPrompt<Vec<Likelihood>>>> {
        check_alphas(&[alpha])?;
        // Texts are counted from the first here, in the engine from the first of a batch.
        Continued::check(texts)?;
        for (index, text) in texts.iter().enumerate() {
            self.check_ids(&format!("prompt {index}"), text.token_ids)?;
        }
        self.pass(
            texts,
            Room::of(&|pair, limits, threads| Footprint::of_likelihoods(pair, limits, threads, alpha)),
            observer,
            |engine, part, observer| engine.likelihoods(part, alpha, observer),
            |tokens| check_finite(tokens.iter().map(|token| &token.log_likelihood), || overflow_under(alpha)),
        )
    }

    /// Completes each prompt, as `tuco generate` does. [`Pair::stop_tokens`] tells which tokens end a completion as a rule.
    ///
    /// A prompt has completions only if none of them overflows.
    ///
    /// # Errors
    /// As [`Session::score`] and [`Completing::check`]; a checkpoint error where there is no head.
    pub fn generate(
        &self,
        prompts: &[Prompt<'_>],
        completing: &Completing,
        observer: Observer<'_>,
    ) -> Result<Vec<OfPrompt<Vec<Text>>>> {
        completing.check(self.encoder())?;
        self.pair().checkpoints.ft.head()?;
        let most_tokens = completing.most_tokens(self.spec());
        let footprint = |pair: &Pair, limits, threads| {
            Footprint::of_generation(pair, limits, threads, &completing.generation)
        };
        let room = Room { new_tokens: completing.new_tokens(), most_tokens, ..Room::of(&footprint) };
        self.pass(
            prompts,
            room,
            observer,
            |engine, part, observer| completing.complete(engine, self.encoder(), part, observer),
            |texts| texts.iter().try_for_each(Text::check_finite),
        )
    }

    /// What each part of a final hidden state adds to the logits, see [`Engine::logits_of_parts`](crate::engine::Engine::logits_of_parts).
    ///
    /// # Errors
    /// Where the checkpoint has no head that can be read; [`ErrorKind::NotFinite`] where the logits overflow.
    pub fn logits_of_parts(&self, split: &Split, observer: Observer<'_>) -> Result<Split> {
        let _turn = self.turn(observer)?;
        let opened = &*self.opened;
        opened
            .engines
            .with_dependent(|_, engines| opened.pools[0].install(|| engines[0].logits_of_parts(split)))
    }

    /// What comes of each prompt, see [`Session::pass_each`].
    fn pass<P: TokenIds, T: Send>(
        &self,
        prompts: &[P],
        room: Room<'_>,
        observer: Observer<'_>,
        pass: impl Fn(&dyn AnyEngine, &[P], Observer<'_>) -> Result<Vec<T>> + Sync,
        check: impl Fn(&T) -> OfPrompt<()>,
    ) -> Result<Vec<OfPrompt<T>>> {
        let mut outcomes = Vec::with_capacity(prompts.len());
        self.pass_each(prompts, room, observer, pass, check, |outcome| outcomes.push(outcome))?;
        Ok(outcomes)
    }

    /// What batches may take of memory now, if that is limited: the caller has other things in it, more or less from call to call.
    fn limits(&self, footprint: &Footprints<'_>) -> Result<BatchLimits> {
        let Opened { limits, memory, pools, .. } = &*self.opened;
        let Some((limit, packs)) = memory else { return Ok(*limits) };
        let footprint = footprint(self.pair(), *packs, pools[0].current_num_threads())?;
        let (_, memory) = memory_left(*limit, self.spec(), footprint, None)?;
        Ok(BatchLimits { memory: Some(memory), ..*limits })
    }

    /// Passes prompts in batches within the limits, which the devices share; `check` tells what is wrong with what came of one, `take`
    /// gets it in the order of the prompts.
    fn pass_each<P: TokenIds, T: Send>(
        &self,
        prompts: &[P],
        room: Room<'_>,
        observer: Observer<'_>,
        pass: impl Fn(&dyn AnyEngine, &[P], Observer<'_>) -> Result<Vec<T>> + Sync,
        check: impl Fn(&T) -> OfPrompt<()>,
        mut take: impl FnMut(OfPrompt<T>),
    ) -> Result<()> {
        self.check_prompts(prompts)?;
        let _turn = self.turn(observer)?;
        let opened = &*self.opened;
        let limits = self.limits(room.footprint)?;
        let warn = |text: &str| push(&opened.warnings, text);
        opened.engines.with_dependent(|_, engines| {
            let batches = batches(prompts, limits, room, engines[0].row_count());
            let take = |found: Result<T>| {
                let found = found.map_err(|error| RowError::out_of_memory(error.message));
                take(found.and_then(|found| check(&found).map(|()| found)));
            };
            let mut passing = Passing { batches: batches.into_iter(), take };
            let workers = Worker::of_each(engines, &opened.pools);
            let tokens = |prompt: &P| room.streams * prompt.token_ids().len() + room.new_tokens;
            queue::pass(&mut passing, &workers, |worker, batch: &&[P], unwanted| {
                // One that is too large for memory is alone in its batch.
                if let [prompt] = batch
                    && let Err(error) = limits.check(prompt.token_ids().len())
                {
                    return Ok(vec![Err(Error::new(ErrorKind::OutOfMemory, error.message))]);
                }
                let observer = |tokens: f64| match unwanted.load(Ordering::Relaxed) {
                    true => ControlFlow::Break(()),
                    false => observer(tokens),
                };
                worker.in_parts(batch, tokens, &warn, &observer, |engine, part, observer| {
                    pass(engine.as_ref(), part, observer)
                })
            })
        })
    }

    /// # Errors
    /// A usage error for the first prompt that cannot be passed.
    fn check_prompts<P: TokenIds>(&self, prompts: &[P]) -> Result<()> {
        let context = self.spec().context_length;
        for (index, prompt) in prompts.iter().map(TokenIds::token_ids).enumerate() {
            if prompt.is_empty() || prompt.len() > context {
                return Err(Error::usage(format!(
                    "prompt {index} has {} tokens, expected 1 to {context} (the tuned model's context)",
                    prompt.len()
                )));
            }
            self.check_ids(&format!("prompt {index}"), prompt)?;
        }
        Ok(())
    }

    fn check_ids(&self, what: &str, ids: &[u32]) -> Result<()> {
        self.encoder().check_range(ids).map_err(|error| Error::usage(format!("{what}: {}", error.message)))
    }

    /// Waits for earlier calls to end, unless the observer stops that.
    fn turn(&self, observer: Observer<'_>) -> Result<Turn<'_>> {
        self.check_process()?;
        self.opened.turns.take(observer)
    }

    /// # Errors
    /// In a forked process.
    fn check_process(&self) -> Result<()> {
        match self.is_forked() {
            false => Ok(()),
            true => Err(Error::usage(format!(
                "the pair was opened in process {}, and its threads do not survive a fork: open it in this process",
                self.opened.process
            ))),
        }
    }

    /// Whether this is a process that was forked off the one that opened the pair.
    pub fn is_forked(&self) -> bool {
        self.opened.process != std::process::id()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // In a forked process there are no threads to end and no device to give back; trying could wait for ever.
        if self.is_forked() {
            std::mem::forget(self.opened.clone());
        }
    }
}

fn of_scores(pair: &Pair, limits: PackLimits, threads: usize) -> Result<Footprint> {
    Ok(Footprint::of_score(pair, limits, threads))
}

fn check_finite<'a>(
    numbers: impl IntoIterator<Item = &'a f64>,
    error: impl FnOnce() -> RowError,
) -> OfPrompt<()> {
    match numbers.into_iter().all(|number| number.is_finite()) {
        true => Ok(()),
        false => Err(error()),
    }
}

/// Room for logits, all NaN. Those of many prompts may be more than memory holds.
fn not_numbers(shape: [usize; 3]) -> Result<Vec<f64>> {
    let [alphas, prompts, tokens] = shape;
    let no_memory = || {
        let message = format!(
            "there is no memory for {alphas} × {prompts} × {tokens} logits (alphas, prompts, tokens): ask for fewer prompts at a time, or for chosen tokens"
        );
        Error::new(ErrorKind::OutOfMemory, message)
    };
    let count =
        alphas.checked_mul(prompts).and_then(|rows| rows.checked_mul(tokens)).ok_or_else(no_memory)?;
    let mut values = Vec::new();
    values.try_reserve_exact(count).map_err(|_| no_memory())?;
    values.resize(count, f64::NAN);
    Ok(values)
}

fn overflow_under(alpha: f64) -> RowError {
    RowError::not_finite_logits(format_args!("under alpha {alpha}"))
}

fn push(warnings: &Mutex<Vec<String>>, text: &str) {
    lock(warnings).push(text.to_owned());
}
