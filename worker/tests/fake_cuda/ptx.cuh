// The instructions of worker/src/kernels/cuda/ptx.cuh as the PTX manual describes them, for the fake card.
#pragma once

namespace fake {

static unsigned short round_to_bf16(float x) {
    unsigned bits = __float_as_uint(x);
    if (x != x) return 0x7fff;
    return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float half_of(unsigned pair, int i) {
    return __uint_as_float(i ? pair & 0xffff0000u : pair << 16);
}

struct Matrices {
    const unsigned short* row;
    unsigned* x;
};

template <bool TRANSPOSED> static void load_matrices(unsigned (&x)[4], const void* row) {
    if ((uintptr_t)row % 16) fail("%s", "ldmatrix of a misaligned row");
    Matrices mine = {(const unsigned short*)row, x};
    together(TRANSPOSED ? "ldmatrix.trans" : "ldmatrix", &mine, [](void** lanes) {
        auto row = [&](int m, int r) { return ((Matrices*)lanes[8 * m + r])->row; };
        // All are read before any register is written: a register may be what an address is computed from.
        unsigned results[32][4];
        for (int lane = 0; lane < 32; lane++)
            for (int m = 0; m < 4; m++) {
                int g = lane / 4, t = 2 * (lane % 4);
                unsigned low = TRANSPOSED ? row(m, t)[g] : row(m, g)[t];
                unsigned high = TRANSPOSED ? row(m, t + 1)[g] : row(m, g)[t + 1];
                results[lane][m] = low | high << 16;
            }
        for (int lane = 0; lane < 32; lane++) memcpy(((Matrices*)lanes[lane])->x, results[lane], 16);
    });
}

struct Product {
    float* c;
    const unsigned* a;
    unsigned b[2];
};

}  // namespace fake

static inline unsigned round_pair(float low, float high) {
    return fake::round_to_bf16(low) | (unsigned)fake::round_to_bf16(high) << 16;
}

static inline float power_of_two(float x) {
    return exp2f(x);
}

static inline void load_matrices(unsigned (&x)[4], const void* row) {
    fake::load_matrices<false>(x, row);
}

static inline void load_matrices_transposed(unsigned (&x)[4], const void* row) {
    fake::load_matrices<true>(x, row);
}

// The layout of fragments is that of "Matrix fragments for mma.m16n8k16 with floating point type" of the PTX manual.
static inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    fake::Product mine = {c, a, {b0, b1}};
    fake::together("mma", &mine, [](void** lanes) {
        float a[16][16], b[8][16];
        for (int lane = 0; lane < 32; lane++) {
            auto* from = (fake::Product*)lanes[lane];
            int group = lane >> 2, in_group = lane % 4;
            for (int i = 0; i < 8; i++) {
                int row = i < 2 || (4 <= i && i < 6) ? group : group + 8;
                int column = in_group * 2 + (i & 1) + (4 <= i ? 8 : 0);
                a[row][column] = fake::half_of(from->a[i / 2], i & 1);
            }
            for (int i = 0; i < 4; i++) {
                int row = in_group * 2 + (i & 1) + (2 <= i ? 8 : 0);
                b[group][row] = fake::half_of(from->b[i / 2], i & 1);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            auto* to = (fake::Product*)lanes[lane];
            for (int i = 0; i < 4; i++) {
                int row = (lane >> 2) + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
                to->c[i] += sum;
            }
        }
    });
}

namespace fake {

static void arrive(const Copy& copy) {
    if (copy.exists) {
        memcpy(copy.to, copy.from, copy.bytes);
    } else {
        memset(copy.to, 0, copy.bytes);
    }
}

// A copy may arrive at any time from now until it is waited for. In the first order it comes as late as it can: who does
// not wait reads what was there. In the second it comes at once, into what others still read, and then at either time.
static void copy_async(void* shared, const void* global, bool exists, size_t bytes) {
    if ((uintptr_t)shared % bytes || (uintptr_t)global % bytes) fail("%s", "cp.async of misaligned addresses");
    const Copy copy = {shared, global, exists, bytes, self->groups};
    const unsigned seed = block.launch->seed;
    if (seed == 1 || (2 <= seed && draw() % 2)) return arrive(copy);
    self->copies.push_back(copy);
}

}  // namespace fake

static inline void copy_async(void* shared, const void* global, bool exists) {
    fake::copy_async(shared, global, exists, 16);
}

static inline void copy_float_async(float* shared, const float* global, bool exists) {
    fake::copy_async(shared, global, exists, 4);
}

static inline void commit_copies() {
    fake::self->groups++;
}

template <int N> static inline void wait_for_copies() {
    auto& copies = fake::self->copies;
    size_t kept = 0;
    for (auto& copy : copies) {
        if (fake::self->groups - N <= copy.group) {
            copies[kept++] = copy;
        } else {
            fake::arrive(copy);
        }
    }
    copies.resize(kept);
}
