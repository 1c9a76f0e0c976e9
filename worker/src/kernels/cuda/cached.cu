// Attention of single queries over a cache of keys and values in blocks of 16 positions, for decoding, and what fills and
// empties the cache. A layer's keys are [blocks, kv_heads, 16, HEAD_DIM], and so are its values: what a block holds of one
// head is one stretch of memory.
//
// All of the time is reading the cache, so a block of threads reads a key head once for all query heads that share it.
// Positions are cut into parts of 256, which different blocks of threads take, and a second kernel puts the parts
// together: a long sequence keeps the whole card busy, and the cut is the same for every row, so that its bits do not
// depend on who else is served.
#include "common.cuh"

enum { BLOCK = 16, PART = 256, WARPS = 4, PIECES = HEAD_DIM / 8 };

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

// Where a block of threads finds the part of the cache that it reads: positions `begin` to `end - 1` of one key head.
struct Place {
    const elem *cache_k, *cache_v;
    const int* table;
    int kv_heads, key_head, begin, end;

    // The first element of the block of positions that begins at `from`.
    __device__ long long at(int from) const {
        return ((long long)table[from / BLOCK] * kv_heads + key_head) * BLOCK * HEAD_DIM;
    }
};

#if BF16

enum { TOGETHER = 16 };  // query heads at a time

#else

enum { TOGETHER = 8 };

#endif

// What each warp found for its positions: sums of values, weighted with e^(score - most), and the sum of the weights.
struct Found {
    float sums[WARPS][TOGETHER][HEAD_DIM], most[WARPS][TOGETHER], total[WARPS][TOGETHER];
};

#if BF16

enum { KEY_PIECES = (HEAD_DIM + 31) / 32, VALUE_PIECES = (HEAD_DIM + 63) / 64 };

static __device__ inline uint4 load_piece(const bf16* from, bool exists) {
    return exists ? *(const uint4*)from : make_uint4(0, 0, 0, 0);
}

// On tensor cores: query heads are the rows of the left operand, up to 16. As in linear_few.cu the order of what is added up is
// free, so that lanes load 16 bytes of a row: for the scores lane (g, t) has elements 8t to 8t + 7 of every 32 of positions g
// and g + 8. The values' columns are in a free order as well: the lane has elements 8g to 8g + 7 of every 64 of positions 2t,
// 2t + 1, 2t + 8, 2t + 9, of which it makes pairs, and column g of product e is element 8g + e.
static __device__ inline void attend(Found& found, const elem* q, int count, const Place& place, float scale) {
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    uint4 low[KEY_PIECES], high[KEY_PIECES];  // of query heads g and g + 8
#pragma unroll
    for (int i = 0; i < KEY_PIECES; i++) {
        const int column = 32 * i + 8 * t;
        low[i] = load_piece(q + g * HEAD_DIM + column, g < count && column < HEAD_DIM);
        high[i] = load_piece(q + (g + 8) * HEAD_DIM + column, g + 8 < count && column < HEAD_DIM);
    }
    float sums[8 * VALUE_PIECES][4] = {}, most[2] = {-3e38f, -3e38f}, total[2] = {};
    const float by = scale * 1.4426950408889634f;  // powers of two
    for (int from = place.begin + warp * BLOCK; from < place.end; from += WARPS * BLOCK) {
        const elem *keys = place.cache_k + place.at(from), *values = place.cache_v + place.at(from);
        const int positions = place.end - from;  // that exist; values behind them were never written, and count as zeros
        uint4 key[2][KEY_PIECES], value[4][VALUE_PIECES];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < KEY_PIECES; i++) {
                const int column = 32 * i + 8 * t;
                key[n][i] = load_piece(keys + (8 * n + g) * HEAD_DIM + column, column < HEAD_DIM);
            }
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < VALUE_PIECES; i++) {
                const int position = 2 * t + n % 2 + n / 2 * 8, column = 64 * i + 8 * g;
                value[n][i] = load_piece(values + position * HEAD_DIM + column, position < positions && column < HEAD_DIM);
            }
        float p[2][4] = {};  // scores, then weights
#pragma unroll
        for (int i = 0; i < KEY_PIECES; i++) {
            const unsigned first[4] = {low[i].x, high[i].x, low[i].y, high[i].y};
            const unsigned second[4] = {low[i].z, high[i].z, low[i].w, high[i].w};
#pragma unroll
            for (int n = 0; n < 2; n++) {
                multiply_add(p[n], first, key[n][i].x, key[n][i].y);
                multiply_add(p[n], second, key[n][i].z, key[n][i].w);
            }
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = most[half];
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& x = p[n][2 * half + i];
                    if (positions <= 8 * n + 2 * t + i) x = -3e38f;
                    top = fmaxf(top, x);
                }
            top = max_lanes<4>(top);
            const float correct = power_of_two((most[half] - top) * by);
            most[half] = top;
            total[half] *= correct;
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& x = p[n][2 * half + i];
                    x = power_of_two((x - top) * by);
                    total[half] += x;
                }
#pragma unroll
            for (int n = 0; n < 8 * VALUE_PIECES; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) sums[n][2 * half + i] *= correct;
        }
        const unsigned weights[4] = {round_pair(p[0][0], p[0][1]), round_pair(p[0][2], p[0][3]), round_pair(p[1][0], p[1][1]),
                                     round_pair(p[1][2], p[1][3])};
