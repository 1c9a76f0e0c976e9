// Tiles of rows of heads in shared memory, and the operands of tensor cores that are read from them.
//
// A row of a tile is a head of one position: HEAD_DIM elements, zeros up to a multiple of 16, and 16 bytes that nobody
// reads. Those make the row an odd number of 16-byte pieces long, so that the 8 rows that one ldmatrix reads at a time lie in
// different banks.
#pragma once

#include "common.cuh"

#if BF16

enum {
    DEPTH = (HEAD_DIM + 15) / 16 * 16,  // of the products over a head
    STRIDE = DEPTH + 8,                 // elements from one row of a tile to the next
    WARPS = 4,
    THREADS = 32 * WARPS,
    KEYS = 64,     // rows of a tile of keys or values
    QUERIES = 128  // rows of a tile of queries: each warp has two times 16 of them, for which it reads every key once
};

// Softmax is computed with powers of two: e^x = 2^(x * LOG2_E).
static constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Asks for `ROWS_OF_TILE` rows of a matrix, zeros for rows from `exist` on. `from` is the head in the first row. The caller
// ends the group, waits for it and has a barrier before anybody reads.
template <int ROWS_OF_TILE> static __device__ inline void copy_tile(bf16* tile, const bf16* from, long long stride, int exist) {
    const int pieces = DEPTH / 8;
#pragma unroll 1
    for (int i = threadIdx.x; i < ROWS_OF_TILE * pieces; i += THREADS) {
        const int row = i / pieces, column = i % pieces * 8;
        const bool exists = row < exist && column < HEAD_DIM;
        copy_async(tile + row * STRIDE + column, exists ? from + row * stride + column : from, exists);
    }
}

// The left operand, 16 by 16, from row `row`, column `column` of a tile.
static __device__ inline void load_left(unsigned (&a)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices(a, tile + (row + lane % 16) * STRIDE + column + lane / 16 * 8);
}

// Two right operands, each 16 deep and 8 wide, where the tile's rows are what is counted by the result's columns: {b[0], b[1]}
// for rows `row` to `row + 7`, {b[2], b[3]} for the next 8; deep along the columns from `column` on.
static __device__ inline void load_right(unsigned (&b)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices(b, tile + (row + lane / 16 * 8 + lane % 8) * STRIDE + column + lane / 8 % 2 * 8);
}

// The same where the tile's columns are the result's columns: {b[0], b[1]} for columns `column` to `column + 7`, {b[2], b[3]}
// for the next 8; deep along rows `row` to `row + 15`.
static __device__ inline void load_right_transposed(unsigned (&b)[4], const bf16* tile, int row, int column) {
    const int lane = threadIdx.x % 32;
    load_matrices_transposed(b, tile + (row + lane % 16) * STRIDE + column + lane / 16 * 8);
}

// Sums of `TILES` times 16 rows of a warp, `WIDTH` columns: a lane has 4 of each 16 by 8.
template <int TILES, int WIDTH> struct Sums {
    float x[TILES][WIDTH / 8][4];
};

// sums += left right^T over a head: 16 * TILES rows of one tile, from `row` on, with the first WIDTH rows of another.
template <int TILES, int WIDTH>
static __device__ inline void multiply_rows(Sums<TILES, WIDTH>& sums, const bf16* left, int row, const bf16* right) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        unsigned a[TILES][4], b[4];
#pragma unroll
        for (int t = 0; t < TILES; t++) load_left(a[t], left, row + 16 * t, k);
#pragma unroll
        for (int n = 0; n < WIDTH; n += 16) {
            load_right(b, right, n, k);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(sums.x[t][n / 8], a[t], b[0], b[1]);
                multiply_add(sums.x[t][n / 8 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

// sums += p tile, where p is a result of `multiply_rows`, one column for each row of the tile: in that layout a lane holds,
// rounded, what the left operand wants of it.
template <int TILES, int WIDTH>
static __device__ inline void multiply_columns(Sums<TILES, DEPTH>& sums, const Sums<TILES, WIDTH>& p, const bf16* tile) {
#pragma unroll
    for (int k = 0; k < WIDTH; k += 16) {
        unsigned a[TILES][4], b[4];
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&pair)[4] = p.x[t][k / 8 + i / 2];
                a[t][i] = round_pair(pair[i % 2 * 2], pair[i % 2 * 2 + 1]);
            }
#pragma unroll
        for (int n = 0; n < DEPTH; n += 16) {
            load_right_transposed(b, tile, k, n);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply_add(sums.x[t][n / 8], a[t], b[0], b[1]);
                multiply_add(sums.x[t][n / 8 + 1], a[t], b[2], b[3]);
            }
        }
    }
}

// Writes rows `row` and `row + 8`, which are the lane's, of a tile of 16 times `by`; those from `exist` on are not there.
static __device__ inline void store_rows(bf16* to, long long stride, int row, int exist, const float (&sums)[DEPTH / 8][4],
                                         float by_low, float by_high) {
    const int column = threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < HEAD_DIM / 8; n++) {
        if (row < exist)
            *(unsigned*)(to + row * stride + 8 * n + column) = round_pair(sums[n][0] * by_low, sums[n][1] * by_low);
        if (row + 8 < exist)
            *(unsigned*)(to + (row + 8) * stride + 8 * n + column) = round_pair(sums[n][2] * by_high, sums[n][3] * by_high);
    }
}

#else

// Without tensor cores 4 neighbouring lanes have a row, each a quarter of its elements.
enum { LANES = 4, PART = HEAD_DIM / LANES, THREADS = 256, ROWS = THREADS / LANES, QUERIES = ROWS, KEYS = 32 };

#endif
