// The CUDA C++ of the kernels on a processor: the fake NVRTC puts this before their source and compiles it with the C++
// compiler of the machine.
//
// The threads of a block are fibers of one thread, which change at barriers and at operations of a whole warp, and
// nowhere else. In which order they run between those is drawn from a seed: what depends on it is a race. Shared memory
// is filled with NaNs before every block. Misaligned vectors and indices outside of arrays trap (see nvrtc.cpp), and so
// does what is outside of the card's memory (see memory.h).
#pragma once

#include <csetjmp>
#include <csignal>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sys/mman.h>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "launch.h"

struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(8) uint2 { unsigned x, y; };
static inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
static inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
static inline float2 make_float2(float x, float y) { return {x, y}; }

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))
#define __shared__ static __attribute__((section("fake_shared")))

namespace fake {

/// Copies to shared memory that were asked for and have not arrived.
struct Copy {
    void* to;
    const void* from;
    bool exists;
    size_t bytes;
    long group;
};

struct Thread {
    void* stack_pointer;
    Extent index;
    int number;
    bool done;
    std::vector<Copy> copies;
    long groups;
};

/// The lanes of a warp that are at an operation of the whole warp.
struct Warp {
    const char* what;
    int arrived;
    void* lane[32];
};

struct Block {
    const Launch* launch;
    Extent index;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    std::vector<int> ready;
    size_t next;
    int at_barrier, done;
    uint64_t random;
    void* main_stack_pointer;
    char* stacks;
    char *shared_end, *dynamic_shared;
    void (*call)(const Launch*);
    sigjmp_buf out;
    char message[512];
};

static Block block;
static Thread* self;
// Not a power of two: the tops of all stacks would share one set of the processor's caches.
static const size_t STACK = (128 << 10) + 7 * 64, SHARED = 1 << 20;

/// Ends the launch with a message.
[[noreturn]] static void fail(const char* format, const char* what, long a = 0, long b = 0) {
    char text[256];
    snprintf(text, sizeof text, format, what, a, b);
    snprintf(block.message, sizeof block.message, "%s: %s, in block (%u, %u, %u), thread %d", block.launch->name, text,
             block.index.x, block.index.y, block.index.z, self ? self->number : -1);
    siglongjmp(block.out, 1);
}

static uint64_t draw() {
    block.random = block.random * 6364136223846793005ull + 1442695040888963407ull;
    return block.random >> 33;
}

// Saves the registers that a callee keeps, and goes on at another stack.
#if defined(__x86_64__)
extern "C" void fake_switch(void** save, void* to);
asm(R"(
.pushsection .text
fake_switch:
    push %rbp
    push %rbx
    push %r12
    push %r13
    push %r14
    push %r15
    mov %rsp, (%rdi)
    mov %rsi, %rsp
    pop %r15
    pop %r14
    pop %r13
    pop %r12
    pop %rbx
    pop %rbp
    ret
.popsection
)");
static void* first_stack(char* top, void (*entry)()) {
    void** at = (void**)((uintptr_t)top & ~(uintptr_t)15);
    *--at = nullptr;  // where `entry` would return to; keeps its stack aligned
    *--at = (void*)entry;
    for (int i = 0; i < 6; i++) *--at = nullptr;
    return at;
}
#elif defined(__aarch64__)
extern "C" void fake_switch(void** save, void* to);
asm(R"(
.pushsection .text
fake_switch:
    sub sp, sp, #176
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #176
    ret
.popsection
)");
static void* first_stack(char* top, void (*entry)()) {
    char* at = (char*)((uintptr_t)top & ~(uintptr_t)15) - 176;
    memset(at, 0, 176);
    *(void**)(at + 88) = (void*)entry;
    return at;
}
#else
#error "no fibers for this processor"
#endif

static void wake(int first, int count, int except) {
    for (int thread = first; thread < first + count; thread++)
        if (thread != except) block.ready.push_back(thread);
}

/// Takes a thread that is ready, in the order of the seed. 0: all in turn, so that warps stay together. 1: the last that became
/// ready, so that a warp goes on alone to the next barrier, the last warp first. Above: mostly so, but sometimes any.
static Thread* next_ready() {
    std::vector<int>& ready = block.ready;
    const unsigned seed = block.launch->seed;
    size_t at = ready.size() - 1;
    if (seed == 0) {
        const int thread = ready[block.next++];
        if (block.next == ready.size()) {
            ready.clear();
            block.next = 0;
        }
        return &block.threads[thread];
    }
    if (2 <= seed && draw() % 64 == 0) at = draw() % ready.size();
    const int thread = ready[at];
    ready[at] = ready.back();
    ready.pop_back();
    return &block.threads[thread];
}

/// Lets the others run; back where the block began if none is ready.
static void yield() {
    Thread* before = self;
    if (block.ready.empty()) return fake_switch(&before->stack_pointer, block.main_stack_pointer);
    self = next_ready();
    if (self != before) fake_switch(&before->stack_pointer, self->stack_pointer);
}

static void barrier() {
    if (++block.at_barrier == (int)block.threads.size()) {
        block.at_barrier = 0;
        wake(0, (int)block.threads.size(), -1);
    }
    yield();
}

/// An operation of the whole warp: the lane that comes last performs it on the arguments of all.
template <class Perform> static void together(const char* what, void* mine, Perform perform) {
    Warp& warp = block.warps[self->number / 32];
    if (warp.arrived && warp.what != what && strcmp(warp.what, what))
        fail("a lane is at %s and others of its warp are elsewhere", what);
    warp.what = what;
    warp.lane[self->number % 32] = mine;
    if (++warp.arrived < 32) return yield();
    warp.arrived = 0;
    perform(warp.lane);
    wake(self->number / 32 * 32, 32, self->number);
}

template <class T> struct Shuffle {
    T in, out;
    int from;
};

template <class T> static T shuffle(unsigned mask, T x, int from, const char* what) {
    if (mask != ~0u) fail("%s without all lanes", what);
    Shuffle<T> mine = {x, x, from};
    together(what, &mine, [](void** lanes) {
        for (int i = 0; i < 32; i++) {
            auto* lane = (Shuffle<T>*)lanes[i];
            lane->out = ((Shuffle<T>*)lanes[lane->from & 31])->in;
        }
    });
    return mine.out;
}

static int lane() { return self->number % 32; }

extern "C" __attribute__((weak)) char __start_fake_shared[], __stop_fake_shared[];

static void enter() {
    block.call(block.launch);
    if (!self->copies.empty()) fail("%s", "copies to shared memory were not waited for");
    self->done = true;
    block.done++;
    yield();
}

static void run_block() {
    size_t count = block.threads.size();
    if (__start_fake_shared) memset(__start_fake_shared, 0xff, __stop_fake_shared - __start_fake_shared);
    // It ends where nobody may read or write.
    block.dynamic_shared = block.shared_end - (block.launch->shared_bytes + 15) / 16 * 16;
    memset(block.dynamic_shared, 0xff, block.shared_end - block.dynamic_shared);
    block.warps.assign((count + 31) / 32, Warp{});
    block.ready.clear();
    block.next = 0;
    block.at_barrier = block.done = 0;
    Extent size = block.launch->block;
    for (size_t i = 0; i < count; i++) {
        unsigned number = (unsigned)i;
        Thread& thread = block.threads[i];
        thread.index = {number % size.x, number / size.x % size.y, number / size.x / size.y};
        thread.number = (int)i;
        thread.done = false;
        thread.copies.clear();
        thread.groups = 0;
        thread.stack_pointer = first_stack(block.stacks + (i + 1) * STACK, enter);
    }
    wake(0, (int)count, -1);
    while (!block.ready.empty()) {
        self = next_ready();
        fake_switch(&block.main_stack_pointer, self->stack_pointer);
    }
    self = nullptr;
    if (block.done != (int)count)
        fail("%s: %ld threads wait, %ld have ended", "threads wait for others that never come", count - block.done, block.done);
}

static void on_signal(int signal, siginfo_t* info, void*) {
    switch (signal) {
    case SIGILL: case SIGTRAP: fail("%s", "a misaligned vector, or an index outside of an array");
    case SIGFPE: fail("%s", "a division by zero");
    default:
        if (block.shared_end <= (char*)info->si_addr && (char*)info->si_addr < block.shared_end + SHARED)
            fail("%s", "behind the dynamic shared memory of the launch");
        fail("%s: address 0x%lx", "outside of the card's memory", (long)info->si_addr);
    }
}

/// Runs a grid. An empty string, or why it failed.
static const char* run(const Launch* launch, void (*call)(const Launch*)) {
    const int signals[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    struct sigaction action = {}, before[5];
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (int i = 0; i < 5; i++) sigaction(signals[i], &action, &before[i]);
    size_t count = (size_t)launch->block.x * launch->block.y * launch->block.z;
    if (!block.stacks) {
        auto reserve = [](size_t bytes, int protection) {
            return (char*)mmap(nullptr, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        };
        block.stacks = reserve(1024 * STACK, PROT_READ | PROT_WRITE);
        char* shared = reserve(2 * SHARED, PROT_NONE);
        mprotect(shared, SHARED, PROT_READ | PROT_WRITE);
        block.shared_end = shared + SHARED;
    }
    block.launch = launch;
    block.call = call;
    block.threads.resize(count);
    block.random = launch->seed;
    block.message[0] = 0;
    if (!sigsetjmp(block.out, 1)) {
        size_t blocks = (size_t)launch->grid.x * launch->grid.y * launch->grid.z;
        for (size_t i = 0; i < blocks; i++) {
            size_t n = launch->seed == 1 ? blocks - 1 - i : i;
            block.index = {(unsigned)(n % launch->grid.x), (unsigned)(n / launch->grid.x % launch->grid.y),
                           (unsigned)(n / launch->grid.x / launch->grid.y)};
            run_block();
        }
    }
    for (int i = 0; i < 5; i++) sigaction(signals[i], &before[i], nullptr);
    return block.message;
}

template <class... A, size_t... I>
static void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(A*)arguments[I]...);
}

template <class... A> static void call(void (*kernel)(A...), void** arguments) {
    call(kernel, arguments, std::index_sequence_for<A...>());
}

/// A letter for each parameter: `p` for a pointer, else its bytes.
template <class... A> static const char* kinds(void (*)(A...)) {
    static const char text[] = {(std::is_pointer<A>::value ? 'p' : (char)('0' + sizeof(A)))..., 0};
    return text;
}

}  // namespace fake

