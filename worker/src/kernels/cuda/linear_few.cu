// Linear layers for 1 to 16 rows, the products of decoding: y[row, output] = x[row] . w[output]. Each weight is read once,
// which is all of the time; x stays in the caches. A row of y depends on its row of x alone, bit for bit, however many
// rows come with it. Blocks of 256 threads, 16 outputs each. Grid: up(outputs, 16).
//
// With bf16 the weights are the left operand of tensor cores, 16 outputs by 16 inputs, and up to 8 rows of x the right one.
// In which order the inputs are multiplied does not matter as long as it is the same for both, so a lane takes 8
// neighbours, one load of 16 bytes, and gives the first 4 to one product and the others to the next: what the
// instruction calls inputs 2t, 2t + 1, 2t + 8, 2t + 9 of lane t is 4t .. 4t + 3 here. The 8 warps of a block take turns
// along the inputs, and their sums are added in order in the end.
//
// Weights of 8 bits have a scale for every 64 neighbours. They are integers that bf16 holds exactly, so a group's sum is
// made on tensor cores, and multiplied with its scale in float.
#include "common.cuh"

enum { OUTPUTS = 16, WARPS = 8, GROUP = 64 };

static __device__ inline void put(float* y, long long at, float sum, int accumulate) {
    y[at] = accumulate ? y[at] + sum : sum;
}

#if BF16

static __device__ inline void put(bf16* y, long long at, float sum, int) {
    store(y[at], sum);
}

// Element `i` of four signed bytes. The bits of 2^23 + n are 0x4b000000 + n.
static __device__ inline float signed_byte(unsigned bytes, int i) {
    return __uint_as_float(__byte_perm(bytes ^ 0x80808080u, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
}

// 16 bytes, of which `bytes` exist, zeros for the others. WHOLE: all or none exist, and the address is a multiple of 16.
template <bool WHOLE> static __device__ inline uint4 load_bytes(const void* from, int bytes) {
    if (WHOLE) return 0 < bytes ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
    unsigned words[4] = {};
    for (int i = 0; i < 16; i++)
        if (i < bytes) words[i / 4] |= (unsigned)((const unsigned char*)from)[i] << (8 * (i % 4));
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// The sums of a warp: outputs g and g + 8 for rows 8n + 2t and 8n + 2t + 1, g = lane / 4, t = lane % 4.
struct Sums {
    float c[2][4];
};

// Neighbours `at` to `at + 7` of rows g and g + 8 of x, zeros for a row that is not there.
template <bool WHOLE>
static __device__ inline void load_x(uint4 (&y)[2], const elem* x, int rows, int at, int inputs) {
#pragma unroll
    for (int n = 0; n < 2; n++) {
        const int row = threadIdx.x % 32 / 4 + 8 * n;
        y[n] = load_bytes<WHOLE>(x + (long long)row * inputs + at, row < rows ? 2 * (inputs - at) : 0);
    }
}

// Two products: 32 inputs, 8 of them in each lane.
static __device__ inline void multiply(Sums& sums, uint4 low, uint4 high, const uint4 (&x)[2], int tiles) {
    const unsigned first[4] = {low.x, high.x, low.y, high.y}, second[4] = {low.z, high.z, low.w, high.w};
    for (int n = 0; n < 2; n++) {
        if (tiles <= n) continue;
        multiply_add(sums.c[n], first, x[n].x, x[n].y);
        multiply_add(sums.c[n], second, x[n].z, x[n].w);
    }
}

// A warp's share of the inputs for weights that are elements: 128 of 1024 at a time. All loads come before the products, so
// that they are on their way together.
template <bool WHOLE>
static __device__ inline void add_products(Sums& sums, const elem* x, const elem* w, const float*, int rows, int inputs,
                                           int outputs) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, tiles = rows <= 8 ? 1 : 2;
    const long long low = blockIdx.x * OUTPUTS + g, high = low + 8;
    for (int from = warp * 128; from < inputs; from += WARPS * 128) {
        uint4 a[4], b[4], right[4][2];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = from + 32 * i + 8 * t, bytes = 2 * (inputs - at);
            a[i] = load_bytes<WHOLE>(w + low * inputs + at, low < outputs ? bytes : 0);
            b[i] = load_bytes<WHOLE>(w + high * inputs + at, high < outputs ? bytes : 0);
        }
#pragma unroll
        for (int i = 0; i < 4; i++) load_x<WHOLE>(right[i], x, rows, from + 32 * i + 8 * t, inputs);
#pragma unroll
        for (int i = 0; i < 4; i++) multiply(sums, a[i], b[i], right[i], tiles);
    }
}

// 8 signed bytes as bf16: the upper halves of floats, which are exact.
static __device__ inline uint4 widen(unsigned low, unsigned high) {
    unsigned pairs[4];
    for (int i = 0; i < 4; i++) {
        const unsigned bytes = i < 2 ? low : high;
        const float first = signed_byte(bytes, 2 * i % 4), second = signed_byte(bytes, 2 * i % 4 + 1);
        pairs[i] = __byte_perm(__float_as_uint(first), __float_as_uint(second), 0x7632);
    }
    return make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
}

// The same for weights of 8 bits: a warp takes 4 groups at a time, a lane 16 neighbours of each.
template <bool WHOLE>
static __device__ inline void add_products(Sums& sums, const elem* x, const signed char* w, const float* scales, int rows,
                                           int inputs, int outputs) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4, tiles = rows <= 8 ? 1 : 2;
    const long long low = blockIdx.x * OUTPUTS + g, high = low + 8;
    const int groups = (int)up(inputs, GROUP);
    for (int from = warp * 4; from < groups; from += WARPS * 4) {
        uint4 a[4], b[4];
        float by_low[4], by_high[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int group = from + i, at = group * GROUP + 16 * t, bytes = inputs - at;
            a[i] = load_bytes<WHOLE>(w + low * inputs + at, low < outputs ? bytes : 0);
            b[i] = load_bytes<WHOLE>(w + high * inputs + at, high < outputs ? bytes : 0);
            by_low[i] = group < groups && low < outputs ? scales[low * groups + group] : 0.0f;
            by_high[i] = group < groups && high < outputs ? scales[high * groups + group] : 0.0f;
        }
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int at = (from + i) * GROUP + 16 * t;
            uint4 right[2][2];
            load_x<WHOLE>(right[0], x, rows, at, inputs);
            load_x<WHOLE>(right[1], x, rows, at + 8, inputs);
            Sums exact = {};
            multiply(exact, widen(a[i].x, a[i].y), widen(b[i].x, b[i].y), right[0], tiles);
            multiply(exact, widen(a[i].z, a[i].w), widen(b[i].z, b[i].w), right[1], tiles);
#pragma unroll
            for (int j = 0; j < 8; j++) sums.c[j / 4][j % 4] += exact.c[j / 4][j % 4] * (j % 4 < 2 ? by_low[i] : by_high[i]);
        }
    }
}

