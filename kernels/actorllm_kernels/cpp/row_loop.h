// Loops over rows that several threads share only where there is enough to do: waking them costs more than a little work.
#pragma once

#include <cstdint>

constexpr int64_t MIN_PARALLEL = 32768;  // values: about 10 us of work

// f(row) for all rows; `num_values` are what all of them touch.
template <class F>
void for_rows(int64_t num_rows, int64_t num_values, int num_threads, F f) {
    if (num_values < MIN_PARALLEL || num_threads == 1) {  // not even a region of one thread
        for (int64_t row = 0; row < num_rows; row++) f(row);
        return;
    }
#pragma omp parallel for num_threads(num_threads) schedule(static)
    for (int64_t row = 0; row < num_rows; row++) f(row);
}
