// out = x W^T for float32 rows x and 4-bit weights with a scale for each group of an output's inputs; linear/reference.py
// specifies it.
//
// As with int8 (linear_int8.cpp), rows become codes with scales of their own. Weights are kept as code + 8, which is unsigned, so
// that a group's sum is that of unsigned by signed bytes less 8 times the group's sum of the row; it is an exact integer.
// With AMX codes are expanded to what they stand for, as whole numbers of a unit that all groups of an output share.
//
// Legend: M rows, N outputs, K inputs, G inputs of a group.

#include "amx_rows.h"
#include "dot.h"
#include "gated.h"
#include "replay.h"
#include "rows.h"

namespace {

constexpr int COLS = Dot4::COLS, PARTS = PANEL / COLS;
constexpr bool IS_WIDE = COLS == 16;
constexpr int TILE_ROWS = IS_WIDE ? 6 : 4;  // what the registers hold
constexpr int RUN = 32;                     // inputs whose sums fit 16 bits

constexpr int MIN_TILED_ROWS = 12;          // below this, AMX would wait for the codes' expansion

static_assert(COLS == VL, "a part is a vector");

struct Problem {
    const CodedRows<int8_t>& x;
    const uint8_t* w;        // [panels, K / 8, PANEL, 4]: inputs 0-3 of 8 in the lower bits, 4-7 in the upper ones
    const uint16_t* scales;  // bfloat16 [panels, K / G, PANEL]
    float* out;
    int N, G;
};

// M rows of neighbouring parts. The first ones fetch, place for place, what as many parts behind these have: processors fetch ahead
// within a page of 4 KiB, and a panel is few of them.
template <int M, int NUM>
void tile(const Problem& p, int m0, int part) {
    const int64_t steps = p.x.padded / 8, groups = p.x.padded / p.G;
    const int8_t* x = p.x.tile(m0);
    const int32_t* x_sums = p.x.tile_sums(m0);
    const int64_t w_ahead = NUM * steps * COLS * 4, scales_ahead = NUM * groups * COLS;
    const uint8_t* w[NUM];
    const uint16_t* scales[NUM];
    for (int i = 0; i < NUM; i++) {
        const int panel = (part + i) / PARTS, col = (part + i) % PARTS * COLS;
        w[i] = p.w + panel * steps * PANEL * 4 + col * 4;
        scales[i] = p.scales + panel * groups * PANEL + col;
    }
    vf sums[M][NUM] = {};
    for (int64_t g = 0; g < groups; g++) {
        Dot4::Totals totals[M][NUM];
        for (int m = 0; m < M; m++)
            for (int i = 0; i < NUM; i++) totals[m][i] = x_sums[g * M + m] - Dot4::Totals{};
        for (int run = 0; run < p.G; run += RUN) {
            Dot4::Sums run_sums[M][NUM] = {};
            for (int step = 0; step < RUN / 8; step++, x += 2 * M * 4) {
                for (int i = 0; i < NUM; i++) {
                    if (m0 == 0 && (part + i) % PARTS == 0) __builtin_prefetch(w[i] + w_ahead, 0, 2);
                    Dot4::Weights low, high;
                    Dot4::split(w[i], low, high);
                    w[i] += PANEL * 4;
                    for (int m = 0; m < M; m++) {
                        Dot4::add(run_sums[m][i], low, x + m * 4);
                        Dot4::add(run_sums[m][i], high, x + (M + m) * 4);
                    }
                }
            }
            for (int m = 0; m < M; m++)
                for (int i = 0; i < NUM; i++) totals[m][i] += Dot4::widen(run_sums[m][i]);
        }
        for (int i = 0; i < NUM; i++) {
            if (m0 == 0) __builtin_prefetch(scales[i] + g * PANEL + scales_ahead, 0, 2);
            const vf scale = load(scales[i] + g * PANEL);
            for (int m = 0; m < M; m++) sums[m][i] += __builtin_convertvector(totals[m][i], vf) * scale;
        }
    }
    for (int m = 0; m < M; m++)
        for (int i = 0; i < NUM; i++) {
            const int n = (part + i) * COLS;
            float* out = p.out + int64_t(m0 + m) * p.N + n;
            const vf values = sums[m][i] * p.x.scales[m0 + m];
            if (n + COLS <= p.N) store(out, values);
            else
                for (int c = 0; c < p.N - n; c++) out[c] = values[c];
        }
}

template <int M>
struct Tiles {
    static void run(const Problem& p, int m, int part, int num_parts) {
        constexpr int NUM = IS_WIDE && M == 1 ? 4 : IS_WIDE || M <= 2 ? 2 : 1;
        int i = 0;
        for (; i + NUM <= num_parts; i += NUM) tile<M, NUM>(p, m, part + i);
        for (; i < num_parts; i++) tile<M, 1>(p, m, part + i);
    }
};

#if HAS_AMX
typedef int16_t Counts __attribute__((vector_size(PANEL * 2)));
typedef int16_t Words __attribute__((vector_size(PANEL * 4)));

// What a panel's groups are scaled by, as whole numbers of a unit for each output. Own scales (reference.py) are at most 15 units, so that
// a code times its count is a signed byte. Of others, an output's largest is 1024 to 2040 units, and two digits are needed; what is left of
// smaller scales is counted in units that are FINER times smaller. That is all of a bfloat16 down to 2^-15 of the largest.
struct UnitScales {
    static constexpr float FINER = 2048, SHORT = 15;
    std::vector<int16_t> counts, rests;  // [groups, PANEL]
    vf unit;
    bool are_short, have_rests;

