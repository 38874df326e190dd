// The best token of each row, and what the next step reads of sampled ids.
//
// Legend: S samples, V vocabulary.
#include <cmath>

#include "replay.h"
#include "row_loop.h"
#include "simd.h"

namespace {

// The first of equal values; -1 where the best is not finite, or a value is NaN.
int64_t best_of(const float* x, int64_t V) {
    if (V == 0) return -1;
    vf best = splat(-INFINITY);
    vi is_nan{};
    int64_t v = 0;
    for (; v + VL <= V; v += VL) {
        const vf values = load(x + v);
        best = max(values, best);
        is_nan |= values != values;
    }
    float most = max(best);
    bool has_nan = false;
    for (int i = 0; i < VL; i++) has_nan |= is_nan[i] != 0;
    for (; v < V; v++) {
        most = x[v] > most ? x[v] : most;
        has_nan |= std::isnan(x[v]);
    }
    if (has_nan || !std::isfinite(most)) return -1;
    for (v = 0; x[v] != most; v++) {}
    return v;
}

}  // namespace

extern "C" void actorllm_best(const float* logits, int64_t stride, int64_t* ids, int64_t S, int64_t V, int num_threads) {
    for_rows(S, S * V, num_threads, [&](int64_t s) { ids[s] = best_of(logits + s * stride, V); });
}

// last[rows[s]] = ids[s], or 0 where that is negative.
extern "C" void actorllm_scatter_ids(const int64_t* ids, const int64_t* rows, int64_t* last, int64_t S) {
    for (int64_t s = 0; s < S; s++) last[rows[s]] = ids[s] < 0 ? 0 : ids[s];
}

REPLAYABLE(actorllm_best)
REPLAYABLE(actorllm_scatter_ids)
