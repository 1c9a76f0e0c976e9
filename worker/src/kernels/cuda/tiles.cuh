// Tiles of rows of heads in shared memory, and the operands of tensor cores that are read from them.
//
// A row of a tile is a head of one position: HEAD_DIM elements, zeros up to a multiple of 16, and 16 bytes that nobody
// reads. Those make the row an odd number of 16-byte pieces long, so that the 8 rows that one ldmatrix reads at a time lie in
// different banks.
#pragma once

#include "common.cuh"

enum {
    DEPTH = (HEAD_DIM + 15) / 16 * 16,  // of the products over a head
    STRIDE = DEPTH + 8,                 // elements from one row of a tile to the next
    THREADS = 128,                      // of a block: 4 warps
    WARP_ROWS = 16,                     // rows of a block's tile that one warp works on
    ROWS = 64,                          // rows of a block's tile
};

// Softmax is computed with powers of two: e^x = 2^(x * LOG2_E).
static constexpr float LOG2_E = 1.4426950408889634f, LN_2 = 0.6931471805599453f;

// Asks for `ROWS_OF_TILE` rows of a matrix, zeros for rows from `exist` on. `from` is the head in the first row. The caller
// ends the group, waits for it and has a barrier before anybody reads.
template <int ROWS_OF_TILE> static __device__ inline void copy_tile(bf16* tile, const bf16* from, long long stride, int exist) {
    const int pieces = DEPTH / 8;
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

// sums[16, 8 * 2 * PAIRS] += left[16, DEPTH] right[8 * 2 * PAIRS, DEPTH]^T: rows of one tile, from `row` on, with all rows of
// another.
template <int PAIRS>
static __device__ inline void multiply_rows(float (&sums)[2 * PAIRS][4], const bf16* left, int row, const bf16* right) {
#pragma unroll
    for (int k = 0; k < DEPTH; k += 16) {
        unsigned a[4], b[4];
        load_left(a, left, row, k);
#pragma unroll
        for (int n = 0; n < PAIRS; n++) {
            load_right(b, right, 16 * n, k);
            multiply_add(sums[2 * n], a, b[0], b[1]);
            multiply_add(sums[2 * n + 1], a, b[2], b[3]);
        }
    }
}

// sums[16, DEPTH] += p[16, 8 * 2 * PAIRS] tile[8 * 2 * PAIRS, DEPTH], where p is a result of `multiply_rows`: in that layout a
// lane holds, rounded, what the left operand wants of it.
template <int PAIRS>
static __device__ inline void multiply_columns(float (&sums)[DEPTH / 8][4], const float (&p)[2 * PAIRS][4], const bf16* tile) {
#pragma unroll
    for (int k = 0; k < PAIRS; k++) {
        const float(&left)[4] = p[2 * k], (&right)[4] = p[2 * k + 1];
        const unsigned a[4] = {round_pair(left[0], left[1]), round_pair(left[2], left[3]), round_pair(right[0], right[1]),
                               round_pair(right[2], right[3])};
        unsigned b[4];
#pragma unroll
        for (int n = 0; n < DEPTH; n += 16) {
            load_right_transposed(b, tile, 16 * k, n);
            multiply_add(sums[n / 8], a, b[0], b[1]);
            multiply_add(sums[n / 8 + 1], a, b[2], b[3]);
        }
    }
}

// Writes rows `row` and `row + 8` (of the lane) of sums[16, DEPTH] times `by`; those from `exist` on are not there.
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
