// Rotary embedding in place: of the first 2·half dimensions of every head, i and i + half are turned by the angle of the row's position:
//   x[i], x[i + half] = x[i] · cos − x[i + half] · sin, x[i + half] · cos + x[i] · sin
// x: [rows, heads·Dh] bf16 or f32, one matrix, or two with the same rows (queries and keys). Tables: [positions, half] of (cos, sin) f32,
// one for each sequence. Computed in f32, each product rounded before they are added.
//
// Grid: (rows; matrices), 64 threads: one block a row of a matrix.
// Reference: `rotate`, of two matrices `rotate_both`, of backend/reference.
// Bytes bind. Figures: docs/kernel-notes.md, *Norms, rotation, scores and means of twin rows*.
#include "device.cuh"

constexpr int THREADS = 64;

struct RotateArgs {
    void* x[2];
    // Of every row.
    const int32_t* sequence;
    const int32_t* position;
    // Of every sequence.
    const float2* const* tables;
    int64_t pitch[2];
    int32_t heads[2];
    int32_t head_dim, half;
};

template <class T>
__device__ void rotate(const RotateArgs& args) {
    const int64_t row = blockIdx.x;
    const int heads = args.heads[blockIdx.y];
    const float2* table = args.tables[args.sequence[row]] + int64_t(args.position[row]) * args.half;
    T* x = static_cast<T*>(args.x[blockIdx.y]) + row * args.pitch[blockIdx.y];
    // Eights of dimensions, where they are aligned.
    if (args.half % 8 == 0 && args.head_dim % 8 == 0) {
        const int chunks = args.half / 8;
        for (int i = threadIdx.x; i < heads * chunks; i += THREADS) {
            T* first = x + i / chunks * args.head_dim + i % chunks * 8;
            const float* turns = reinterpret_cast<const float*>(table + i % chunks * 8);
            float a[8], b[8], turned_a[8], turned_b[8];
            load8(a, first);
            load8(b, first + args.half);
#pragma unroll
            for (int d = 0; d < 8; d += 2) {
                const float4 two = load4(turns + d * 2);
                turned_a[d] = a[d] * two.x - b[d] * two.y, turned_b[d] = b[d] * two.x + a[d] * two.y;
                turned_a[d + 1] = a[d + 1] * two.z - b[d + 1] * two.w, turned_b[d + 1] = b[d + 1] * two.z + a[d + 1] * two.w;
            }
            store8(first, turned_a);
            store8(first + args.half, turned_b);
        }
        return;
    }
    for (int i = threadIdx.x; i < heads * args.half; i += THREADS) {
        const float2 turn = table[i % args.half];
        T* first = x + i / args.half * args.head_dim + i % args.half;
        const float a = to_float(first[0]), b = to_float(first[args.half]);
        store(first, a * turn.x - b * turn.y);
        store(first + args.half, b * turn.x + a * turn.y);
    }
}

KERNEL(rotate_bf16, RotateArgs, THREADS, 1, rotate<bf16>)
KERNEL(rotate_f32, RotateArgs, THREADS, 1, rotate<float>)
