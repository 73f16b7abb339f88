// What a layer writes: P += f_pt, F += f_ft − f_pt, x += f_ft, and the L1 norms of P and F after that. Without f_pt the layer is the same
// in both models: P += f_ft, F stays to the bit.
// f_pt, f_ft, x: [R, D] f32; P, F: [R, D] f64; norms: [R, 2] f64. f_ft − f_pt is taken in f64, x in f32.
// `trace` (below) does so for attention and MLP apart: streams and sums [rows, D] f32, rows of either kind; norms [rows, 6] f64.
//
// Grid: (rows), 256 threads: one block a row. Norms are sums in f64: a thread's columns in order, then lanes, then warps.
// Reference: `contribution`, `trace` of backend/reference.
// Bytes bind. Figures of `contribution`: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "device.cuh"

constexpr int THREADS = 256;

struct ContributionArgs {
    const float* f_pt;
    const float* f_ft;
    float* x;
    double* p;
    double* f;
    // (‖P‖₁, ‖F‖₁) of every row.
    double* norms;
    int64_t pitch;
    int32_t cols, unused;
};

__device__ void contribution(const ContributionArgs& args) {
    double* scratch = reinterpret_cast<double*>(shared_memory());
    const int64_t row = blockIdx.x, start = row * args.pitch;
    double p_norm = 0.0, f_norm = 0.0;
    for (int col = threadIdx.x * 4; col < args.cols; col += THREADS * 4) {
        const int64_t at = start + col;
        const float4 tuned = load4(args.f_ft + at), base = args.f_pt ? load4(args.f_pt + at) : tuned, x = load4(args.x + at);
        const float of_ft[4] = {tuned.x, tuned.y, tuned.z, tuned.w}, of_pt[4] = {base.x, base.y, base.z, base.w};
        double2 p[2], f[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            p[i] = reinterpret_cast<const double2*>(args.p + at)[i], f[i] = reinterpret_cast<const double2*>(args.f + at)[i];
            p[i] = {p[i].x + double(of_pt[i * 2]), p[i].y + double(of_pt[i * 2 + 1])};
            f[i].x += double(of_ft[i * 2]) - double(of_pt[i * 2]);
            f[i].y += double(of_ft[i * 2 + 1]) - double(of_pt[i * 2 + 1]);
        }
#pragma unroll
        for (int i = 0; i < 2; i++) {
            reinterpret_cast<double2*>(args.p + at)[i] = p[i];
            reinterpret_cast<double2*>(args.f + at)[i] = f[i];
            if (col + i * 2 < args.cols) p_norm += fabs(p[i].x), f_norm += fabs(f[i].x);
            if (col + i * 2 + 1 < args.cols) p_norm += fabs(p[i].y), f_norm += fabs(f[i].y);
        }
        store4(args.x + at, {x.x + tuned.x, x.y + tuned.y, x.z + tuned.z, x.w + tuned.w});
    }
    p_norm = block_sum<THREADS>(p_norm, scratch);
    f_norm = block_sum<THREADS>(f_norm, scratch);
    if (threadIdx.x == 0) {
        args.norms[row * 2] = p_norm;
        args.norms[row * 2 + 1] = f_norm;
    }
}

KERNEL(contribution, ContributionArgs, THREADS, 1, contribution)

// Contributions of attention and MLP apart: with the stream x before a layer and, in both branches, after its attention and after
// it, attention's P += pt − x and F += ft − pt, the MLP's P and F likewise of what it adds, and the norms of these sums and of both
// parts' together. Reference: `trace` of backend/reference.
struct TraceArgs {
    const float* x;
    // pt, ft
    const float* after_attention[2];
    const float* after[2];
    // P, F
    float* attention[2];
    float* mlp[2];
    // P and F of attention, of the MLP, of both: six of every row.
    double* norms;
    int64_t pitch;
    int32_t cols, unused;
};

__device__ void trace(const TraceArgs& args) {
    double* scratch = reinterpret_cast<double*>(shared_memory());
    const int64_t row = blockIdx.x;
    double norms[6] = {};
    for (int col = threadIdx.x; col < args.cols; col += THREADS) {
        const int64_t at = row * args.pitch + col;
        const float pt = args.after_attention[0][at], ft = args.after_attention[1][at];
        const float pt_rest = args.after[0][at] - pt, ft_rest = args.after[1][at] - ft;
        const float sums[4] = {args.attention[0][at] + (pt - args.x[at]), args.attention[1][at] + (ft - pt),
                               args.mlp[0][at] + pt_rest, args.mlp[1][at] + (ft_rest - pt_rest)};
        for (int i = 0; i < 2; i++) {
            args.attention[i][at] = sums[i];
            args.mlp[i][at] = sums[2 + i];
            norms[i] += fabs(double(sums[i]));
            norms[2 + i] += fabs(double(sums[2 + i]));
            norms[4 + i] += fabs(double(sums[i]) + double(sums[2 + i]));
        }
    }
    for (int i = 0; i < 6; i++) {
        const double sum = block_sum<THREADS>(norms[i], scratch);
        if (threadIdx.x == 0) args.norms[row * 6 + i] = sum;
    }
}

KERNEL(trace, TraceArgs, THREADS, 1, trace)