#pragma unroll
        for (int i = 0; i < VALUE_PIECES; i++) {
            const unsigned words[4][4] = {{value[0][i].x, value[0][i].y, value[0][i].z, value[0][i].w},
                                          {value[1][i].x, value[1][i].y, value[1][i].z, value[1][i].w},
                                          {value[2][i].x, value[2][i].y, value[2][i].z, value[2][i].w},
                                          {value[3][i].x, value[3][i].y, value[3][i].z, value[3][i].w}};
#pragma unroll
            for (int e = 0; e < 8; e++) {
                const unsigned half = e % 2 ? 0x7632 : 0x5410;
                multiply_add(sums[8 * i + e], weights, __byte_perm(words[0][e / 2], words[1][e / 2], half),
                             __byte_perm(words[2][e / 2], words[3][e / 2], half));
            }
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int head = g + 8 * half;
        const float sum = sum_lanes<4>(total[half]);
        if (t == 0) {
            found.most[warp][head] = most[half] * scale;
            found.total[warp][head] = sum;
        }
#pragma unroll
        for (int n = 0; n < 8 * VALUE_PIECES; n++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int column = n / 8 * 64 + 8 * (2 * t + i) + n % 8;
                if (column < HEAD_DIM) found.sums[warp][head][column] = sums[n][2 * half + i];
            }
    }
}

#else

enum { PAIRS = (HEAD_DIM + 63) / 64 };  // of neighbouring columns that a lane adds up, 64 apart

// Without tensor cores: for the scores of a block of positions two neighbouring lanes have one of them, each every other piece
// of 8 elements; for the values a lane has columns.
static __device__ inline void attend(Found& found, const elem* q, int count, const Place& place, float scale) {
    __shared__ __align__(16) float query[TOGETHER][HEAD_DIM], weights[WARPS][BLOCK][TOGETHER];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int i = threadIdx.x; i < count * HEAD_DIM; i += blockDim.x) query[i / HEAD_DIM][i % HEAD_DIM] = q[i] * scale;
    __syncthreads();
    float most[TOGETHER], total[TOGETHER] = {}, sums[TOGETHER][2 * PAIRS] = {};
    for (int h = 0; h < TOGETHER; h++) most[h] = -3e38f;
    for (int from = place.begin + warp * BLOCK; from < place.end; from += WARPS * BLOCK) {
        const elem* keys = place.cache_k + place.at(from) + lane / 2 * HEAD_DIM;
        const elem* values = place.cache_v + place.at(from);
        const bool exists = from + lane / 2 < place.end;
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
            const float correct = expf(most[h] - top), weight = exists ? expf(score - top) : 0.0f;
            most[h] = top;
            total[h] = total[h] * correct + weight;
            for (int i = 0; i < 2 * PAIRS; i++) sums[h][i] *= correct;
            if (lane % 2 == 0) weights[warp][lane / 2][h] = weight;
        }
        __syncwarp();
        const int positions = min(BLOCK, place.end - from);
        for (int s = 0; s < positions; s++)
#pragma unroll
            for (int pair = 0; pair < PAIRS; pair++) {
                const int column = 2 * lane + 64 * pair;
                if (HEAD_DIM <= column) continue;
                const float2 v = *(const float2*)(values + s * HEAD_DIM + column);
#pragma unroll
                for (int h = 0; h < TOGETHER; h++) {
                    if (count <= h) continue;
                    sums[h][2 * pair] += weights[warp][s][h] * v.x;
                    sums[h][2 * pair + 1] += weights[warp][s][h] * v.y;
                }
            }
        __syncwarp();
    }
#pragma unroll
    for (int h = 0; h < TOGETHER; h++) {
        if (count <= h) continue;
        // Both lanes of a position have its weight.
        const float sum = sum_lanes(total[h]) * 0.5f;
        if (lane == 0) {
            found.most[warp][h] = most[h];
            found.total[warp][h] = sum;
        }
        for (int i = 0; i < 2 * PAIRS; i++) {
            const int column = 2 * lane + 64 * (i / 2) + i % 2;
            if (column < HEAD_DIM) found.sums[warp][h][column] = sums[h][i];
        }
    }
}

#endif

// What a part gives for each query head, in `partial[row, head, part]`: HEAD_DIM sums of values, weighted with e^(score -
// most); then `most`, the largest score; then the sum of the weights. The 4 warps take the part's blocks in turn.
// Grid: (kv_heads, rows, parts).
extern "C" __global__ void __launch_bounds__(WARPS * 32)
    attention_cached(float* partial, const elem* q, const elem* cache_k, const elem* cache_v, const int* tables,
                     const int* seen, int table_stride, int heads, int kv_heads, int q_stride, int parts, float scale) {
    __shared__ Found found;
    const int key_head = blockIdx.x, row = blockIdx.y, part = blockIdx.z, group = heads / kv_heads;
    const Place place = {cache_k,  cache_v,     tables + (long long)row * table_stride,   kv_heads,
                         key_head, part * PART, min(seen[row], (part + 1) * PART)};
    if (place.end <= place.begin) return;
    for (int first = key_head * group; first < (key_head + 1) * group; first += TOGETHER) {
        const int count = min(TOGETHER, (key_head + 1) * group - first);
        attend(found, q + (long long)row * q_stride + first * HEAD_DIM, count, place, scale);
        __syncthreads();
        for (int i = threadIdx.x; i < count * (HEAD_DIM + 2); i += blockDim.x) {
            const int h = i / (HEAD_DIM + 2), column = i % (HEAD_DIM + 2);
            float top = found.most[0][h], sum = 0;
            for (int w = 1; w < WARPS; w++) top = fmaxf(top, found.most[w][h]);
            for (int w = 0; w < WARPS; w++) {
                const float x = column < HEAD_DIM ? found.sums[w][h][column] : found.total[w][h];
                sum += x * __expf(found.most[w][h] - top);
            }
            const long long to = ((long long)row * heads + first + h) * parts + part;
            partial[to * (HEAD_DIM + 2) + column] = column == HEAD_DIM ? top : sum;
        }
        __syncthreads();  // before the next heads
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
