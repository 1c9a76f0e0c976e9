// Operations whose outputs each depend on few inputs: all are limited by memory. A thread takes 8 neighbours, one load of
// 16 bytes of bf16, and nothing is read or written twice. Blocks of 256 threads.
#include "common.cuh"

// What thread `thread_index()` does of a matrix of `rows` rows: 8 neighbours of one row, fewer at its end.
struct Part {
    bool exists;
    long long row;
    int column, count;
    __device__ Part(long long rows, int width) {
        long long parts = up(width, 8), index = thread_index();
        row = index / parts;
        column = (int)(index % parts) * 8;
        count = width - column < 8 ? width - column : 8;
        exists = row < rows;
    }
};

// x[n] += delta[n]
extern "C" __global__ void add(float* x, const elem* delta, long long n) {
    long long at = thread_index() * 8;
    if (n <= at) return;
    Eight sum = load(x + at, n - at), more = load(delta + at, n - at);
    for (int i = 0; i < 8; i++) sum.x[i] += more.x[i];
    store(x + at, sum, n - at);
}

// y[n] = x[n], rounded.
extern "C" __global__ void to_elem(elem* y, const float* x, long long n) {
    long long at = thread_index() * 8;
    if (at < n) store(y + at, load(x + at, n - at), n - at);
}

// y[n] = x[n]
extern "C" __global__ void to_float(float* y, const elem* x, long long n) {
    long long at = thread_index() * 8;
    if (at < n) store(y + at, load(x + at, n - at), n - at);
}

template <class T>
static __device__ inline void add_to_rows(T* y, const float* bias, long long rows, int width, int stride) {
    Part part(rows, width);
    if (!part.exists) return;
    y += part.row * stride + part.column;
    Eight sum = load(y, part.count), more = load(bias + part.column, part.count);
    for (int i = 0; i < 8; i++) sum.x[i] += more.x[i];
    store(y, sum, part.count);
}

// y[rows, width] += bias[width], rows `stride` apart.
extern "C" __global__ void add_bias(elem* y, const float* bias, long long rows, int width, int stride) {
    add_to_rows(y, bias, rows, width, stride);
}

extern "C" __global__ void add_bias_float(float* y, const float* bias, long long rows, int width, int stride) {
    add_to_rows(y, bias, rows, width, stride);
}

// y[rows, width] = gate * sigmoid(gate) * up; rows of gate and up are `stride` apart.
extern "C" __global__ void swiglu_forward(elem* y, const elem* gate, const elem* up, long long rows, int width,
                                          int stride) {
    Part part(rows, width);
    if (!part.exists) return;
    long long at = part.row * stride + part.column;
    Eight g = load(gate + at, part.count), u = load(up + at, part.count);
    for (int i = 0; i < 8; i++) g.x[i] = g.x[i] / (1.0f + __expf(-g.x[i])) * u.x[i];
    store(y + part.row * width + part.column, g, part.count);
}

// With s = sigmoid(gate): dup = dy * gate * s, dgate = dy * up * s * (1 + gate * (1 - s)). May be in place.
extern "C" __global__ void swiglu_backward(elem* dgate, elem* dup, const elem* dy, const elem* gate, const elem* up,
                                           long long rows, int width, int stride) {
    Part part(rows, width);
    if (!part.exists) return;
    long long at = part.row * stride + part.column;
    Eight g = load(gate + at, part.count), u = load(up + at, part.count);
    Eight d = load(dy + part.row * width + part.column, part.count);
    for (int i = 0; i < 8; i++) {
        float s = 1.0f / (1.0f + __expf(-g.x[i])), gate_i = g.x[i];
        g.x[i] = d.x[i] * u.x[i] * s * (1.0f + gate_i * (1.0f - s));
        u.x[i] = d.x[i] * gate_i * s;
    }
    store(dgate + at, g, part.count);
    store(dup + at, u, part.count);
}

