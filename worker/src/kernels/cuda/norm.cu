// RMS norms, forward and backward. A block for each row forward, for a chunk of rows backward, so that the gradient of the
// weight leaves the chip once a chunk: a second kernel adds the chunks. Rows are read from memory once; what is read a
// second time is in the cache. Blocks of 32 to 256 threads, 8 neighbours for each thread.
#include "common.cuh"

static __device__ inline float sum_of_products(const Eight& a, const Eight& b) {
    float sum = 0;
    for (int i = 0; i < 8; i++) sum += a.x[i] * b.x[i];
    return sum;
}

// y = x * w * rstd of one row, rstd = 1 / sqrt(mean(x^2) + eps); with `delta` of x + delta, which goes to x_out.
template <class X>
static __device__ inline void norm_forward(elem* y, float* rstd, X* x_out, const X* x, const elem* delta, const float* w,
                                           long long row, int width, float eps, float* shared) {
    x += row * width;
    y += row * width;
    const int step = blockDim.x * 8;
    float sum = 0;
    for (int at = threadIdx.x * 8; at < width; at += step) {
        Eight part = load(x + at, width - at);
        if (delta) {
            Eight more = load(delta + row * width + at, width - at);
            for (int i = 0; i < 8; i++) part.x[i] += more.x[i];
            store(x_out + row * width + at, part, width - at);
        }
        sum += sum_of_products(part, part);
    }
    if (delta) x = x_out + row * width;
    float scale = 1.0f / sqrtf(sum_block(sum, shared) / width + eps);
    if (threadIdx.x == 0) rstd[row] = scale;
    for (int at = threadIdx.x * 8; at < width; at += step) {
        Eight part = load(x + at, width - at), weight = load(w + at, width - at);
        for (int i = 0; i < 8; i++) part.x[i] *= weight.x[i] * scale;
        store(y + at, part, width - at);
    }
}

// Of the stream: x[rows, width] in float. x_out may be x. Grid: rows.
extern "C" __global__ void rms_norm_forward(elem* y, float* rstd, float* x_out, const float* x, const elem* delta,
                                            const float* w, int rows, int width, float eps) {
    __shared__ float shared[32];
    norm_forward(y, rstd, x_out, x, delta, w, blockIdx.x, width, eps, shared);
}

// Of queries and keys: x[rows, width] are elements, a row is a head of a token. Grid: rows.
extern "C" __global__ void head_norm_forward(elem* y, float* rstd, const elem* x, const float* w, long long rows,
                                             int width, float eps) {
    __shared__ float shared[32];
    norm_forward(y, rstd, (elem*)nullptr, x, (const elem*)nullptr, w, blockIdx.x, width, eps, shared);
}

// With g = dy * w: dx = rstd * (g - x * rstd^2 * mean(g * x)), added to what is there with `ADD`, and
// partial[blockIdx.x] = the sum of dy * x * rstd over the block's rows. A thread keeps its columns' sums in `dw`, which
// nobody else touches. Sums over a row alternate between two places, so that a row needs one barrier.
template <bool ADD, class X>
static __device__ inline void norm_backward(X* dx, elem* dx_copy, float* partial, const elem* dy, const X* x,
                                            const float* w, const float* rstd, long long rows, int width, int chunk,
                                            float* dw, float (&shared)[2][32]) {
    const int first = threadIdx.x * 8, step = blockDim.x * 8;
    const long long begin = (long long)blockIdx.x * chunk, end = begin + chunk < rows ? begin + chunk : rows;
    for (int at = first; at < width; at += step) store(dw + at, Eight{}, width - at);
    for (long long row = begin; row < end; row++) {
        const long long start = row * width;
        float sum = 0;
        for (int at = first; at < width; at += step) {
            Eight g = load(dy + start + at, width - at), weight = load(w + at, width - at);
            for (int i = 0; i < 8; i++) g.x[i] *= weight.x[i];
            sum += sum_of_products(g, load(x + start + at, width - at));
        }
        const float scale = rstd[row], mean = sum_block(sum, shared[row % 2]) / width;
        const float by = scale * scale * mean;
        for (int at = first; at < width; at += step) {
            const long long count = width - at;
            Eight d = load(dy + start + at, count), value = load(x + start + at, count);
            Eight weight = load(w + at, count), sums = load(dw + at, count);
            Eight result = ADD ? load(dx + start + at, count) : Eight{};
            for (int i = 0; i < 8; i++) {
                result.x[i] += scale * (d.x[i] * weight.x[i] - value.x[i] * by);
                sums.x[i] += d.x[i] * value.x[i] * scale;
            }
            store(dw + at, sums, count);
            store(dx + start + at, result, count);
            if (dx_copy) store(dx_copy + start + at, result, count);
        }
    }
    for (int at = first; at < width; at += step)
        store(partial + (long long)blockIdx.x * width + at, load(dw + at, width - at), width - at);
}

// Of the stream: dx[rows, width] grows, and dx_copy, if there is one, gets its new values for the next products.
// Grid: up(rows, chunk); dynamic shared memory: a float for each column.
extern "C" __global__ void rms_norm_backward(float* dx, elem* dx_copy, float* partial, const elem* dy, const float* x,
                                             const float* w, const float* rstd, int rows, int width, int chunk) {
    __shared__ float shared[2][32];
    DYNAMIC_SHARED(float, dw);
    norm_backward<true>(dx, dx_copy, partial, dy, x, w, rstd, rows, width, chunk, dw, shared);
}

// Of queries and keys: dx is overwritten, and may be dy.
extern "C" __global__ void head_norm_backward(elem* dx, float* partial, const elem* dy, const elem* x, const float* w,
                                              const float* rstd, long long rows, int width, int chunk) {
    __shared__ float shared[2][32];
    DYNAMIC_SHARED(float, dw);
    norm_backward<false>(dx, (elem*)nullptr, partial, dy, x, w, rstd, rows, width, chunk, dw, shared);
}

// partial[blockIdx.y, column] = sum of dy[row, column] over a chunk of rows, which are `stride` apart: the gradient of a
// bias, before `reduce_rows`. Grid: (up(width, 256), up(rows, chunk)).
extern "C" __global__ void column_sums(float* partial, const elem* dy, int rows, int width, int stride, int chunk) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (width <= column) return;
    int begin = blockIdx.y * chunk, end = min(begin + chunk, rows);
    float sum = 0;
    for (int row = begin; row < end; row++) sum += value(dy[(long long)row * stride + column]);
    partial[(long long)blockIdx.y * width + column] = sum;
}

// dw[column] += the sum of partial[count, width] over its rows. 32 columns a block, 32 threads for each. Grid: up(width, 32).
extern "C" __global__ void reduce_rows(float* dw, const float* partial, int count, int width) {
    __shared__ float sums[32][33];
    int lane = threadIdx.x % 32, part = threadIdx.x / 32, column = blockIdx.x * 32 + lane;
    float sum = 0;
    if (column < width)
        for (int row = part; row < count; row += 32) sum += partial[(long long)row * width + column];
    sums[part][lane] = sum;
    __syncthreads();
    if (part != 0 || width <= column) return;
    for (int i = 1; i < 32; i++) sum += sums[i][lane];
    dw[column] += sum;
}
