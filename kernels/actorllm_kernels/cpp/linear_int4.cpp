// out = x W^T for float32 rows x and 4-bit weights with a scale for each group of an output's inputs; linear/reference.py
// specifies it.
//
// As with int8 (linear_int8.cpp), rows become codes with scales of their own. Weights are kept as code + 8, which is unsigned, so
// that a group's sum is that of unsigned by signed bytes less 8 times the group's sum of the row; it is an exact integer.
//
// Legend: M rows, N outputs, K inputs, G inputs of a group.

#include "dot.h"
#include "replay.h"
#include "rows.h"

namespace {

constexpr int COLS = Dot4::COLS, PARTS = PANEL / COLS;
constexpr bool IS_WIDE = COLS == 16;
constexpr int TILE_ROWS = IS_WIDE ? 6 : 4;  // what the registers hold
constexpr int RUN = 32;                     // inputs whose sums fit 16 bits
constexpr int AHEAD = 1024;                 // bytes of a panel that are fetched before the first tile uses them

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

}  // namespace

// `group_len` is a multiple of 32. `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N].
extern "C" void actorllm_linear_int4(
    const float* x, int64_t x_stride, const uint8_t* w, const uint16_t* scales, float* out, int M, int N, int K, int group_len,
    int num_threads) {
    static thread_local CodedRows<int8_t> coded;
    coded.resize(M, K, TILE_ROWS, group_len, -8);
    const Problem p{coded, w, scales, out, N, group_len};
    code_and_multiply<TILE_ROWS, Tiles>(coded, x, x_stride, p, Shares(M, N, K, num_threads), PARTS);
}

REPLAYABLE(actorllm_linear_int4)
