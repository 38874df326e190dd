// A batch's rows as 8-bit codes: each row has its own scale, so that it does not depend on its mates.
//
// A row's scale is its largest magnitude / 127, its codes are x / scale, rounded to even. A row with a value that is not finite gets
// the scale NaN, so that its result is NaN; one whose values are all below 1e-30 counts as zero.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "panels.h"
#include "simd.h"
#include "turns.h"

constexpr int64_t LITTLE = 16384;  // values that one thread codes sooner than others are waited for

// What a row's codes are multiplied by, and what makes codes of its values: 0 where all codes are 0.
struct RowScale {
    float scale, factor;
    RowScale(const float* x, int K) {
        const float largest = magnitude(x, K);
        const bool is_finite = largest < INFINITY, is_zero = !(largest >= 1e-30f);
        scale = !is_finite ? NAN : is_zero ? 0 : largest / 127;
        factor = is_finite && !is_zero ? 127 / largest : 0;
    }
};

// Codes lie tile by tile, as [tile, K / 4, rows of the tile, 4]: the rows of a tile are read together, and K is filled up with zeros to
// a multiple of `unit`. `sums` of a row are of each `unit` codes times `sum_factor`, as [tile, K / unit, rows of the tile].
template <class Code>
struct CodedRows {
    int M, K, tile_rows, unit, sum_factor, padded;
    std::vector<Code> codes;
    std::vector<float> scales;
    std::vector<int32_t> sums;

    // Keeps its memory from call to call.
    void resize(int num_rows, int num_inputs, int rows_of_tile, int sum_unit, int factor_of_sums) {
        M = num_rows, K = num_inputs, tile_rows = rows_of_tile, unit = sum_unit, sum_factor = factor_of_sums;
        padded = (K + unit - 1) / unit * unit;
        if (codes.size() < size_t(M) * padded) codes.resize(size_t(M) * padded);
        if (scales.size() < size_t(M)) scales.resize(M);
        if (sums.size() < size_t(M) * (padded / unit)) sums.resize(size_t(M) * (padded / unit));
    }

    const Code* tile(int first_row) const { return codes.data() + int64_t(first_row) * padded; }
    const int32_t* tile_sums(int first_row) const { return sums.data() + int64_t(first_row) * (padded / unit); }

    void code(int row, const float* x) {
        const int first = row / tile_rows * tile_rows, rows = std::min(tile_rows, M - first), at = row - first;
        const RowScale of(x, K);
        const float factor = of.factor;
        scales[row] = of.scale;
        Code* to = codes.data() + int64_t(first) * padded + at * 4;
        int32_t* sum = sums.data() + int64_t(first) * (padded / unit) + at;
        for (int begin = 0; begin < padded; begin += unit) {
            int32_t total = 0;
            for (int k = begin; k < begin + unit; k += 4) {
                Four<int32_t> four = {};
                if (factor && k + 4 <= K) {
                    four = codes_of(x + k, factor);
                } else if (factor && k < K) {
                    float last[4] = {};
                    for (int j = 0; k + j < K; j++) last[j] = x[k + j];
                    four = codes_of(last, factor);
                }
                const Four<Code> narrow = __builtin_convertvector(four, Four<Code>);
                memcpy(to + int64_t(k) * rows, &narrow, sizeof narrow);
                total += four[0] + four[1] + four[2] + four[3];
            }
            sum[begin / unit * rows] = total * sum_factor;
        }
    }

    void code_all(const float* x, int64_t x_stride) {
        for (int m = 0; m < M; m++) code(m, x + m * x_stride);
    }

    template <class T>
    using Four __attribute__((vector_size(4 * sizeof(T)))) = T;

    static Four<int32_t> codes_of(const float* x, float factor) {
        Four<float> value;
        memcpy(&value, x, sizeof value);
#if defined(__AVX2__) && defined(__FMA__)
        const __m128 sum = _mm_fmadd_ps((__m128)value, _mm_set1_ps(factor), _mm_set1_ps(12582912.0f));
        return (Four<int32_t>)sum - 0x4b400000;  // 1.5 * 2^23: adding it rounds to an integer
#else  // a product of floats would be rounded once more
        const Four<double> exact = __builtin_convertvector(value, Four<double>) * double(factor) + 6755399441055744.0;  // 1.5 * 2^52
        Four<int64_t> bits;
        memcpy(&bits, &exact, sizeof bits);
        return __builtin_convertvector(bits - 0x4338000000000000, Four<int32_t>);
#endif
    }
};

// Codes the rows of `x`, for all threads, and multiplies them: `Tiles<rows>` take the parts of each group of panels, `parts` a panel.
template <int MOST, template <int> class Tiles, class Problem, class Code>
void code_and_multiply(CodedRows<Code>& coded, const float* x, int64_t x_stride, const Problem& p, const Shares& shares, int parts) {
    const bool is_little = int64_t(coded.M) * coded.K < LITTLE;
    if (is_little) coded.code_all(x, x_stride);
    Turns turns(shares.num_groups, shares.num_threads);
#pragma omp parallel num_threads(shares.num_threads)
    {
        if (!is_little) {
#pragma omp for schedule(static)
            for (int m = 0; m < coded.M; m++) coded.code(m, x + m * x_stride);
        }
        turns.take([&](int i) {
            by_tiles<MOST>(0, coded.M, [&](int m, auto M) { Tiles<M>::run(p, m, i * GROUP * parts, shares.size(i) * parts); });
        });
    }
}
