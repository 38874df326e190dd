// out = x W^T for float32 rows x and packed bfloat16 weights; linear/reference.py specifies both.
//
// A vector runs along the outputs of a panel, and each row's input is spread over it, so a sum's order, and with it
// the result, does not depend on the other rows. Few rows stream each weight once, at the memory's rate. Many rows are
// first laid out tile by tile (rows that are a power of two apart would share few lines of the caches), and then a block
// of them, which stays in the second-level cache, passes over a chunk of a panel, which stays in the first.
//
// Legend: M rows, N outputs, K inputs, V vectors of a panel.

#include <algorithm>
#include <vector>

#include "panels.h"
#include "replay.h"
#include "turns.h"

namespace {

constexpr int V = PANEL / VL;
constexpr int TILE_ROWS = 6;
constexpr int BLOCK = 10 * TILE_ROWS;
constexpr int CHUNK = 768;      // inputs: 24 KiB of a panel, 180 KiB of a block
constexpr int AHEAD = 64;       // inputs: a panel's weights are fetched 2 KiB before the first tile uses them

struct Problem {
    const float* x;
    int64_t x_stride;
    const uint16_t* w;  // [panels, K, PANEL]
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
    const uint16_t* w = p.w + int64_t(panel) * p.K * PANEL;
    vf acc[M][PANELS][V] = {};
    if (begin)
        for (int m = 0; m < M; m++)
            for (int i = 0; i < PANELS; i++) load_outputs(acc[m][i], p.out, m0 + m, panel + i, p.N);
    const auto step = [&](int64_t k) {
        for (int i = 0; i < PANELS; i++) {
            vf weights[V];
            for (int v = 0; v < V; v++) weights[v] = load(w + (int64_t(i) * p.K + k) * PANEL + v * VL);
            for (int m = 0; m < M; m++) {
                const vf row = splat(x[m][k * x_step]);
                for (int v = 0; v < V; v++) acc[m][i][v] += row * weights[v];
            }
        }
    };
    int k = begin;
    for (; k + 2 <= end; k += 2) {
        if (m0 % BLOCK == 0)
            for (int i = 0; i < PANELS; i++) __builtin_prefetch(w + (int64_t(i) * p.K + k + AHEAD) * PANEL);
        step(k);
        step(k + 1);
    }
    for (; k < end; k++) step(k);
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

}  // namespace

// `x_stride` counts elements; rows are contiguous along the inputs, `out` is contiguous [M, N].
extern "C" void actorllm_linear_bf16(
    const float* x, int64_t x_stride, const uint16_t* w, float* out, int M, int N, int K, int num_threads) {
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

REPLAYABLE(actorllm_linear_bf16)
