// Causal attention, backward, in three kernels and without atomics, so that every sum has one order:
//   attention_backward_prepare   delta = dout . out of each query's head
//   attention_backward_kv        a tile of 64 keys: goes over all queries that see it, of all heads that share it
//   attention_backward_q         a tile of queries: goes over all keys that it sees
// Both compute the scores anew from log_sum, p = exp(q . k * scale - log_sum), and dscore = p * (dout . v - delta): that is 7
// products where one kernel with atomics has 5, the price of equal bits on every run. Memory is linear in the length.
// Source: Dao, "FlashAttention-2", arXiv 2307.08691, section 3.1 and algorithm 2.
//
// Shapes as in attention.cu; dout, delta and log_sum are dense. With bf16 the tiles that a block stays with and those that pass
// by, of 32 rows, are in dynamic shared memory.
#include "tiles.cuh"

// delta[i] = dout[i] . out[i] for each of `count` heads of queries. A warp for each, 8 a block. Grid: up(count, 8).
extern "C" __global__ void attention_backward_prepare(float* delta, const elem* dout, const elem* out, long long count) {
    const long long index = thread_index() / 32;
    if (count <= index) return;
    float sum = 0;
    for (int at = threadIdx.x % 32; at < HEAD_DIM; at += 32)
        sum += value(dout[index * HEAD_DIM + at]) * value(out[index * HEAD_DIM + at]);
    sum = sum_lanes(sum);
    if (threadIdx.x % 32 == 0) delta[index] = sum;
}

#if BF16

enum { PASSING = 32 };  // rows of a tile that passes by

// A block has 64 keys, a warp 16, which are the rows of its scores: these are the transposed ones, so that they are, rounded,
// the left operand of the products that make dk and dv. While a pair of tiles of queries and dout is multiplied the next one
// is on its way. Grid: (up(start + queries, 64), kv_heads, sequences); 256 rows of tiles.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_kv(elem* dk, elem* dv, const elem* q, const elem* k, const elem* v, const elem* dout,
                          const float* log_sum, const float* delta, int queries, int start, int heads, int kv_heads,
                          int q_stride, int kv_stride, float scale) {
    __shared__ float of_rows[2][2][PASSING];  // log_sum and delta of the queries that pass by
    DYNAMIC_SHARED(bf16, shared);
    bf16 *keys = shared, *values = keys + KEYS * STRIDE, *passing = values + KEYS * STRIDE;
    const int first = blockIdx.x * KEYS, exist = min(KEYS, start + queries - first), group = heads / kv_heads;
    const int warp_row = threadIdx.x / 32 * 16, row = warp_row + threadIdx.x % 32 / 4;
    const int column = threadIdx.x % 4 * 2;
    const long long key_row = (long long)blockIdx.z * (start + queries) + first, query_row = (long long)blockIdx.z * queries;
    const long long key_at = key_row * kv_stride + blockIdx.y * HEAD_DIM, width = (long long)heads * HEAD_DIM;
    copy_tile<KEYS>(keys, k + key_at, kv_stride, exist);
    copy_tile<KEYS>(values, v + key_at, kv_stride, exist);

    // Tiles of queries from the first that sees a key of the block, for one head after the other.
    const int begin = max(0, first - start) / PASSING * PASSING, tiles = (int)up(queries - begin, PASSING);
    auto ask = [&](int i) {
        const int head = blockIdx.y * group + i / tiles, from = begin + i % tiles * PASSING, exist = queries - from;
        const long long row = query_row + from;
        bf16* query = passing + i % 2 * 2 * PASSING * STRIDE;
        copy_tile<PASSING>(query, q + row * q_stride + head * HEAD_DIM, q_stride, exist);
        copy_tile<PASSING>(query + PASSING * STRIDE, dout + row * width + head * HEAD_DIM, width, exist);
        const int t = threadIdx.x % PASSING, what = threadIdx.x / PASSING;
        const bool exists = t < exist;
        const float* source = (what == 0 ? log_sum : delta) + (row + (exists ? t : 0)) * heads + head;
        if (what < 2) copy_float_async(&of_rows[i % 2][what][t], source, exists);
        commit_copies();
    };
    Sums<1, DEPTH> dkeys = {}, dvalues = {};
    ask(0);
    for (int i = 0; i < group * tiles; i++) {
        if (i + 1 < group * tiles) ask(i + 1);
        else commit_copies();
        wait_for_copies<1>();
        __syncthreads();
        const bf16 *query = passing + i % 2 * 2 * PASSING * STRIDE, *dquery = query + PASSING * STRIDE;
        const int from = begin + i % tiles * PASSING;
        Sums<1, PASSING> p = {}, dscore = {};
        multiply_rows(p, keys, warp_row, query);
        multiply_rows(dscore, values, warp_row, dquery);
#pragma unroll
        for (int n = 0; n < PASSING / 8; n++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                const int t = 8 * n + column + j;
                const float log = of_rows[i % 2][0][t] * LOG2_E, d = of_rows[i % 2][1][t];
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // Queries behind the last are zeros, and so is what they add.
                    const bool sees = first + row + 8 * half <= start + from + t;
                    float& x = p.x[0][n][2 * half + j];
                    x = sees ? power_of_two(x * (scale * LOG2_E) - log) : 0.0f;
                    dscore.x[0][n][2 * half + j] = x * (dscore.x[0][n][2 * half + j] - d);
                }
            }
        multiply_columns(dvalues, p, dquery);
        multiply_columns(dkeys, dscore, query);
        __syncthreads();  // before the next but one comes into the same room
    }
    wait_for_copies<0>();
    store_rows(dk + key_at, kv_stride, row, exist, dkeys.x[0], scale, scale);
    store_rows(dv + key_at, kv_stride, row, exist, dvalues.x[0], 1.0f, 1.0f);
}

