// Local patch interaction on an x86 CPU in fp32: two 3 x 3 convolutions with all that stands before, between and behind
// them, in two passes over the tokens there and two back, or in one where nothing is kept. local_patch.py calls
// them.
//
// A map is H rows of W tokens of C channels, C a multiple of 16; weights are (C, 3, 3), the sums over their taps
// (3, 3, C).

#include <algorithm>
#include <cmath>
#include <functional>

#include "rows.h"
#include "sums.h"

// A weight by its taps, (9, C), or turned about, as the gradient of a convolution's input wants it.
static std::vector<float> taps_of(const float* weight, int64_t C, bool turned = false) {
    std::vector<float> taps(9 * C);
    for (int64_t j = 0; j < C; ++j)
        for (int64_t k = 0; k < 9; ++k) taps[(turned ? 8 - k : k) * C + j] = weight[j * 9 + k];
    return taps;
}

// One row of the convolution, without its bias, from the three rows around it.
template <class Rows>
static void convolve(const Shape& shape, const Rows& around, int64_t row, const std::vector<float>& taps, float* to) {
    const float *above = around.at(row - 1), *middle = around.at(row), *below = around.at(row + 1);
    for (int64_t j = 0; j < shape.C; j += LANES) {
        Floats w[9];
        for (int64_t k = 0; k < 9; ++k) w[k] = load(taps.data() + k * shape.C + j);
        Floats before = {}, here = {};  // the sums for the token before x, and for x, as far as they go
        for (int64_t x = 0; x < shape.W; ++x) {
            const int64_t at = x * shape.place() + j;
            const Floats a = load(above + at), b = load(middle + at), c = load(below + at);
            if (x) store(to + at - shape.place(), before + (w[2] * a + w[5] * b + w[8] * c));
            before = here + (w[1] * a + w[4] * b + w[7] * c);
            here = w[0] * a + w[3] * b + w[6] * c;
        }
        store(to + (shape.W - 1) * shape.place() + j, before);
    }
}

// sums (2, 9, C) += over one row, for each tap, gradient x input, and the gradient alone where the tap is in the map.
template <class Rows>
static void add_taps(const Shape& shape, const Rows& around, int64_t row, const float* gradient, double* sums) {
    const float* rows[3] = {around.at(row - 1), around.at(row), around.at(row + 1)};
    const int64_t C = shape.C;
    for (int64_t j = 0; j < C; j += LANES) {
        const Floats first = load(gradient + j);
        Floats of[9] = {}, all = {}, before = {}, here = first;
        for (int64_t x = 0; x < shape.W; ++x) {
            const int64_t at = x * shape.place() + j;
            const Floats after = x + 1 < shape.W ? load(gradient + at + shape.place()) : Floats{};
            for (int k = 0; k < 3; ++k) {
                const Floats input = load(rows[k] + at);
                of[3 * k] += input * after;
                of[3 * k + 1] += input * here;
                of[3 * k + 2] += input * before;
            }
            all += here;
            before = here;
            here = after;
        }
        const Floats inside[3] = {all - first, all, all - before};
        for (int64_t k = 0; k < 9; ++k) {
            const int64_t other = row + k / 3 - 1;
            add_to(sums + k * C + j, of[k]);
            if (other >= 0 && other < shape.H) add_to(sums + (9 + k) * C + j, inside[k % 3]);
        }
    }
}

// Of a token, the mean and 1 / deviation of its channels, while what is so far ahead of it is fetched.
static inline std::pair<float, float> statistics(const float* token, int64_t C, int64_t ahead, float eps) {
    Floats sum = {}, squares = {};
    for (int64_t j = 0; j < C; j += LANES) sum += fetched(token + j, ahead);
    const float mean = reduced(sum, std::plus<>()) / C;
    for (int64_t j = 0; j < C; j += LANES) {
        const Floats off = load(token + j) - mean;
        squares += off * off;
    }
    return {mean, 1.0f / std::sqrt(reduced(squares, std::plus<>()) / C + eps)};
}

static inline void normalise(const float* token, std::pair<float, float> of, const float* scale, const float* shift,
                             int64_t C, float* to) {
    for (int64_t j = 0; j < C; j += LANES)
        store(to + j, (load(token + j) - of.first) * of.second * load(scale + j) + load(shift + j));
}

