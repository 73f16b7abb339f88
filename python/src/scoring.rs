//! Scores of many prompts, some at a time.

use crate::scores::{Asked, Outcome, Scored};
use tuco::{
    Session,
    engine::{Observer, Score},
    metrics,
    prompt::{Encoded, RowError},
    twin::Branch,
};

/// Prompts of some batches together: what is known of them but not asked for is dropped before the next ones are scored, since a hidden
/// state of each of a million prompts, or norms of each of their tokens, are no small things.
pub fn parts<'p, 'e>(prompts: &'p [&'e Encoded], asked: Asked) -> impl Iterator<Item = &'p [&'e Encoded]> {
    let most: usize = if asked.all_tokens { 1 << 15 } else { 1 << 19 };
    let mut rest = prompts;
    std::iter::from_fn(move || {
        let mut sum = 0;
        let fits = |prompt: &&&Encoded| {
            sum += prompt.token_ids.len();
            sum <= most
        };
        let (part, later) = rest.split_at_checked(rest.iter().take_while(fits).count().max(1))?;
        rest = later;
        Some(part)
    })
}

/// Scores some of the prompts.
pub fn score_part(
    session: &Session,
    prompts: &[&Encoded],
    asked: Asked,
    observer: Observer<'_>,
) -> tuco::Result<Vec<Outcome>> {
    let ids: Vec<&[u32]> = prompts.iter().map(|encoded| encoded.token_ids.as_slice()).collect();
    let scores = session.score(&ids, observer)?;
    let base = asked.output_co.then(|| session.last_hidden(Branch::Pt, &ids, observer)).transpose()?;
    let traces = asked.all_tokens.then(|| session.trace(&ids, observer)).transpose()?;
    let (mut base, mut traces) = (base.into_iter().flatten(), traces.into_iter().flatten());
    let outcome = |(encoded, score): (&&Encoded, Result<Score, RowError>)| -> Outcome {
        // Of each the next, whatever the others are.
        let (base, trace) = (base.next(), traces.next());
        let score = score?;
        let output_co = base.transpose()?.map(|base| metrics::output_co(&base, &score.last_hidden));
        Ok(Scored::new(encoded, &score, output_co, trace.transpose()?.as_ref(), asked))
    };
    Ok(prompts.iter().zip(scores).map(outcome).collect())
}
