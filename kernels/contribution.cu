// What a layer writes: P += f_pt, F += f_ft − f_pt, x += f_ft, and the L1 norms of P and F. Sums and norms in f64, x in f32.
// Without f_pt the layer is the same in both models: P += f_ft, F stays to the bit. One block a twin row; bytes bind.
// Reference: `contribution` of backend/reference.
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
    for (int col = threadIdx.x; col < args.cols; col += THREADS) {
        const int64_t at = start + col;
        const float tuned = args.f_ft[at], base = args.f_pt ? args.f_pt[at] : tuned;
        const double p = args.p[at] + double(base), f = args.f[at] + (double(tuned) - double(base));
        args.p[at] = p;
        args.f[at] = f;
        args.x[at] += tuned;
        p_norm += fabs(p);
        f_norm += fabs(f);
    }
    p_norm = block_sum<THREADS>(p_norm, scratch);
    f_norm = block_sum<THREADS>(f_norm, scratch);
    if (threadIdx.x == 0) {
        args.norms[row * 2] = p_norm;
        args.norms[row * 2 + 1] = f_norm;
    }
}

KERNEL(contribution, ContributionArgs, THREADS, 1, contribution)
