// BatchNorm followed by a GELU, in fp32 on an x86 CPU, in two passes over the map forward and two backward.
// batchnorm.py calls these functions.
//
// A map is `rows` places of C channels, C a multiple of 16. A block of rows is summed in fp32, the blocks in fp64.

#include <algorithm>

#include "sums.h"

// Rows whose values stay in the first-level or second-level cache.
static int64_t rows_per_block(int64_t C) { return std::max<int64_t>(8, 6144 / C); }

// Two sums for each channel over all rows, (2, C): add(first, last, sums) adds those of some rows to a thread's sums.
template <class Add>
static std::vector<double> two_sums(int64_t rows, int64_t C, Add add) {
    const int64_t block = rows_per_block(C);
    Totals totals(2 * C);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < rows; first += block)
        add(first, std::min(rows, first + block), totals.of_thread());
    return totals.total();
}

// The mean and the biased variance of each channel of x, (C).
extern "C" void moments(const float* x, float* mean, float* var, int64_t rows, int64_t C) {
    const std::vector<double> totals = two_sums(rows, C, [=](int64_t first, int64_t last, double* sums) {
        // Squares are summed about the mean of these rows in fp32, then shifted to zero in fp64, which avoids
        // cancellation.
        std::vector<float> buffer(2 * C, 0.0f);
        float *middle = buffer.data(), *squares = middle + C;
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) store(middle + j, load(middle + j) + load(x + n * C + j));
        for (int64_t j = 0; j < C; ++j) {
            const double sum = middle[j];
            middle[j] /= last - first;
            sums[j] += sum;
            sums[C + j] += middle[j] * (2 * sum - (double)middle[j] * (last - first));
        }
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats off = load(x + n * C + j) - load(middle + j);
                store(squares + j, load(squares + j) + off * off);
            }
        for (int64_t j = 0; j < C; ++j) sums[C + j] += squares[j];
    });
    for (int64_t j = 0; j < C; ++j) {
        const double middle = totals[j] / rows;
        mean[j] = middle;
        var[j] = std::max(totals[C + j] / rows - middle * middle, 0.0);
    }
}

// y = gelu((x - mean) slope + shift).
extern "C" void batchnorm_gelu(const float* x, const float* mean, const float* slope, const float* shift, float* y,
                               int64_t rows, int64_t C) {
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t j = 0; j < C; j += LANES) {
            const Floats off = load(x + n * C + j) - load(mean + j);
            store(y + n * C + j, compute_gelu(off * load(slope + j) + load(shift + j)).value);
        }
}

// grad_x, grad_scale and grad_shift, given grad, the gradient of gelu(x̂ scale + shift), where x̂ = (x - mean) rstd.
// mean and rstd are those of x.
extern "C" void batchnorm_gelu_backward(const float* x, const float* grad, const float* mean, const float* rstd,
                                        const float* scale, const float* shift, float* grad_x, float* grad_scale,
                                        float* grad_shift, int64_t rows, int64_t C) {
    struct Place {
        Floats x_hat, grad_normed;  // x̂ and the gradient of x̂ scale + shift
    };
    const auto at = [=](int64_t n, int64_t j) -> Place {
        const Floats x_hat = (load(x + n * C + j) - load(mean + j)) * load(rstd + j);
        const Gelu gelu = compute_gelu(x_hat * load(scale + j) + load(shift + j));
        return {x_hat, load(grad + n * C + j) * gelu.slope};
    };
    const std::vector<double> totals = two_sums(rows, C, [=](int64_t first, int64_t last, double* sums) {
        std::vector<float> of_block(2 * C, 0.0f);
        float *to_shift = of_block.data(), *to_scale = to_shift + C;
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) {
                const Place here = at(n, j);
                store(to_shift + j, load(to_shift + j) + here.grad_normed);
                store(to_scale + j, load(to_scale + j) + here.grad_normed * here.x_hat);
            }
        for (int64_t i = 0; i < 2 * C; ++i) sums[i] += of_block[i];
    });
    std::copy_n(totals.begin(), C, grad_shift);
    std::copy_n(totals.begin() + C, C, grad_scale);
    const float per_row = 1.0f / rows;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t j = 0; j < C; j += LANES) {
            const Place here = at(n, j);
            const Floats common = per_row * (load(grad_shift + j) + here.x_hat * load(grad_scale + j));
            store(grad_x + n * C + j, (here.grad_normed - common) * load(rstd + j) * load(scale + j));
        }
}
