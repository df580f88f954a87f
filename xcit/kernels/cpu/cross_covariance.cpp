// Cross-covariance attention forward and backward, in fp32 on an x86 CPU, without copies of the heads.
// cross_covariance.py calls these functions.
//
// Tokens are summed in blocks, and blocks in blocks of blocks, so that rounding errors hardly grow with the image.

#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>

#include "sums.h"

// A tile of sums, ROWS x (up to WIDEST times 16 columns), fits into the registers.
constexpr int ROWS = LANES / 2, VECTORS = 16 / LANES, WIDEST = LANES == 16 ? 3 : 1;
constexpr int64_t BLOCK = 16;  // tokens that are summed at a time, while the next ones are prefetched

// Calls tile(j, std::integral_constant<int, V>) for columns j to j + V * LANES, until all d columns are done.
template <class Tile>
static void for_tiles(int64_t d, Tile tile) {
    for (int64_t j = 0; j < d;) {
        const int64_t width = std::min<int64_t>((d - j) / 16, WIDEST);
        if (width == 3) tile(j, std::integral_constant<int, 3 * VECTORS>());
        if (width == 2) tile(j, std::integral_constant<int, 2 * VECTORS>());
        if (width == 1) tile(j, std::integral_constant<int, VECTORS>());
        j += 16 * width;
    }
}

// Prefetches rows `first` to `last` of a head. They are too far apart for the processor to predict them.
static inline void prefetch(const float* x, int64_t stride, int64_t first, int64_t last, int64_t d) {
    for (int64_t n = first; n < last; ++n)
        for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(x + n * stride + j);
}

// out (d, d) += a^T b of a block of tokens. Rows of a are `stride` floats apart, rows of b `stride_b`.
static void add_covariance(const float* a, int64_t stride, const float* b, int64_t stride_b, int64_t tokens, int64_t d,
                           float* out) {
    for_tiles(d, [=](int64_t j, auto vectors) {
        constexpr int V = vectors;
        for (int64_t i = 0; i < d; i += ROWS) {
            Floats sums[ROWS][V] = {};
            for (int64_t n = 0; n < tokens; ++n)
                for (int v = 0; v < V; ++v) {
                    const Floats row = load(b + n * stride_b + j + v * LANES);
                    for (int r = 0; r < ROWS; ++r) sums[r][v] += a[n * stride + i + r] * row;
                }
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < V; ++v) {
                    float* to = out + (i + r) * d + j + v * LANES;
                    store(to, load(to) + sums[r][v]);
                }
        }
    });
}

// y = x w - along * z of all tokens, with w (d, d). z and along may be null. Rows of x and z are `stride` floats apart,
// rows of y `stride_y`.
static void multiply_matrix(const float* x, int64_t stride, const float* w, const float* z, const float* along,
                            float* y, int64_t stride_y, int64_t tokens, int64_t d) {
    for (int64_t n = 0; n < tokens; n += ROWS) {
        const int64_t last = tokens - 1;  // the last tile may repeat the last token
        const int64_t soon = std::min(n + 2 * ROWS, tokens), after = std::min(n + 3 * ROWS, tokens);
        prefetch(x, stride, soon, after, d);
        prefetch(y, stride_y, soon, after, d);
        if (z) prefetch(z, stride, soon, after, d);
        for_tiles(d, [=](int64_t j, auto vectors) {
            constexpr int V = vectors;
            Floats sums[ROWS][V] = {};
            const float* rows[ROWS];
            for (int r = 0; r < ROWS; ++r) rows[r] = x + std::min(n + r, last) * stride;
            for (int64_t i = 0; i < d; ++i)
                for (int v = 0; v < V; ++v) {
                    const Floats row = load(w + i * d + j + v * LANES);
                    for (int r = 0; r < ROWS; ++r) sums[r][v] += rows[r][i] * row;
                }
            for (int r = 0; r < ROWS && n + r <= last; ++r)
                for (int v = 0; v < V; ++v) {
                    const int64_t c = j + v * LANES;
                    if (z) sums[r][v] -= load(along + c) * load(z + (n + r) * stride + c);
                    store(y + (n + r) * stride_y + c, sums[r][v]);
                }
        });
    }
}

