// What all kernels share: the element type, vectors of 8 elements, sums over a block.
//
// Compiled by NVRTC at run time, without any header of the toolkit. The command line says
//   BF16=0 or 1    elements (activations and the compute copies of weights) are float or bf16
//   HEAD_DIM=n     length of an attention head, a multiple of 8 up to 128
// Everything between loads and stores is float. Sums have an order that depends on shapes alone: there are no atomics,
// so equal inputs give equal bits on every run.
#pragma once

#include "ptx.cuh"

// The upper half of a float: 8 bits of exponent, 8 of precision.
struct bf16 {
    unsigned short bits;
};

static_assert(0 < HEAD_DIM && HEAD_DIM <= 128 && HEAD_DIM % 8 == 0, "no kernel for heads of this length");

#if BF16
typedef bf16 elem;
#else
typedef float elem;
#endif

static __device__ inline float value(float x) {
    return x;
}

static __device__ inline float value(bf16 x) {
    return __uint_as_float((unsigned)x.bits << 16);
}

static __device__ inline void store(float& y, float x) {
    y = x;
}

static __device__ inline void store(bf16& y, float x) {
    y.bits = (unsigned short)round_pair(x, 0.0f);
}

// Divides and rounds up.
static __device__ inline long long up(long long a, long long b) {
    return (a + b - 1) / b;
}

static __device__ inline bool is_aligned(const void* x) {
    return ((unsigned long long)x & 15) == 0;
}

// The index of this thread in a grid of one dimension.
static __device__ inline long long thread_index() {
    return (long long)blockIdx.x * blockDim.x + threadIdx.x;
}

// Neighbours that one thread works on: 16 bytes of bf16, the widest load there is.
struct Eight {
    float x[8];
};

// The first `count` (at most 8) of the elements at `x`, and zeros; in whole vectors where it can.
static __device__ inline Eight load(const float* x, long long count) {
    Eight y = {};
    if (8 <= count && is_aligned(x)) {
        float4 low = ((const float4*)x)[0], high = ((const float4*)x)[1];
        y = {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    } else {
        for (int i = 0; i < 8; i++)
            if (i < count) y.x[i] = x[i];
    }
    return y;
}

static __device__ inline Eight unpack(uint4 v) {
    unsigned pairs[4] = {v.x, v.y, v.z, v.w};
    Eight y;
    for (int i = 0; i < 4; i++) {
        y.x[2 * i] = __uint_as_float(pairs[i] << 16);
        y.x[2 * i + 1] = __uint_as_float(pairs[i] & 0xffff0000u);
    }
    return y;
}

static __device__ inline Eight load(const bf16* x, long long count) {
    if (8 <= count && is_aligned(x)) return unpack(*(const uint4*)x);
    Eight y = {};
    for (int i = 0; i < 8; i++)
        if (i < count) y.x[i] = value(x[i]);
    return y;
}

static __device__ inline void store(float* y, const Eight& x, long long count) {
    if (8 <= count && is_aligned(y)) {
        ((float4*)y)[0] = make_float4(x.x[0], x.x[1], x.x[2], x.x[3]);
        ((float4*)y)[1] = make_float4(x.x[4], x.x[5], x.x[6], x.x[7]);
    } else {
        for (int i = 0; i < 8; i++)
            if (i < count) y[i] = x.x[i];
    }
}

static __device__ inline void store(bf16* y, const Eight& x, long long count) {
    if (8 <= count && is_aligned(y)) {
        *(uint4*)y = make_uint4(round_pair(x.x[0], x.x[1]), round_pair(x.x[2], x.x[3]), round_pair(x.x[4], x.x[5]),
                                round_pair(x.x[6], x.x[7]));
    } else {
        for (int i = 0; i < 8; i++)
            if (i < count) store(y[i], x.x[i]);
    }
}

// Sum or maximum over the `WIDTH` neighbouring lanes of each lane, a power of two: all of them get the same bits.
template <int WIDTH = 32, class T> static __device__ inline T sum_lanes(T x) {
    for (int d = WIDTH / 2; 0 < d; d /= 2) x += __shfl_xor_sync(~0u, x, d);
    return x;
}

template <int WIDTH = 32> static __device__ inline float max_lanes(float x) {
    for (int d = WIDTH / 2; 0 < d; d /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, d));
    return x;
}

// Sum over a block of whole warps, the same bits in all of its threads. `shared` has room for 32 and may be used again
// after the next barrier.
template <class T> static __device__ inline T sum_block(T x, T* shared) {
    int warps = blockDim.x / 32;
    x = sum_lanes(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    T sum = shared[0];
    for (int i = 1; i < warps; i++) sum += shared[i];
    return sum;
}

// The maximum, as `sum_block`.
static __device__ inline float max_block(float x, float* shared) {
    int warps = blockDim.x / 32;
    x = max_lanes(x);
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
    __syncthreads();
    float most = shared[0];
    for (int i = 1; i < warps; i++) most = fmaxf(most, shared[i]);
    return most;
}