// A warp has two times 16 queries. The next keys are asked for while these are multiplied, the next values once these are
// done with: keys have two rooms, values one. Grid: (up(queries, QUERIES), heads, sequences); 352 rows of tiles, which is all
// that compute capabilities 8.6 and 8.9 have for heads of 128.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_backward_q(elem* dq, const elem* q, const elem* k, const elem* v, const elem* dout, const float* log_sum,
                         const float* delta, int queries, int start, int heads, int kv_heads, int q_stride, int kv_stride,
                         float scale) {
    DYNAMIC_SHARED(bf16, shared);
    bf16 *query = shared, *dquery = query + QUERIES * STRIDE, *values = dquery + QUERIES * STRIDE;
    bf16* rooms = values + PASSING * STRIDE;
    // The longest first.
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, exist = min(QUERIES, queries - first);
    const int visible = start + first + exist, head = blockIdx.y, key_head = head / (heads / kv_heads);
    const int warp_row = threadIdx.x / 32 * 32, row = warp_row + threadIdx.x % 32 / 4, column = threadIdx.x % 4 * 2;
    const long long query_row = (long long)blockIdx.z * queries + first, key_row = (long long)blockIdx.z * (start + queries);
    const long long query_at = query_row * q_stride + head * HEAD_DIM, width = (long long)heads * HEAD_DIM;
    copy_tile<QUERIES>(query, q + query_at, q_stride, exist);
    copy_tile<QUERIES>(dquery, dout + query_row * width + head * HEAD_DIM, width, exist);

    const elem* key = k + key_row * kv_stride + key_head * HEAD_DIM;
    const elem* value = v + key_row * kv_stride + key_head * HEAD_DIM;
    copy_tile<PASSING>(rooms, key, kv_stride, visible);
    copy_tile<PASSING>(values, value, kv_stride, visible);
    commit_copies();
    float log[4] = {}, d[4] = {};  // of rows 0, 8, 16, 24 after `row`
#pragma unroll
    for (int i = 0; i < 4; i++)
        if (row + 8 * i < exist) {
            const long long at = (query_row + row + 8 * i) * heads + head;
            log[i] = log_sum[at] * LOG2_E;
            d[i] = delta[at];
        }
    Sums<2, DEPTH> sums = {};
    for (int from = 0, room = 0; from < visible; from += PASSING, room = 1 - room) {
        wait_for_copies<0>();
        __syncthreads();  // keys and values are here, and all are done with the keys before
        const bf16* keys = rooms + room * PASSING * STRIDE;
        const int left = visible - from - PASSING;
        key += (long long)PASSING * kv_stride;
        value += (long long)PASSING * kv_stride;
        if (0 < left) copy_tile<PASSING>(rooms + (1 - room) * PASSING * STRIDE, key, kv_stride, left);
        const bool any = from <= start + first + warp_row + 31;  // whether the warp's last query sees the first key
        Sums<2, PASSING> p = {}, dscore = {};
        if (any) {
            multiply_rows(p, query, warp_row, keys);
            multiply_rows(dscore, dquery, warp_row, values);
        }
        __syncthreads();  // all are done with the values
        if (0 < left) copy_tile<PASSING>(values, value, kv_stride, left);
        commit_copies();
        if (!any) continue;
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int n = 0; n < PASSING / 8; n++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const int s = from + 8 * n + column + j % 2, of = 2 * t + j / 2;
                    const bool sees = s <= start + first + row + 8 * of;
                    const float x = sees ? power_of_two(p.x[t][n][j] * (scale * LOG2_E) - log[of]) : 0.0f;
                    dscore.x[t][n][j] = x * (dscore.x[t][n][j] - d[of]);
                }
        multiply_columns(sums, dscore, keys);
    }
    wait_for_copies<0>();
#pragma unroll
    for (int t = 0; t < 2; t++) store_rows(dq + query_at, q_stride, row + 16 * t, exist, sums.x[t], scale, scale);
}

#else

enum { PASSING = 32 };

