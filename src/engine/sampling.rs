//! Which token comes next, given the logits.

use crate::{Error, Result};
use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use std::cmp::Ordering;

/// How the next token is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampling {
    /// The token with the largest logit, of equal ones the first.
    Greedy,
    /// A random token, with the probabilities that `softmax(logits / temperature)` gives those that are left by `top_k` and
    /// then by `top_p`, as in `transformers`.
    Random {
        temperature: f64,
        /// Only so many of the likeliest tokens; `None`: all.
        top_k: Option<usize>,
        /// Only the fewest of the likeliest tokens whose probabilities sum up to this; 1: all.
        top_p: f64,
    },
}

impl Sampling {
    /// Temperature 0 takes the likeliest token.
    ///
    /// # Errors
    /// A usage error for a parameter out of range, and for one that has no effect at temperature 0.
    pub fn new(temperature: f64, top_k: Option<usize>, top_p: f64) -> Result<Self> {
        Self::named(temperature, top_k, top_p, ["top_k", "top_p"])
    }

    /// [`Sampling::new`] for callers who have other names for `top_k` and `top_p`.
    ///
    /// # Errors
    /// As there; what has no effect is called by its name.
    pub fn named(
        temperature: f64,
        top_k: Option<usize>,
        top_p: f64,
        [k_name, p_name]: [&str; 2],
    ) -> Result<Self> {
        if temperature != 0.0 {
            let sampling = Self::Random { temperature, top_k, top_p };
            return sampling.check().map(|()| sampling);
        }
        let idle = if top_k.is_some() { Some(k_name) } else { (top_p != 1.0).then_some(p_name) };
        idle.map_or(Ok(Self::Greedy), |name| {
            Err(Error::usage(format!(
                "{name} has no effect at temperature 0, which takes the likeliest token; give a temperature too"
            )))
        })
    }

    /// # Errors
    /// A usage error for a parameter out of range.
    pub fn check(&self) -> Result<()> {
        let Sampling::Random { temperature, top_k, top_p } = *self else { return Ok(()) };
        let expected = |name: &str, value: &dyn std::fmt::Display, what: &str| {
            Err(Error::usage(format!("{name} is {value}, expected {what}")))
        };
        if !temperature.is_finite() || temperature <= 0.0 {
            return expected("temperature", &temperature, "a number above 0, or 0 for the likeliest token");
        }
        if top_k == Some(0) {
            return expected("top_k", &0, "a number from 1 on");
        }
        if !(top_p > 0.0 && top_p <= 1.0) {
            return expected("top_p", &top_p, "a number above 0 and up to 1");
        }
        Ok(())
    }

    /// The next token; `None` where logits are not numbers.
    pub fn choose(&self, logits: &[f64], random: &mut Draws) -> Option<u32> {
        let likeliest = (0..logits.len()).max_by(|a, b| by_logit(logits, *b, *a))?;
        if logits.iter().any(|logit| logit.is_nan()) || !logits[likeliest].is_finite() {
            return None;
        }
        let Sampling::Random { temperature, top_k, top_p } = *self else { return Some(likeliest as u32) };
        let weight = |token: usize| ((logits[token] - logits[likeliest]) / temperature).exp();
        let draw = random.next();
        let tokens = match (top_k, top_p < 1.0) {
            (None, false) => return Some(drawn(0..logits.len(), &weight, draw) as u32),
            (Some(k), false) => largest(logits, k),
            (Some(k), true) => nucleus(&largest(logits, k), &weight, top_p, None)?,
            (None, true) => {
                // The nucleus is small as a rule: more tokens are sorted only where these are not enough.
                let whole: f64 = (0..logits.len()).map(weight).sum();
                let sizes = [512, 8192, usize::MAX].into_iter();
                sizes.filter_map(|k| nucleus(&largest(logits, k), &weight, top_p, Some(whole))).next()?
            }
        };
        Some(drawn(tokens.into_iter(), &weight, draw) as u32)
    }
}

/// The larger logit first, of equal ones the first token.
fn by_logit(logits: &[f64], a: usize, b: usize) -> Ordering {
    logits[b].total_cmp(&logits[a]).then(a.cmp(&b))
}

/// The `count` likeliest tokens, sorted.
fn largest(logits: &[f64], count: usize) -> Vec<usize> {
    let mut tokens: Vec<usize> = (0..logits.len()).collect();
    if count < tokens.len() {
        tokens.select_nth_unstable_by(count, |a, b| by_logit(logits, *a, *b));
        tokens.truncate(count);
    }
    tokens.sort_unstable_by(|a, b| by_logit(logits, *a, *b));
    tokens
}

/// The fewest of the sorted tokens that have `share` of the `whole` weight, by default of all of theirs; `None` where they
/// have not so much.
fn nucleus(
    sorted: &[usize],
    weight: &impl Fn(usize) -> f64,
    share: f64,
    whole: Option<f64>,
) -> Option<Vec<usize>> {
    let own: f64 = sorted.iter().map(|token| weight(*token)).sum();
    let wanted = share * whole.unwrap_or(own);
    let mut sum = 0.0;
    for (index, token) in sorted.iter().enumerate() {
        sum += weight(*token);
        if sum >= wanted {
            return Some(sorted[..=index].to_vec());
        }
    }
    // Sums in another order may round below what is wanted.
    (whole.is_none() || own >= wanted * (1.0 - 1e-12)).then(|| sorted.to_vec())
}

