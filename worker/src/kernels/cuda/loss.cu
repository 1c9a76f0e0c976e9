// Cross-entropy of a softmax, forward and backward at once, over a chunk of rows of logits: the host multiplies a chunk's
// logits out, calls this, and multiplies the gradient back, so that a matrix [tokens, vocabulary] never exists.
// A block of 512 threads for each row, which is read twice: the second time from the L2 cache, unless the vocabulary is
// enormous.
#include "common.cuh"

// loss[row] = -log p[target], dlogits[row, v] = (p[v] - [v = target]) * scale, p = softmax(logits[row]). Grid: rows.
extern "C" __global__ void cross_entropy(elem* dlogits, float* loss, const float* logits, const int* targets, int rows,
                                         int vocabulary, float scale) {
    __shared__ float shared[2][32];
    const long long start = (long long)blockIdx.x * vocabulary;
    const int target = targets[blockIdx.x], first = threadIdx.x * 8, step = blockDim.x * 8;
    logits += start;
    dlogits += start;

    // The sum of a thread's part, as a multiple of the exponential of its maximum so far.
    float most = -3e38f, sum = 0;
    for (int at = first; at < vocabulary; at += step) {
        const int count = vocabulary - at;
        Eight part = load(logits + at, count);
        float before = most;
        for (int i = 0; i < 8; i++)
            if (i < count) most = fmaxf(most, part.x[i]);
        sum *= __expf(before - most);
        for (int i = 0; i < 8; i++)
            if (i < count) sum += __expf(part.x[i] - most);
    }
    const float top = max_block(most, shared[0]);
    const float log_sum = top + logf(sum_block(sum * __expf(most - top), shared[1]));

    if (threadIdx.x == 0) loss[blockIdx.x] = log_sum - logits[target];
    for (int at = first; at < vocabulary; at += step) {
        Eight part = load(logits + at, vocabulary - at);
        for (int i = 0; i < 8; i++) part.x[i] = (__expf(part.x[i] - log_sum) - (at + i == target ? 1.0f : 0.0f)) * scale;
        store(dlogits + at, part, vocabulary - at);
    }
}
