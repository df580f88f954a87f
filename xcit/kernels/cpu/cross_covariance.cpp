// Attention with its backward pass on an x86 CPU, in fp32, without copies of the heads. library.py calls them.
//
// Sums over the tokens are taken in blocks, and those in blocks of blocks, so that their rounding hardly grows with the
// image.

#include <algorithm>
#include <cmath>
#include <functional>
#include <type_traits>

#include "sums.h"

// A tile of sums, ROWS x so many times 16 columns, fits into the registers.
constexpr int ROWS = LANES / 2, VECTORS = 16 / LANES, WIDEST = LANES == 16 ? 3 : 1;
constexpr int64_t BLOCK = 16;  // tokens whose sums are taken at a time, while those after them are fetched

// Calls tile(j, std::integral_constant<int, V>) for columns j to j + V * LANES until all d have had their turn.
template <class Tile>
static void in_tiles(int64_t d, Tile tile) {
    for (int64_t j = 0; j < d;) {
        const int64_t width = std::min<int64_t>((d - j) / 16, WIDEST);
        if (width == 3) tile(j, std::integral_constant<int, 3 * VECTORS>());
        if (width == 2) tile(j, std::integral_constant<int, 2 * VECTORS>());
        if (width == 1) tile(j, std::integral_constant<int, VECTORS>());
        j += 16 * width;
    }
}

// Have rows `first` to `last` of a head fetched: they lie too far apart for the processor to foresee them.
static inline void fetch(const float* x, int64_t stride, int64_t first, int64_t last, int64_t d) {
    for (int64_t n = first; n < last; ++n)
        for (int64_t j = 0; j < d; j += 16) __builtin_prefetch(x + n * stride + j);
}

