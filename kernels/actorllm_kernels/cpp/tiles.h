// Rows by tiles whose sizes the compiler knows.
#pragma once

#include <type_traits>

template <int REST, class F>
void rest_of_rows(int num_rows, int m, F&& f) {
    if constexpr (REST > 0) {
        if (num_rows == REST) f(m, std::integral_constant<int, REST>{});
        else rest_of_rows<REST - 1>(num_rows, m, f);
    }
}

// Calls f(first row, number of rows) for the rows from `m` to `end`: tiles of MOST rows, then one of the rest.
template <int MOST, class F>
void by_tiles(int m, int end, F&& f) {
    for (; m + MOST <= end; m += MOST) f(m, std::integral_constant<int, MOST>{});
    rest_of_rows<MOST - 1>(end - m, m, f);
}