/// The token at the share `draw` of the weights' sum.
fn drawn(tokens: impl Iterator<Item = usize> + Clone, weight: &impl Fn(usize) -> f64, draw: f64) -> usize {
    let mut left = draw * tokens.clone().map(weight).sum::<f64>();
    let mut last = 0;
    for token in tokens {
        let weight = weight(token);
        if weight == 0.0 {
            continue;
        }
        last = token;
        left -= weight;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// The random numbers of one completion: they depend on its seed and its number alone.
#[derive(Debug, Clone)]
pub struct Draws(ChaCha8Rng);

impl Draws {
    /// Those of a prompt's completion `sample`.
    pub fn new(seed: u64, sample: usize) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        random.set_stream(sample as u64);
        Self(random)
    }

    /// A number from 0 up to but not 1, in steps of 2⁻⁵³.
    fn next(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often each token comes in many draws.
    fn frequencies(sampling: Sampling, logits: &[f64]) -> Vec<f64> {
        const DRAWS: usize = 40_000;
        let mut counts = vec![0; logits.len()];
        let mut random = Draws::new(7, 3);
        for _ in 0..DRAWS {
            counts[sampling.choose(logits, &mut random).unwrap() as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / DRAWS as f64).collect()
    }

    #[track_caller]
    fn check(found: &[f64], expected: &[f64]) {
        for (found, expected) in found.iter().zip(expected) {
            // Four standard deviations of a share of 40000 draws.
            assert!(
                (found - expected).abs() <= 4.0 * (expected * (1.0 - expected) / 4e4).sqrt(),
                "{found} {expected}"
            );
        }
    }

    #[test]
    fn tokens_come_as_often_as_their_probabilities_say() {
        let logits: Vec<f64> = [0.1, 0.4, 0.2, 0.3f64].iter().map(|p| p.ln()).collect();
        let random = |temperature, top_k, top_p| Sampling::Random { temperature, top_k, top_p };
        check(&frequencies(random(1.0, None, 1.0), &logits), &[0.1, 0.4, 0.2, 0.3]);
        check(
            &frequencies(random(0.5, None, 1.0), &logits),
            &[1.0 / 30.0, 16.0 / 30.0, 4.0 / 30.0, 9.0 / 30.0],
        );
        check(&frequencies(random(1.0, Some(2), 1.0), &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        // 0.4 + 0.3 is not enough for 0.75, and of the first three 0.2 is left out of 0.75 of 0.9.
        check(&frequencies(random(1.0, None, 0.75), &logits), &[0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        check(&frequencies(random(1.0, Some(3), 0.75), &logits), &[0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        check(&frequencies(random(1.0, Some(9), 1e-9), &logits), &[0.0, 1.0, 0.0, 0.0]);
        assert_eq!(
            frequencies(Sampling::Greedy, &[1.0, 2.0, 2.0]),
            frequencies(random(1.0, Some(1), 1.0), &[1.0, 2.0, 2.0])
        );
    }

    #[test]
    fn a_nucleus_does_not_depend_on_how_many_tokens_were_sorted() {
        // So flat that 512 tokens are not enough.
        let logits: Vec<f64> = (0..3000).map(|i| f64::from(i * 577 % 3000) * 1e-4).collect();
        let mut sorted: Vec<usize> = (0..3000).collect();
        sorted.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]));
        let weights: Vec<f64> = logits.iter().map(|logit| logit.exp()).collect();
        let (mut sum, mut count) = (0.0, 0);
        while sum < 0.6 * weights.iter().sum::<f64>() {
            sum += weights[sorted[count]];
            count += 1;
        }
        let left = &sorted[..count];
        let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: 0.6 };
        let mut random = Draws::new(1, 0);
        assert!((0..500).all(|_| left.contains(&(sampling.choose(&logits, &mut random).unwrap() as usize))));
    }

    #[test]
    fn what_is_no_number_has_no_next_token() {
        let mut random = Draws::new(0, 0);
        assert_eq!(Sampling::Greedy.choose(&[0.0, f64::NAN], &mut random), None);
        assert_eq!(Sampling::Greedy.choose(&[0.0, f64::INFINITY], &mut random), None);
        assert_eq!(Sampling::Greedy.choose(&[f64::NEG_INFINITY, 0.0], &mut random), Some(1));
    }

    #[test]
    fn parameters_out_of_range_are_refused() {
        for (temperature, top_k, top_p) in [
            (0.0, None, 1.0),
            (-1.0, None, 1.0),
            (f64::NAN, None, 1.0),
            (1.0, Some(0), 1.0),
            (1.0, None, 0.0),
            (1.0, None, 1.1),
        ] {
            assert!(Sampling::Random { temperature, top_k, top_p }.check().is_err());
        }
        assert!(Sampling::Random { temperature: 0.7, top_k: Some(1), top_p: 1.0 }.check().is_ok());
    }
}
