// Down the rows of a map: each thread takes an image, or a band of its rows, and holds three rows at a time of whatever
// a 3 x 3 convolution reads. They stay in its cache.

#pragma once

#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "vectors.h"

struct Shape {
    int64_t H, W, C;
    int64_t place() const { return C + 16; }  // floats from token to token in a row that is held: no power of two
    int64_t row() const { return W * place(); }
};

// A vector of a row, while that of the row after it is fetched.
static inline Floats fetched(const float* from, int64_t ahead) {
    __builtin_prefetch(from + ahead);
    return load(from);
}

static inline void put(float* to, Floats value, int64_t ahead) {
    __builtin_prefetch(to + ahead, 1);
    store(to, value);
}

// Into how many bands of rows each image is cut so that the threads are done soonest, if a band costs `more` rows than
// it has: those around it.
static int64_t bands_for(int64_t images, int64_t H, int64_t more) {
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
static void in_bands(int64_t images, const Shape& shape, int64_t more, Work work) {
    const int64_t bands = bands_for(images, shape.H, more);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < images * bands; ++i)
        work(i / bands, shape.H * (i % bands) / bands, shape.H * (i % bands + 1) / bands);
}

// Memory that a thread keeps from call to call: the system would have to clear it each time.
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

// Three rows of a map that fill(row, to) makes, from the row before `first` on; outside the map they are zeros.
template <class Fill>
class Window {
   public:
    Window(Scratch& scratch, const Shape& shape, int64_t first, Fill fill)
        : shape(shape), rows(scratch.take(3 * shape.row())), next(first - 1), fill(fill) {}

    // Has the rows up to this one made: the three last of them are there.
    void reach(int64_t last) {
        for (; next <= last; ++next)
            if (next < 0 || next >= shape.H)
                std::fill_n(place_of(next), shape.row(), 0.0f);
            else
                fill(next, place_of(next));
    }
    const float* at(int64_t row) const { return place_of(row); }

   private:
    float* place_of(int64_t row) const { return rows + (row + 3) % 3 * shape.row(); }

    const Shape shape;
    float* const rows;
    int64_t next;
    Fill fill;
};

// act(i, at, j) for each vector of a row: i where it is in the map's row, at in a row that is held, j its channel.
template <class Act>
static inline void along(const Shape& shape, Act act) {
    for (int64_t x = 0; x < shape.W; ++x)
        for (int64_t j = 0; j < shape.C; j += LANES) act(x * shape.C + j, x * shape.place() + j, j);
}
