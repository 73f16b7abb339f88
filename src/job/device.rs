//! `--device`: what computes, and why.

use super::MachineOptions;
#[cfg(any(feature = "cuda", feature = "sim"))]
use super::memory::Size;
#[cfg(any(feature = "cuda", feature = "sim"))]
use crate::backend::cuda::{ContextPrecision, Cuda, Kernels, kernel_dim};
use crate::{
    Error, Result,
    backend::{cpu::Cpu, reference::Reference},
    checkpoint::Pair,
    engine::{AnyEngine, Engine, PackLimits},
    model::PairWeights,
};
use clap::ValueEnum;
use std::str::FromStr;

/// What to compute with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Device {
    /// The first GPU, or the CPU where there is none.
    #[default]
    Auto,
    Cpu,
    Reference,
    /// GPUs by their numbers: one, or several that share the work.
    Cuda(Vec<usize>),
    /// Simulated GPUs, for tests.
    Sim(Vec<usize>),
}

impl Device {
    /// The devices one by one.
    fn each(&self) -> Vec<Self> {
        match self {
            Device::Cuda(ordinals) => ordinals.iter().map(|ordinal| Device::Cuda(vec![*ordinal])).collect(),
            Device::Sim(ordinals) => ordinals.iter().map(|ordinal| Device::Sim(vec![*ordinal])).collect(),
            device => vec![device.clone()],
        }
    }

    /// # Errors
    /// A usage error where there are several.
    pub fn check_is_one(&self) -> Result<()> {
        match self.each().len() {
            1 => Ok(()),
            _ => Err(Error::usage(format!("--device {self}: expected one device"))),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':').unwrap_or((text, "0")) {
            ("cuda", list) => ordinals(list).map(Device::Cuda),
            ("sim", list) => ordinals(list).map(Device::Sim),
            _ if text == "auto" => Ok(Device::Auto),
            _ if text == "cpu" => Ok(Device::Cpu),
            _ if text == "reference" => Ok(Device::Reference),
            _ => Err(EXPECTED.into()),
        }
    }
}

const EXPECTED: &str = "expected auto, cpu, cuda, cuda:N, cuda:N,M,… or reference";

