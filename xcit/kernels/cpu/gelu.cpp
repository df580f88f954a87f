// GELU and its derivative from one exponential, in fp32 on an x86 CPU. gelu.py calls these functions.

#include "vectors.h"

// y = gelu(x). y may be x. count is a multiple of 16.
extern "C" void gelu(const float* x, float* y, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) store(y + i, compute_gelu(load(x + i)).value);
}

// grad_x, given grad, the gradient of gelu(x); and activated = gelu(x), unless it is null. grad_x may be grad. count is
// a multiple of 16.
extern "C" void gelu_backward(const float* x, const float* grad, float* activated, float* grad_x, int64_t count) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; i += LANES) {
        const Gelu gelu = compute_gelu(load(x + i));
        if (activated) store(activated + i, gelu.value);
        store(grad_x + i, load(grad + i) * gelu.slope);
    }
}
