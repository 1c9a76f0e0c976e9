// The instructions that C++ has no word for. Everything here is one PTX instruction with its operands; the tests put a
// header of the same name in its place that computes what the PTX manual says, so that no kernel contains assembler.
//
// Needs compute capability 8.0. Source: NVIDIA, "Parallel Thread Execution ISA", sections of the instructions named.
#pragma once

// Shared memory whose size the launch says.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

// Two floats, each rounded to the nearest bf16 (ties to even): `low` in the lower half. cvt.rn.bf16x2.f32.
static __device__ inline unsigned round_pair(float low, float high) {
    unsigned both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// 2^x, to within 2 units of the last place; ex2.approx.ftz.f32.
static __device__ inline float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane `i` gives the address of row `i % 8` of matrix `i / 8`
// (16 bytes, aligned to 16) and gets in `x[m]` the elements `2 * (lane % 4)` and `+ 1` of row `lane / 4` of matrix `m`.
static __device__ inline void load_matrices(unsigned (&x)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// The same with every matrix transposed: elements `2 * (lane % 4)` and `+ 1` of column `lane / 4`.
static __device__ inline void load_matrices_transposed(unsigned (&x)[4], const void* row) {
    unsigned address = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(address)
                 : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8] on tensor cores: bf16 factors, f32 sums, by a whole warp. With `g = lane / 4`,
// `t = 2 * (lane % 4)`, a lane holds, each register a pair of neighbours in k:
//   a[0]: (g, t), a[1]: (g + 8, t), a[2]: (g, t + 8), a[3]: (g + 8, t + 8)
//   b0: (k = t, n = g), b1: (k = t + 8, n = g)
//   c[0], c[1]: (g, t), (g, t + 1), c[2], c[3]: (g + 8, t), (g + 8, t + 1)
static __device__ inline void multiply_add(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes from global to shared memory behind the thread's back, zeros with `exists` false: then nothing is read.
// Both addresses are multiples of 16.
static __device__ inline void copy_async(void* shared, const void* global, bool exists) {
    unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(exists ? 16 : 0)
                 : "memory");
}

// The same with one float.
static __device__ inline void copy_float_async(float* shared, const float* global, bool exists) {
    unsigned to = (unsigned)__cvta_generic_to_shared(shared);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(global), "r"(exists ? 4 : 0)
                 : "memory");
}

// Ends a group of copies.
static __device__ inline void commit_copies() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most the `N` newest groups of this thread are on their way; a barrier shows them to the others.
template <int N> static __device__ inline void wait_for_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}
