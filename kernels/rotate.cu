// Rotary embedding in place: of the first 2·half dimensions of every head, i and i + half are turned by the angle of the row's
// position. Tables hold (cos, sin) in f32, `half` of them a position. One block a row; bytes bind.
// Reference: `rotate` of backend/reference.
#include "device.cuh"

constexpr int THREADS = 128;

struct RotateArgs {
    void* x;
    // Of every row.
    const int32_t* sequence;
    const int32_t* position;
    // Of every sequence.
    const float2* const* tables;
    int64_t pitch;
    int32_t heads, head_dim, half, unused;
};

template <class T>
__device__ void rotate(const RotateArgs& args) {
    const int64_t row = blockIdx.x;
    const float2* table = args.tables[args.sequence[row]] + int64_t(args.position[row]) * args.half;
    T* x = static_cast<T*>(args.x) + row * args.pitch;
    for (int i = threadIdx.x; i < args.heads * args.half; i += THREADS) {
        const float2 turn = table[i % args.half];
        T* first = x + i / args.half * args.head_dim + i % args.half;
        const float a = to_float(first[0]), b = to_float(first[args.half]);
        store(first, a * turn.x - b * turn.y);
        store(first + args.half, b * turn.x + a * turn.y);
    }
}

KERNEL(rotate_bf16, RotateArgs, THREADS, 1, rotate<bf16>)
KERNEL(rotate_f32, RotateArgs, THREADS, 1, rotate<float>)
