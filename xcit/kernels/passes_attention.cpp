// Attention with its backward pass on an x86 CPU, in fp32, without copies of the heads. passes.py calls them.
//
// Sums over the tokens are taken in blocks, so that their rounding does not grow with the image.

#include <algorithm>
#include <cmath>
#include <vector>

#include "passes_vectors.h"

constexpr int ROWS = LANES / 2, VECTORS = 16 / LANES;  // a tile of ROWS x COLUMNS sums fits into the registers
constexpr int COLUMNS = LANES * VECTORS;
constexpr int64_t BLOCK = 256;  // tokens whose head's share stays in the nearest cache

// out (d, d) += a^T b of a block of tokens; rows of a and b are `stride` floats apart, or `stride_b`.
static void add_covariance(const float* a, int64_t stride, const float* b, int64_t stride_b, int64_t tokens, int64_t d,
                           float* out) {
    for (int64_t i = 0; i < d; i += ROWS)
        for (int64_t j = 0; j < d; j += COLUMNS) {
            Floats sums[ROWS][VECTORS] = {};
            for (int64_t n = 0; n < tokens; ++n)
                for (int v = 0; v < VECTORS; ++v) {
                    const Floats row = load(b + n * stride_b + j + v * LANES);
                    for (int r = 0; r < ROWS; ++r) sums[r][v] += a[n * stride + i + r] * row;
                }
            for (int r = 0; r < ROWS; ++r)
                for (int v = 0; v < VECTORS; ++v) {
                    float* to = out + (i + r) * d + j + v * LANES;
                    store(to, load(to) + sums[r][v]);
                }
        }
}

// y = x w - share * z of all tokens, w (d, d); z and share may be missing. Rows are so many floats apart.
static void times_matrix(const float* x, int64_t stride, const float* w, const float* z, const float* share, float* y,
                         int64_t stride_y, int64_t tokens, int64_t d) {
    for (int64_t n = 0; n < tokens; n += ROWS) {
        const int64_t last = tokens - 1;  // the last tile may repeat a token
        for (int64_t j = 0; j < d; j += COLUMNS) {
            Floats sums[ROWS][VECTORS] = {};
            const float* rows[ROWS];
            for (int r = 0; r < ROWS; ++r) rows[r] = x + std::min(n + r, last) * stride;
            for (int64_t i = 0; i < d; ++i)
                for (int v = 0; v < VECTORS; ++v) {
                    const Floats row = load(w + i * d + j + v * LANES);
                    for (int r = 0; r < ROWS; ++r) sums[r][v] += rows[r][i] * row;
                }
            for (int r = 0; r < ROWS && n + r <= last; ++r)
                for (int v = 0; v < VECTORS; ++v) {
                    const int64_t c = j + v * LANES;
                    if (z) sums[r][v] -= load(share + c) * load(z + (n + r) * stride + c);
                    store(y + (n + r) * stride_y + c, sums[r][v]);
                }
        }
    }
}

// Attention of one head. q, k and v have rows 3C apart, y has rows C apart; kept for the backward pass: inverse_q and
// inverse_k (d), cosines and attention (d, d).
static void attend_head(const float* q, const float* k, const float* v, float temperature, float* y, float* inverse_q,
                        float* inverse_k, float* cosines, float* attention, int64_t N, int64_t C, int64_t d) {
    std::fill_n(cosines, d * d, 0.0f);
    std::fill_n(inverse_q, d, 0.0f);
    std::fill_n(inverse_k, d, 0.0f);
    for (int64_t n = 0; n < N; n += BLOCK) {
        const int64_t tokens = std::min(BLOCK, N - n);
        add_covariance(q + n * 3 * C, 3 * C, k + n * 3 * C, 3 * C, tokens, d, cosines);
        for (int64_t j = 0; j < d; j += LANES) {
            Floats of_q = {}, of_k = {};
            for (int64_t m = n; m < n + tokens; ++m) {
                const Floats from_q = load(q + m * 3 * C + j), from_k = load(k + m * 3 * C + j);
                of_q += from_q * from_q;
                of_k += from_k * from_k;
            }
            store(inverse_q + j, load(inverse_q + j) + of_q);
            store(inverse_k + j, load(inverse_k + j) + of_k);
        }
    }
    for (int64_t j = 0; j < d; ++j) {
        inverse_q[j] = 1.0f / std::max(std::sqrt(inverse_q[j]), 1e-12f);
        inverse_k[j] = 1.0f / std::max(std::sqrt(inverse_k[j]), 1e-12f);
    }
    std::vector<float> turned(d * d);  // the attention, its rows and columns exchanged
    for (int64_t i = 0; i < d; ++i) {
        float* row = attention + i * d;
        float highest = -INFINITY, total = 0;
        for (int64_t j = 0; j < d; ++j) {
            cosines[i * d + j] *= inverse_q[i] * inverse_k[j];
            row[j] = cosines[i * d + j] * temperature;
            highest = row[j] > highest ? row[j] : highest;
        }
        for (int64_t j = 0; j < d; j += LANES) store(row + j, exp_of_negative(load(row + j) - highest));
        for (int64_t j = 0; j < d; ++j) total += row[j];
        for (int64_t j = 0; j < d; ++j) turned[j * d + i] = row[j] /= total;
    }
    times_matrix(v, 3 * C, turned.data(), nullptr, nullptr, y, C, N, d);
}