// `count` sums over all tokens. add(first, last, sums) adds those of some tokens.
template <class Add>
static std::vector<float> sum_over_tokens(int64_t N, int64_t count, Add add) {
    std::vector<float> total(count, 0.0f), sums(count);
    for (int64_t first = 0; first < N; first += BLOCK * BLOCK) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t n = first; n < std::min(first + BLOCK * BLOCK, N); n += BLOCK)
            add(n, std::min(n + BLOCK, N), sums.data());
        for (int64_t i = 0; i < count; ++i) total[i] += sums[i];
    }
    return total;
}

// Attention of one head. Rows of q, k and v are 3C apart, rows of y C apart. Saved for the backward pass: inverse_q and
// inverse_k (d), cosines and attention (d, d).
static void attend_head(const float* q, const float* k, const float* v, float temperature, float* y, float* inverse_q,
                        float* inverse_k, float* cosines, float* attention, int64_t N, int64_t C, int64_t d) {
    const auto add = [=](int64_t first, int64_t last, float* sums) {
        prefetch(q, 3 * C, last, std::min(last + BLOCK, N), d);
        prefetch(k, 3 * C, last, std::min(last + BLOCK, N), d);
        add_covariance(q + first * 3 * C, 3 * C, k + first * 3 * C, 3 * C, last - first, d, sums);
        float *squares_q = sums + d * d, *squares_k = squares_q + d;
        for (int64_t j = 0; j < d; j += LANES) {
            Floats q_squares = load(squares_q + j), k_squares = load(squares_k + j);
            for (int64_t n = first; n < last; ++n) {
                const Floats from_q = load(q + n * 3 * C + j), from_k = load(k + n * 3 * C + j);
                q_squares += from_q * from_q;
                k_squares += from_k * from_k;
            }
            store(squares_q + j, q_squares);
            store(squares_k + j, k_squares);
        }
    };
    const std::vector<float> sums = sum_over_tokens(N, d * d + 2 * d, add);
    const float *products = sums.data(), *squares_q = products + d * d, *squares_k = squares_q + d;
    for (int64_t j = 0; j < d; ++j) {
        inverse_q[j] = 1.0f / std::max(std::sqrt(squares_q[j]), 1e-12f);
        inverse_k[j] = 1.0f / std::max(std::sqrt(squares_k[j]), 1e-12f);
    }
    std::vector<float> transposed(d * d);  // of the attention
    for (int64_t i = 0; i < d; ++i) {
        float *scaled = cosines + i * d, *row = attention + i * d;
        Floats maxima = Floats{} - INFINITY, total = {};
        for (int64_t j = 0; j < d; j += LANES) {
            store(scaled + j, load(products + i * d + j) * load(inverse_k + j) * inverse_q[i]);
            const Floats score = load(scaled + j) * temperature;
            maxima = score > maxima ? score : maxima;
            store(row + j, score);
        }
        const float maximum = reduce(maxima, [](float one, float other) { return std::max(one, other); });
        for (int64_t j = 0; j < d; j += LANES) {
            const Floats weight = exp_of_negative(load(row + j) - maximum);
            total += weight;
            store(row + j, weight);
        }
        const float inverse_total = 1.0f / reduce(total, std::plus<float>());
        for (int64_t j = 0; j < d; j += LANES) store(row + j, load(row + j) * inverse_total);
        for (int64_t j = 0; j < d; ++j) transposed[j * d + i] = row[j];
    }
    multiply_matrix(v, 3 * C, transposed.data(), nullptr, nullptr, y, C, N, d);
}

// qkv (B, N, 3C), temperature (heads), y (B, N, C), inverse (B, 2, heads, d), cosines and attention (B, heads, d, d).
extern "C" void attend(const float* qkv, const float* temperature, float* y, float* inverse, float* cosines,
                       float* attention, int64_t B, int64_t N, int64_t C, int64_t heads) {
    const int64_t d = C / heads;
#pragma omp parallel for schedule(static)
    for (int64_t head = 0; head < B * heads; ++head) {
        const int64_t b = head / heads, h = head % heads;
        const float* q = qkv + b * N * 3 * C + h * d;
        float* inverse_q = inverse + (2 * b * heads + h) * d;
        attend_head(q, q + C, q + 2 * C, temperature[h], y + b * N * C + h * d, inverse_q, inverse_q + heads * d,
                    cosines + head * d * d, attention + head * d * d, N, C, d);
    }
}

