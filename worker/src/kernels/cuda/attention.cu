// Causal attention with grouped queries, forward, without ever holding scores: for a tile of 64 queries of one head, tiles
// of 64 keys come into shared memory one after the other, and a softmax that is corrected as it goes (its maximum so far
// and its sum) is all that is kept of them. Memory is linear in the length; each key and value is read once for every 64
// queries of a head that see it, from the L2 cache but for the first time.
// Source: Dao, "FlashAttention-2", arXiv 2307.08691, algorithm 1.
//
// Queries are the last `queries` of `start + queries` positions; query t sees keys 0 to start + t. Tiles of keys begin at
// key 0, so that a query's bits depend on itself and the keys that it sees, wherever its own tile begins.
// Grid: (up(queries, 64), heads, sequences); sequences lie one after the other.
#include "tiles.cuh"

// Where a block's queries and keys are, and how many there are.
struct Place {
    int first, exist, visible;
    long long query_row, key_row;
    int head, key_head;
    __device__ Place(int queries, int start, int heads, int kv_heads) {
        // The longest first: they have the most tiles of keys, and nobody waits for them at the end.
        first = (gridDim.x - 1 - blockIdx.x) * ROWS;
        exist = min(ROWS, queries - first);
        visible = start + first + exist;
        query_row = (long long)blockIdx.z * queries + first;
        key_row = (long long)blockIdx.z * (start + queries);
        head = blockIdx.y;
        key_head = head / (heads / kv_heads);
    }
};

#if BF16

// A warp has 16 queries. The queries stay in registers, as the left operand; keys and values have a tile each, and while one
// of them is multiplied the other is on its way.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_forward(elem* out, float* log_sum, const elem* q, const elem* k, const elem* v, int queries, int start,
                      int heads, int kv_heads, int q_stride, int kv_stride, float scale) {
    __shared__ __align__(16) bf16 keys[ROWS * STRIDE], values[ROWS * STRIDE];
    const Place place(queries, start, heads, kv_heads);
    const int warp_row = threadIdx.x / 32 * WARP_ROWS, row = warp_row + threadIdx.x % 32 / 4;
    const int column = threadIdx.x % 4 * 2;
    const elem* key = k + place.key_row * kv_stride + place.key_head * HEAD_DIM;
    const elem* value = v + place.key_row * kv_stride + place.key_head * HEAD_DIM;

    // The queries go through the room of the keys.
    copy_tile<ROWS>(keys, q + place.query_row * q_stride + place.head * HEAD_DIM, q_stride, place.exist);
    commit_copies();
    wait_for_copies<0>();
    __syncthreads();
    unsigned query[DEPTH / 16][4];
#pragma unroll
    for (int i = 0; i < DEPTH / 16; i++) load_left(query[i], keys, warp_row, 16 * i);
    __syncthreads();

    copy_tile<ROWS>(keys, key, kv_stride, place.visible);
    commit_copies();
    float sums[DEPTH / 8][4] = {}, most[2] = {-3e38f, -3e38f}, total[2] = {};
    const float by = scale * LOG2_E;
    for (int from = 0; from < place.visible; from += ROWS) {
        wait_for_copies<0>();
        __syncthreads();  // the keys are here, and all are done with the values before
        copy_tile<ROWS>(values, value + (long long)from * kv_stride, kv_stride, place.visible - from);
        commit_copies();
        float p[ROWS / 8][4] = {};
#pragma unroll
        for (int i = 0; i < DEPTH / 16; i++)
#pragma unroll
            for (int n = 0; n < ROWS / 16; n++) {
                unsigned b[4];
                load_right(b, keys, 16 * n, 16 * i);
                multiply_add(p[2 * n], query[i], b[0], b[1]);
                multiply_add(p[2 * n + 1], query[i], b[2], b[3]);
            }
        // The last key that the warp's first query sees.
        const int last = start + place.first + warp_row - from;
        if (last < ROWS - 1)
#pragma unroll
            for (int n = 0; n < ROWS / 8; n++)
                for (int i = 0; i < 4; i++)
                    if (last + row - warp_row + i / 2 * 8 < 8 * n + column + i % 2) p[n][i] = -3e38f;
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = most[half];
            for (int n = 0; n < ROWS / 8; n++) top = fmaxf(top, fmaxf(p[n][2 * half], p[n][2 * half + 1]));
            top = max_lanes<4>(top);
            const float correct = power_of_two((most[half] - top) * by), shift = top * by;
            most[half] = top;
            total[half] *= correct;
            for (int n = 0; n < DEPTH / 8; n++)
                for (int i = 0; i < 2; i++) sums[n][2 * half + i] *= correct;
            for (int n = 0; n < ROWS / 8; n++)
                for (int i = 0; i < 2; i++) {
                    float& x = p[n][2 * half + i];
                    x = power_of_two(x * by - shift);
                    total[half] += x;
                }
        }
        wait_for_copies<0>();
        __syncthreads();  // the values are here, and all are done with the keys
        if (from + ROWS < place.visible)
            copy_tile<ROWS>(keys, key + (long long)(from + ROWS) * kv_stride, kv_stride, place.visible - from - ROWS);
        commit_copies();
        multiply_columns<ROWS / 16>(sums, p, values);
    }
    wait_for_copies<0>();

    for (int half = 0; half < 2; half++) {
        total[half] = sum_lanes<4>(total[half]);
        if (column == 0 && row + 8 * half < place.exist)
            log_sum[(place.query_row + row + 8 * half) * heads + place.head] = most[half] * scale + logf(total[half]);
    }
    out += place.query_row * heads * HEAD_DIM + place.head * HEAD_DIM;
    store_rows(out, heads * HEAD_DIM, row, place.exist, sums, 1.0f / total[0], 1.0f / total[1]);
}

#else

enum { LANES = 4, KEYS = 32, PART = HEAD_DIM / LANES };

// Without tensor cores: 4 neighbouring lanes have a query, each a quarter of its elements, in registers; keys and values
// are read from shared memory, where the lanes of a warp ask for 4 different places only. Blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(256)
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
