// out = x W^T for float32 rows x and 4-bit weights with a scale for each group of an output's inputs; linear/reference.py
// specifies it.
//
// As with int8 (linear_int8.cpp), rows become codes with scales of their own. Weights are kept as code + 8, which is unsigned, so
// that a group's sum is that of unsigned by signed bytes less 8 times the group's sum of the row; it is an exact integer.
// With AMX codes are expanded for some rows to signed bytes, and for many to their values.
//
// Legend: M rows, N outputs, K inputs, G inputs of a group.

#include "amx_rows.h"
#include "dot.h"
#include "replay.h"
#include "rows.h"

namespace {

constexpr int COLS = Dot4::COLS, PARTS = PANEL / COLS;
constexpr bool IS_WIDE = COLS == 16;
constexpr int TILE_ROWS = IS_WIDE ? 6 : 4;  // what the registers hold
constexpr int RUN = 32;                     // inputs whose sums fit 16 bits
constexpr int AHEAD = 1024;                 // bytes of a panel that are fetched before the first tile uses them

constexpr int MIN_TILED_ROWS = 6;           // below this, AMX would wait for the codes' expansion
constexpr int MIN_HALVES_ROWS = 96;         // below this, for their expansion to values
constexpr int PANELS_AT_ONCE = 2;           // whose values stay in the second-level cache, beside the rows

static_assert(COLS == VL, "a part is a vector");

struct Problem {
    const CodedRows<int8_t>& x;
    const uint8_t* w;        // [panels, K / 8, PANEL, 4]: inputs 0-3 of 8 in the lower bits, 4-7 in the upper ones
    const uint16_t* scales;  // bfloat16 [panels, K / G, PANEL]
    float* out;
    int N, G;
};

// M rows of neighbouring parts.
template <int M, int NUM>
void tile(const Problem& p, int m0, int part) {
    const int64_t steps = p.x.padded / 8, groups = p.x.padded / p.G;
    const int8_t* x = p.x.tile(m0);
    const int32_t* x_sums = p.x.tile_sums(m0);
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
                    if (m0 == 0 && (part + i) % PARTS == 0) __builtin_prefetch(w[i] + AHEAD);
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
        constexpr int NUM = IS_WIDE || M <= 2 ? 2 : 1;
        int i = 0;
        for (; i + NUM <= num_parts; i += NUM) tile<M, NUM>(p, m, part + i);
        for (; i < num_parts; i++) tile<M, 1>(p, m, part + i);
    }
};

#if HAS_AMX
// A panel's weights as signed bytes, [K / 4, PANEL, 4].
void expand(const uint8_t* w, int octets, char* to) {
    typedef int8_t Codes __attribute__((vector_size(PANEL * 4)));
    for (int i = 0; i < octets; i++, w += PANEL * 4, to += 2 * PANEL * 4) {
        Dot4::Weights low, high;
        Dot4::split(w, low, high);
        const Codes codes[2] = {(Codes)low - 8, (Codes)high - 8};
        memcpy(to, codes, sizeof codes);
    }
}

// A tile of rows with an expanded panel: sums [16] of rows with its outputs, less the rows' scales. `chunk` inputs are taken at a time.
void tile_of_amx(const char* rows, const char* panel, const uint16_t* scales, int num_groups, int group_len, int chunk, vf* sums) {
    alignas(64) int32_t totals[2][amx::ROWS * PANEL];
    vf acc[amx::ROWS] = {};
    const auto row_chunk = [&](int k) { return rows + k / amx::BYTES * amx::TILE + k % amx::BYTES; };
    const auto add = [&](const int32_t* of_group, int group) {
        const vf scale = load(scales + int64_t(group) * PANEL);
        for (int m = 0; m < amx::ROWS; m++) acc[m] += __builtin_convertvector(load_ints(of_group + m * PANEL), vf) * scale;
    };
    for (int group = 0, k = 0; group < num_groups; group += 2) {  // two at a time, while the first's sums are on their way
        const bool are_two = group + 1 < num_groups;
        _tile_zero(0);
        for (const int end = k + group_len; k < end; k += chunk) {
            _tile_loadd(4, row_chunk(k), amx::BYTES);
            _tile_loadd(6, panel + int64_t(k) * PANEL, amx::BYTES);
            _tile_dpbssd(0, 4, 6);
        }
        _tile_stored(0, totals[0], amx::BYTES);
        if (are_two) {
            _tile_zero(1);
            for (const int end = k + group_len; k < end; k += chunk) {
                _tile_loadd(5, row_chunk(k), amx::BYTES);
                _tile_loadd(7, panel + int64_t(k) * PANEL, amx::BYTES);
                _tile_dpbssd(1, 5, 7);
            }
            _tile_stored(1, totals[1], amx::BYTES);
        }
        add(totals[0], group);
        if (are_two) add(totals[1], group + 1);
    }
    std::copy(acc, acc + amx::ROWS, sums);
}

