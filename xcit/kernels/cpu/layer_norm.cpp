// The gradient of a layer norm on an x86 CPU in fp32, in one pass over the tokens. library.py calls it.

#include <algorithm>
#include <functional>

#include "sums.h"

// The gradients of x, scale and shift (2, C), given that of the norm of x and each token's mean and rstd; to that of x
// the residual is added, if there is one. C is a multiple of 16.
extern "C" void layer_norm_gradient(const float* gradient, const float* x, const float* mean, const float* rstd,
                                    const float* scale, const float* residual, float* of_x, double* of_parameters,
                                    int64_t tokens, int64_t C) {
    constexpr int64_t BLOCK = 32;  // tokens whose sums are taken in fp32, before they go to those in fp64
    Totals totals(2 * C);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < tokens; first += BLOCK) {
        std::vector<float> sums(2 * C, 0.0f);
        float *of_scale = sums.data(), *of_shift = of_scale + C;
        for (int64_t n = first; n < std::min(tokens, first + BLOCK); ++n) {
            const float *here = x + n * C, *of = gradient + n * C, middle = mean[n], rate = rstd[n];
            Floats sum = {}, hat_sum = {};
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats hat = (load(here + j) - middle) * rate, value = load(of + j), scaled = value * load(scale + j);
                sum += scaled;
                hat_sum += scaled * hat;
                store(of_scale + j, load(of_scale + j) + value * hat);
                store(of_shift + j, load(of_shift + j) + value);
            }
            const float mean_of = reduced(sum, std::plus<>()) / C, hat_mean = reduced(hat_sum, std::plus<>()) / C;
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats hat = (load(here + j) - middle) * rate;
                const Floats found = rate * (load(of + j) * load(scale + j) - mean_of - hat * hat_mean);
                store(of_x + n * C + j, residual ? load(residual + n * C + j) + found : found);
            }
        }
        for (int64_t j = 0; j < 2 * C; j += LANES) add_to(totals.own() + j, load(sums.data() + j));
    }
    std::copy_n(totals.all().begin(), 2 * C, of_parameters);
}