// grad_q, grad_k and grad_v of one head, given g, the gradient of its output. Returns the gradient of its temperature.
static float attend_head_backward(const float* q, const float* k, const float* v, const float* g, float temperature,
                                  const float* inverse_q, const float* inverse_k, const float* cosines,
                                  const float* attention, float* grad_q, float* grad_k, float* grad_v, int64_t N,
                                  int64_t C, int64_t d) {
    const auto add = [=](int64_t first, int64_t last, float* sums) {
        prefetch(g, C, last, std::min(last + BLOCK, N), d);
        prefetch(v, 3 * C, last, std::min(last + BLOCK, N), d);
        add_covariance(g + first * C, C, v + first * 3 * C, 3 * C, last - first, d, sums);
    };
    std::vector<float> sums = sum_over_tokens(N, d * d, add), buffer(d * d + 2 * d, 0.0f);
    float *grad_products = sums.data(), *transposed = buffer.data();
    float *along_q = transposed + d * d, *along_k = along_q + d;
    Floats grad_temperature = {};
    for (int64_t i = 0; i < d; ++i) {
        float* row = grad_products + i * d;  // of the attention, then of the products q^T k
        Floats along = {}, along_row = {};
        for (int64_t j = 0; j < d; j += LANES) along += load(row + j) * load(attention + i * d + j);
        const float mean = reduce(along, std::plus<float>());
        for (int64_t j = 0; j < d; j += LANES) {
            const Floats cosine = load(cosines + i * d + j);
            const Floats grad_score = (load(row + j) - mean) * load(attention + i * d + j);
            const Floats grad_cosine = grad_score * temperature;
            grad_temperature += grad_score * cosine;
            along_row += grad_cosine * cosine;
            store(along_k + j, load(along_k + j) + grad_cosine * cosine);
            store(row + j, grad_cosine * load(inverse_k + j) * inverse_q[i]);
        }
        along_q[i] = reduce(along_row, std::plus<float>());
        for (int64_t j = 0; j < d; ++j) transposed[j * d + i] = row[j];
    }
    // Scaling a column does not change the normalized one, so the gradient has no component along the column.
    for (int64_t j = 0; j < d; ++j) {
        along_q[j] *= inverse_q[j] * inverse_q[j];
        along_k[j] *= inverse_k[j] * inverse_k[j];
    }
    multiply_matrix(k, 3 * C, transposed, q, along_q, grad_q, 3 * C, N, d);
    multiply_matrix(q, 3 * C, grad_products, k, along_k, grad_k, 3 * C, N, d);
    multiply_matrix(g, C, attention, nullptr, nullptr, grad_v, 3 * C, N, d);
    return reduce(grad_temperature, std::plus<float>());
}

// Shapes as in `attend`; grad (B, N, C), grad_qkv (B, N, 3C), grad_temperature (B, heads).
extern "C" void attend_backward(const float* qkv, const float* temperature, const float* inverse, const float* cosines,
                                const float* attention, const float* grad, float* grad_qkv, float* grad_temperature,
                                int64_t B, int64_t N, int64_t C, int64_t heads) {
    const int64_t d = C / heads;
#pragma omp parallel for schedule(static)
    for (int64_t head = 0; head < B * heads; ++head) {
        const int64_t b = head / heads, h = head % heads, place = b * N * 3 * C + h * d;
        const float* inverse_q = inverse + (2 * b * heads + h) * d;
        grad_temperature[head] = attend_head_backward(
            qkv + place, qkv + place + C, qkv + place + 2 * C, grad + b * N * C + h * d, temperature[h], inverse_q,
            inverse_q + heads * d, cosines + head * d * d, attention + head * d * d, grad_qkv + place,
            grad_qkv + place + C, grad_qkv + place + 2 * C, N, C, d);
    }
}
