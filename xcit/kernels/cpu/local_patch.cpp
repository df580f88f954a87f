// Local patch interaction, in fp32 on an x86 CPU: two 3 x 3 convolutions with everything before, between and after, in
// two passes over the tokens forward and two backward, or in one pass for inference. local_patch.py calls these.
//
// A map is H rows of W tokens of C channels, C a multiple of 16. Weights are (C, 3, 3), sums over their taps (3, 3, C).

#include <algorithm>
#include <cmath>
#include <functional>

#include "rows.h"
#include "sums.h"

// A weight with its taps first, (9, C). It is flipped for the gradient of a convolution's input.
static std::vector<float> arrange_taps(const float* weight, int64_t C, bool flipped = false) {
    std::vector<float> taps(9 * C);
    for (int64_t j = 0; j < C; ++j)
        for (int64_t k = 0; k < 9; ++k) taps[(flipped ? 8 - k : k) * C + j] = weight[j * 9 + k];
    return taps;
}

// One row of the convolution, without its bias, from the three rows around it.
template <class Rows>
static void convolve(const Shape& shape, const Rows& around, int64_t row, const std::vector<float>& taps, float* to) {
    const float *above = around.at(row - 1), *middle = around.at(row), *below = around.at(row + 1);
    for (int64_t j = 0; j < shape.C; j += LANES) {
        Floats w[9];
        for (int64_t k = 0; k < 9; ++k) w[k] = load(taps.data() + k * shape.C + j);
        Floats before = {}, here = {};  // partial sums for the token before x, and for x
        for (int64_t x = 0; x < shape.W; ++x) {
            const int64_t at = x * shape.stride() + j;
            const Floats a = load(above + at), b = load(middle + at), c = load(below + at);
            if (x) store(to + at - shape.stride(), before + (w[2] * a + w[5] * b + w[8] * c));
            before = here + (w[1] * a + w[4] * b + w[7] * c);
            here = w[0] * a + w[3] * b + w[6] * c;
        }
        store(to + (shape.W - 1) * shape.stride() + j, before);
    }
}

// sums (2, 9, C) += over one row, for each tap, grad x input, and grad where the tap is inside the map.
template <class Rows>
static void add_tap_sums(const Shape& shape, const Rows& around, int64_t row, const float* grad, double* sums) {
    const float* rows[3] = {around.at(row - 1), around.at(row), around.at(row + 1)};
    const int64_t C = shape.C;
    for (int64_t j = 0; j < C; j += LANES) {
        const Floats first = load(grad + j);
        Floats products[9] = {}, total = {}, before = {}, here = first;
        for (int64_t x = 0; x < shape.W; ++x) {
            const int64_t at = x * shape.stride() + j;
            const Floats after = x + 1 < shape.W ? load(grad + at + shape.stride()) : Floats{};
            for (int k = 0; k < 3; ++k) {
                const Floats input = load(rows[k] + at);
                products[3 * k] += input * after;
                products[3 * k + 1] += input * here;
                products[3 * k + 2] += input * before;
            }
            total += here;
            before = here;
            here = after;
        }
        const Floats inside[3] = {total - first, total, total - before};
        for (int64_t k = 0; k < 9; ++k) {
            const int64_t other = row + k / 3 - 1;
            add_to(sums + k * C + j, products[k]);
            if (other >= 0 && other < shape.H) add_to(sums + (9 + k) * C + j, inside[k % 3]);
        }
    }
}

// The mean and rstd of a token's channels, while the token `ahead` floats after it is prefetched.
static inline std::pair<float, float> statistics(const float* token, int64_t C, int64_t ahead, float eps) {
    Floats sum = {}, squares = {};
    for (int64_t j = 0; j < C; j += LANES) sum += load_prefetch(token + j, ahead);
    const float mean = reduce(sum, std::plus<>()) / C;
    for (int64_t j = 0; j < C; j += LANES) {
        const Floats off = load(token + j) - mean;
        squares += off * off;
    }
    return {mean, 1.0f / std::sqrt(reduce(squares, std::plus<>()) / C + eps)};
}

static inline void normalize(const float* token, std::pair<float, float> mean_rstd, const float* scale,
                             const float* shift, int64_t C, float* to) {
    for (int64_t j = 0; j < C; j += LANES)
        store(to + j, (load(token + j) - mean_rstd.first) * mean_rstd.second * load(scale + j) + load(shift + j));
}