// Without tensor cores, and without dynamic shared memory. Blocks of 256 threads.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_kv(elem* dk, elem* dv, const elem* q, const elem* k, const elem* v, const elem* dout,
                          const float* log_sum, const float* delta, int queries, int start, int heads, int kv_heads,
                          int q_stride, int kv_stride, float scale) {
    __shared__ __align__(16) float query[PASSING * HEAD_DIM], dquery[PASSING * HEAD_DIM];
    const int first = blockIdx.x * ROWS, exist = min(ROWS, start + queries - first), group = heads / kv_heads;
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const long long key_row = (long long)blockIdx.z * (start + queries) + first, query_row = (long long)blockIdx.z * queries;
    const long long at = (key_row + row) * kv_stride + blockIdx.y * HEAD_DIM, width = (long long)heads * HEAD_DIM;
    float key[PART], val[PART], dkey[PART] = {}, dval[PART] = {};
#pragma unroll
    for (int i = 0; i < PART; i++) {
        key[i] = row < exist ? k[at + i * LANES + lane] : 0.0f;
        val[i] = row < exist ? v[at + i * LANES + lane] : 0.0f;
    }
    for (int head = blockIdx.y * group; head < (int)(blockIdx.y + 1) * group; head++)
        for (int from = max(0, first - start); from < queries; from += PASSING) {
            __syncthreads();
            const int count = min(PASSING, queries - from);
            for (int i = threadIdx.x; i < count * HEAD_DIM; i += blockDim.x) {
                const long long t = query_row + from + i / HEAD_DIM, element = head * HEAD_DIM + i % HEAD_DIM;
                query[i] = q[t * q_stride + element];
                dquery[i] = dout[t * width + element];
            }
            __syncthreads();
            for (int t = 0; t < count; t++) {
                float score = 0, along = 0;
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    score += key[i] * query[t * HEAD_DIM + i * LANES + lane];
                    along += val[i] * dquery[t * HEAD_DIM + i * LANES + lane];
                }
                score = sum_lanes<LANES>(score) * scale;
                along = sum_lanes<LANES>(along);
                if (start + from + t < first + row) continue;
                const long long index = (query_row + from + t) * heads + head;
                const float p = expf(score - log_sum[index]), dscore = p * (along - delta[index]) * scale;
#pragma unroll
                for (int i = 0; i < PART; i++) {
                    dval[i] += p * dquery[t * HEAD_DIM + i * LANES + lane];
                    dkey[i] += dscore * query[t * HEAD_DIM + i * LANES + lane];
                }
            }
        }
    if (exist <= row) return;
#pragma unroll
    for (int i = 0; i < PART; i++) {
        dk[at + i * LANES + lane] = dkey[i];
        dv[at + i * LANES + lane] = dval[i];
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_backward_q(elem* dq, const elem* q, const elem* k, const elem* v, const elem* dout, const float* log_sum,
                         const float* delta, int queries, int start, int heads, int kv_heads, int q_stride, int kv_stride,
                         float scale) {
    __shared__ __align__(16) float keys[PASSING * HEAD_DIM], values[PASSING * HEAD_DIM];
    const int first = (gridDim.x - 1 - blockIdx.x) * QUERIES, exist = min(QUERIES, queries - first);
    const int visible = start + first + exist, head = blockIdx.y, key_head = head / (heads / kv_heads);
    const int row = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    const long long query_row = (long long)blockIdx.z * queries + first, key_row = (long long)blockIdx.z * (start + queries);
    const long long at = (query_row + row) * q_stride + head * HEAD_DIM, index = (query_row + row) * heads + head;
    float query[PART], dquery[PART], sums[PART] = {};
#pragma unroll
    for (int i = 0; i < PART; i++) {
        query[i] = row < exist ? q[at + i * LANES + lane] : 0.0f;
        dquery[i] = row < exist ? dout[index * HEAD_DIM + i * LANES + lane] : 0.0f;
    }
    const float log = row < exist ? log_sum[index] : 0.0f, d = row < exist ? delta[index] : 0.0f;
    for (int from = 0; from < visible; from += PASSING) {
        __syncthreads();
        const int count = min(PASSING, visible - from);
        for (int i = threadIdx.x; i < count * HEAD_DIM; i += blockDim.x) {
            const long long element = (key_row + from + i / HEAD_DIM) * kv_stride + key_head * HEAD_DIM + i % HEAD_DIM;
            keys[i] = k[element];
            values[i] = v[element];
        }
        __syncthreads();
        for (int s = 0; s < count; s++) {
            float score = 0, along = 0;
#pragma unroll
            for (int i = 0; i < PART; i++) {
                score += query[i] * keys[s * HEAD_DIM + i * LANES + lane];
                along += dquery[i] * values[s * HEAD_DIM + i * LANES + lane];
            }
            score = sum_lanes<LANES>(score) * scale;
            along = sum_lanes<LANES>(along);
            if (start + first + row < from + s) continue;
            const float dscore = expf(score - log) * (along - d) * scale;
#pragma unroll
            for (int i = 0; i < PART; i++) sums[i] += dscore * keys[s * HEAD_DIM + i * LANES + lane];
        }
    }
    if (exist <= row) return;
#pragma unroll
    for (int i = 0; i < PART; i++) dq[at + i * LANES + lane] = sums[i];
}

#endif
