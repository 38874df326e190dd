// What a step begins with: token ids and slots by device row, rows of embedding tables, and the angles of positions.
//
// Legend: T tokens, K values of a row, F frequencies.
#include <cmath>
#include <limits>

#include "panels.h"
#include "replay.h"
#include "row_loop.h"

namespace {

// out[t] = row(ids[t]) of K values; NaN where the table has no such row.
template <class Row>
void take_rows(const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads, Row row) {
    for_rows(T, T * K, num_threads, [&](int64_t t) {
        float* to = out + t * K;
        if (ids[t] >= 0 && ids[t] < num_rows) row(ids[t], to);
        else std::fill(to, to + K, std::numeric_limits<float>::quiet_NaN());
    });
}

inline float widen(uint16_t x) { return load_one(&x); }

// The sine and cosine of x: what is left of x beyond a multiple of pi / 2, found in double precision, goes into two polynomials
// (those of the Cephes library). Has no branch, so that a loop over it becomes vectors.
inline void sine_and_cosine(float x, float& sine, float& cosine) {
    const double quarters = std::nearbyint(double(x) * 0.63661977236758134);
    const float r = float(double(x) - quarters * 1.5707963267948966), square = r * r;
    const int quadrant = int(quarters - 4 * std::floor(quarters * 0.25));
    const float s = r + r * square * (-1.6666654611e-1f + square * (8.3321608736e-3f + square * -1.9515295891e-4f));
    const float c = 1 - 0.5f * square +
                    square * square * (4.166664568298827e-2f + square * (-1.388731625493765e-3f + square * 2.443315711809948e-5f));
    sine = (quadrant & 1 ? c : s) * (quadrant & 2 ? -1.0f : 1.0f);
    cosine = (quadrant & 1 ? s : c) * ((quadrant + 1) & 2 ? -1.0f : 1.0f);
}

}  // namespace

// out[t] = ids[t], or where that is negative the last id of its row.
extern "C" void actorllm_gather_ids(
    const int64_t* ids, const int64_t* rows, int64_t row_stride, const int64_t* last, int64_t* out, int64_t T) {
    for (int64_t t = 0; t < T; t++) out[t] = ids[t] < 0 ? last[rows[t * row_stride]] : ids[t];
}

// table[rows[t], columns[t]] = slots[t].
extern "C" void actorllm_enter_slots(
    int32_t* table, int64_t table_stride, const int64_t* rows, const int64_t* columns, const int64_t* slots, int64_t T) {
    for (int64_t t = 0; t < T; t++) table[rows[t] * table_stride + columns[t]] = int32_t(slots[t]);
}

// cos and sin [T, 2 F] of positions times frequencies, times `factor`; each value twice, side by side or F apart.
extern "C" void actorllm_angles(
    const int64_t* positions, int64_t position_stride, const float* frequencies, int F, float factor, int is_interleaved, float* cos,
    float* sin, int64_t T, int num_threads) {
    for_rows(T, T * F * 4, num_threads, [&](int64_t t) {
        const float position = float(positions[t * position_stride]);
        float *cosines = cos + t * 2 * F, *sines = sin + t * 2 * F;
#pragma omp simd
        for (int f = 0; f < F; f++) {
            float s, c;
            sine_and_cosine(position * frequencies[f], s, c);
            sines[f] = s * factor;
            cosines[f] = c * factor;
        }
        for (int f = F - 1; is_interleaved && f >= 0; f--) {  // backwards: each lands behind those that are still to be read
            sines[2 * f] = sines[2 * f + 1] = sines[f];
            cosines[2 * f] = cosines[2 * f + 1] = cosines[f];
        }
        if (!is_interleaved) {
            std::copy(sines, sines + F, sines + F);
            std::copy(cosines, cosines + F, cosines + F);
        }
    });
}

// Rows of a table of floats.
extern "C" void actorllm_rows_float32(
    const float* table, int64_t stride, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads) {
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        std::copy(table + row * stride, table + row * stride + K, to);
    });
}

// Rows of codes [outputs, K]: upper halves of floats, or 8 bits with a scale an output.
extern "C" void actorllm_code_rows_bf16(
    const uint16_t* codes, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads) {
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        for (int64_t k = 0; k < K; k++) to[k] = widen(codes[row * K + k]);
    });
}

extern "C" void actorllm_code_rows_int8(
    const int8_t* codes, const float* scales, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads) {
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        for (int64_t k = 0; k < K; k++) to[k] = codes[row * K + k] * scales[row];
    });
}

// Rows of a table in panels [panels, K / 2, PANEL, 2], see linear/reference.py.
extern "C" void actorllm_rows_bf16(
    const uint16_t* w, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads) {
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        const uint16_t* from = w + (row / PANEL * ((K + 1) / 2) * PANEL + row % PANEL) * 2;
        for (int64_t k = 0; k < K; k++) to[k] = widen(from[k / 2 * PANEL * 2 + k % 2]);
    });
}

// Rows of a table in panels of codes [panels, K / 4, PANEL, 4] with a scale a row.
extern "C" void actorllm_rows_int8(
    const int8_t* w, const float* scales, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_rows, int num_threads) {
    const int64_t quads = (K + 3) / 4;
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        const int8_t* from = w + (row / PANEL * quads * PANEL + row % PANEL) * 4;
        for (int64_t k = 0; k < K; k++) to[k] = from[k / 4 * PANEL * 4 + k % 4] * scales[row];
    });
}

// Rows of a table in panels of bytes [panels, octets, PANEL, 4], two codes each, and scales [panels, groups, PANEL].
extern "C" void actorllm_rows_int4(
    const uint8_t* w, const uint16_t* scales, const int64_t* ids, float* out, int64_t T, int64_t K, int64_t num_octets, int num_groups,
    int group_len, int64_t num_rows, int num_threads) {
    take_rows(ids, out, T, K, num_rows, num_threads, [&](int64_t row, float* to) {
        const uint8_t* from = w + (row / PANEL * num_octets * PANEL + row % PANEL) * 4;
        const uint16_t* factors = scales + row / PANEL * num_groups * PANEL + row % PANEL;
        for (int64_t k = 0; k < K; k++) {
            const uint8_t both = from[k / 8 * PANEL * 4 + k % 4];
            to[k] = float((k & 4 ? both >> 4 : both & 15) - 8) * widen(factors[k / group_len * PANEL]);
        }
    });
}

REPLAYABLE(actorllm_gather_ids)
REPLAYABLE(actorllm_enter_slots)
REPLAYABLE(actorllm_angles)
REPLAYABLE(actorllm_rows_float32)
REPLAYABLE(actorllm_code_rows_bf16)
REPLAYABLE(actorllm_code_rows_int8)
REPLAYABLE(actorllm_rows_bf16)
REPLAYABLE(actorllm_rows_int8)
REPLAYABLE(actorllm_rows_int4)