void multiply_tiles(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int num_threads) {
    static thread_local amx::CodedRows kept;
    amx::CodedRows& coded = kept;  // this thread's, in all threads
    const int num_groups = (K + group_len - 1) / group_len, padded = num_groups * group_len, octets = padded / 8;
    const int chunk = group_len % amx::BYTES ? amx::BYTES / 2 : amx::BYTES;
    coded.resize(M, K, padded);
    const auto lay_out = [&](int m) { coded.code(m, x + m * x_stride); };
    amx::for_panels(M, coded.rows(), Shares(M, N, K, num_threads), chunk, lay_out, [&](int begin, int end, int first, int num) {
        static thread_local amx::Tiles expanded;
        char* codes = expanded.resize(int64_t(octets) * 2 * PANEL * 4);
        for (int panel = first; panel < first + num; panel++) {
            expand(w + int64_t(panel) * octets * PANEL * 4, octets, codes);
            std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not know that tiles are read from memory
            for (int tile = begin; tile < end; tile++) {
                vf sums[amx::ROWS];
                const uint16_t* of_panel = scales + int64_t(panel) * num_groups * PANEL;
                tile_of_amx(coded.rows().at(tile, 0, 0), codes, of_panel, num_groups, group_len, chunk, sums);
                for (int i = 0, m = tile * amx::ROWS; i < amx::ROWS && m < M; i++, m++) {
                    const vf values = sums[i] * coded.scales[m];
                    store_outputs(&values, out, m, panel, N);
                }
            }
        }
    });
}

// A panel's weights as values: the two halves (bfloat16) whose sum is code times scale, which has 11 bits, as [half, K / 2, PANEL, 2].
void expand_values(const uint8_t* w, const uint16_t* scales, int octets, int group_len, char* to) {
    const int64_t half_bytes = int64_t(octets) * 4 * amx::BYTES;
    for (int i = 0; i < octets; i++, w += PANEL * 4, to += 4 * amx::BYTES) {
        const vf scale = load(scales + int64_t(i) * 8 / group_len * PANEL);
        const vu codes = load_words(w);
        for (int pair = 0; pair < 4; pair++) {
            vu upper[2], rest[2];
            for (int j = 0; j < 2; j++) {
                const int input = pair * 2 + j;  // 0 to 3 are the lower bits of the four bytes
                const vf value = (__builtin_convertvector(codes >> (input % 4 * 8 + input / 4 * 4) & 15, vf) - 8.0f) * scale;
                upper[j] = (vu)value & 0xffff0000u;
                rest[j] = (vu)(value - (vf)upper[j]);
            }
            const vu halves[2] = {upper[0] >> 16 | upper[1], rest[0] >> 16 | (rest[1] & 0xffff0000u)};
            memcpy(to + pair * amx::BYTES, &halves[0], amx::BYTES);
            memcpy(to + half_bytes + pair * amx::BYTES, &halves[1], amx::BYTES);
        }
    }
}

// Many rows: values instead of codes, whose sums need not be taken out of the tiles for each group.
void multiply_values(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int num_threads) {
    static thread_local amx::Halves<1> kept_rows;
    static thread_local std::vector<float> kept_scales;
    amx::Halves<1>& rows = kept_rows;  // this thread's, in all threads
    std::vector<float>& row_scales = kept_scales;
    const int num_groups = (K + group_len - 1) / group_len, padded = num_groups * group_len, octets = padded / 8;
    rows.resize(M, K, padded);
    row_scales.resize(M);
    const auto lay_out = [&](int m) {
        const RowScale of(x + m * x_stride, K);
        row_scales[m] = of.scale;
        rows.split(m, x + m * x_stride, [&](vf values) { return of.factor ? rounded_product(values, of.factor) : vf{}; });
    };
    amx::for_panels(M, rows.rows(), Shares(M, N, K, num_threads), amx::BYTES, lay_out, [&](int begin, int end, int first, int num) {
        static thread_local amx::Tiles expanded;
        const int64_t panel_bytes = int64_t(octets) * 8 * amx::BYTES;
        char* values = expanded.resize(PANELS_AT_ONCE * panel_bytes);
        for (int panel = first; panel < first + num; panel += PANELS_AT_ONCE) {
            const int some = std::min(PANELS_AT_ONCE, first + num - panel);
            for (int64_t i = 0; i < some; i++) {
                const uint16_t* of_panel = scales + (panel + i) * num_groups * PANEL;
                expand_values(w + (panel + i) * octets * PANEL * 4, of_panel, octets, group_len, values + i * panel_bytes);
            }
            const auto finish = [&](int tile, int i, const float* sums) {
                for (int m = tile * amx::ROWS; m < std::min(M, (tile + 1) * amx::ROWS); m++, sums += PANEL) {
                    const vf of_row = load(sums) * row_scales[m];
                    store_outputs(&of_row, out, m, panel + i, N);
                }
            };
            amx::multiply<float>(rows.rows(), begin, end, amx::Panels(values, some, 2, padded / 32), finish);
        }
    });
}
#endif

}  // namespace

// `group_len` is a multiple of 32. `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N].
extern "C" void actorllm_linear_int4(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int num_threads) {
#if HAS_AMX
    if (M >= MIN_HALVES_ROWS) return multiply_values(x, x_stride, w, scales, out, M, N, K, group_len, num_threads);
    if (M >= MIN_TILED_ROWS) return multiply_tiles(x, x_stride, w, scales, out, M, N, K, group_len, num_threads);
#endif
    static thread_local CodedRows<int8_t> coded;
    coded.resize(M, K, TILE_ROWS, group_len, -8);
    const Problem p{coded, w, scales, out, N, group_len};
    code_and_multiply<TILE_ROWS, Tiles>(coded, x, x_stride, p, Shares(M, N, K, num_threads), PARTS);
}

REPLAYABLE(actorllm_linear_int4)
