// Causal attention with grouped queries, forward, without ever holding scores: for a tile of queries of one head, tiles of
// keys come into shared memory one after the other, and a softmax that is corrected as it goes (its maximum so far
// and its sum) is all that is kept of them. Memory is linear in the length; each key and value is read once for every tile
// of queries of a head that sees it, from the L2 cache but for the first time.
// Source: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 1.
//
// Queries are the last `queries` of `start + queries` positions; query t sees keys 0 to start + t. Tiles of keys begin at
// key 0, so that a query's bits depend on itself and the keys that it sees, wherever its own tile begins.
// Grid: (up(queries, QUERIES), heads, sequences), QUERIES is 128 with bf16, 64 with float; sequences lie one after the other.
#include "tiles.cuh"

// Where a block's queries and keys are, and how many there are.
struct Place {
    int first, exist, visible;
    long long query_row, key_row;
    int head, key_head;
    __device__ Place(int queries, int start, int heads, int kv_heads) {
        // The longest first: they have the most tiles of keys, and nobody waits for them at the end.
        first = (gridDim.x - 1 - blockIdx.x) * QUERIES;
        exist = min(QUERIES, queries - first);
        visible = start + first + exist;
        query_row = (long long)blockIdx.z * queries + first;
        key_row = (long long)blockIdx.z * (start + queries);
        head = blockIdx.y;
        key_head = head / (heads / kv_heads);
    }
};

#if BF16

// Scores of keys that a query does not see. `last` is the last key of the tile that the warp's first query sees.
static __device__ inline void hide(Sums<2, KEYS>& scores, int last) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < 2; t++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (last + 16 * t + lane / 4 + i / 2 * 8 < 8 * n + lane % 4 * 2 + i % 2) scores.x[t][n][i] = -3e38f;
}

// The softmax of the keys so far, for a lane's rows 16 * t + lane / 4 + 8 * half: the largest score, and the sum of the weights
// in the lane's own columns.
struct Softmax {
    float most[2][2], total[2][2];

    // Makes weights of a tile's scores, and brings what was added up before to the new maximum.
    __device__ inline void add(Sums<2, KEYS>& p, Sums<2, DEPTH>& sums, float by) {
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float top = most[t][half];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(p.x[t][n][2 * half], p.x[t][n][2 * half + 1]));
                top = max_lanes<4>(top);
                const float correct = power_of_two((most[t][half] - top) * by), shift = top * by;
                most[t][half] = top;
                total[t][half] *= correct;
#pragma unroll
                for (int n = 0; n < DEPTH / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) sums.x[t][n][2 * half + i] *= correct;
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        float& x = p.x[t][n][2 * half + i];
                        x = power_of_two(x * by - shift);
                        total[t][half] += x;
                    }
            }
    }
};