// qkv (B, N, 3C), temperature (heads), y (B, N, C), inverse (B, 2, heads, d), cosines and attention (B, heads, d, d).
extern "C" void attend(const float* qkv, const float* temperature, float* y, float* inverse, float* cosines,
                       float* attention, int64_t B, int64_t N, int64_t C, int64_t heads) {
    const int64_t d = C / heads;
#pragma omp parallel for schedule(static)
    for (int64_t head = 0; head < B * heads; ++head) {
        const int64_t b = head / heads, h = head % heads;
        const float* q = qkv + b * N * 3 * C + h * d;
        float* of_q = inverse + (2 * b * heads + h) * d;
        attend_head(q, q + C, q + 2 * C, temperature[h], y + b * N * C + h * d, of_q, of_q + heads * d,
                    cosines + head * d * d, attention + head * d * d, N, C, d);
    }
}

// The gradients of one head's q, k and v; returns that of its temperature.
static float attend_head_backward(const float* q, const float* k, const float* v, const float* g, float temperature,
                                  const float* inverse_q, const float* inverse_k, const float* cosines,
                                  const float* attention, float* of_q, float* of_k, float* of_v, int64_t N, int64_t C,
                                  int64_t d) {
    std::vector<float> buffer(2 * d * d + 2 * d, 0.0f);
    float *of_products = buffer.data(), *turned = of_products + d * d, *share_q = turned + d * d, *share_k = share_q + d;
    for (int64_t n = 0; n < N; n += BLOCK)
        add_covariance(g + n * C, C, v + n * 3 * C, 3 * C, std::min(BLOCK, N - n), d, of_products);
    float of_temperature = 0;
    for (int64_t i = 0; i < d; ++i) {
        float* row = of_products + i * d;  // of the attention, then of the scores, the cosines, the products
        float mean = 0;
        for (int64_t j = 0; j < d; ++j) mean += row[j] * attention[i * d + j];
        for (int64_t j = 0; j < d; ++j) {
            const float cosine = cosines[i * d + j], of_score = (row[j] - mean) * attention[i * d + j];
            const float of_cosine = of_score * temperature;
            of_temperature += of_score * cosine;
            share_q[i] += of_cosine * cosine;
            share_k[j] += of_cosine * cosine;
            turned[j * d + i] = row[j] = of_cosine * inverse_q[i] * inverse_k[j];
        }
    }
    // A column's own norm takes back what the product gives it in its own direction.
    for (int64_t j = 0; j < d; ++j) {
        share_q[j] *= inverse_q[j] * inverse_q[j];
        share_k[j] *= inverse_k[j] * inverse_k[j];
    }
    times_matrix(k, 3 * C, turned, q, share_q, of_q, 3 * C, N, d);
    times_matrix(q, 3 * C, of_products, k, share_k, of_k, 3 * C, N, d);
    times_matrix(g, C, attention, nullptr, nullptr, of_v, 3 * C, N, d);
    return of_temperature;
}

// As `attend`; gradient (B, N, C), of_qkv (B, N, 3C), of_temperature (B, heads).
extern "C" void attend_backward(const float* qkv, const float* temperature, const float* inverse, const float* cosines,
                                const float* attention, const float* gradient, float* of_qkv, float* of_temperature,
                                int64_t B, int64_t N, int64_t C, int64_t heads) {
    const int64_t d = C / heads;
#pragma omp parallel for schedule(static)
    for (int64_t head = 0; head < B * heads; ++head) {
        const int64_t b = head / heads, h = head % heads, place = b * N * 3 * C + h * d;
        const float* inverse_q = inverse + (2 * b * heads + h) * d;
        of_temperature[head] = attend_head_backward(
            qkv + place, qkv + place + C, qkv + place + 2 * C, gradient + b * N * C + h * d, temperature[h], inverse_q,
            inverse_q + heads * d, cosines + head * d * d, attention + head * d * d, of_qkv + place, of_qkv + place + C,
            of_qkv + place + 2 * C, N, C, d);
    }
}
