//! `--max-memory`: what batches may take, so that the process stays below it.

use super::{Computers, Device};
use crate::{
    Error, Result,
    backend::PACK_ROOM,
    checkpoint::Reading,
    engine::{Batched, Footprint, PackLimits},
    experiment::filling::Memory,
    model::ModelSpec,
};
use clap::Args;
use std::{fmt, str::FromStr};

/// A prompt of so many tokens has to fit.
const LEAST_TOKENS: usize = 256;

/// What is in use before the first batch differs from start to start by 1 or 2 MiB: what is told to be enough has to be so the next
/// time too.
const STARTS_DIFFER: u64 = 4 << 20;

/// How much memory.
#[derive(Debug, Clone, Copy, Default, Args)]
#[command(next_help_heading = "Machine")]
pub struct MemoryOptions {
    /// On the CPU: the most memory that the process may have in use, the weights that are mapped included (512M, 16G). Weights are
    /// read layer by layer, once a batch, and batches are made to fit
    #[arg(long, value_name = "SIZE", env = "TUCO_MAX_MEMORY")]
    pub max_memory: Option<Size>,
}

impl MemoryOptions {
    /// How weights are read, `reading` being what else is to be thought of; to be called before any is.
    pub fn reading(&self, reading: Reading) -> Reading {
        if self.max_memory.is_some() {
            give_back_what_is_freed();
        }
        Reading { lets_go: self.max_memory.is_some(), ..reading }
    }

    /// # Errors
    /// A usage error for a device that it is not for.
    pub fn check(&self, computers: &Computers, device: &Device) -> Result<()> {
        match self.max_memory {
            Some(_) if !computers.is_cpu() => {
                Err(Error::usage(format!("--max-memory is for --device cpu, not for {device}")))
            }
            _ => Ok(()),
        }
    }

    /// Divides what there is, if it is limited, between what is in memory already, what any batch takes and what this leaves for its rows.
    /// `footprint` tells the second, with packs of given limits.
    ///
    /// # Errors
    /// A usage error that says the least that would do and what takes it.
    pub fn divide(
        &self,
        spec: &ModelSpec,
        footprint: impl Fn(PackLimits) -> Result<Footprint>,
    ) -> Result<Option<(PackLimits, Memory)>> {
        let divided = |limit| divide(limit, spec, footprint, Some(InMemory::read()?.most));
        self.max_memory.map(divided).transpose()
    }

    /// [`MemoryOptions::divide`], whatever was in memory before.
    ///
    /// # Errors
    /// The same.
    pub fn divide_now(
        &self,
        spec: &ModelSpec,
        footprint: impl Fn(PackLimits) -> Result<Footprint>,
    ) -> Result<Option<(PackLimits, Memory)>> {
        self.max_memory.map(|limit| divide(limit, spec, footprint, None)).transpose()
    }

    /// What to tell in the end, if memory is limited.
    ///
    /// # Errors
    /// Where the system does not tell.
    pub fn closing(&self) -> Result<Option<String>> {
        let told =
            |limit| Ok(format!("{} of memory were in use at most, of {limit}", InMemory::read()?.most));
        self.max_memory.map(told).transpose()
    }
}

/// An amount of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let power = match unit.trim().to_ascii_uppercase().trim_end_matches('B').trim_end_matches('I') {
            "K" => 1,
            "M" => 2,
            "G" => 3,
            "T" => 4,
            _ => 0,
        };
        match number.parse::<f64>() {
            Ok(number) if power > 0 && number > 0.0 => Ok(Self((number * 1024f64.powi(power)) as u64)),
            _ => Err("expected a number with K, M, G or T (512M, 1.5G), powers of 1024 bytes".into()),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Rounded up, so that what is told to be enough is.
        match self.0.div_ceil(1 << 20) {
            mebibytes @ 0..10_240 => write!(f, "{mebibytes}M"),
            mebibytes => write!(f, "{:.1}G", (mebibytes as f64 / 102.4).ceil() / 10.0),
        }
    }
}

/// What this process has in memory, and the most that it had.
#[derive(Debug, Clone, Copy)]
struct InMemory {
    now: Size,
    most: Size,
}

impl InMemory {
    /// # Errors
    /// A usage error where the system does not tell.
    fn read() -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kibibytes = line.trim_start_matches(':').trim().strip_suffix(" kB")?;
            Some(Size(kibibytes.parse::<u64>().ok()? << 10))
        };
        match (field("VmRSS"), field("VmHWM")) {
            (Some(now), Some(most)) => Ok(Self { now, most }),
            _ => Err(Error::usage(
                "--max-memory needs /proc/self/status of Linux, which tells what a process has in memory",
            )),
        }
    }
}

/// From this size on memory goes back to the system when it is freed.
const GIVEN_BACK: usize = 256 << 10;

/// Lets freed matrices go back to the system at once. As it is, glibc keeps them for the next ones, whose sizes are others: what
/// is in memory would be half as much again as what is used.
fn give_back_what_is_freed() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: a setting of the allocator, which takes it at any time.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, GIVEN_BACK as libc::c_int);
    }
}

/// See [`MemoryOptions::divide`]; `opened` is what opening the pair took, if that counts too.
fn divide(
    limit: Size,
    spec: &ModelSpec,
    footprint: impl Fn(PackLimits) -> Result<Footprint>,
    opened: Option<Size>,
) -> Result<(PackLimits, Memory)> {
    let (spare, _) = left(limit, spec, footprint(PackLimits::for_model(spec, (0, PACK_ROOM.1)))?, opened)?;
    let limits = PackLimits::for_model(spec, (PACK_ROOM.0.min(spare / 4), PACK_ROOM.1));
    let (_, memory) = left(limit, spec, footprint(limits)?, opened)?;
    Ok((limits, memory))
}

/// What batches may take of `limit`, and how much of it they need not.
///
/// # Errors
/// As [`MemoryOptions::divide`].
pub fn left(
    limit: Size,
    spec: &ModelSpec,
    footprint: Footprint,
    opened: Option<Size>,
) -> Result<(usize, Memory)> {
    let InMemory { now, .. } = InMemory::read()?;
    let [weights, threads] = footprint.fixed();
    let tokens = LEAST_TOKENS.min(spec.context_length);
    let least = footprint.bytes(Batched::alone(tokens));
    let needed = (now.0 + least as u64).max(opened.map_or(0, |opened| opened.0));
    if needed > limit.0 {
        let enough = Size(needed + STARTS_DIFFER);
        return Err(Error::usage(format!(
            "--max-memory {limit} is too little, the least is {enough}: {now} are in use once the pair is open{}, {} are for the \
             weights of a layer, {} for threads, {} for a prompt of {tokens} tokens",
            opened.map_or_else(String::new, |opened| format!(" ({opened} were needed to open it)")),
            Size(weights as u64),
            Size(threads as u64),
            Size((least - weights - threads) as u64),
        )));
    }
    let most = (limit.0 - now.0) as usize;
    Ok((most - least, Memory { most, footprint }))
}