template <class Y, class W>
static __device__ inline void linear(Y* y, const elem* x, const W* w, const float* scales, int rows, int inputs,
                                     int outputs, int accumulate, float (*shared)[16][OUTPUTS]) {
    Sums sums = {};
    // Rows that begin at multiples of 16 bytes, as nearly all do.
    if (inputs * sizeof(W) % 16 == 0) add_products<true>(sums, x, w, scales, rows, inputs, outputs);
    else add_products<false>(sums, x, w, scales, rows, inputs, outputs);
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    for (int n = 0; n < 2; n++)
        for (int i = 0; i < 4; i++) shared[warp][8 * n + 2 * t + i % 2][i < 2 ? g : g + 8] = sums.c[n][i];
    __syncthreads();
    const int row = threadIdx.x / OUTPUTS, output = threadIdx.x % OUTPUTS;
    const long long to = blockIdx.x * OUTPUTS + output;
    if (rows <= row || outputs <= to) return;
    float sum = 0;
    for (int i = 0; i < WARPS; i++) sum += shared[i][row][output];
    put(y, row * (long long)outputs + to, sum, accumulate);
}

#else

static __device__ inline Eight load_weight(const float* w, const float*, long long output, int inputs, int at) {
    return load(w + output * inputs + at, inputs - at);
}

static __device__ inline Eight load_weight(const signed char* w, const float* scales, long long output, int inputs, int at) {
    const float scale = scales[output * up(inputs, GROUP) + at / GROUP];
    Eight y = {};
    for (int i = 0; i < 8; i++)
        if (at + i < inputs) y.x[i] = w[output * inputs + at + i] * scale;
    return y;
}

// Two outputs for each warp, 8 neighbours for each lane.
template <class Y, class W>
static __device__ inline void linear(Y* y, const float* x, const W* w, const float* scales, int rows, int inputs,
                                     int outputs, int accumulate, float (*)[16][OUTPUTS]) {
    for (int i = 0; i < 2; i++) {
        const long long output = blockIdx.x * OUTPUTS + threadIdx.x / 32 * 2 + i;
        if (outputs <= output) return;
        float sums[16] = {};
        for (int at = threadIdx.x % 32 * 8; at < inputs; at += 32 * 8) {
            const Eight weight = load_weight(w, scales, output, inputs, at);
#pragma unroll
            for (int row = 0; row < 16; row++) {
                if (rows <= row) continue;
                const Eight part = load(x + (long long)row * inputs + at, inputs - at);
                for (int k = 0; k < 8; k++) sums[row] += weight.x[k] * part.x[k];
            }
        }
#pragma unroll
        for (int row = 0; row < 16; row++) {
            if (rows <= row) continue;
            const float sum = sum_lanes(sums[row]);
            if (threadIdx.x % 32 == 0) put(y, row * (long long)outputs + output, sum, accumulate);
        }
    }
}

#endif

// y[rows, outputs] from x[rows, inputs] and w[outputs, inputs].
extern "C" __global__ void linear_few(elem* y, const elem* x, const elem* w, int rows, int inputs, int outputs) {
    __shared__ float shared[WARPS][16][OUTPUTS];
    linear(y, x, w, (const float*)nullptr, rows, inputs, outputs, 0, shared);
}

// Into float: logits, or with `accumulate` the stream.
extern "C" __global__ void linear_few_float(float* y, const elem* x, const elem* w, int rows, int inputs, int outputs,
                                            int accumulate) {
    __shared__ float shared[WARPS][16][OUTPUTS];
    linear(y, x, w, (const float*)nullptr, rows, inputs, outputs, accumulate, shared);
}

// With scales[outputs, up(inputs, 64)].
extern "C" __global__ void linear_few_int8(elem* y, const elem* x, const signed char* w, const float* scales, int rows,
                                           int inputs, int outputs) {
    __shared__ float shared[WARPS][16][OUTPUTS];
    linear(y, x, w, scales, rows, inputs, outputs, 0, shared);
}

extern "C" __global__ void linear_few_int8_float(float* y, const elem* x, const signed char* w, const float* scales,
                                                 int rows, int inputs, int outputs, int accumulate) {
    __shared__ float shared[WARPS][16][OUTPUTS];
    linear(y, x, w, scales, rows, inputs, outputs, accumulate, shared);
}
