// Vectors of fp32, the exponential and the GELU, for all kernels.

#pragma once

#include <cstdint>
#include <cstring>

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

static inline Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

static inline void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

// exp(x) for x <= 0, with an error of at most two units in the last place. Below -87 it is exp(-87).
static inline Floats exp_of_negative(Floats x) {
    const Floats lowest = Floats{} - 87.0f;
    x = x < lowest ? lowest : x;  // NaN stays NaN
    const Floats shifted = x * 1.44269504f + 12582912.0f;  // the integer part of x / ln 2 is in the lowest bits
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

// x P(x) and its derivative P(x) + x p(x), with P the normal distribution and p its density, from one exponential. P is
// computed after Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, with an error below 1e-7.
static inline Gelu compute_gelu(Floats x) {
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
