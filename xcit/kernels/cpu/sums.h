// Sums over lanes and threads, for all kernels.

#pragma once

#include <omp.h>

#include <vector>

#include "vectors.h"

typedef double Doubles __attribute__((vector_size(8 * LANES)));

// Joins the numbers of a vector, two at a time.
template <class Join>
static float reduce(Floats vector, Join join) {
    float numbers[LANES];
    store(numbers, vector);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; ++i) numbers[i] = join(numbers[i], numbers[i + half]);
    return numbers[0];
}

static inline void add_to(double* sums, Floats values) {
    Doubles sum;
    std::memcpy(&sum, sums, sizeof sum);
    sum += __builtin_convertvector(values, Doubles);
    std::memcpy(sums, &sum, sizeof sum);
}

// `count` sums, a copy for each thread. The result depends on the number of threads, not on their timing.
class Totals {
   public:
    explicit Totals(int64_t count) : count(count), sums(omp_get_max_threads() * count, 0.0) {}

    double* of_thread() { return sums.data() + omp_get_thread_num() * count; }

    const std::vector<double>& total() {
        for (int64_t i = count; i < (int64_t)sums.size(); ++i) sums[i % count] += sums[i];
        sums.resize(count);
        return sums;
    }

   private:
    const int64_t count;
    std::vector<double> sums;
};
