//! Where the rows of sequences lie, as kernels read it.

use super::{
    args::{Address, Args, AttentionTile, TwinRow},
    device::{Buffer, Device, as_bytes},
};
use crate::{
    Result,
    backend::{RopeOf, Rows, Sequence},
    model::RopeTable,
    sync::lock,
    twin::Branch,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

/// Tokens of a piece of what twin rows weigh their context with (`twin_attend.cuh`).
pub const PIECE_TOKENS: usize = 64;

/// Sequences as the device knows them; without buffers after a failure.
pub struct CudaLayout {
    pub rows: Option<LayoutRows>,
}

pub struct LayoutRows {
    /// All that lies on the device.
    buffer: Buffer,
    context: RowMap,
    twin: RowMap,
    /// Of each rotary table of each branch, the addresses for every sequence.
    tables: HashMap<(Branch, usize), Tables>,
    /// Rows of the paths of all sequences, one after the other.
    pub path_rows: Place,
    /// The context's queries in tiles of 64 and of 128.
    pub tiles: Tiles,
    pub double_tiles: Tiles,
    /// Pairs of a context row and a token that it sees, but for windows.
    pub context_pairs: f64,
    pub twin_rows: Place,
    pub twin_count: usize,
    /// The most tokens that a twin row may see, those of all together, and these with every row's rounded up to [`PIECE_TOKENS`].
    pub most_tokens: usize,
    pub all_tokens: usize,
    pub score_tokens: usize,
}

/// Queries of sequences in pieces, those that see most first, so that they do not end last.
pub struct Tiles {
    pub place: Place,
    pub count: usize,
}

/// Where something begins in a layout's buffer, in bytes.
#[derive(Clone, Copy)]
pub struct Place(usize);

/// What comes into a layout's buffer, brought to the device at once.
#[derive(Default)]
struct Contents(Vec<u8>);

impl Contents {
    fn put<T: Args>(&mut self, values: &[T]) -> Place {
        let place = self.0.len().next_multiple_of(16);
        self.0.resize(place, 0);
        self.0.extend(as_bytes(values));
        Place(place)
    }

    /// In memory of one of few sizes: the layouts of tokens that are generated grow one by one, and find what earlier ones left.
    fn bring(self, device: &Arc<dyn Device>) -> Result<Buffer> {
        let step = self.0.len().next_power_of_two() / 16;
        let buffer = Buffer::common(device, self.0.len().next_multiple_of(step.max(1)))?;
        buffer.holding(&self.0)
    }
}

impl Tiles {
    /// Of `queries` at most; `paths` tells where the path of each sequence begins.
    fn new(contents: &mut Contents, sequences: &[Sequence], paths: &[i32], queries: usize) -> Self {
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
        Self { place: contents.put(&tiles), count: tiles.len() }
    }
}

/// One rotary table for every sequence.
struct Tables {
    addresses: Place,
    /// Half the dimensions that are rotated.
    half: usize,
    /// What is at the addresses.
    _kept: Vec<Arc<Buffer>>,
}

/// Of every row its sequence and its position.
struct RowMap {
    sequence: Place,
    position: Place,
}

impl RowMap {
    fn new(contents: &mut Contents, sequences: &[Sequence], rows: Rows) -> Self {
        let (mut sequence, mut position) = (Vec::new(), Vec::new());
        for (index, of) in sequences.iter().enumerate() {
            let (range, first) = rows.of(of);
            sequence.extend(range.clone().map(|_| index as i32));
            position.extend((first..first + range.len()).map(|position| position as i32));
        }
        Self { sequence: contents.put(&sequence), position: contents.put(&position) }
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
        let (mut tables, mut contents) = (HashMap::new(), Contents::default());
        for branch in Branch::BOTH {
            let count = sequences.first().map_or(0, |sequence| sequence.ropes.get(branch).len());
            for index in 0..count {
                let of = |sequence: &Sequence| ropes.get(device, &sequence.ropes.get(branch)[index]);
                let kept = sequences.iter().map(of).collect::<Result<Vec<_>>>()?;
                let addresses: Vec<Address> = kept.iter().map(|buffer| buffer.address()).collect();
                let half = sequences[0].ropes.get(branch)[index].half_dim;
                let addresses = contents.put(&addresses);
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
                score_tokens += tokens.next_multiple_of(PIECE_TOKENS);
                most_tokens = most_tokens.max(tokens);
            }
        }
        // Those that see most first, so that they do not end last.
        twin_rows.sort_by_key(|row| std::cmp::Reverse(row.tokens));
        Ok(Self {
            context: RowMap::new(&mut contents, sequences, Rows::Context),
            twin: RowMap::new(&mut contents, sequences, Rows::Twin),
            tables,
            path_rows: contents.put(&path_rows),
            tiles: Tiles::new(&mut contents, sequences, &paths, 64),
            double_tiles: Tiles::new(&mut contents, sequences, &paths, 128),
            context_pairs,
            twin_rows: contents.put(&twin_rows),
            twin_count: twin_rows.len(),
            most_tokens,
            all_tokens,
            score_tokens,
            buffer: contents.bring(device)?,
        })
    }

    pub fn address(&self, Place(place): Place) -> Address {
        self.buffer.address() + place as Address
    }

    /// How rows of a kind are turned.
    pub fn rotation(&self, rows: Rows, rope: RopeOf) -> Rotation {
        let map = match rows {
            Rows::Context => &self.context,
            Rows::Twin => &self.twin,
        };
        let tables = &self.tables[&(rope.branch, rope.index)];
        Rotation {
            sequence: self.address(map.sequence),
            position: self.address(map.position),
            tables: self.address(tables.addresses),
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
        let mut tables = lock(&self.tables);
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
