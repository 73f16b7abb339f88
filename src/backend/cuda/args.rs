//! The arguments of kernels, field by field what `kernels/*.cu` and `kernels/args.cuh` declare. Addresses are of device
//! memory, 0 being none; pitches count elements.

/// A struct that a kernel takes: plain data in C's layout, without padding.
///
/// # Safety
/// The type is `repr(C)`, has no padding and no invariants.
pub unsafe trait Args: Copy {
    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no byte of it is padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

/// An address in device memory; 0: none.
pub type Address = u64;

/// How copies by descriptor see a matrix (`hopper.cuh`): what [`Device::tensor_map`](super::device::Device) made.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy, Default)]
pub struct TensorMap(pub [u64; 16]);

macro_rules! args {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default)]
        pub struct $name {
            $(pub $field: $type),*
        }

        const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*, "no byte of an argument is padding");

        // SAFETY: made of numbers in C's layout, without padding.
        unsafe impl Args for $name {}
    )*};
}

args! {
    /// `args.cuh`
    ProductUpdate {
        a: Address,
        b: Address,
        b_low: Address,
        a_pitch: i64,
        b_pitch: i64,
        b_low_plane: i64,
        k: i32,
        a_head: i32,
    }
    /// `product.cu`, `twin_product.cu`
    ProductArgs {
        a: Address,
        b: [Address; 2],
        b_low: [Address; 2],
        bias: [Address; 2],
        out: Address,
        a_pitch: i64,
        b_pitch: i64,
        b_low_plane: i64,
        out_pitch: i64,
        m: i32,
        n: i32,
        k: i32,
        activation: i32,
        group: i32,
        a_head: i32,
        out_head: i32,
        parameters: [f32; 4],
        unused: i32,
        update: [ProductUpdate; 2],
    }
    /// `product_sm90.cu`
    HopperProductArgs {
        a: TensorMap,
        b: [TensorMap; 3],
        out: [TensorMap; 3],
        update_a: [TensorMap; 3],
        update_b: [TensorMap; 3],
        bias: [Address; 3],
        m: i32,
        k: i32,
        n: [i32; 3],
        update_k: [i32; 3],
        activation: i32,
        parameters: [f32; 4],
        unused: [i32; 13],
    }
    /// `twin_product_sm90.cu`
    UnsplitRows { from: Address, pitch: i64, head: i64 }
    /// `twin_product_sm90.cu`
    HopperTwinProductArgs {
        a: TensorMap,
        b: [TensorMap; 2],
        b_low: [TensorMap; 2],
        update_a: [TensorMap; 2],
        update_b: [TensorMap; 2],
        update_b_low: [TensorMap; 2],
        rows: UnsplitRows,
        update_rows: [UnsplitRows; 2],
        bias: [Address; 2],
        out: [Address; 2],
        out_pitch: [i64; 2],
        n: [i32; 2],
        planes: [i32; 2],
        update_planes: [i32; 2],
        update_k: [i32; 2],
        weight_rows: [i32; 2],
        group: i32,
        out_head: i32,
        m: i32,
        k: i32,
        activation: i32,
        parameters: [f32; 4],
        unused: [i32; 15],
    }
    /// `norm.cu`
    NormArgs {
        x: Address,
        normalized: Address,
        normed: Address,
        weight: Address,
        bias: Address,
        x_pitch: i64,
        normalized_pitch: i64,
        normed_pitch: i64,
        cols: i32,
        centered: i32,
        offset: f32,
        eps: f32,
    }
    /// `norm.cu`
    NormHeadsArgs {
        x: Address,
        weight: Address,
        pitch: i64,
        cols: i32,
        parts: i32,
        rows: i32,
        offset: f32,
        eps: f32,
        unused: i32,
    }
    /// `norm.cu`
    NormedKeyDifferenceArgs {
        keys: Address,
        difference: Address,
        weight: [Address; 2],
        key_pitch: i64,
        difference_pitch: i64,
        offset: [f32; 2],
        eps: [f32; 2],
        cols: i32,
        parts: i32,
        rows: i32,
        unused: i32,
    }
    /// `elementwise.cu`
    RowsArgs {
        a: Address,
        b: Address,
        out: Address,
        rows: Address,
        factors: Address,
        a_pitch: i64,
        b_pitch: i64,
        out_pitch: i64,
        cols: i32,
        factor: f32,
    }
    /// `elementwise.cu`
    ScaleHeadsArgs {
        heads: Address,
        factors: Address,
        pitch: i64,
        factor_pitch: i64,
        count: i32,
        head_dim: i32,
    }
    /// `elementwise.cu`
    SplitArgs {
        a: Address,
        out: Address,
        a_pitch: i64,
        out_pitch: i64,
        cols: i32,
        heads: i32,
        group: i32,
        a_head: i32,
    }
    /// `rotate.cu`
    RotateArgs {
        x: [Address; 2],
        sequence: Address,
        position: Address,
        tables: Address,
        pitch: [i64; 2],
        heads: [i32; 2],
        head_dim: i32,
        half: i32,
    }
    /// `args.cuh`
    AttentionTile { row: i32, queries: i32, first_query: i32, path: i32 }
    /// `attention.cu`
    AttentionArgs {
        q: Address,
        k: Address,
        v: Address,
        tiles: Address,
        path_rows: Address,
        sinks: Address,
        q_pitch: i64,
        kv_pitch: i64,
        group: i32,
        head_dim: i32,
        window: i32,
        scale: f32,
        softcap: f32,
        unused: i32,
    }
    /// `attention_sm90.cu`
    HopperAttentionArgs {
        q: TensorMap,
        k: [TensorMap; 2],
        v: [TensorMap; 2],
        out: Address,
        tiles: Address,
        path_rows: Address,
        sinks: Address,
        pitch: i64,
        heads: i32,
        head_blocks: i32,
        tile_count: i32,
        group: i32,
        window: i32,
        scale: f32,
        softcap: f32,
        unused: [i32; 15],
    }
    /// `key_difference.cu`
    KeyWeightSide {
        weight: Address,
        low: Address,
        bias: Address,
        factors: Address,
        norm_bias: Address,
        offset: f32,
        rank: i32,
        b: Address,
        b_low: Address,
        a: Address,
        a_low: Address,
        b_pitch: i64,
        b_low_plane: i64,
        a_low_plane: i64,
    }
    /// `key_difference.cu`
    KeyWeightArgs {
        side: [KeyWeightSide; 2],
        weight: Address,
        low: Address,
        bias: Address,
        pitch: i64,
        low_plane: i64,
        cols: i32,
        unused: i32,
    }
    /// `twin_attend.cuh`
    TwinRow {
        row: i32,
        mean_row: i32,
        path: i32,
        context_length: i32,
        twin_start: i32,
        tokens: i32,
        scores_start: i64,
    }
    /// `twin_attend.cuh`
    TwinAttendArgs {
        q: Address,
        keys: Address,
        difference: Address,
        normalized: Address,
        norm_weight: Address,
        norm_bias: Address,
        twin_keys: Address,
        twin_normed: Address,
        rows: Address,
        path_rows: Address,
        scores: Address,
        weights: Address,
        context_share: Address,
        means: Address,
        sinks: Address,
        shares: Address,
        q_pitch: i64,
        key_pitch: i64,
        difference_pitch: i64,
        normalized_pitch: i64,
        twin_key_pitch: i64,
        twin_normed_pitch: i64,
        mean_pitch: i64,
        share_pitch: i64,
        heads: i32,
        group: i32,
        head_dim: i32,
        hidden: i32,
        window: i32,
        score_blocks: i32,
        score_tokens: i32,
        lane_bits: i32,
        norm_offset: f32,
        scale: f32,
        softcap: f32,
        row_count: i32,
    }
    /// `key_score_sm90.cu`
    HopperKeyScoreArgs {
        keys: [TensorMap; 2],
        difference: [TensorMap; 2],
        twin: TwinAttendArgs,
        unused: [i32; 4],
    }
    /// `twin_mean_sm90.cu`
    HopperTwinMeanArgs {
        normalized: [TensorMap; 2],
        weights: TensorMap,
        twin: TwinAttendArgs,
        unused: [i32; 4],
    }
    /// `contribution.cu`
    ContributionArgs {
        f_pt: Address,
        f_ft: Address,
        x: Address,
        p: Address,
        f: Address,
        norms: Address,
        pitch: i64,
        cols: i32,
        unused: i32,
    }
    /// `contribution.cu`
    TraceArgs {
        x: Address,
        after_attention: [Address; 2],
        after: [Address; 2],
        attention: [Address; 2],
        mlp: [Address; 2],
        norms: Address,
        pitch: i64,
        cols: i32,
        unused: i32,
    }
}
