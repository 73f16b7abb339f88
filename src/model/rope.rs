//! Rotary position embeddings: frequencies and tables, as `transformers` computes them (modeling_rope_utils.py).
//!
//! `transformers` takes angles in float32 whatever the model's dtype, so these tables do too: the angle of position
//! 4000 is not the same number in float32 and float64, and the reference is what models were trained with.

/// How positions beyond the original training length are squeezed (`rope_type`).
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    Default,
    Linear {
        factor: f64,
    },
    /// NTK scaling that depends on the length of the prompt, beyond `max_position_embeddings`.
    Dynamic {
        factor: f64,
        max_position_embeddings: usize,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: f64,
    },
    Yarn {
        factor: f64,
        attention_factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        truncate: bool,
        original_max_position_embeddings: f64,
    },
    /// A factor for each frequency; prompts longer than the original length have other ones.
    LongRope {
        short_factor: Vec<f32>,
        long_factor: Vec<f32>,
        attention_factor: f64,
        original_max_position_embeddings: usize,
    },
}

/// The rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub rope_theta: f64,
    pub scaling: RopeScaling,
    /// Dimensions of a head that are rotated.
    pub rotary_dim: usize,
}

/// Cosines and sines of a range of positions: row-major `[positions, rotary_dim / 2]`, float32.
#[derive(Debug, Clone)]
pub struct RopeTable {
    pub half_dim: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

impl RopeTable {
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half_dim
    }

    /// Cosines and sines of position `position`, `half_dim` each.
    pub fn row(&self, position: usize) -> (&[f32], &[f32]) {
        let range = position * self.half_dim..(position + 1) * self.half_dim;
        (&self.cos[range.clone()], &self.sin[range])
    }
}

impl Rope {
    /// The prompt length that selects the frequencies: one value for all lengths that share a table.
    pub fn table_length(&self, sequence_length: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { max_position_embeddings, .. } => {
                sequence_length.max(max_position_embeddings)
            }
            RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
                (original + 1) * usize::from(sequence_length > original)
            }
            _ => 0,
        }
    }

    /// Tables for positions `0..positions` of a prompt of `sequence_length` tokens.
    pub fn table(&self, positions: usize, sequence_length: usize) -> RopeTable {
        let frequencies = self.inverse_frequencies(sequence_length);
        let scale = self.attention_factor() as f32;
        let half_dim = frequencies.len();
        let mut cos = Vec::with_capacity(positions * half_dim);
        let mut sin = Vec::with_capacity(positions * half_dim);
        for position in 0..positions {
            for frequency in &frequencies {
                // The angle is rounded to float32, its cosine taken exactly and then rounded.
                let angle = f64::from(position as f32 * frequency);
                cos.push(angle.cos() as f32 * scale);
                sin.push(angle.sin() as f32 * scale);
            }
        }
        RopeTable { half_dim, cos, sin }
    }

    /// What YaRN and LongRoPE multiply cosines and sines with.
    fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// `theta^(-2i/dim)` and its scaling, `rotary_dim / 2` values.
    fn inverse_frequencies(&self, sequence_length: usize) -> Vec<f32> {
        let dim = self.rotary_dim;
        let plain = |theta: f64| -> Vec<f32> {
            (0..dim / 2).map(|i| 1.0 / (theta.powf(f64::from(2.0 * i as f32 / dim as f32)) as f32)).collect()
        };
        let base = plain(self.rope_theta);
        match self.scaling {
            RopeScaling::Default => base,
            RopeScaling::Linear { factor } => base.iter().map(|f| f / factor as f32).collect(),
            RopeScaling::Dynamic { factor, max_position_embeddings } => {
                let longest = max_position_embeddings as f64;
                let stretch = factor * (sequence_length as f64).max(longest) / longest - (factor - 1.0);
                plain(self.rope_theta * stretch.powf(dim as f64 / (dim as f64 - 2.0)))
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let original = original_max_position_embeddings;
                let scaled = |frequency: f32| {
                    let wavelength = std::f64::consts::TAU / f64::from(frequency);
                    if wavelength < original / high_freq_factor {
                        f64::from(frequency)
                    } else if wavelength > original / low_freq_factor {
                        f64::from(frequency) / factor
                    } else {
                        let smooth =
                            (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        ((1.0 - smooth) / factor + smooth) * f64::from(frequency)
                    }
                };
                base.into_iter().map(|frequency| scaled(frequency) as f32).collect()
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                truncate,
                original_max_position_embeddings,
                ..
            } => {
                let correction_dim = |rotations: f64| {
                    dim as f64 * (original_max_position_embeddings / (rotations * std::f64::consts::TAU)).ln()
                        / (2.0 * self.rope_theta.ln())
                };
                let (mut low, mut high) = (correction_dim(beta_fast), correction_dim(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    high += 0.001;
                }
                let blend = |(i, frequency): (usize, f32)| {
                    let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    let frequency = f64::from(frequency);
                    (frequency / factor * interpolated + frequency * (1.0 - interpolated)) as f32
                };
                base.into_iter().enumerate().map(blend).collect()
            }
            RopeScaling::LongRope {
                ref short_factor,
                ref long_factor,
                original_max_position_embeddings: original,
                ..
            } => {
                let factors = if sequence_length > original { long_factor } else { short_factor };
                let theta = self.rope_theta;
                let frequency = |(i, factor): (usize, &f32)| {
                    1.0 / (factor * theta.powf(f64::from(2.0 * i as f32 / dim as f32)) as f32)
                };
                factors.iter().enumerate().map(frequency).collect()
            }
        }
    }
}
