// Attention of single queries over a cache of keys and values in blocks of 16 positions, for decoding, and what fills and
// empties the cache. A layer's keys are [blocks, kv_heads, 16, HEAD_DIM], and so are its values: what a block holds of one
// head is one stretch of memory.
//
// All of the time is reading the cache, so a block of threads reads a key head once for all query heads that share it.
// Positions are cut into parts of 256, which different blocks of threads take, and a second kernel puts the parts
// together: a long sequence keeps the whole card busy, and the cut is the same for every row, so that its bits do not
// depend on who else is served.
#include "common.cuh"

enum { BLOCK = 16, PART = 256, WARPS = 4, TOGETHER = 8, PIECES = HEAD_DIM / 8 };

// Columns that a lane adds up: pairs of neighbours, 64 apart.
enum { PAIRS = (HEAD_DIM + 63) / 64 };

// Keys and values of a row go to position slots[row] % 16 of block slots[row] / 16, or nowhere with -1. Rows of k and v are
// `kv_stride` apart. Grid: rows.
extern "C" __global__ void cache_write(elem* cache_k, elem* cache_v, const elem* k, const elem* v, const int* slots,
                                       int rows, int kv_heads, int kv_stride) {
    const int slot = slots[blockIdx.x];
    if (slot < 0) return;
    for (int i = threadIdx.x; i < kv_heads * PIECES; i += blockDim.x) {
        const int head = i / PIECES, at = i % PIECES * 8;
        const long long from = (long long)blockIdx.x * kv_stride + head * HEAD_DIM + at;
        const long long to = (((long long)(slot / BLOCK) * kv_heads + head) * BLOCK + slot % BLOCK) * HEAD_DIM + at;
        store(cache_k + to, load(k + from, 8), 8);
        store(cache_v + to, load(v + from, 8), 8);
    }
}

// Positions 0 to positions - 1 of one sequence, dense. Grid: positions.
extern "C" __global__ void cache_read(elem* k, elem* v, const elem* cache_k, const elem* cache_v, const int* table,
                                      int positions, int kv_heads) {
    const int position = blockIdx.x;
    for (int i = threadIdx.x; i < kv_heads * PIECES; i += blockDim.x) {
        const int head = i / PIECES, at = i % PIECES * 8;
        const long long to = ((long long)position * kv_heads + head) * HEAD_DIM + at;
        const long long from =
            (((long long)table[position / BLOCK] * kv_heads + head) * BLOCK + position % BLOCK) * HEAD_DIM + at;
        store(k + to, load(cache_k + from, 8), 8);
        store(v + to, load(cache_v + from, 8), 8);
    }
}

static __device__ inline float2 load_pair(const elem* x) {
#if BF16
    const unsigned both = *(const unsigned*)x;
    return make_float2(__uint_as_float(both << 16), __uint_as_float(both & 0xffff0000u));
#else
    return *(const float2*)x;
#endif
}

