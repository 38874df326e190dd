// out = x W^T for float32 rows x and packed bfloat16 weights; linear/reference.py specifies both.
//
// A vector runs along the outputs of a panel, and each row's input is spread over it, so a sum's order, and with it
// the result, does not depend on the other rows. Few rows stream each weight once, at the memory's rate. Many rows are
// first laid out tile by tile (rows that are a power of two apart would share few lines of the caches), and then a block
// of them, which stays in the second-level cache, passes over a chunk of a panel, which stays in the first. With AMX rows
// are split into three halves each, whose products with halves are exact; sums are float32 in another order then.
//
// Legend: M rows, N outputs, K inputs, V vectors of a panel.

#include <algorithm>
#include <vector>

#include "amx_rows.h"
#include "gated.h"
#include "panels.h"
#include "replay.h"
#include "turns.h"

namespace {

constexpr int V = PANEL / VL;
constexpr int TILE_ROWS = 6;
constexpr int BLOCK = 10 * TILE_ROWS;
constexpr int CHUNK = 768;      // inputs: 24 KiB of a panel, 180 KiB of a block
constexpr int MIN_TILED_ROWS = 12;  // below this, AMX takes three products where vectors wait for memory
constexpr int NUM_PARTS = 3;    // halves that are a float32
constexpr int AHEAD = 64;       // inputs: a panel's weights are fetched 2 KiB before the first tile uses them

struct Problem {
    const float* x;
    int64_t x_stride;
    const uint16_t* w;  // [panels, K / 2, PANEL, 2]
    float* out;
    int M, N, K;
    float* tiles;       // the rows as [tile, K, rows of the tile], or null: they are read where they lie
};

// out[m][n] (+)= x[m][begin:end] . w[n][begin:end] for M rows and the outputs of neighbouring panels.
template <int M, int PANELS>
void tile(const Problem& p, int m0, int panel, int begin, int end) {
    const float* x[M];
    const int64_t x_step = p.tiles ? M : 1;
    for (int m = 0; m < M; m++) x[m] = p.tiles ? p.tiles + int64_t(m0) * p.K + m : p.x + (m0 + m) * p.x_stride;
    const int64_t panel_size = (p.K + 1) / 2 * 2 * PANEL;
    const uint16_t* w = p.w + panel * panel_size;
    vf acc[M][PANELS][V] = {};
    if (begin)
        for (int m = 0; m < M; m++)
            for (int i = 0; i < PANELS; i++) load_outputs(acc[m][i], p.out, m0 + m, panel + i, p.N);
    // `second`: whether a pair's second input counts too. Of 32 bits the lower half is the first one.
    const auto pair = [&](int64_t k, auto second) {
        for (int i = 0; i < PANELS; i++) {
            vf even[V], odd[V];
            for (int v = 0; v < V; v++) {
                const vu both = load_words(w + i * panel_size + k * PANEL + v * VL * 2);
                even[v] = (vf)(both << 16);
                odd[v] = (vf)(both & 0xffff0000u);
            }
            for (int m = 0; m < M; m++) {
                const vf row = splat(x[m][k * x_step]);
                for (int v = 0; v < V; v++) acc[m][i][v] += row * even[v];
            }
            if constexpr (second)
                for (int m = 0; m < M; m++) {
                    const vf row = splat(x[m][(k + 1) * x_step]);
                    for (int v = 0; v < V; v++) acc[m][i][v] += row * odd[v];
                }
        }
    };
    int k = begin;
    for (; k + 2 <= end; k += 2) {
        if (m0 % BLOCK == 0)
            for (int i = 0; i < PANELS; i++) __builtin_prefetch(w + i * panel_size + (k + AHEAD) * PANEL);
        pair(k, std::true_type{});
    }
    if (k < end) pair(k, std::false_type{});
    for (int m = 0; m < M; m++)
        for (int i = 0; i < PANELS; i++) store_outputs(acc[m][i], p.out, m0 + m, panel + i, p.N);
}

// M rows of `num_panels` neighbouring panels, as many at once as the registers hold.
template <int M>
struct Tiles {
    static void run(const Problem& p, int m, int panel, int num_panels, int begin, int end) {
        constexpr int WIDE = VL == 16 || M == 1 ? 4 : M <= 3 ? 2 : 1;
        int i = 0;
        for (; i + WIDE <= num_panels; i += WIDE) tile<M, WIDE>(p, m, panel + i, begin, end);
        for (; i < num_panels; i++) tile<M, 1>(p, m, panel + i, begin, end);
    }
};

void lay_out(const Problem& p, int m) {
    const int rows = std::min(TILE_ROWS, p.M - m);
    float* to = p.tiles + int64_t(m) * p.K;
    for (int k = 0; k < p.K; k++)
        for (int i = 0; i < rows; i++) to[int64_t(k) * rows + i] = p.x[(m + i) * p.x_stride + k];
}

// The outputs of a block of rows, from `first` on, and a group of panels.
void block(const Problem& p, int first, int panel, int num_panels) {
    const int wide = VL == 16 ? num_panels : 1, chunk = p.tiles ? CHUNK : std::max(p.K, 1), end = std::min(p.M, first + BLOCK);
    const int step = p.tiles ? wide : num_panels;
    for (int i = 0; i < num_panels; i += step)
        for (int k = 0; k == 0 || k < p.K; k += chunk)
            by_tiles<TILE_ROWS>(first, end, [&](int m, auto M) { Tiles<M>::run(p, m, panel + i, step, k, std::min(p.K, k + chunk)); });
}

#if HAS_AMX
void multiply_tiles(
    const float* x, int64_t x_stride, const uint16_t* w, float* out, int M, int N, int K, int activation, int num_threads) {
    static thread_local amx::Halves<NUM_PARTS> kept;
    amx::Halves<NUM_PARTS>& rows = kept;  // this thread's, in all threads
    const int64_t panel_bytes = int64_t(K + 1) / 2 * 2 * PANEL * sizeof *w;
    rows.resize(M, K);
    const auto lay_out = [&](int m) { rows.split(m, x + m * x_stride); };
    const auto multiply = [&](int begin, int end, int panel, int num, const amx::Outputs& outputs) {
        const amx::Panels panels(w, panel_bytes, panel, num);
        amx::multiply<float>(rows.rows(), begin, end, panels, [&](int tile, int i, const float (*sums)[amx::ROWS * PANEL]) {
            amx::write_tile(outputs, tile, panel + i, [=](int r, float* to) { store(to, load(*sums + r * PANEL)); });
        });
    };
    amx::for_panels(rows.rows(), out, M, N, K, activation, num_threads, lay_out, multiply);
}
#endif

void multiply_rows(const float* x, int64_t x_stride, const uint16_t* w, float* out, int M, int N, int K, int num_threads) {
    static thread_local std::vector<float> scratch;
    Problem p{x, x_stride, w, out, M, N, K, nullptr};
    if (M > TILE_ROWS) {
        if (scratch.size() < size_t(M) * K) scratch.resize(size_t(M) * K);
        p.tiles = scratch.data();
    }
    const Shares shares(M, N, K, num_threads);
    Turns turns((M + BLOCK - 1) / BLOCK * shares.num_groups, shares.num_threads);
#pragma omp parallel num_threads(shares.num_threads)
    {
        if (p.tiles) {
#pragma omp for schedule(static)
            for (int m = 0; m < M; m += TILE_ROWS) lay_out(p, m);
        }
        turns.take([&](int i) {
            const int group = i % shares.num_groups;
            block(p, i / shares.num_groups * BLOCK, group * GROUP, shares.size(group));
        });
    }
}

}  // namespace

// `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N], or with an activation [M, N / 2].
extern "C" void actorllm_linear_bf16(
    const float* x, int64_t x_stride, const uint16_t* w, float* out, int M, int N, int K, int activation, int num_threads) {
#if HAS_AMX
    if (M >= MIN_TILED_ROWS) return multiply_tiles(x, x_stride, w, out, M, N, K, activation, num_threads);
#endif
    linear_then_gated(M, N, activation, out, num_threads, [&](float* to) { multiply_rows(x, x_stride, w, to, M, N, K, num_threads); });
}

REPLAYABLE(actorllm_linear_bf16)