// A warp has two times 16 queries, so that every key and value that it reads from shared memory is used twice: reading them
// takes as long as multiplying. Keys and values have a tile each, and while one of them is multiplied the other is on its
// way. Dynamic shared memory: 256 rows of tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_forward(elem* out, float* log_sum, const elem* q, const elem* k, const elem* v, int queries, int start,
                      int heads, int kv_heads, int q_stride, int kv_stride, float scale) {
    DYNAMIC_SHARED(bf16, shared);
    bf16 *query = shared, *keys = query + QUERIES * STRIDE, *values = keys + KEYS * STRIDE;
    const Place place(queries, start, heads, kv_heads);
    const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 32;
    const elem* key = k + place.key_row * kv_stride + place.key_head * HEAD_DIM;
    const elem* value = v + place.key_row * kv_stride + place.key_head * HEAD_DIM;

    copy_tile<QUERIES>(query, q + place.query_row * q_stride + place.head * HEAD_DIM, q_stride, place.exist);
    copy_tile<KEYS>(keys, key, kv_stride, place.visible);
    commit_copies();
    Sums<2, DEPTH> sums = {};
    Softmax softmax = {{{-3e38f, -3e38f}, {-3e38f, -3e38f}}, {}};
    for (int from = 0; from < place.visible; from += KEYS) {
        wait_for_copies<0>();
        __syncthreads();  // the keys are here, and all are done with the values before
        copy_tile<KEYS>(values, value, kv_stride, place.visible - from);
        commit_copies();
        Sums<2, KEYS> p = {};
        // The last key of this tile that the warp's first query sees; none of its 32 may see any.
        const int last = start + place.first + warp_row - from;
        if (0 <= last + 31) {
            multiply_rows(p, query, warp_row, keys);
            if (last < KEYS - 1) hide(p, last);
            softmax.add(p, sums, scale * LOG2_E);
        }
        wait_for_copies<0>();
        __syncthreads();  // the values are here, and all are done with the keys
        key += (long long)KEYS * kv_stride;
        value += (long long)KEYS * kv_stride;
        if (from + KEYS < place.visible) copy_tile<KEYS>(keys, key, kv_stride, place.visible - from - KEYS);
        commit_copies();
        if (0 <= last + 31) multiply_columns(sums, p, values);
    }
    wait_for_copies<0>();

    out += place.query_row * heads * HEAD_DIM + place.head * HEAD_DIM;
#pragma unroll
    for (int t = 0; t < 2; t++) {
        const int row = warp_row + 16 * t + lane / 4;
        float total[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            total[half] = sum_lanes<4>(softmax.total[t][half]);
            if (lane % 4 == 0 && row + 8 * half < place.exist)
                log_sum[(place.query_row + row + 8 * half) * heads + place.head] =
                    softmax.most[t][half] * scale + logf(total[half]);
        }
        store_rows(out, heads * HEAD_DIM, row, place.exist, sums.x[t], 1.0f / total[0], 1.0f / total[1]);
    }
}

#else

// Without tensor cores: queries and sums are in registers; keys and values are read from shared memory, where the lanes of
// a warp ask for 4 different places only. Blocks of 256 threads, no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_forward(elem* out, float* log_sum, const elem* q, const elem* k, const elem* v, int queries, int start,
                      int heads, int kv_heads, int q_stride, int kv_stride, float scale) {
    __shared__ __align__(16) float keys[KEYS * HEAD_DIM], values[KEYS * HEAD_DIM];
    const Place place(queries, start, heads, kv_heads);
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const int last = start + place.first + row;
    float query[PART], sums[PART] = {}, most = -3e38f, total = 0;
    q += (place.query_row + row) * q_stride + place.head * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < PART; i++) query[i] = row < place.exist ? q[i * LANES + lane] : 0.0f;
    for (int from = 0; from < place.visible; from += KEYS) {
        __syncthreads();
        const int count = min(KEYS, place.visible - from);
        for (int i = threadIdx.x; i < count * HEAD_DIM; i += blockDim.x) {
            const long long at = (place.key_row + from + i / HEAD_DIM) * kv_stride + place.key_head * HEAD_DIM + i % HEAD_DIM;
            keys[i] = k[at];
            values[i] = v[at];
        }
        __syncthreads();
        for (int s = 0; s < count; s++) {
            float score = 0;
#pragma unroll
            for (int i = 0; i < PART; i++) score += query[i] * keys[s * HEAD_DIM + i * LANES + lane];
            score = sum_lanes<LANES>(score) * scale;
            if (last < from + s) continue;
            const float top = fmaxf(most, score), correct = expf(most - top), p = expf(score - top);
            most = top;
            total = total * correct + p;
#pragma unroll
            for (int i = 0; i < PART; i++) sums[i] = sums[i] * correct + p * values[s * HEAD_DIM + i * LANES + lane];
        }
    }
    if (place.exist <= row) return;
    out += (place.query_row + row) * heads * HEAD_DIM + place.head * HEAD_DIM;
#pragma unroll
    for (int i = 0; i < PART; i++) out[i * LANES + lane] = sums[i] / total;
    if (lane == 0) log_sum[(place.query_row + row) * heads + place.head] = most + logf(total);
}

#endif
