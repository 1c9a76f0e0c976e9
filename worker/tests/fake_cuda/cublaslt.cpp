// libcublasLt for tests: matrix products by the plainest loops, in f32, of matrices that are on the fake card. With
// FAKE_CUDA_WRONG the last number of every product is one too large, as of a card that is broken and does not know it.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

enum Status { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum Type { FLOAT = 0, BF16 = 14 };
enum Compute { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };

/// `cublasLtMatmulDescOpaque_t`.
struct Product {
    int compute, scale;
    int transpose_a, transpose_b;
};

/// `cublasLtMatrixLayoutOpaque_t`: column-major.
struct Layout {
    int type;
    uint64_t rows, columns;
    int64_t leading;
    int order, batches;
    int64_t batch_stride;
};

/// `cublasLtMatmulHeuristicResult_t`.
struct Heuristic {
    uint64_t algorithm[8];
    size_t workspace_bytes;
    int state;
    float waves;
    int reserved[4];
};

static Status refuse(Status status, const char* why, long a = 0, long b = 0) {
    fprintf(stderr, "fake cublasLt: ");
    fprintf(stderr, why, a, b);
    fprintf(stderr, "\n");
    return status;
}

static size_t size_of(int type) {
    return type == FLOAT ? 4 : 2;
}

static float get(const void* x, int type, size_t at) {
    if (type == FLOAT) return ((const float*)x)[at];
    uint32_t bits = (uint32_t)((const uint16_t*)x)[at] << 16;
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

static void put(void* x, int type, size_t at, float value) {
    if (type == FLOAT) {
        ((float*)x)[at] = value;
        return;
    }
    uint32_t bits;
    memcpy(&bits, &value, 4);
    ((uint16_t*)x)[at] = (uint16_t)(value != value ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

/// Whether the card holds all of a matrix.
static bool holds(const void* x, const Layout& layout) {
    static auto* card = (bool (*)(const void*, size_t))[] {
        void* driver = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
        if (!driver) driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
        return driver ? dlsym(driver, "fake_card_holds") : nullptr;
    }();
    size_t last = (layout.columns - 1) * (size_t)layout.leading + layout.rows;
    last += (size_t)(layout.batches - 1) * (size_t)layout.batch_stride;
    return card && card(x, last * size_of(layout.type));
}

static bool takes(const Layout& layout) {
    return (layout.type == FLOAT || layout.type == BF16) && layout.order == 0 && layout.rows && layout.columns &&
           (int64_t)layout.rows <= layout.leading;
}

EXPORT Status cublasLtCreate(void** handle) {
    *handle = malloc(8);
    return SUCCESS;
}

EXPORT Status cublasLtDestroy(void* handle) {
    free(handle);
    return SUCCESS;
}

EXPORT size_t cublasLtGetVersion() {
    return 120900;
}

EXPORT Status cublasLtMatmulDescCreate(Product** product, int compute, int scale) {
    *product = new Product{compute, scale, 0, 0};
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescDestroy(Product* product) {
    delete product;
    return SUCCESS;
}

EXPORT Status cublasLtMatmulDescSetAttribute(Product* product, int attribute, const void* value, size_t bytes) {
    int number;
    if (bytes != 4) return refuse(NOT_SUPPORTED, "attribute %ld of a product has %ld bytes", attribute, (long)bytes);
    memcpy(&number, value, 4);
    switch (attribute) {
    case 2: return number == 0 ? SUCCESS : refuse(NOT_SUPPORTED, "alpha and beta must be the host's");
    case 3: product->transpose_a = number; return SUCCESS;
    case 4: product->transpose_b = number; return SUCCESS;
    case 7: return number == 1 ? SUCCESS : refuse(NOT_SUPPORTED, "epilogue %ld", number);
    default: return refuse(NOT_SUPPORTED, "attribute %ld of a product", attribute);
    }
}

EXPORT Status cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
    *layout = new Layout{type, rows, columns, leading, 0, 1, 0};
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutDestroy(Layout* layout) {
    delete layout;
    return SUCCESS;
}

EXPORT Status cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
    int64_t number = 0;
    memcpy(&number, value, bytes <= 8 ? bytes : 8);
    switch (attribute) {
    case 1: layout->order = (int)number; return SUCCESS;
    case 5: layout->batches = (int)number; return SUCCESS;
    case 6: layout->batch_stride = number; return SUCCESS;
    default: return refuse(NOT_SUPPORTED, "attribute %ld of a matrix", attribute);
    }
}

EXPORT Status cublasLtMatmulPreferenceCreate(void** preference) {
    *preference = malloc(8);
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceDestroy(void* preference) {
    free(preference);
    return SUCCESS;
}

EXPORT Status cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) {
    return SUCCESS;
}

static Status check(const Product& product, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
    if (product.compute != COMPUTE_32F && product.compute != COMPUTE_32F_FAST_TF32)
        return refuse(NOT_SUPPORTED, "compute type %ld", product.compute);
    if (product.scale != FLOAT) return refuse(NOT_SUPPORTED, "scale type %ld", product.scale);
    if (!takes(a) || !takes(b) || !takes(c) || !takes(d)) return refuse(INVALID_VALUE, "a matrix that cannot be");
    if (a.type != b.type || c.type != d.type || (a.type == FLOAT && d.type != FLOAT))
        return refuse(NOT_SUPPORTED, "factors of type %ld, sums of type %ld", a.type, d.type);
    uint64_t m = product.transpose_a ? a.columns : a.rows, k = product.transpose_a ? a.rows : a.columns;
    uint64_t n = product.transpose_b ? b.rows : b.columns, other_k = product.transpose_b ? b.columns : b.rows;
    if (k != other_k || d.rows != m || d.columns != n || c.rows != m || c.columns != n)
        return refuse(INVALID_VALUE, "the shapes do not fit");
    if (a.batches != d.batches || b.batches != d.batches || c.batches != d.batches)
        return refuse(INVALID_VALUE, "the numbers of matrices differ");
    return SUCCESS;
}

EXPORT Status cublasLtMatmulAlgoGetHeuristic(void*, Product* product, Layout* a, Layout* b, Layout* c, Layout* d, void*,
                                             int wanted, Heuristic* results, int* found) {
    *found = 0;
    if (Status status = check(*product, *a, *b, *c, *d)) return status;
    if (wanted < 1) return INVALID_VALUE;
    memset(results, 0, sizeof *results);
    *found = 1;
    return SUCCESS;
}

EXPORT Status cublasLtMatmul(void*, Product* product, const void* alpha, const void* a, Layout* at, const void* b, Layout* bt,
                             const void* beta, const void* c, Layout* ct, void* d, Layout* dt, const void*, void*, size_t, void*) {
    if (Status status = check(*product, *at, *bt, *ct, *dt)) return status;
    const float by = *(const float*)alpha, keep = *(const float*)beta;
    if (!holds(a, *at) || !holds(b, *bt) || !holds(d, *dt) || (keep != 0 && !holds(c, *ct)))
        return refuse(INVALID_VALUE, "a matrix is not in the card's memory");
    const size_t m = dt->rows, n = dt->columns, k = product->transpose_a ? at->rows : at->columns;
    const bool wrong = getenv("FAKE_CUDA_WRONG");
    // The real library chooses an algorithm, and with it the order of sums, by the shape.
    const size_t from = (7 * m + 13 * n) % k;
    // Both in the order of the sums; a column of results is summed at once, since each sum has an order of its own.
    std::vector<float> left(k * m), right(k * n), sums(m);
    for (int batch = 0; batch < dt->batches; batch++) {
        auto offset = [&](Layout* layout) { return (size_t)batch * (size_t)layout->batch_stride; };
        for (size_t term = 0; term < k; term++) {
            const size_t l = (term + from) % k;
            for (size_t i = 0; i < m; i++) {
                size_t place = product->transpose_a ? i * (size_t)at->leading + l : l * (size_t)at->leading + i;
                left[term * m + i] = get(a, at->type, offset(at) + place);
            }
            for (size_t j = 0; j < n; j++) {
                size_t place = product->transpose_b ? l * (size_t)bt->leading + j : j * (size_t)bt->leading + l;
                right[term * n + j] = get(b, bt->type, offset(bt) + place);
            }
        }
        for (size_t j = 0; j < n; j++) {
            sums.assign(m, 0);
            for (size_t term = 0; term < k; term++)
                for (size_t i = 0; i < m; i++) sums[i] += left[term * m + i] * right[term * n + j];
            for (size_t i = 0; i < m; i++) {
                float sum = sums[i] * by;
                if (keep != 0) sum += keep * get(c, ct->type, offset(ct) + j * (size_t)ct->leading + i);
                if (wrong && i == m - 1 && j == n - 1) sum++;
                put(d, dt->type, offset(dt) + j * (size_t)dt->leading + i, sum);
            }
        }
    }
    return SUCCESS;
}
