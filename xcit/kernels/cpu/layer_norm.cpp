// The backward pass of LayerNorm, in fp32 on an x86 CPU, in one pass over the tokens. layer_norm.py calls it.

#include <algorithm>
#include <functional>

#include "sums.h"

// grad_x, and grad_affine (2, C) of scale and shift, given grad, the gradient of the norm of x, and each token's mean
// and rstd. The residual is added to grad_x, unless it is null. C is a multiple of 16.
extern "C" void layer_norm_backward(const float* grad, const float* x, const float* mean, const float* rstd,
                                    const float* scale, const float* residual, float* grad_x, double* grad_affine,
                                    int64_t tokens, int64_t C) {
    constexpr int64_t BLOCK = 32;  // tokens that are summed in fp32, before their sum is added in fp64
    Totals totals(2 * C);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < tokens; first += BLOCK) {
        std::vector<float> sums(2 * C, 0.0f);
        float *grad_scale = sums.data(), *grad_shift = grad_scale + C;
        for (int64_t n = first; n < std::min(tokens, first + BLOCK); ++n) {
            const float *here = x + n * C, *g = grad + n * C, token_mean = mean[n], token_rstd = rstd[n];
            Floats sum = {}, x_hat_sum = {};
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats x_hat = (load(here + j) - token_mean) * token_rstd;
                const Floats value = load(g + j), scaled = value * load(scale + j);
                sum += scaled;
                x_hat_sum += scaled * x_hat;
                store(grad_scale + j, load(grad_scale + j) + value * x_hat);
                store(grad_shift + j, load(grad_shift + j) + value);
            }
            const float scaled_mean = reduce(sum, std::plus<>()) / C, x_hat_mean = reduce(x_hat_sum, std::plus<>()) / C;
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats x_hat = (load(here + j) - token_mean) * token_rstd;
                const Floats found = token_rstd * (load(g + j) * load(scale + j) - scaled_mean - x_hat * x_hat_mean);
                store(grad_x + n * C + j, residual ? load(residual + n * C + j) + found : found);
            }
        }
        for (int64_t j = 0; j < 2 * C; j += LANES) add_to(totals.of_thread() + j, load(sums.data() + j));
    }
    std::copy_n(totals.total().begin(), 2 * C, grad_affine);
}
