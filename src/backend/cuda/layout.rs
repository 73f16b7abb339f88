//! Where the rows of sequences lie, as kernels read it.

use super::{
    args::{Address, AttentionTile, TwinRow},
    device::{Buffer, Device},
};
use crate::{
    Result,
    backend::{RopeOf, Rows, Sequence},
    model::RopeTable,
    twin::Branch,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Tokens that twin rows' attention averages at a time (`twin_attend.cuh`).
pub const TOKEN_STEP: usize = 32;

/// Sequences as the device knows them; without buffers after a failure.
pub struct CudaLayout {
    pub rows: Option<LayoutRows>,
}

pub struct LayoutRows {
    context: RowMap,
    twin: RowMap,
    /// Of each rotary table of each branch, the addresses for every sequence.
    tables: HashMap<(Branch, usize), Tables>,
    /// Rows of the paths of all sequences, one after the other.
    pub path_rows: Buffer,
    /// The context's queries in tiles of 64 and of 128.
    pub tiles: Tiles,
    pub double_tiles: Tiles,
    /// Pairs of a context row and a token that it sees, but for windows.
    pub context_pairs: f64,
    pub twin_rows: Buffer,
    pub twin_count: usize,
    /// The most tokens that a twin row may see, those of all together, and these with every row's rounded up to [`TOKEN_STEP`].
    pub most_tokens: usize,
    pub all_tokens: usize,
    pub score_tokens: usize,
}

/// Queries of sequences in pieces, those that see most first, so that they do not end last.
pub struct Tiles {
    pub buffer: Buffer,
    pub count: usize,
}

impl Tiles {
    /// Of `queries` at most; `paths` tells where the path of each sequence begins.
    fn new(device: &Arc<dyn Device>, sequences: &[Sequence], paths: &[i32], queries: usize) -> Result<Self> {
        let mut tiles = Vec::new();
        for (sequence, path) in sequences.iter().zip(paths) {
            let (rows, position) = Rows::Context.of(sequence);
            tiles.extend((0..rows.len()).step_by(queries).map(|at| AttentionTile {
                row: (rows.start + at) as i32,
                queries: queries.min(rows.len() - at) as i32,
                first_query: (position + at) as i32,
                path: *path,
            }));
        }
        tiles.sort_by_key(|tile| std::cmp::Reverse(tile.first_query));
        Ok(Self { buffer: Buffer::common_of(device, &tiles)?, count: tiles.len() })
    }
}

/// One rotary table for every sequence.
struct Tables {
    addresses: Buffer,
    /// Half the dimensions that are rotated.
    half: usize,
    /// What is at the addresses.
    _kept: Vec<Arc<Buffer>>,
}

/// Of every row its sequence and its position.
struct RowMap {
    sequence: Buffer,
    position: Buffer,
}

impl RowMap {
    fn new(device: &Arc<dyn Device>, sequences: &[Sequence], rows: Rows) -> Result<Self> {
        let (mut sequence, mut position) = (Vec::new(), Vec::new());
        for (index, of) in sequences.iter().enumerate() {
            let (range, first) = rows.of(of);
            sequence.extend(range.clone().map(|_| index as i32));
            position.extend((first..first + range.len()).map(|position| position as i32));
        }
        Ok(Self {
            sequence: Buffer::common_of(device, &sequence)?,
            position: Buffer::common_of(device, &position)?,
        })
    }
}

/// What [`LayoutRows::rotation`] gives: addresses of sequences, positions and tables, and half the dimensions that turn.
pub struct Rotation {
    pub sequence: Address,
    pub position: Address,
    pub tables: Address,
    pub half: usize,
}

impl LayoutRows {
    pub fn new(device: &Arc<dyn Device>, ropes: &RopeCache, sequences: &[Sequence]) -> Result<Self> {
        let mut tables = HashMap::new();
        for branch in [Branch::Pt, Branch::Ft] {
            let count = sequences.first().map_or(0, |sequence| sequence.ropes.get(branch).len());
            for index in 0..count {
                let of = |sequence: &Sequence| ropes.get(device, &sequence.ropes.get(branch)[index]);
                let kept = sequences.iter().map(of).collect::<Result<Vec<_>>>()?;
                let addresses: Vec<Address> = kept.iter().map(|buffer| buffer.address()).collect();
                let half = sequences[0].ropes.get(branch)[index].half_dim;
                let addresses = Buffer::common_of(device, &addresses)?;
                tables.insert((branch, index), Tables { addresses, half, _kept: kept });
            }
        }
        let (mut paths, mut path_rows, mut twin_rows) = (Vec::new(), Vec::new(), Vec::new());
        let (mut all_tokens, mut score_tokens, mut most_tokens, mut context_pairs) = (0, 0, 0, 0.0);
        let first = sequences.first().map_or(0, |sequence| sequence.twin.start);
        for sequence in sequences {
            let path = path_rows.len() as i32;
            paths.push(path);
            path_rows.extend(sequence.path_rows(0).map(|row| row as i32));
            let (rows, position) = Rows::Context.of(sequence);
            context_pairs += rows.len() as f64 * (position as f64 + (rows.len() + 1) as f64 / 2.0);
            let (rows, position) = Rows::Twin.of(sequence);
            for (index, row) in rows.clone().enumerate() {
                let tokens = position + index + 1;
                twin_rows.push(TwinRow {
                    row: row as i32,
                    mean_row: (row - first) as i32,
                    path,
                    context_length: position as i32,
                    twin_start: rows.start as i32,
                    tokens: tokens as i32,
                    scores_start: score_tokens as i64,
                });
                all_tokens += tokens;
                score_tokens += tokens.next_multiple_of(TOKEN_STEP);
                most_tokens = most_tokens.max(tokens);
            }
        }
        Ok(Self {
            context: RowMap::new(device, sequences, Rows::Context)?,
            twin: RowMap::new(device, sequences, Rows::Twin)?,
            tables,
            path_rows: Buffer::common_of(device, &path_rows)?,
            tiles: Tiles::new(device, sequences, &paths, 64)?,
            double_tiles: Tiles::new(device, sequences, &paths, 128)?,
            context_pairs,
            twin_rows: Buffer::common_of(device, &twin_rows)?,
            twin_count: twin_rows.len(),
            most_tokens,
            all_tokens,
            score_tokens,
        })
    }

    /// How rows of a kind are turned.
    pub fn rotation(&self, rows: Rows, rope: RopeOf) -> Rotation {
        let map = match rows {
            Rows::Context => &self.context,
            Rows::Twin => &self.twin,
        };
        let tables = &self.tables[&(rope.branch, rope.index)];
        Rotation {
            sequence: map.sequence.address(),
            position: map.position.address(),
            tables: tables.addresses.address(),
            half: tables.half,
        }
    }
}

/// Rotary tables on the device, each brought there once.
#[derive(Default)]
pub struct RopeCache {
    /// By where the table lies on the host.
    tables: Mutex<HashMap<usize, CachedTable>>,
}

struct CachedTable {
    /// Kept, so that no other comes to lie in its place.
    host: Arc<RopeTable>,
    device: Arc<Buffer>,
}

impl RopeCache {
    fn get(&self, device: &Arc<dyn Device>, table: &Arc<RopeTable>) -> Result<Arc<Buffer>> {
        let key = Arc::as_ptr(table).addr();
        let mut tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cached) = tables.get(&key) {
            return Ok(cached.device.clone());
        }
        // Tables that nobody else holds any more belong to batches that are done.
        tables.retain(|_, cached| Arc::strong_count(&cached.host) > 1);
        let pairs: Vec<f32> = table.cos.iter().zip(&table.sin).flat_map(|(cos, sin)| [*cos, *sin]).collect();
        let buffer = Arc::new(Buffer::common_of(device, &pairs)?);
        tables.insert(key, CachedTable { host: table.clone(), device: buffer.clone() });
        Ok(buffer)
    }
}