// y = the first convolution of the tokens' norm; of each token its mean and rstd; and of gelu(y), for each channel,
// the sum and the squares' sum, (2, C).
extern "C" void norm_depthwise(const float* x, const float* scale, const float* shift, float eps, const float* weight,
                               const float* bias, float* y, float* mean, float* rstd, double* sums, int64_t B,
                               int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> taps = taps_of(weight, C);
    Totals totals(2 * C);
    in_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row() + 3 * C);
        Window normed(scratch, shape, first, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = (image * H + row) * W + n;
                const auto of = statistics(x + token * C, C, W * C, eps);
                normalise(x + token * C, of, scale, shift, C, to + n * shape.place());
                if (row >= first && row < last) mean[token] = of.first, rstd[token] = of.second;
            }
        });
        float* convolved = scratch.take(shape.row());
        float *start = scratch.take(C), *off_start = scratch.take(C), *squares = scratch.take(C);
        for (int64_t row = first; row < last; ++row) {
            normed.reach(row + 1);
            convolve(shape, normed, row, taps, convolved);
            float* out = y + (image * H + row) * W * C;
            // Squares are summed about the values of the row's first token, then moved to zero in fp64: little cancels.
            std::fill_n(off_start, C, 0.0f);
            std::fill_n(squares, C, 0.0f);
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats value = load(convolved + at) + load(bias + j);
                put(out + i, value, W * C);
                const Floats activated = gelu_of(value).value;
                if (i == j) store(start + j, activated);
                const Floats off = activated - load(start + j);
                store(off_start + j, load(off_start + j) + off);
                store(squares + j, load(squares + j) + off * off);
            });
            double* own = totals.own();
            for (int64_t j = 0; j < C; ++j) {
                const double from = start[j], off = off_start[j];
                own[j] += W * from + off;
                own[C + j] += squares[j] + from * (2 * off + W * from);
            }
        }
    });
    std::copy_n(totals.all().begin(), 2 * C, sums);
}

// y = x + share (the second convolution of slope gelu(a) + shift); a share for each image, or 1 where that is missing.
extern "C" void gelu_affine_depthwise(const float* a, const float* slope, const float* shift, const float* weight,
                                      const float* bias, const float* x, const float* shares, float* y, int64_t B,
                                      int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> taps = taps_of(weight, C);
    in_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row());
        Window affine(scratch, shape, first, [&](int64_t row, float* to) {
            const float* from = a + (image * H + row) * W * C;
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                store(to + at, gelu_of(fetched(from + i, W * C)).value * load(slope + j) + load(shift + j));
            });
        });
        float* convolved = scratch.take(shape.row());
        const float share = shares ? shares[image] : 1.0f;
        for (int64_t row = first; row < last; ++row) {
            affine.reach(row + 1);
            convolve(shape, affine, row, taps, convolved);
            const int64_t start = (image * H + row) * W * C;
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats branch = load(convolved + at) + load(bias + j);
                put(y + start + i, fetched(x + start + i, W * C) + share * branch, W * C);
            });
        }
    });
}

// The sums over the second convolution's taps, (2, 9, C): of its output's gradient x (gelu(a) - mean) rstd, and of that
// gradient alone. gradient is that of y.
extern "C" void gelu_affine_taps(const float* gradient, const float* shares, const float* a, const float* mean,
                                 const float* rstd, double* sums, int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    Totals totals(18 * C);
    in_bands(B, shape, 2, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(4 * shape.row());
        Window hats(scratch, shape, first, [&](int64_t row, float* to) {
            const float* from = a + (image * H + row) * W * C;
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                store(to + at, (gelu_of(fetched(from + i, W * C)).value - load(mean + j)) * load(rstd + j));
            });
        });
        float* of_branch = scratch.take(shape.row());
        const float share = shares ? shares[image] : 1.0f;
        for (int64_t row = first; row < last; ++row) {
            hats.reach(row + 1);
            const float* from = gradient + (image * H + row) * W * C;
            along(shape, [&](int64_t i, int64_t at, int64_t) { store(of_branch + at, share * fetched(from + i, W * C)); });
            add_taps(shape, hats, row, of_branch, totals.own());
        }
    });
    std::copy_n(totals.all().begin(), 18 * C, sums);
}

