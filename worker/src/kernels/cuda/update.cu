// What becomes of the gradients of a step: sums, their length, and the update. Members of a training have the same state
// whatever they compute with, so all of this has the bits of kernels/reference.rs: it is compiled without fused
// multiply-add, and sums have the order that is written there.
#include "common.cuh"

// x[n] += y[n]
extern "C" __global__ void add_floats(float* x, const float* y, long long n) {
    long long at = thread_index() * 8;
    if (n <= at) return;
    Eight sum = load(x + at, n - at), more = load(y + at, n - at);
    for (int i = 0; i < 8; i++) sum.x[i] += more.x[i];
    store(x + at, sum, n - at);
}

// One update of all parameters, their moments and, if there is one, the copy that products read:
// m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, p -= lr * (m correct1 / (sqrt(v correct2) + eps) + decay * p),
// with g the gradient times `gradient_scale`. 28 bytes a parameter, 30 with a copy in bf16: read and written once.
extern "C" __global__ void adamw(float* p, float* m, float* v, const float* g, elem* copy, long long n,
                                 float learning_rate, float beta1, float beta2, float eps, float weight_decay,
                                 float correct1, float correct2, float gradient_scale) {
    long long at = thread_index() * 8, count = n - at;
    if (n <= at) return;
    Eight weight = load(p + at, count), first = load(m + at, count), second = load(v + at, count);
    Eight gradient = load(g + at, count);
    for (int i = 0; i < 8; i++) {
        float x = gradient.x[i] * gradient_scale;
        first.x[i] = beta1 * first.x[i] + (1.0f - beta1) * x;
        second.x[i] = beta2 * second.x[i] + (1.0f - beta2) * x * x;
        float step = first.x[i] * correct1 / (sqrtf(second.x[i] * correct2) + eps) + weight_decay * weight.x[i];
        weight.x[i] -= learning_rate * step;
    }
    store(p + at, weight, count);
    store(m + at, first, count);
    store(v + at, second, count);
    if (copy) store(copy + at, weight, count);
}

// Lanes of a sum, one for each thread of a block.
const int LANES = 256;

// The upper half of the lanes is added to the lower one, until one is left.
static __device__ inline double add_lanes(double sum) {
    __shared__ double lanes[LANES];
    lanes[threadIdx.x] = sum;
    for (int width = LANES / 2; 0 < width; width /= 2) {
        __syncthreads();
        if ((int)threadIdx.x < width) lanes[threadIdx.x] += lanes[threadIdx.x + width];
    }
    __syncthreads();
    return lanes[0];
}

// parts[i] = sum of the squares of part i of x[n], of 16,384 floats, in double precision: the norm of millions of gradients
// loses digits otherwise. A block for each part.
extern "C" __global__ void sum_of_squares(double* parts, const float* x, long long n) {
    long long first = blockIdx.x * 16384LL, last = n < first + 16384 ? n : first + 16384;
    double sum = 0;
    for (long long at = first + threadIdx.x; at < last; at += LANES) sum += (double)x[at] * x[at];
    sum = add_lanes(sum);
    if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

// out[0] = sum of x[n], by one block.
extern "C" __global__ void sum_doubles(double* out, const double* x, long long n) {
    double sum = 0;
    for (long long at = threadIdx.x; at < n; at += LANES) sum += x[at];
    sum = add_lanes(sum);
    if (threadIdx.x == 0) *out = sum;
}