#define threadIdx (fake::self->index)
#define blockIdx (fake::block.index)
#define blockDim (fake::block.launch->block)
#define gridDim (fake::block.launch->grid)
#define DYNAMIC_SHARED(type, name) type* name = (type*)fake::block.dynamic_shared

static inline void __syncthreads() { fake::barrier(); }
static inline void __syncwarp(unsigned = ~0u) {
    fake::together("__syncwarp", nullptr, [](void**) {});
}
template <class T> static T __shfl_xor_sync(unsigned mask, T x, int bits) {
    return fake::shuffle(mask, x, fake::lane() ^ bits, "__shfl_xor_sync");
}
template <class T> static T __shfl_sync(unsigned mask, T x, int from) {
    return fake::shuffle(mask, x, from, "__shfl_sync");
}

static inline float __uint_as_float(unsigned x) { float y; memcpy(&y, &x, 4); return y; }
static inline unsigned __float_as_uint(float x) { unsigned y; memcpy(&y, &x, 4); return y; }
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = x | (uint64_t)y << 32;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) result |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
// The C library declares these two for itself.
#define __expf expf
#define __logf logf
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a < b ? b : a; }

/// What a kernel of this name needs to be launched from outside.
#define FAKE_KERNEL(name)                                                                                  \
    extern "C" __attribute__((visibility("default"))) const char* fake_run_##name(const fake::Launch* launch) { \
        return fake::run(launch, [](const fake::Launch* l) { fake::call(name, l->arguments); });           \
    }                                                                                                      \
    extern "C" __attribute__((visibility("default"))) const char* fake_kinds_##name() { return fake::kinds(name); }