// out (d, d) += a^T b of a block of tokens; rows of a and b are `stride` floats apart, or `stride_b`.
static void add_covariance(const float* a, int64_t stride, const float* b, int64_t stride_b, int64_t tokens, int64_t d,
                           float* out) {
    in_tiles(d, [=](int64_t j, auto vectors) {
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

// y = x w - share * z of all tokens, w (d, d); z and share may be missing. Rows are so many floats apart.
static void times_matrix(const float* x, int64_t stride, const float* w, const float* z, const float* share, float* y,
                         int64_t stride_y, int64_t tokens, int64_t d) {
    for (int64_t n = 0; n < tokens; n += ROWS) {
        const int64_t last = tokens - 1;  // the last tile may repeat a token
        const int64_t soon = std::min(n + 2 * ROWS, tokens), after = std::min(n + 3 * ROWS, tokens);
        fetch(x, stride, soon, after, d);
        fetch(y, stride_y, soon, after, d);
        if (z) fetch(z, stride, soon, after, d);
        in_tiles(d, [=](int64_t j, auto vectors) {
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
                    if (z) sums[r][v] -= load(share + c) * load(z + (n + r) * stride + c);
                    store(y + (n + r) * stride_y + c, sums[r][v]);
                }
        });
    }
}

// The sums (count) over all tokens: add(first, last, sums) adds those of some tokens.
template <class Add>
static std::vector<float> summed(int64_t N, int64_t count, Add add) {
    std::vector<float> total(count, 0.0f), sums(count);
    for (int64_t first = 0; first < N; first += BLOCK * BLOCK) {
        std::fill(sums.begin(), sums.end(), 0.0f);
        for (int64_t n = first; n < std::min(first + BLOCK * BLOCK, N); n += BLOCK)
            add(n, std::min(n + BLOCK, N), sums.data());
        for (int64_t i = 0; i < count; ++i) total[i] += sums[i];
    }
    return total;
}

// Attention of one head. q, k and v have rows 3C apart, y has rows C apart; kept for the backward pass: inverse_q and
// inverse_k (d), cosines and attention (d, d).
static void attend_head(const float* q, const float* k, const float* v, float temperature, float* y, float* inverse_q,
                        float* inverse_k, float* cosines, float* attention, int64_t N, int64_t C, int64_t d) {
    const auto add = [=](int64_t first, int64_t last, float* sums) {
        fetch(q, 3 * C, last, std::min(last + BLOCK, N), d);
        fetch(k, 3 * C, last, std::min(last + BLOCK, N), d);
        add_covariance(q + first * 3 * C, 3 * C, k + first * 3 * C, 3 * C, last - first, d, sums);
        float *squares_q = sums + d * d, *squares_k = squares_q + d;
        for (int64_t j = 0; j < d; j += LANES) {
            Floats of_q = load(squares_q + j), of_k = load(squares_k + j);
            for (int64_t n = first; n < last; ++n) {
                const Floats from_q = load(q + n * 3 * C + j), from_k = load(k + n * 3 * C + j);
                of_q += from_q * from_q;
                of_k += from_k * from_k;
            }
            store(squares_q + j, of_q);
            store(squares_k + j, of_k);
        }
    };
    const std::vector<float> sums = summed(N, d * d + 2 * d, add);
    const float *products = sums.data(), *squares_q = products + d * d, *squares_k = squares_q + d;
    for (int64_t j = 0; j < d; ++j) {
        inverse_q[j] = 1.0f / std::max(std::sqrt(squares_q[j]), 1e-12f);
        inverse_k[j] = 1.0f / std::max(std::sqrt(squares_k[j]), 1e-12f);
    }
    std::vector<float> turned(d * d);  // the attention, its rows and columns exchanged
    for (int64_t i = 0; i < d; ++i) {
        float *scaled = cosines + i * d, *row = attention + i * d;
        Floats highest = Floats{} - INFINITY, total = {};
        for (int64_t j = 0; j < d; j += LANES) {
            store(scaled + j, load(products + i * d + j) * load(inverse_k + j) * inverse_q[i]);
            const Floats score = load(scaled + j) * temperature;
            highest = score > highest ? score : highest;
            store(row + j, score);
        }
        const float most = reduced(highest, [](float one, float other) { return std::max(one, other); });
        for (int64_t j = 0; j < d; j += LANES) {
            const Floats weight = exp_of_negative(load(row + j) - most);
            total += weight;
            store(row + j, weight);
        }
        const float share = 1.0f / reduced(total, std::plus<float>());
        for (int64_t j = 0; j < d; j += LANES) store(row + j, load(row + j) * share);
        for (int64_t j = 0; j < d; ++j) turned[j * d + i] = row[j];
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
    const auto add = [=](int64_t first, int64_t last, float* sums) {
        fetch(g, C, last, std::min(last + BLOCK, N), d);
        fetch(v, 3 * C, last, std::min(last + BLOCK, N), d);
        add_covariance(g + first * C, C, v + first * 3 * C, 3 * C, last - first, d, sums);
    };
    std::vector<float> sums = summed(N, d * d, add), buffer(d * d + 2 * d, 0.0f);
    float *of_products = sums.data(), *turned = buffer.data(), *share_q = turned + d * d, *share_k = share_q + d;
    Floats of_temperature = {};
    for (int64_t i = 0; i < d; ++i) {
        float* row = of_products + i * d;  // of the attention, then of the scores, the cosines, the products
        Floats along = {}, own_share = {};
        for (int64_t j = 0; j < d; j += LANES) along += load(row + j) * load(attention + i * d + j);
        const float mean = reduced(along, std::plus<float>());
        for (int64_t j = 0; j < d; j += LANES) {
            const Floats cosine = load(cosines + i * d + j);
            const Floats of_score = (load(row + j) - mean) * load(attention + i * d + j);
            const Floats of_cosine = of_score * temperature;
            of_temperature += of_score * cosine;
            own_share += of_cosine * cosine;
            store(share_k + j, load(share_k + j) + of_cosine * cosine);
            store(row + j, of_cosine * load(inverse_k + j) * inverse_q[i]);
        }
        share_q[i] = reduced(own_share, std::plus<float>());
        for (int64_t j = 0; j < d; ++j) turned[j * d + i] = row[j];
    }
    // A column's own norm takes back what the product gives it in its own direction.
    for (int64_t j = 0; j < d; ++j) {
        share_q[j] *= inverse_q[j] * inverse_q[j];
        share_k[j] *= inverse_k[j] * inverse_k[j];
    }
    times_matrix(k, 3 * C, turned, q, share_q, of_q, 3 * C, N, d);
    times_matrix(q, 3 * C, of_products, k, share_k, of_k, 3 * C, N, d);
    times_matrix(g, C, attention, nullptr, nullptr, of_v, 3 * C, N, d);
    return reduced(of_temperature, std::plus<float>());
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