// y = the first convolution of the tokens' norm; the mean and rstd of each token; and the sum of gelu(y) and of its
// square for each channel, (2, C).
extern "C" void norm_depthwise(const float* x, const float* scale, const float* shift, float eps, const float* weight,
                               const float* bias, float* y, float* mean, float* rstd, double* sums, int64_t B,
                               int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> taps = arrange_taps(weight, C);
    Totals totals(2 * C);
    for_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row() + 3 * C);
        Window normed(scratch, shape, first, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = (image * H + row) * W + n;
                const auto mean_rstd = statistics(x + token * C, C, W * C, eps);
                normalize(x + token * C, mean_rstd, scale, shift, C, to + n * shape.stride());
                if (row >= first && row < last) mean[token] = mean_rstd.first, rstd[token] = mean_rstd.second;
            }
        });
        float* convolved = scratch.take(shape.row());
        float *start = scratch.take(C), *off_start = scratch.take(C), *squares = scratch.take(C);
        for (int64_t row = first; row < last; ++row) {
            normed.fill_up_to(row + 1);
            convolve(shape, normed, row, taps, convolved);
            float* out = y + (image * H + row) * W * C;
            // Squares are summed about the values of the row's first token, then shifted to zero in fp64: this avoids
            // cancellation.
            std::fill_n(off_start, C, 0.0f);
            std::fill_n(squares, C, 0.0f);
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats value = load(convolved + at) + load(bias + j);
                store_prefetch(out + i, value, W * C);
                const Floats activated = compute_gelu(value).value;
                if (i == j) store(start + j, activated);
                const Floats off = activated - load(start + j);
                store(off_start + j, load(off_start + j) + off);
                store(squares + j, load(squares + j) + off * off);
            });
            double* of_thread = totals.of_thread();
            for (int64_t j = 0; j < C; ++j) {
                const double from = start[j], off = off_start[j];
                of_thread[j] += W * from + off;
                of_thread[C + j] += squares[j] + from * (2 * off + W * from);
            }
        }
    });
    std::copy_n(totals.total().begin(), 2 * C, sums);
}

// y = x + keep_scale (the second convolution of slope gelu(a) + shift). keep_scale (B) may be null, for 1.
extern "C" void gelu_affine_depthwise(const float* a, const float* slope, const float* shift, const float* weight,
                                      const float* bias, const float* x, const float* keep_scale, float* y, int64_t B,
                                      int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> taps = arrange_taps(weight, C);
    for_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row());
        Window affine(scratch, shape, first, [&](int64_t row, float* to) {
            const float* from = a + (image * H + row) * W * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                store(to + at, compute_gelu(load_prefetch(from + i, W * C)).value * load(slope + j) + load(shift + j));
            });
        });
        float* convolved = scratch.take(shape.row());
        const float factor = keep_scale ? keep_scale[image] : 1.0f;
        for (int64_t row = first; row < last; ++row) {
            affine.fill_up_to(row + 1);
            convolve(shape, affine, row, taps, convolved);
            const int64_t start = (image * H + row) * W * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats branch = load(convolved + at) + load(bias + j);
                store_prefetch(y + start + i, load_prefetch(x + start + i, W * C) + factor * branch, W * C);
            });
        }
    });
}

// Sums over the second convolution's taps, (2, 9, C): of its output's gradient x (gelu(a) - mean) rstd, and of that
// gradient alone. grad is the gradient of y.
extern "C" void gelu_affine_sums(const float* grad, const float* keep_scale, const float* a, const float* mean,
                                 const float* rstd, double* sums, int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    Totals totals(18 * C);
    for_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row());
        Window x_hats(scratch, shape, first, [&](int64_t row, float* to) {
            const float* from = a + (image * H + row) * W * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                store(to + at, (compute_gelu(load_prefetch(from + i, W * C)).value - load(mean + j)) * load(rstd + j));
            });
        });
        float* grad_branch = scratch.take(shape.row());
        const float factor = keep_scale ? keep_scale[image] : 1.0f;
        for (int64_t row = first; row < last; ++row) {
            x_hats.fill_up_to(row + 1);
            const float* from = grad + (image * H + row) * W * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t) {
                store(grad_branch + at, factor * load_prefetch(from + i, W * C));
            });
            add_tap_sums(shape, x_hats, row, grad_branch, totals.of_thread());
        }
    });
    std::copy_n(totals.total().begin(), 18 * C, sums);
}

