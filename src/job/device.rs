//! `--device`: what computes, and why.

use super::MachineOptions;
#[cfg(any(feature = "cuda", feature = "sim"))]
use crate::backend::cuda::{ContextPrecision, Cuda, Kernels};
use crate::{
    Result,
    backend::{Backend, cpu::Cpu, reference::Reference},
    model::PairWeights,
};
use clap::ValueEnum;
use std::str::FromStr;

/// What to compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, or the CPU where there is none.
    #[default]
    Auto,
    Cpu,
    Reference,
    /// A GPU by its number.
    Cuda(usize),
    /// The simulator of GPUs, for tests.
    Sim,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse().ok().map(Device::Cuda);
        match text {
            "auto" => Some(Device::Auto),
            "cpu" => Some(Device::Cpu),
            "reference" => Some(Device::Reference),
            "cuda" => Some(Device::Cuda(0)),
            "sim" => Some(Device::Sim),
            other => other.strip_prefix("cuda:").and_then(number),
        }
        .ok_or_else(|| "expected auto, cpu, cuda, cuda:N or reference".into())
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Reference => f.write_str("reference"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Sim => f.write_str("sim"),
        }
    }
}

/// What GPUs round the context's rows to where they go into products.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// bfloat16 for models of 1024 dimensions or more
    #[default]
    Auto,
    Bfloat16,
    Float32,
}

/// Whether weights stay in a GPU's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Resident {
    /// If both models fit
    #[default]
    Auto,
    On,
    Off,
}

/// Which of the kernels in this program a GPU runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum KernelTarget {
    /// the newest that the GPU runs
    #[default]
    Auto,
    /// those for every GPU from compute capability 8.0 on
    #[value(name = "sm_80")]
    Sm80,
    /// those for Hopper
    #[value(name = "sm_90a")]
    Sm90a,
}

#[cfg(any(feature = "cuda", feature = "sim"))]
impl KernelTarget {
    /// `None`: the newest that there are.
    fn kernels(self) -> Option<Kernels> {
        match self {
            KernelTarget::Auto => None,
            KernelTarget::Sm80 => Some(Kernels::Sm80),
            KernelTarget::Sm90a => Some(Kernels::Sm90a),
        }
    }
}

/// Something that any backend can do.
pub trait Work {
    type Output;

    fn on<B: Backend>(self, backend: &B) -> Self::Output;
}

/// A backend that can start.
pub enum Computer {
    Cpu(Cpu),
    Reference(Reference),
    #[cfg(any(feature = "cuda", feature = "sim"))]
    Cuda(Box<Cuda>),
}

impl Computer {
    pub fn run<W: Work>(&self, work: W) -> W::Output {
        match self {
            Self::Cpu(cpu) => work.on(cpu),
            Self::Reference(reference) => work.on(reference),
            #[cfg(any(feature = "cuda", feature = "sim"))]
            Self::Cuda(cuda) => work.on(cuda.as_ref()),
        }
    }

    /// The same, with the time of every kernel taken where there are some.
    pub fn profiled(self) -> Self {
        match self {
            #[cfg(any(feature = "cuda", feature = "sim"))]
            Self::Cuda(cuda) => Self::Cuda(Box::new(cuda.profiled())),
            other => other,
        }
    }

    /// Chooses what the flags mean for `pair`; `tell` hears what it is and why.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`](crate::ErrorKind): this program was built without what is asked for;
    /// [`ErrorKind::Device`](crate::ErrorKind): there is no such GPU, or it cannot be used.
    pub fn choose(machine: &MachineOptions, pair: &impl PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        match machine.device {
            Device::Cpu => Ok(Self::Cpu(Cpu::new())),
            Device::Reference => Ok(Self::Reference(Reference)),
            Device::Auto => Self::best(machine, pair, tell),
            Device::Cuda(ordinal) => Self::cuda(ordinal, machine, pair, tell),
            Device::Sim => Self::simulator(machine, pair),
        }
    }

    /// For people: what computes.
    pub fn describe(&self) -> String {
        match self {
            #[cfg(any(feature = "cuda", feature = "sim"))]
            Self::Cuda(cuda) => cuda.to_string(),
            other => other.name(),
        }
    }

    /// As the manifest names it: what decides about bits.
    pub fn name(&self) -> String {
        match self {
            Self::Cpu(_) => "cpu".into(),
            Self::Reference(_) => "reference".into(),
            #[cfg(any(feature = "cuda", feature = "sim"))]
            Self::Cuda(cuda) => cuda.numerics(),
        }
    }

    #[cfg(feature = "cuda")]
    fn best(machine: &MachineOptions, pair: &impl PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        Self::cuda(0, machine, pair, tell).or_else(|error| {
            tell(&format!("device: cpu ({error})"));
            Ok(Self::Cpu(Cpu::new()))
        })
    }

    #[cfg(not(feature = "cuda"))]
    fn best(_: &MachineOptions, _: &impl PairWeights, _: &dyn Fn(&str)) -> Result<Self> {
        Ok(Self::Cpu(Cpu::new()))
    }

    #[cfg(feature = "cuda")]
    fn cuda(
        ordinal: usize,
        machine: &MachineOptions,
        pair: &impl PairWeights,
        tell: &dyn Fn(&str),
    ) -> Result<Self> {
        let precision = context_precision(machine, pair);
        let cuda = fitted(Cuda::open(ordinal, precision, machine.kernels.kernels())?, machine, pair)?;
        tell(&format!("device: {cuda}"));
        Ok(Self::Cuda(Box::new(cuda)))
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: usize, _: &MachineOptions, _: &impl PairWeights, _: &dyn Fn(&str)) -> Result<Self> {
        Err(crate::Error::usage(
            "--device cuda: this program was built without it; build with `--features cuda`",
        ))
    }

    #[cfg(feature = "sim")]
    fn simulator(machine: &MachineOptions, pair: &impl PairWeights) -> Result<Self> {
        let kernels = machine.kernels.kernels().unwrap_or(Kernels::Sm90a);
        let cuda = fitted(Cuda::simulated(context_precision(machine, pair), kernels), machine, pair)?;
        Ok(Self::Cuda(Box::new(cuda)))
    }

    #[cfg(not(feature = "sim"))]
    fn simulator(_: &MachineOptions, _: &impl PairWeights) -> Result<Self> {
        Err(crate::Error::usage(
            "--device sim: this program was built without it; build with `--features sim`",
        ))
    }
}

#[cfg(any(feature = "cuda", feature = "sim"))]
fn context_precision(machine: &MachineOptions, pair: &impl PairWeights) -> ContextPrecision {
    match machine.context_precision {
        Precision::Auto => ContextPrecision::for_model(pair.spec().ft.hidden_size),
        Precision::Bfloat16 => ContextPrecision::Bfloat16,
        Precision::Float32 => ContextPrecision::Float32,
    }
}

/// Decides whether the weights stay on the device.
#[cfg(any(feature = "cuda", feature = "sim"))]
fn fitted(cuda: Cuda, machine: &MachineOptions, pair: &impl PairWeights) -> Result<Cuda> {
    let resident = match machine.resident {
        Resident::On => true,
        Resident::Off => false,
        // A fifth of the memory is left for rows.
        Resident::Auto => pair.layer_bytes_in_bf16() <= cuda.memory()?.0 / 5 * 4,
    };
    Ok(cuda.with_resident_weights(resident))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        for device in [Device::Auto, Device::Cpu, Device::Reference, Device::Cuda(3), Device::Sim] {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        assert!("gpu".parse::<Device>().is_err() && "cuda:x".parse::<Device>().is_err());
    }
}
