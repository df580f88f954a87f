// BatchNorm with the GELU behind it, on an x86 CPU in fp32, in two passes over the map there and two back. library.py
// calls them.
//
// A map is `rows` places of C channels, C a multiple of 16. Sums are taken over some rows in fp32, over all in fp64.

#include <algorithm>

#include "sums.h"

// Rows whose values stay in the nearest cache, or the one after it.
static int64_t rows_at_a_time(int64_t C) { return std::max<int64_t>(8, 6144 / C); }

// Two sums for each channel over all rows, (2, C): add(first, last, own) adds those of some rows to
// what a thread has.
template <class Add>
static std::vector<double> two_sums(int64_t rows, int64_t C, Add add) {
    const int64_t most = rows_at_a_time(C);
    Totals totals(2 * C);
#pragma omp parallel for schedule(static)
    for (int64_t first = 0; first < rows; first += most) add(first, std::min(rows, first + most), totals.own());
    return totals.all();
}

// mean and biased var (C) over the rows of x.
extern "C" void moments(const float* x, float* mean, float* var, int64_t rows, int64_t C) {
    const std::vector<double> totals = two_sums(rows, C, [=](int64_t first, int64_t last, double* own) {
        // Squares are summed about the mean of these rows in fp32, then moved to zero in fp64: little cancels.
        std::vector<float> buffer(2 * C, 0.0f);
        float *middle = buffer.data(), *squares = middle + C;
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) store(middle + j, load(middle + j) + load(x + n * C + j));
        for (int64_t j = 0; j < C; ++j) {
            const double sum = middle[j];
            middle[j] /= last - first;
            own[j] += sum;
            own[C + j] += middle[j] * (2 * sum - (double)middle[j] * (last - first));
        }
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) {
                const Floats off = load(x + n * C + j) - load(middle + j);
                store(squares + j, load(squares + j) + off * off);
            }
        for (int64_t j = 0; j < C; ++j) own[C + j] += squares[j];
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
            store(y + n * C + j, gelu_of(off * load(slope + j) + load(shift + j)).value);
        }
}

// The gradients of x, scale and shift, given that of gelu(x̂ scale + shift), where x̂ = (x - mean) rstd, and mean and
// rstd are those of x.
extern "C" void batchnorm_gelu_gradient(const float* x, const float* gradient, const float* mean, const float* rstd,
                                        const float* scale, const float* shift, float* of_x, float* of_scale,
                                        float* of_shift, int64_t rows, int64_t C) {
    struct Place {
        Floats hat, of_normed;  // x̂ and the gradient of x̂ scale + shift
    };
    const auto at = [=](int64_t n, int64_t j) -> Place {
        const Floats hat = (load(x + n * C + j) - load(mean + j)) * load(rstd + j);
        const Gelu of = gelu_of(hat * load(scale + j) + load(shift + j));
        return {hat, load(gradient + n * C + j) * of.slope};
    };
    const std::vector<double> totals = two_sums(rows, C, [=](int64_t first, int64_t last, double* own) {
        std::vector<float> sums(2 * C, 0.0f);
        float *to_shift = sums.data(), *to_scale = to_shift + C;
        for (int64_t n = first; n < last; ++n)
            for (int64_t j = 0; j < C; j += LANES) {
                const Place here = at(n, j);
                store(to_shift + j, load(to_shift + j) + here.of_normed);
                store(to_scale + j, load(to_scale + j) + here.of_normed * here.hat);
            }
        for (int64_t i = 0; i < 2 * C; ++i) own[i] += sums[i];
    });
    std::copy_n(totals.begin(), C, of_shift);
    std::copy_n(totals.begin() + C, C, of_scale);
    const float share = 1.0f / rows;
#pragma omp parallel for schedule(static)
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t j = 0; j < C; j += LANES) {
            const Place here = at(n, j);
            const Floats common = share * (load(of_shift + j) + here.hat * load(of_scale + j));
            store(of_x + n * C + j, (here.of_normed - common) * load(rstd + j) * load(scale + j));
        }
}
