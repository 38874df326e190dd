// out = x W^T for float32 rows x and int8 weights with a scale for each output; linear/reference.py specifies it.
//
// Rows become codes with a scale of their own (rows.h); products are exact integers (dot.h), so a row's result does not depend
// on the other rows. Few rows stream the weights of several panels at once; many rows take tiles.
//
// Legend: M rows, N outputs, K inputs.

#include "amx_rows.h"
#include "dot.h"
#include "gated.h"
#include "replay.h"
#include "rows.h"

namespace {

constexpr int PARTS = PANEL / Dot::COLS;      // of a panel: what a vector holds
constexpr bool IS_WIDE = Dot::COLS == 16;
constexpr int TILE_ROWS = 6;                   // what the registers hold
constexpr int AHEAD = 1024;                   // bytes of a panel that are fetched before the first tile uses them
constexpr int MIN_TILED_ROWS = 4;             // below this, AMX would wait for memory as long

struct Problem {
    const CodedRows<Dot::Code>& x;
    const int8_t* w;      // [panels, K / 4, PANEL, 4]
    const float* scales;  // [panels, PANEL]
    float* out;
    int N;
};

// A part's outputs of one row, from the output n on. Apart from `tile`, so that the loops there unroll and sums stay in registers.
__attribute__((noinline)) void finish(const Problem& p, Dot::Sums sums, int m, int32_t row_sum, int n) {
    int32_t totals[Dot::COLS];
    Dot::totals(sums, row_sum, totals);
    float* out = p.out + int64_t(m) * p.N + n;
    const float scale = p.x.scales[m];
    if (n + Dot::COLS <= p.N)  // a count that the compiler knows
        for (int c = 0; c < Dot::COLS; c++) out[c] = float(totals[c]) * scale * p.scales[n + c];
    else
        for (int c = 0; c < p.N - n; c++) out[c] = float(totals[c]) * scale * p.scales[n + c];
}

// M rows of neighbouring parts.
template <int M, int NUM>
void tile(const Problem& p, int m0, int part) {
    const int steps = p.x.padded / 4;
    const Dot::Code* x = p.x.tile(m0);
    const int8_t* w[NUM];
    for (int i = 0; i < NUM; i++)
        w[i] = p.w + int64_t((part + i) / PARTS) * steps * PANEL * 4 + (part + i) % PARTS * Dot::COLS * 4;
    Dot::Sums sums[M][NUM];
    for (int m = 0; m < M; m++)
        for (int i = 0; i < NUM; i++) Dot::zero(sums[m][i]);
    for (int64_t k = 0; k < steps; k++) {
        Dot::Weights weights[NUM];
        for (int i = 0; i < NUM; i++) {
            if (m0 == 0 && (part + i) % PARTS == 0) __builtin_prefetch(w[i] + k * PANEL * 4 + AHEAD);
            Dot::weights(weights[i], w[i] + k * PANEL * 4);
        }
        for (int m = 0; m < M; m++)
            for (int i = 0; i < NUM; i++) Dot::add(sums[m][i], weights[i], x + (k * M + m) * 4);
    }
    int32_t row_sums[M] = {};
    for (int k = 0; k < p.x.padded / p.x.unit; k++)
        for (int m = 0; m < M; m++) row_sums[m] += p.x.tile_sums(m0)[k * M + m];
    for (int m = 0; m < M; m++)
        for (int i = 0; i < NUM; i++) finish(p, sums[m][i], m0 + m, row_sums[m], (part + i) * Dot::COLS);
}

template <int M>
struct Tiles {
    static void run(const Problem& p, int m, int part, int num_parts) {
        constexpr int NUM = IS_WIDE || M == 1 ? 4 : M <= 3 ? 2 : 1;
        int i = 0;
        for (; i + NUM <= num_parts; i += NUM) tile<M, NUM>(p, m, part + i);
        for (; i < num_parts; i++) tile<M, 1>(p, m, part + i);
    }
};

#if HAS_AMX
void multiply_tiles(
    const float* x, int64_t x_stride, const int8_t* w, const float* scales, float* out, int M, int N, int K, int activation, int num_threads) {
    static thread_local amx::CodedTiles kept;
    amx::CodedTiles& coded = kept;  // this thread's, in all threads
    coded.resize(M, K, K);
    const int64_t panel_bytes = int64_t(K + 3) / 4 * PANEL * 4;
    const auto lay_out = [&](int m) { coded.code(m, x + m * x_stride); };
    const auto multiply = [&](int begin, int end, int panel, int num, const amx::Outputs& outputs) {
        const amx::Panels panels(w, panel_bytes, panel, num);
        amx::multiply<int32_t>(coded.rows(), begin, end, panels, [&](int tile, int i, const int32_t (*sums)[amx::ROWS * PANEL]) {
            const vf scale = load(scales + (panel + i) * PANEL);
            const float* of_rows = coded.scales.data() + tile * amx::ROWS;
            amx::write_tile(outputs, tile, panel + i, [=](int r, float* to) {
                store(to, __builtin_convertvector(load_ints(*sums + r * PANEL), vf) * of_rows[r] * scale);
            });
        });
    };
    amx::for_panels(coded.rows(), out, M, N, K, activation, num_threads, lay_out, multiply);
}
#endif

}  // namespace

// `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N], or with an activation [M, N / 2].
extern "C" void actorllm_linear_int8(
    const float* x, int64_t x_stride, const int8_t* w, const float* scales, float* out, int M, int N, int K, int activation, int num_threads) {
#if HAS_AMX
    if (M >= MIN_TILED_ROWS) return multiply_tiles(x, x_stride, w, scales, out, M, N, K, activation, num_threads);
#endif
    linear_then_gated(M, N, activation, out, num_threads, [&](float* to) {
        static thread_local CodedRows<Dot::Code> coded;
        coded.resize(M, K, TILE_ROWS, std::max(4, (K + 3) / 4 * 4), -128);
        const Problem p{coded, w, scales, to, N};
        code_and_multiply<TILE_ROWS, Tiles>(coded, x, x_stride, p, Shares(M, N, K, num_threads), PARTS);
    });
}

REPLAYABLE(actorllm_linear_int8)