// grad_x, given grad, the gradient of y = x + keep_scale (branch of x); and the sums over the first convolution's taps,
// (2, 9, C): of its output's gradient x (x - mean) rstd, and of that gradient alone. mean_grad and mean_grad_hat (C)
// are the means of the gradient of the BatchNorm's output, and of that times its normalized input.
extern "C" void local_patch_backward(const float* grad, const float* keep_scale, const float* x, const float* mean,
                                     const float* rstd, const float* scale, const float* first_weight, const float* a,
                                     const float* bn_mean, const float* bn_rstd, const float* bn_scale,
                                     const float* mean_grad, const float* mean_grad_hat, const float* second_weight,
                                     float* grad_x, double* sums, int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> first_taps = arrange_taps(first_weight, C, true);
    const std::vector<float> second_taps = arrange_taps(second_weight, C, true);
    Totals totals(18 * C);
    for_bands(B, shape, 4, [&](int64_t image, int64_t first, int64_t last) {
        const int64_t tokens = image * H * W;
        const float factor = keep_scale ? keep_scale[image] : 1.0f;
        Scratch scratch(10 * shape.row());
        Window grad_branch(scratch, shape, first - 1, [&](int64_t row, float* to) {
            const float* from = grad + (tokens + row * W) * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t) {
                store(to + at, factor * load_prefetch(from + i, W * C));
            });
        });
        Window grad_a(scratch, shape, first, [&](int64_t row, float* to) {
            grad_branch.fill_up_to(row + 1);
            convolve(shape, grad_branch, row, second_taps, to);
            const float* from = a + (tokens + row * W) * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Gelu gelu = compute_gelu(load_prefetch(from + i, W * C));
                const Floats r = load(bn_rstd + j), x_hat = (gelu.value - load(bn_mean + j)) * r;
                const Floats common = load(mean_grad + j) + x_hat * load(mean_grad_hat + j);
                store(to + at, (load(to + at) - common) * r * load(bn_scale + j) * gelu.slope);
            });
        });
        Window x_hats(scratch, shape, first, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = tokens + row * W + n;
                const float *from = x + token * C, middle = mean[token], r = rstd[token];
                for (int64_t j = 0; j < C; j += LANES)
                    store(to + n * shape.stride() + j, (load_prefetch(from + j, W * C) - middle) * r);
            }
        });
        float* grad_normed = scratch.take(shape.row());
        for (int64_t row = first; row < last; ++row) {
            grad_a.fill_up_to(row + 1);
            x_hats.fill_up_to(row + 1);
            add_tap_sums(shape, x_hats, row, grad_a.at(row), totals.of_thread());
            convolve(shape, grad_a, row, first_taps, grad_normed);
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = tokens + row * W + n;
                const float *x_hat = x_hats.at(row) + n * shape.stride(), *g = grad_normed + n * shape.stride();
                Floats sum = {}, x_hat_sum = {};
                for (int64_t j = 0; j < C; j += LANES) {
                    const Floats value = load(g + j) * load(scale + j);
                    sum += value;
                    x_hat_sum += value * load(x_hat + j);
                }
                const float scaled_mean = reduce(sum, std::plus<>()) / C;
                const float x_hat_mean = reduce(x_hat_sum, std::plus<>()) / C;
                for (int64_t j = 0; j < C; j += LANES) {
                    const Floats value = load(g + j) * load(scale + j) - scaled_mean - load(x_hat + j) * x_hat_mean;
                    store_prefetch(grad_x + token * C + j, load(grad + token * C + j) + rstd[token] * value, W * C);
                }
            }
        }
    });
    std::copy_n(totals.total().begin(), 18 * C, sums);
}

// y = t + the second convolution of (slope gelu(the first convolution of the norm of t) + bn_shift), t = x + branch.
extern "C" void local_patch(const float* x, const float* branch, const float* scale, const float* shift,
                            float eps, const float* first_weight, const float* first_bias, const float* slope,
                            const float* bn_shift, const float* second_weight, const float* second_bias, float* y,
                            int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> first_taps = arrange_taps(first_weight, C), second_taps = arrange_taps(second_weight, C);
    for_bands(B, shape, 4, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(7 * shape.row() + C);
        const int64_t tokens = image * H * W * C;
        float* t = scratch.take(C);
        Window normed(scratch, shape, first - 1, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t from = tokens + (row * W + n) * C;
                for (int64_t j = 0; j < C; j += LANES)
                    store(t + j, load_prefetch(x + from + j, W * C) + load_prefetch(branch + from + j, W * C));
                normalize(t, statistics(t, C, 0, eps), scale, shift, C, to + n * shape.stride());
            }
        });
        Window affine(scratch, shape, first, [&](int64_t row, float* to) {
            normed.fill_up_to(row + 1);
            convolve(shape, normed, row, first_taps, to);
            for_vectors(shape, [&](int64_t, int64_t at, int64_t j) {
                const Floats activated = compute_gelu(load(to + at) + load(first_bias + j)).value;
                store(to + at, activated * load(slope + j) + load(bn_shift + j));
            });
        });
        float* convolved = scratch.take(shape.row());
        for (int64_t row = first; row < last; ++row) {
            affine.fill_up_to(row + 1);
            convolve(shape, affine, row, second_taps, convolved);
            const int64_t start = tokens + row * W * C;
            for_vectors(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats token = load(x + start + i) + load(branch + start + i);
                store_prefetch(y + start + i, token + (load(convolved + at) + load(second_bias + j)), W * C);
            });
        }
    });
}
