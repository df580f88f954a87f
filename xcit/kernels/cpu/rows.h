// Loops over the rows of a map. Each thread takes an image, or a band of its rows, and keeps the three rows that a
// 3 x 3 convolution reads at a time in its cache.

#pragma once

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "vectors.h"

struct Shape {
    int64_t H, W, C;
    int64_t stride() const { return C + 16; }  // floats from token to token in a buffered row: not a power of two
    int64_t row() const { return W * stride(); }
};

// Loads a vector, and prefetches the one `ahead` floats after it: that of the next row.
static inline Floats load_prefetch(const float* from, int64_t ahead) {
    __builtin_prefetch(from + ahead);
    return load(from);
}

static inline void store_prefetch(float* to, Floats value, int64_t ahead) {
    __builtin_prefetch(to + ahead, 1);
    store(to, value);
}

// The number of bands of rows per image with which the threads finish soonest. A band costs `more` rows than it has:
// the rows around it.
static int64_t choose_num_bands(int64_t images, int64_t H, int64_t more) {
    const int64_t threads = omp_get_max_threads();
    int64_t best = 1, least = INT64_MAX;
    for (int64_t bands = 1; bands <= H; ++bands) {
        const int64_t turns = (images * bands + threads - 1) / threads, rows = (H + bands - 1) / bands + more;
        if (turns * rows < least) best = bands, least = turns * rows;
    }
    return best;
}

// Calls work(image, first row, last row) for all rows of all images, in parallel.
template <class Work>
static void for_bands(int64_t images, const Shape& shape, int64_t more, Work work) {
    const int64_t bands = choose_num_bands(images, shape.H, more);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < images * bands; ++i)
        work(i / bands, shape.H * (i % bands) / bands, shape.H * (i % bands + 1) / bands);
}

// Memory that a thread keeps from call to call. The system would have to clear new memory each time.
class Scratch {
   public:
    explicit Scratch(int64_t count) {
        thread_local std::vector<float> kept;
        if ((int64_t)kept.size() < count + 16) kept.resize(count + 16);
        next = kept.data() + (-reinterpret_cast<intptr_t>(kept.data()) & 63) / sizeof(float);
    }
    float* take(int64_t count) { return std::exchange(next, next + count); }

   private:
    float* next;
};

// Three rows of a map, computed by fill(row, to), beginning with the row before `first`. Outside the map they are zero.
template <class Fill>
class Window {
   public:
    Window(Scratch& scratch, const Shape& shape, int64_t first, Fill fill)
        : shape(shape), rows(scratch.take(3 * shape.row())), next(first - 1), fill(fill) {}

    // Computes the rows up to this one. The last three of them are kept.
    void fill_up_to(int64_t last) {
        for (; next <= last; ++next)
            if (next < 0 || next >= shape.H)
                std::fill_n(slot(next), shape.row(), 0.0f);
            else
                fill(next, slot(next));
    }
    const float* at(int64_t row) const { return slot(row); }

   private:
    float* slot(int64_t row) const { return rows + (row + 3) % 3 * shape.row(); }

    const Shape shape;
    float* const rows;
    int64_t next;
    Fill fill;
};

// Calls act(i, at, j) for each vector of a row: its offset i in the map's row, `at` in a buffered row, its channel j.
template <class Act>
static inline void for_vectors(const Shape& shape, Act act) {
    for (int64_t x = 0; x < shape.W; ++x)
        for (int64_t j = 0; j < shape.C; j += LANES) act(x * shape.C + j, x * shape.stride() + j, j);
}