// The gradient of x, given that of y = x + share (branch of x), and the sums over the first convolution's taps,
// (2, 9, C): of its output's gradient x (x - mean) rstd, and of that gradient alone. Of the BatchNorm: mean, rstd,
// scale, and what comes off the gradient of its output, (C) for every place and (C) times the normed input.
extern "C" void local_patch_gradient(const float* gradient, const float* shares, const float* x, const float* mean,
                                     const float* rstd, const float* scale, const float* first_weight, const float* a,
                                     const float* bn_mean, const float* bn_rstd, const float* bn_scale,
                                     const float* off, const float* off_hat, const float* second_weight, float* of_x,
                                     double* sums, int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> first_taps = taps_of(first_weight, C, true), second_taps = taps_of(second_weight, C, true);
    Totals totals(18 * C);
    in_bands(B, shape, 4, [&](int64_t image, int64_t first, int64_t last) {
        const int64_t tokens = image * H * W;
        const float share = shares ? shares[image] : 1.0f;
        Scratch scratch(10 * shape.row());
        Window of_branch(scratch, shape, first - 1, [&](int64_t row, float* to) {
            const float* from = gradient + (tokens + row * W) * C;
            along(shape, [&](int64_t i, int64_t at, int64_t) { store(to + at, share * fetched(from + i, W * C)); });
        });
        Window of_a(scratch, shape, first, [&](int64_t row, float* to) {
            of_branch.reach(row + 1);
            convolve(shape, of_branch, row, second_taps, to);
            const float* from = a + (tokens + row * W) * C;
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Gelu of = gelu_of(fetched(from + i, W * C));
                const Floats rate = load(bn_rstd + j), hat = (of.value - load(bn_mean + j)) * rate;
                const Floats common = load(off + j) + hat * load(off_hat + j);
                store(to + at, (load(to + at) - common) * rate * load(bn_scale + j) * of.slope);
            });
        });
        Window hats(scratch, shape, first, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = tokens + row * W + n;
                const float *from = x + token * C, middle = mean[token], rate = rstd[token];
                for (int64_t j = 0; j < C; j += LANES)
                    store(to + n * shape.place() + j, (fetched(from + j, W * C) - middle) * rate);
            }
        });
        float* of_normed = scratch.take(shape.row());
        for (int64_t row = first; row < last; ++row) {
            of_a.reach(row + 1);
            hats.reach(row + 1);
            add_taps(shape, hats, row, of_a.at(row), totals.own());
            convolve(shape, of_a, row, first_taps, of_normed);
            for (int64_t n = 0; n < W; ++n) {
                const int64_t token = tokens + row * W + n;
                const float *hat = hats.at(row) + n * shape.place(), *of = of_normed + n * shape.place();
                Floats sum = {}, hat_sum = {};
                for (int64_t j = 0; j < C; j += LANES) {
                    const Floats value = load(of + j) * load(scale + j);
                    sum += value;
                    hat_sum += value * load(hat + j);
                }
                const float mean_of = reduced(sum, std::plus<>()) / C, hat_mean = reduced(hat_sum, std::plus<>()) / C;
                for (int64_t j = 0; j < C; j += LANES) {
                    const Floats value = load(of + j) * load(scale + j) - mean_of - load(hat + j) * hat_mean;
                    put(of_x + token * C + j, load(gradient + token * C + j) + rstd[token] * value, W * C);
                }
            }
        }
    });
    std::copy_n(totals.all().begin(), 18 * C, sums);
}

// y = t + the second convolution of slope gelu(the first convolution of the norm of t) + bn_shift, where t = x + branch.
extern "C" void local_patch(const float* x, const float* branch, const float* scale, const float* shift,
                            float eps, const float* first_weight, const float* first_bias, const float* slope,
                            const float* bn_shift, const float* second_weight, const float* second_bias, float* y,
                            int64_t B, int64_t H, int64_t W, int64_t C) {
    const Shape shape{H, W, C};
    const std::vector<float> first_taps = taps_of(first_weight, C), second_taps = taps_of(second_weight, C);
    in_bands(B, shape, 4, [&](int64_t image, int64_t first, int64_t last) {
        Scratch scratch(7 * shape.row() + C);
        const int64_t tokens = image * H * W * C;
        float* summed = scratch.take(C);
        Window normed(scratch, shape, first - 1, [&](int64_t row, float* to) {
            for (int64_t n = 0; n < W; ++n) {
                const int64_t from = tokens + (row * W + n) * C;
                for (int64_t j = 0; j < C; j += LANES)
                    store(summed + j, fetched(x + from + j, W * C) + fetched(branch + from + j, W * C));
                normalise(summed, statistics(summed, C, 0, eps), scale, shift, C, to + n * shape.place());
            }
        });
        Window affine(scratch, shape, first, [&](int64_t row, float* to) {
            normed.reach(row + 1);
            convolve(shape, normed, row, first_taps, to);
            along(shape, [&](int64_t, int64_t at, int64_t j) {
                const Floats activated = gelu_of(load(to + at) + load(first_bias + j)).value;
                store(to + at, activated * load(slope + j) + load(bn_shift + j));
            });
        });
        float* convolved = scratch.take(shape.row());
        for (int64_t row = first; row < last; ++row) {
            affine.reach(row + 1);
            convolve(shape, affine, row, second_taps, convolved);
            const int64_t start = tokens + row * W * C;
            along(shape, [&](int64_t i, int64_t at, int64_t j) {
                const Floats token = load(x + start + i) + load(branch + start + i);
                put(y + start + i, token + (load(convolved + at) + load(second_bias + j)), W * C);
            });
        }
    });
}