// What a part gives for each query head, in `partial[row, head, part]`: HEAD_DIM sums of values, weighted with e^(score -
// most); then `most`, the largest score; then the sum of the weights. Grid: (kv_heads, rows, parts).
//
// The 4 warps take the part's blocks in turn. For the scores of a block two neighbouring lanes have one position, each
// every other piece of 16 bytes of bf16; for the values a lane has columns. At most 8 query heads at a time.
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    attention_cached(float* partial, const elem* q, const elem* cache_k, const elem* cache_v, const int* tables,
                     const int* seen, int table_stride, int heads, int kv_heads, int q_stride, int parts, float scale) {
    __shared__ __align__(16) float query[TOGETHER][HEAD_DIM], weights[WARPS][TOGETHER][BLOCK];
    __shared__ float sums_of[WARPS][TOGETHER][HEAD_DIM], most_of[WARPS][TOGETHER], total_of[WARPS][TOGETHER];
    const int key_head = blockIdx.x, row = blockIdx.y, part = blockIdx.z, group = heads / kv_heads;
    const int end = min(seen[row], (part + 1) * PART), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (end <= part * PART) return;
    for (int first = key_head * group; first < (key_head + 1) * group; first += TOGETHER) {
        const int count = min(TOGETHER, (key_head + 1) * group - first);
        for (int i = threadIdx.x; i < count * HEAD_DIM; i += blockDim.x)
            query[i / HEAD_DIM][i % HEAD_DIM] = value(q[(long long)row * q_stride + first * HEAD_DIM + i]) * scale;
        __syncthreads();
        float most[TOGETHER], total[TOGETHER] = {}, sums[TOGETHER][2 * PAIRS] = {};
        for (int h = 0; h < TOGETHER; h++) most[h] = -3e38f;
        for (int from = part * PART + warp * BLOCK; from < end; from += WARPS * BLOCK) {
            const long long block = tables[(long long)row * table_stride + from / BLOCK];
            const long long at = (block * kv_heads + key_head) * BLOCK * HEAD_DIM;
            const elem* keys = cache_k + at + lane / 2 * HEAD_DIM;
            const elem* values = cache_v + at;
            const bool exists = from + lane / 2 < end;
            float scores[TOGETHER] = {};
            for (int piece = lane % 2; piece < PIECES; piece += 2) {
                if (!exists) continue;
                const Eight key = load(keys + 8 * piece, 8);
#pragma unroll
                for (int h = 0; h < TOGETHER; h++)
                    if (h < count)
                        for (int i = 0; i < 8; i++) scores[h] += key.x[i] * query[h][8 * piece + i];
            }
#pragma unroll
            for (int h = 0; h < TOGETHER; h++) {
                if (count <= h) continue;
                const float both = sum_lanes<2>(scores[h]), score = exists ? both : -3e38f;
                const float top = fmaxf(most[h], max_lanes(score));
                const float correct = __expf(most[h] - top), weight = exists ? __expf(score - top) : 0.0f;
                most[h] = top;
                total[h] = total[h] * correct + weight;
                for (int i = 0; i < 2 * PAIRS; i++) sums[h][i] *= correct;
                if (lane % 2 == 0) weights[warp][h][lane / 2] = weight;
            }
            __syncwarp();
            const int positions = min(BLOCK, end - from);
            for (int s = 0; s < positions; s++)
#pragma unroll
                for (int pair = 0; pair < PAIRS; pair++) {
                    const int column = 2 * lane + 64 * pair;
                    if (HEAD_DIM <= column) continue;
                    const float2 v = load_pair(values + s * HEAD_DIM + column);
#pragma unroll
                    for (int h = 0; h < TOGETHER; h++) {
                        if (count <= h) continue;
                        sums[h][2 * pair] += weights[warp][h][s] * v.x;
                        sums[h][2 * pair + 1] += weights[warp][h][s] * v.y;
                    }
                }
            __syncwarp();
        }
        for (int h = 0; h < TOGETHER; h++) {
            if (count <= h) continue;
            // Both lanes of a position have its weight.
            const float sum = sum_lanes(total[h]) * 0.5f;
            if (lane == 0) {
                most_of[warp][h] = most[h];
                total_of[warp][h] = sum;
            }
            for (int i = 0; i < 2 * PAIRS; i++) {
                const int column = 2 * lane + 64 * (i / 2) + i % 2;
                if (column < HEAD_DIM) sums_of[warp][h][column] = sums[h][i];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < count * (HEAD_DIM + 2); i += blockDim.x) {
            const int h = i / (HEAD_DIM + 2), column = i % (HEAD_DIM + 2);
            float top = most_of[0][h], sum = 0;
            for (int w = 1; w < WARPS; w++) top = fmaxf(top, most_of[w][h]);
            for (int w = 0; w < WARPS; w++) {
                const float x = column < HEAD_DIM ? sums_of[w][h][column] : total_of[w][h];
                sum += x * __expf(most_of[w][h] - top);
            }
            const long long to = ((long long)row * heads + first + h) * parts + part;
            partial[to * (HEAD_DIM + 2) + column] = column == HEAD_DIM ? top : sum;
        }
    }
}

// Puts the parts of a head together. Grid: (heads, rows).
extern "C" __global__ void attention_cached_combine(elem* out, const float* partial, const int* seen, int heads,
                                                    int parts) {
    const int row = blockIdx.y, head = blockIdx.x, count = (int)up(seen[row], PART);
    const long long index = (long long)row * heads + head;
    partial += index * parts * (HEAD_DIM + 2);
    float top = -3e38f;
    for (int part = 0; part < count; part++) top = fmaxf(top, partial[part * (HEAD_DIM + 2) + HEAD_DIM]);
    for (int column = threadIdx.x; column < HEAD_DIM; column += blockDim.x) {
        float sum = 0, total = 0;
        for (int part = 0; part < count; part++) {
            const float* from = partial + part * (HEAD_DIM + 2);
            const float by = __expf(from[HEAD_DIM] - top);
            sum += from[column] * by;
            total += from[HEAD_DIM + 1] * by;
        }
        store(out[index * HEAD_DIM + column], count ? sum / total : 0.0f);
    }
}