    void count(const uint16_t* scales, int num_groups) {
        vu largest{};  // bits of magnitudes are ordered as they are, and those of what is not finite are the largest
        for (int group = 0; group < num_groups; group++) {
            const vu magnitude = (vu)load(scales + int64_t(group) * PANEL) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
        counts.resize(size_t(num_groups) * PANEL);
        unit = (vf)largest / SHORT;
        const vf divisor = unit > 0.0f ? unit : splat(1);
        are_short = !any_left(num_groups, [&](int group) { return take(load(scales + int64_t(group) * PANEL) / divisor, group); });
        if (are_short) return;
        unit = (vf)(largest & 0x7f800000u) * (1.0f / 1024);
        const vf per_unit = unit > 0.0f ? 1.0f / unit : vf{};
        const auto left_of = [&](int group) { return take(load(scales + int64_t(group) * PANEL) * per_unit, group); };
        have_rests = any_left(num_groups, left_of);
        if (!have_rests) return;
        rests.resize(counts.size());
        for (int group = 0; group < num_groups; group++) put(rounded_product(left_of(group), FINER), rests.data() + group * PANEL);
    }

private:
    // Counts a group's units; returns what is left.
    vf take(vf number, int group) {
        const vf rounded = rounded_product(number, 1);
        put(rounded, counts.data() + group * PANEL);
        return number - rounded;
    }

    template <class LeftOf>
    static bool any_left(int num_groups, LeftOf left_of) {
        vi are_left{};
        for (int group = 0; group < num_groups; group++) are_left |= left_of(group) != 0.0f;  // also where there is a NaN
        return any(are_left);
    }

    static void put(vf numbers, int16_t* to) {
        const Counts counts = __builtin_convertvector(__builtin_convertvector(numbers, vi), Counts);
        memcpy(to, &counts, sizeof counts);
    }
};

// write(codes times count of the even inputs, of the odd ones) for each four inputs of a panel. Fetches the panel of the next group ahead.
template <class Write>
void for_fours(const uint8_t* w, const int16_t* counts, int num_groups, int group_len, Write write) {
    const int64_t ahead = int64_t(GROUP) * num_groups * group_len / 8 * PANEL * 4;
    for (int group = 0; group < num_groups; group++, counts += PANEL) {
        Counts of_outputs;
        memcpy(&of_outputs, counts, sizeof of_outputs);
        const vi once = __builtin_convertvector(of_outputs, vi) & 0xffff;
        const Words count = (Words)(once | once << 16), most = 8 * count;
        for (int octet = 0; octet < group_len / 8; octet++, w += PANEL * 4) {
            __builtin_prefetch(w + ahead, 0, 2);
            Dot4::Weights fours[2];
            Dot4::split(w, fours[0], fours[1]);
            for (const Dot4::Weights& codes : fours)  // which are 8 more than what they stand for
                write(((Words)codes & 15) * count - most, ((Words)codes >> 8) * count - most);
        }
    }
}

// A panel's weights in units as signed bytes, [K / 4, PANEL, 4].
void expand_short(const uint8_t* w, const int16_t* counts, int num_groups, int group_len, char* to) {
    for_fours(w, counts, num_groups, group_len, [&](Words even, Words odd) {
        const Words bytes = (even & 255) | (odd << 8);
        memcpy(to, &bytes, sizeof bytes);
        to += sizeof bytes;
    });
}

// The same as two digits that are signed bytes: 128 high + low.
void expand(const uint8_t* w, const int16_t* counts, int num_groups, int group_len, char* high, char* low) {
    for_fours(w, counts, num_groups, group_len, [&](Words even, Words odd) {
        const Words high_even = (even + 63) >> 7, high_odd = (odd + 63) >> 7;  // so that a low digit is -63 to 64
        const Words highs = (high_even & 255) | (high_odd << 8);
        const Words lows = ((even - (high_even << 7)) & 255) | ((odd - (high_odd << 7)) << 8);
        memcpy(high, &highs, sizeof highs);
        memcpy(low, &lows, sizeof lows);
        high += sizeof highs, low += sizeof lows;
    });
}

// With AMX, whose sums are of more inputs than a group has: weights are whole numbers for an output, not for each of its groups.
void multiply_tiles(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int activation, int num_threads) {
    static thread_local amx::CodedTiles kept;
    amx::CodedTiles& coded = kept;  // this thread's, in all threads
    const int num_groups = (K + group_len - 1) / group_len, octets = num_groups * group_len / 8;
    coded.resize(M, K, octets * 8);
    const int64_t digit_bytes = coded.rows().num_chunks * amx::TILE;
    const auto lay_out = [&](int m) { coded.code(m, x + m * x_stride); };
    const auto multiply = [&](int begin, int end, int first, int num, const amx::Outputs& outputs) {
        static thread_local AlignedMemory expanded;
        static thread_local UnitScales in_units[GROUP];
        char* digits = expanded.resize(std::max(num, 2) * digit_bytes);
        const auto weights_of = [&](int i) { return w + int64_t(first + i) * octets * PANEL * 4; };
        bool are_short = true;
        for (int i = 0; i < num; i++) {
            in_units[i].count(scales + int64_t(first + i) * num_groups * PANEL, num_groups);
            are_short &= in_units[i].are_short;
        }
        if (are_short) {
            for (int i = 0; i < num; i++)
                expand_short(weights_of(i), in_units[i].counts.data(), num_groups, group_len, digits + i * digit_bytes);
            const amx::Panels panels(digits, digit_bytes, 0, num);
            amx::multiply<int32_t>(coded.rows(), begin, end, panels, [&](int tile, int i, const int32_t (*sums)[amx::ROWS * PANEL]) {
                const vf unit = in_units[i].unit;
                const float* of_rows = coded.scales.data() + tile * amx::ROWS;
                amx::write_tile(outputs, tile, first + i, [=](int r, float* to) {
                    store(to, __builtin_convertvector(load_ints(*sums + r * PANEL), vf) * unit * of_rows[r]);
                });
            });
            return;
        }
        const amx::Panels panels(digits, digit_bytes, 0, 2);
        for (int i = 0; i < num; i++) {
            const UnitScales& its = in_units[i];
            const bool have_rests = !its.are_short && its.have_rests;
            for (const bool is_rest : {false, true}) {
                if (is_rest && !have_rests) continue;
                const int16_t* counts = (is_rest ? its.rests : its.counts).data();
                expand(weights_of(i), counts, num_groups, group_len, digits, digits + digit_bytes);
                const vf unit = its.unit * (is_rest ? 1 / UnitScales::FINER : 1);
                const auto finish = [&](int tile, int, const int32_t (*sums)[amx::ROWS * PANEL]) {
                    const float* of_rows = coded.scales.data() + tile * amx::ROWS;
                    amx::write_tile(outputs, tile, first + i, [=](int r, float* to) {
                        const vf high = __builtin_convertvector(load_ints(sums[0] + r * PANEL), vf);
                        const vf low = __builtin_convertvector(load_ints(sums[1] + r * PANEL), vf);
                        const vf values = (128 * high + low) * unit * of_rows[r];
                        store(to, is_rest ? load(to) + values : values);
                    });
                };
                amx::multiply<int32_t, 2>(coded.rows(), begin, end, panels, finish);
            }
        }
    };
    amx::for_panels(coded.rows(), out, M, N, K, activation, num_threads, lay_out, multiply);
}
#endif

}  // namespace

// `group_len` is a multiple of 32. `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N], or with
// an activation [M, N / 2].
extern "C" void actorllm_linear_int4(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int activation, int num_threads) {
#if HAS_AMX
    if (M >= MIN_TILED_ROWS) return multiply_tiles(x, x_stride, w, scales, out, M, N, K, group_len, activation, num_threads);
#endif
    linear_then_gated(M, N, activation, out, num_threads, [&](float* to) {
        static thread_local CodedRows<int8_t> coded;
        coded.resize(M, K, TILE_ROWS, group_len, -8);
        const Problem p{coded, w, scales, to, N, group_len};
        code_and_multiply<TILE_ROWS, Tiles>(coded, x, x_stride, p, Shares(M, N, K, num_threads), PARTS);
    });
}

REPLAYABLE(actorllm_linear_int4)
