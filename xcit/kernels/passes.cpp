// Passes over the tokens on an x86 CPU, in fp32: what torch does in several, here in one. passes.py calls them.
//
// Sums over the tokens are taken in blocks, so that their rounding does not grow with the image.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#ifdef __AVX512F__
constexpr int LANES = 16, ROWS = 8, VECTORS = 1;
#else
constexpr int LANES = 8, ROWS = 4, VECTORS = 2;
#endif
constexpr int COLUMNS = LANES * VECTORS;  // 16: a tile of ROWS x COLUMNS sums fits into the registers
constexpr int64_t BLOCK = 256;            // tokens whose head's share stays in the nearest cache

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

static inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// exp(x) for x <= 0, to two units in the last place; below -87 it stays at exp(-87).
static inline Floats exp_of_negative(Floats x) {
    const Floats lowest = Floats{} - 87.0f;
    x = x < lowest ? lowest : x;  // NaN stays NaN
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // the whole number of halvings is in the lowest bits
    const Floats whole = shifted - 12582912.0f;
    const Floats rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    Floats series = 1.3888889e-3f + rest * 1.9841270e-4f;
    series = 8.3333333e-3f + rest * series;
    series = 4.1666667e-2f + rest * series;
    series = 1.6666667e-1f + rest * series;
    series = 0.5f + rest * series;
    series = 1.0f + rest * (1.0f + rest * series);
    const Ints exponent = ((Ints)shifted + 127) << 23;
    return series * (Floats)exponent;
}

struct Gelu {
    Floats value, slope;
};

// x P(x) and P(x) + x p(x), P the normal distribution and p its density: one exponential serves both. P by Abramowitz
// and Stegun, Handbook of Mathematical Functions, 7.1.26, to 1e-7.
static inline Gelu gelu_of(Floats x) {
    const Floats zero = {};
    const Floats size = x < zero ? -x : x;
    const Floats t = 1.0f / (1.0f + 0.23164189f * size);
    const Floats bell = exp_of_negative(-0.5f * x * x);
    Floats tail = 1.061405429f * t - 1.453152027f;
    tail = tail * t + 1.421413741f;
    tail = tail * t - 0.284496736f;
    tail = tail * t + 0.254829592f;
    tail = 0.5f * tail * t * bell;
    const Floats below = x < zero ? tail : 1.0f - tail;
    return {x * below, below + x * bell * 0.39894228f};
}

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