// Rotary position embedding in place: turns pair (i, i + HEAD_DIM / 2) of every head by the angle of the row's position,
// forwards with direction 1, back with -1. cos, sin: [positions, HEAD_DIM / 2].
extern "C" __global__ void rope(elem* x, long long rows, int heads, int stride, const float* cos, const float* sin,
                                const int* positions, int start, int length, float direction) {
    const int half = HEAD_DIM / 2;
    Part part(rows * heads, half);
    if (!part.exists) return;
    long long row = part.row / heads;
    int head = (int)(part.row % heads);
    long long angle = (long long)(positions ? positions[row] : start + (int)(row % length)) * half + part.column;
    elem* low = x + row * stride + head * HEAD_DIM + part.column;
    elem* high = low + half;
    Eight a = load(low, part.count), b = load(high, part.count);
    Eight c = load(cos + angle, part.count), s = load(sin + angle, part.count);
    for (int i = 0; i < 8; i++) {
        float turned = direction * s.x[i], a_i = a.x[i];
        a.x[i] = a_i * c.x[i] - b.x[i] * turned;
        b.x[i] = b.x[i] * c.x[i] + a_i * turned;
    }
    store(low, a, part.count);
    store(high, b, part.count);
}

// y[row] = w[tokens[row]]; a block for each row.
extern "C" __global__ void embedding_forward(float* y, const int* tokens, const elem* w, int rows, int width) {
    const elem* from = w + (long long)tokens[blockIdx.x] * width;
    float* to = y + (long long)blockIdx.x * width;
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8)
        store(to + at, load(from + at, width - at), width - at);
}

// 8 of a matrix of integers of 8 bits, with a scale for every 64 neighbours of a row: those from `at` of row `row` on, zeros behind
// the row's end.
static __device__ inline Eight load_int8(const signed char* w, const float* scales, long long row, int width, int at) {
    const float scale = scales[row * up(width, 64) + at / 64];
    const signed char* from = w + row * width + at;
    Eight y = {};
    if (width % 8 == 0) {
        const unsigned long long all = *(const unsigned long long*)from;
        for (int i = 0; i < 8; i++) y.x[i] = (signed char)(all >> (8 * i)) * scale;
    } else {
        for (int i = 0; i < 8; i++)
            if (at + i < width) y.x[i] = from[i] * scale;
    }
    return y;
}

// As embedding_forward, with such a w.
extern "C" __global__ void embedding_forward_int8(float* y, const int* tokens, const signed char* w, const float* scales,
                                                  int rows, int width) {
    float* to = y + (long long)blockIdx.x * width;
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8)
        store(to + at, load_int8(w, scales, tokens[blockIdx.x], width, at), width - at);
}

// y = w, rounded: [rows, width].
extern "C" __global__ void widen_int8(elem* y, const signed char* w, const float* scales, long long rows, int width) {
    Part part(rows, width);
    if (!part.exists) return;
    store(y + part.row * width + part.column, load_int8(w, scales, part.row, width, part.column), part.count);
}

// y[row] = x[index[row]]; a block for each row.
extern "C" __global__ void gather_rows(float* y, const float* x, const int* index, int rows, int width) {
    const float* from = x + (long long)index[blockIdx.x] * width;
    float* to = y + (long long)blockIdx.x * width;
    for (int at = threadIdx.x * 8; at < width; at += blockDim.x * 8)
        store(to + at, load(from + at, width - at), width - at);
}

// Rows of dy that belong to one token are added to its row of dw by one block, in the order that the host gives: rows
// order[starts[u]] to order[starts[u + 1] - 1] for tokens[u], u = blockIdx.x. A thread for each column.
extern "C" __global__ void embedding_backward(float* dw, const float* dy, const int* tokens, const int* starts,
                                              const int* order, int width) {
    int column = blockIdx.y * blockDim.x + threadIdx.x;
    if (width <= column) return;
    float* to = dw + (long long)tokens[blockIdx.x] * width + column;
    float sum = *to;
    for (int i = starts[blockIdx.x]; i < starts[blockIdx.x + 1]; i++) sum += dy[(long long)order[i] * width + column];
    *to = sum;
}
