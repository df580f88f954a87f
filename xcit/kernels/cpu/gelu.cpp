// GELU and its derivative from one exponential, on an x86 CPU in fp32. library.py calls them.

#include "vectors.h"

// y = gelu(x); y may be x. count is a multiple of 16.
extern "C" void gelu(const float* x, float* y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) store(y + i, gelu_of(load(x + i)).value);
}

// The gradient of x, given that of gelu(x), and gelu(x) unless that is missing; of_x may be the gradient. count is a
// multiple of 16.
extern "C" void gelu_gradient(const float* x, const float* gradient, float* activated, float* of_x, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const Gelu of = gelu_of(load(x + i));
        if (activated) store(activated + i, of.value);
        store(of_x + i, load(gradient + i) * of.slope);
    }
}