/// The numbers of devices, each once.
fn ordinals(list: &str) -> Result<Vec<usize>, String> {
    let ordinals: Option<Vec<usize>> = list.split(',').map(|ordinal| ordinal.parse().ok()).collect();
    let ordinals = ordinals.ok_or(EXPECTED)?;
    match ordinals.iter().enumerate().find(|(index, ordinal)| ordinals[..*index].contains(ordinal)) {
        None => Ok(ordinals),
        Some((_, twice)) => Err(format!("device {twice} is named twice")),
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let list = |ordinals: &[usize]| ordinals.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Reference => f.write_str("reference"),
            Device::Cuda(ordinals) => write!(f, "cuda:{}", list(ordinals)),
            Device::Sim(ordinals) => write!(f, "sim:{}", list(ordinals)),
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

/// A backend that can start.
pub enum Computer {
    Cpu(Cpu),
    Reference(Reference),
    #[cfg(any(feature = "cuda", feature = "sim"))]
    Cuda(Box<Cuda>),
}

impl Computer {
    /// An engine that computes on it.
    pub fn engine<'a>(&'a self, weights: &'a dyn PairWeights) -> Box<dyn AnyEngine + 'a> {
        match self {
            Self::Cpu(cpu) => Box::new(Engine::new(cpu, weights)),
            Self::Reference(reference) => Box::new(Engine::new(reference, weights)),
            #[cfg(any(feature = "cuda", feature = "sim"))]
            Self::Cuda(cuda) => Box::new(Engine::new(cuda.as_ref(), weights)),
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
    /// [`ErrorKind::Usage`](crate::ErrorKind): this program was built without what is asked for, or several devices are asked
    /// for; [`ErrorKind::Device`](crate::ErrorKind): there is no such GPU, or it cannot be used.
    pub fn choose(machine: &MachineOptions, pair: &dyn PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        machine.device.check_is_one()?;
        Self::open(&machine.device, machine, pair, tell)
    }

    fn open(
        device: &Device,
        machine: &MachineOptions,
        pair: &dyn PairWeights,
        tell: &dyn Fn(&str),
    ) -> Result<Self> {
        match device {
            Device::Cpu => Ok(Self::Cpu(Cpu::new())),
            Device::Reference => Ok(Self::Reference(Reference)),
            Device::Auto => Self::best(machine, pair, tell),
            Device::Cuda(ordinals) => Self::cuda(ordinals[0], machine, pair, tell),
            Device::Sim(_) => Self::simulator(machine, pair, tell),
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
    fn best(machine: &MachineOptions, pair: &dyn PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        Self::cuda(0, machine, pair, tell).or_else(|error| {
            tell(&format!("device: cpu ({error})"));
            Ok(Self::Cpu(Cpu::new()))
        })
    }

    #[cfg(not(feature = "cuda"))]
    fn best(_: &MachineOptions, _: &dyn PairWeights, _: &dyn Fn(&str)) -> Result<Self> {
        Ok(Self::Cpu(Cpu::new()))
    }

    #[cfg(feature = "cuda")]
    fn cuda(
        ordinal: usize,
        machine: &MachineOptions,
        pair: &dyn PairWeights,
        tell: &dyn Fn(&str),
    ) -> Result<Self> {
        // Before a run has begun.
        kernel_dim(pair.spec().ft.head_dim)?;
        let precision = context_precision(machine, pair);
        fitted(Cuda::open(ordinal, precision, machine.kernels.kernels())?, machine, pair, tell)
    }

    #[cfg(not(feature = "cuda"))]
    fn cuda(_: usize, _: &MachineOptions, _: &dyn PairWeights, _: &dyn Fn(&str)) -> Result<Self> {
        Err(Error::usage("--device cuda: this program was built without it; build with `--features cuda`"))
    }

    #[cfg(feature = "sim")]
    fn simulator(machine: &MachineOptions, pair: &dyn PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        kernel_dim(pair.spec().ft.head_dim)?;
        let kernels = machine.kernels.kernels().unwrap_or(Kernels::Sm90a);
        fitted(Cuda::simulated(context_precision(machine, pair), kernels), machine, pair, tell)
    }

    #[cfg(not(feature = "sim"))]
    fn simulator(_: &MachineOptions, _: &dyn PairWeights, _: &dyn Fn(&str)) -> Result<Self> {
        Err(Error::usage("--device sim: this program was built without it; build with `--features sim`"))
    }
}

/// One device, or several of one kind that share batches.
pub struct Computers(Vec<Computer>);

impl Computers {
    /// Chooses what the flags mean for `pair`; `tell` hears what it is and why.
    ///
    /// # Errors
    /// As [`Computer::choose`]; a usage error where devices are of different kinds.
    pub fn choose(machine: &MachineOptions, pair: &dyn PairWeights, tell: &dyn Fn(&str)) -> Result<Self> {
        let each = machine.device.each();
        let open = |device: &Device| Computer::open(device, machine, pair, tell);
        let computers = each.iter().map(open).collect::<Result<Vec<Computer>>>()?;
        let first = computers[0].name();
        match each.iter().zip(&computers).find(|(_, other)| other.name() != first) {
            None => Ok(Self(computers)),
            Some((device, other)) => Err(Error::usage(format!(
                "--device {}: {} is {first}, but {device} is {}: they round in different ways, name devices of one kind",
                machine.device,
                each[0],
                other.name()
            ))),
        }
    }

    /// An engine of each; `limits` are those of packs, where memory is limited.
    pub fn engines<'a>(&'a self, pair: &'a Pair, limits: Option<PackLimits>) -> Vec<Box<dyn AnyEngine + 'a>> {
        let engine = |computer: &'a Computer| {
            let mut engine = computer.engine(pair);
            limits.iter().for_each(|limits| engine.set_limits(*limits));
            engine
        };
        self.0.iter().map(engine).collect()
    }

    /// As the manifest names them: what decides about bits.
    pub fn name(&self) -> String {
        self.0[0].name()
    }

    /// Whether it is the CPU, with the fast backend.
    pub fn is_cpu(&self) -> bool {
        matches!(self.0[0], Computer::Cpu(_))
    }

    /// How many devices.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

#[cfg(any(feature = "cuda", feature = "sim"))]
fn context_precision(machine: &MachineOptions, pair: &dyn PairWeights) -> ContextPrecision {
    match machine.context_precision {
        Precision::Auto => ContextPrecision::for_model(pair.spec().ft.hidden_size),
        Precision::Bfloat16 => ContextPrecision::Bfloat16,
        Precision::Float32 => ContextPrecision::Float32,
    }
}

/// Decides whether the weights stay on the device, and tells what the device is.
#[cfg(any(feature = "cuda", feature = "sim"))]
fn fitted(
    cuda: Cuda,
    machine: &MachineOptions,
    pair: &dyn PairWeights,
    tell: &dyn Fn(&str),
) -> Result<Computer> {
    let (resident, why) = match machine.resident {
        Resident::On => (true, String::new()),
        Resident::Off => (false, String::new()),
        Resident::Auto => {
            let bytes = Cuda::resident_bytes(pair, context_precision(machine, pair));
            let (free, _) = cuda.memory()?;
            // A fifth of the memory is left for rows, and for an unembedding of its own where logits are asked for.
            if bytes <= free / 5 * 4 {
                (true, String::new())
            } else {
                let [bytes, free] = [bytes, free].map(|bytes| Size(bytes as u64));
                (false, format!(": {bytes} would take more than four fifths of the {free} that are free"))
            }
        }
    };
    let cuda = cuda.with_resident_weights(resident);
    tell(&format!("device: {cuda}{why}"));
    Ok(Computer::Cuda(Box::new(cuda)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_read_and_written_alike() {
        let several = [Device::Cuda(vec![3]), Device::Cuda(vec![2, 0]), Device::Sim(vec![0, 1])];
        for device in [Device::Auto, Device::Cpu, Device::Reference].into_iter().chain(several) {
            assert_eq!(device.to_string().parse(), Ok(device));
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(vec![0])));
        for wrong in ["", "gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:-1", "cpu:0", "auto:0", "cuda:0,cuda:1"]
        {
            assert_eq!(wrong.parse::<Device>(), Err(EXPECTED.into()), "{wrong}");
        }
        assert_eq!("cuda:1,0,1".parse::<Device>(), Err("device 1 is named twice".into()));
    }

    #[cfg(any(feature = "cuda", feature = "sim"))]
    #[test]
    fn weights_that_stay_are_layers_and_the_embedding() {
        use crate::experiment::shapes::{RandomPair, VOCABULARY, shape};
        let (_, spec) = shape("smollm2-135m").unwrap();
        let elements = spec.all_layer_tensors().map(|(layer, tensor)| tensor.elements(&spec, layer));
        let keys = spec.num_hidden_layers * spec.key_width() * spec.hidden_size;
        let elements = 2 * elements.sum::<usize>() + VOCABULARY * spec.hidden_size;
        let pair = RandomPair::new(spec, None);
        for (context, planes) in [(ContextPrecision::Bfloat16, 1), (ContextPrecision::Float32, 3)] {
            assert_eq!(Cuda::resident_bytes(&pair, context), 2 * (elements + planes * keys));
        }
    }

    #[cfg(any(feature = "cuda", feature = "sim"))]
    #[test]
    fn a_model_and_its_adapter_take_the_memory_of_one_model() {
        use crate::{
            checkpoint::{Pair, Reading, Side},
            twin::Twin,
        };
        use std::path::Path;
        let bytes_of = |case: &str, adapter: bool| {
            let case = Path::new("tests/golden").join(case);
            let side = |adapter: bool| Side {
                model: case.join("base"),
                adapter: adapter.then(|| case.join("adapter")),
            };
            let sides = Twin::new(side(false), side(adapter));
            let pair = Pair::open_sides(&sides, Reading::default()).unwrap();
            Cuda::resident_bytes(&pair, ContextPrecision::Bfloat16) as f64
        };
        // Small matrices beside which the adapter's rank is large.
        let ratio = |case| bytes_of(case, true) / bytes_of(case, false);
        assert!((1.01..1.5).contains(&ratio("lora_light")), "{}", ratio("lora_light"));
        // Rows that are scaled are merged.
        assert!(ratio("lora_dora") > 1.7, "{}", ratio("lora_dora"));
    }
}
