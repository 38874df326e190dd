// What the linears share: weights in panels of outputs, and how panels are given to threads.
#pragma once

#include <algorithm>

#include "simd.h"
#include "tiles.h"

constexpr int PANEL = 16;  // outputs that lie together
constexpr int GROUP = 4;   // panels that a thread takes at a time
constexpr int64_t SMALL = 1 << 16;  // products that do not pay for waking threads

// The panels of N outputs, in groups that threads take.
struct Shares {
    int num_panels, num_groups, num_threads;
    Shares(int M, int N, int K, int max_threads)
        : num_panels((N + PANEL - 1) / PANEL),
          num_groups((num_panels + GROUP - 1) / GROUP),
          num_threads(int64_t(M) * N * K > SMALL ? std::max(1, std::min(max_threads, num_groups)) : 1) {}
    int size(int group) const { return std::min(GROUP, num_panels - group * GROUP); }
};

// One row's outputs of a panel, as vectors; the last panel may hold fewer than PANEL outputs.
inline void load_outputs(vf* acc, const float* out, int64_t row, int panel, int N) {
    const float* from = out + row * N + int64_t(panel) * PANEL;
    float whole[PANEL] = {};
    const int num = std::min(PANEL, N - panel * PANEL);
    if (num < PANEL) from = static_cast<const float*>(memcpy(whole, from, num * sizeof(float)));
    for (int v = 0; v < PANEL / VL; v++) acc[v] = load(from + v * VL);
}

inline void store_outputs(const vf* acc, float* out, int64_t row, int panel, int N) {
    float* to = out + row * N + int64_t(panel) * PANEL;
    const int num = std::min(PANEL, N - panel * PANEL);
    if (num == PANEL) {
        for (int v = 0; v < PANEL / VL; v++) store(to + v * VL, acc[v]);
        return;
    }
    float whole[PANEL];
    for (int v = 0; v < PANEL / VL; v++) store(whole + v * VL, acc[v]);
    memcpy(to, whole, num * sizeof(float));
}
