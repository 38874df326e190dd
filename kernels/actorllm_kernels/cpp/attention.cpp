// Attention over token slots for a flat batch of prefill chunks and decode rows; reference.py specifies it.
//
// A work item is some consecutive queries of one row with one key/value head and all query heads that share it. Its score
// rows are written out whole while they fit the second-level cache, with one plain softmax (SlimAttention, arXiv
// 2407.07304); longer rows go block by block with a running maximum (FlashAttention, arXiv 2205.14135). With fewer items
// than keep the threads busy the keys are split too, and the parts are merged (flash-decoding). Where the processor has AMX, items of
// many rows take its tiles instead (attention_tiles.h), unless a value is infinite or NaN.
//
// Legend: M score rows of an item (queries x heads of the group), D head_dim of keys, E head_dim of values.

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "attention_items.h"
#include "attention_tiles.h"
#include "replay.h"

namespace {

constexpr int MAX_ROWS = 60;                // score rows of an item, unless one query has more heads
constexpr int TILED_ROWS[] = {128, 1024};   // the same with AMX: more share the unpacking of keys, fewer keep many threads busy
constexpr int SCORE_FLOATS = 48 * 1024;     // 192 KiB of scores leave room for keys and values in 512 KiB
constexpr int FEW_ROWS = VL == 16 ? 9 : 8;  // below this, keys are read where they lie instead of being transposed first
constexpr int MIN_SPLIT = 512;              // keys that are worth a part of their own

template <class T>
constexpr int MIN_TILED_ROWS = sizeof(T) == 4 ? 24 : 16;  // that are worth AMX's tiles: floats take twice as many products

struct Scratch {
    std::vector<float> scores, keys, values, sums, maxima, normalizers, key_factors, value_factors;
};

// From products to capped, sloped and masked scores of one row, padded to whole vectors; returns their maximum. `factors` null: all 1.
float finish_scores(
    float* scores, const float* factors, int num_keys, int first_key, int query, float scale, float soft_cap, float slope, int window) {
    const int end = std::clamp(query + 1 - first_key, 0, num_keys), padded = (num_keys + VL - 1) / VL * VL;
    const int begin = window ? std::clamp(query - window + 1 - first_key, 0, end) : 0;
    vf distance;
    for (int i = 0; i < VL; i++) distance[i] = float(first_key - query + i);
    for (int j = 0; j < padded; j += VL) {
        vf x = load(scores + j) * scale;
        if (factors) x *= load(factors + j);
        if (soft_cap > 0) x = soft_cap * tanh(x / soft_cap);
        store(scores + j, x + slope * (distance + float(j)));
    }
    std::fill(scores, scores + begin, MINUS_INF);
    std::fill(scores + end, scores + padded, MINUS_INF);
    vf best = splat(MINUS_INF);
    for (int j = 0; j < padded; j += VL) best = max(best, load(scores + j));
    return max(best);
}

// scores[j] = e^(scores[j] - best); returns the sum.
float exponentiate(float* scores, int num_keys, float best) {
    vf total = {};
    for (int j = 0; j < num_keys; j += VL) {
        const vf x = exp(load(scores + j) - best);
        store(scores + j, x);
        total += x;
    }
    return sum(total);
}

template <class T>
bool reads_in_place(const Problem<T>& p, int num_rows) {
    return num_rows < FEW_ROWS && p.k.parts < 2;
}

template <class T>
void score_keys(const Problem<T>& p, const Item& item, const int32_t* slots, int num_keys, const float** q, int num_rows, Scratch& s, int stride) {
    float* scores = s.scores.data();
    if (reads_in_place(p, num_rows)) {
        by_tiles<TILE_ROWS>(0, num_rows, [&](int m, auto M) {
            scores_of_rows<M>(q + m, p.k, item.kv_head, p.D, slots, num_keys, scores + m * stride, stride);
        });
        return;
    }
    for (int begin = 0; begin < num_keys; begin += TILE) {
        unpack_keys(p.k, item.kv_head, p.D, slots + begin, std::min(TILE, num_keys - begin), s.keys.data());
        for (int j = 0; j < TILE; j += 2 * VL)  // keys that stay in the first-level cache while all rows pass
            by_tiles<TILE_ROWS>(0, num_rows, [&](int m, auto M) {
                scores_of_pair<M>(q + m, s.keys.data() + j, p.D, scores + m * stride + begin + j, stride);
            });
    }
}

template <class T>
void sum_values(const Problem<T>& p, const Item& item, const int32_t* slots, int num_keys, int num_rows, Scratch& s, int stride) {
    const float* weights = s.scores.data();
    float* sums = s.sums.data();
    if (reads_in_place(p, num_rows)) {
        const auto value = [&](int j) { return p.v.at(slots[j], item.kv_head); };
        by_tiles<TILE_ROWS>(0, num_rows, [&](int m, auto M) {
            add_values<M>(weights + m * stride, stride, num_keys, value, p.E, sums + m * p.E, p.E);
        });
        return;
    }
    for (int begin = 0; begin < num_keys; begin += TILE) {
        const int n = std::min(TILE, num_keys - begin);
        unpack_values(p.v, item.kv_head, p.E, slots + begin, n, s.values.data());
        for (int e = 0; e < p.E; e += 2 * VL) {  // the same for columns of values
            const auto value = [&](int j) { return s.values.data() + j * p.E + e; };
            const int num_columns = std::min(2 * VL, p.E - e);
            by_tiles<TILE_ROWS>(0, num_rows, [&](int m, auto M) {
                add_values<M>(weights + m * stride + begin, stride, n, value, num_columns, sums + m * p.E + e, p.E);
            });
        }
    }
}

template <class T>
void run_item(const Problem<T>& p, const Item& item, Scratch& s) {
    const int group = p.group(), num_rows = item.num_queries * group, E = p.E;
    const int32_t* slots = p.table + p.spans[item.span].row * p.table_stride;
    const int fitting = std::max(TILE, SCORE_FLOATS / num_rows / TILE * TILE);
    const int block = std::min(fitting, (item.key_end - item.key_begin + TILE - 1) / TILE * TILE);
    s.scores.resize(size_t(num_rows) * block);
    s.sums.assign(size_t(num_rows) * E, 0.0f);
    s.maxima.assign(num_rows, MINUS_INF);
    s.normalizers.assign(num_rows, 0.0f);
    if (!reads_in_place(p, num_rows)) {
        s.keys.resize(size_t(p.D) * TILE);
        s.values.resize(size_t(TILE) * E);
    }
    std::vector<const float*> q(num_rows);
    for (int m = 0; m < num_rows; m++) {
        q[m] = p.query(item, m);
        if (p.sinks && item.has_sink) {
            s.maxima[m] = p.sinks[p.head(item, m)];
            s.normalizers[m] = 1;
        }
    }
    for (int key = item.key_begin; key < item.key_end; key += block) {
        const int n = std::min(block, item.key_end - key);
        score_keys(p, item, slots + key, n, q.data(), num_rows, s, block);
        gather_factors(p.k, item.kv_head, slots + key, n, s.key_factors);
        gather_factors(p.v, item.kv_head, slots + key, n, s.value_factors);
        const float* key_factors = s.key_factors.empty() ? nullptr : s.key_factors.data();
        for (int m = 0; m < num_rows; m++) {
            float* scores = s.scores.data() + size_t(m) * block;
            const float slope = p.slopes ? p.slopes[p.head(item, m)] : 0;
            const int query = item.first_query + m / group;
            const float best = finish_scores(scores, key_factors, n, key, query, p.scale, p.soft_cap, slope, p.window);
            const float maximum = std::max(best, s.maxima[m]);
            if (maximum == MINUS_INF) {  // nothing to see yet
                std::fill(scores, scores + n, 0.0f);
                continue;
            }
            const float total = exponentiate(scores, n, maximum);
            if (!s.value_factors.empty())
                for (int j = 0; j < n; j += VL) store(scores + j, load(scores + j) * load(&s.value_factors[j]));
            const float shrink = std::exp(s.maxima[m] - maximum);
            if (shrink != 1)
                for (int e = 0; e < E; e++) s.sums[m * E + e] *= shrink;
            s.normalizers[m] = s.normalizers[m] * shrink + total;
            s.maxima[m] = maximum;
        }
        sum_values(p, item, slots + key, n, num_rows, s, block);
    }
    for (int m = 0; m < num_rows; m++) {
        const float* sums = s.sums.data() + size_t(m) * E;
        if (item.partial) {
            float* partial = item.partial + size_t(m) * (E + 2);
            std::copy(sums, sums + E, partial);
            partial[E] = s.maxima[m];
            partial[E + 1] = s.normalizers[m];
            continue;
        }
        float* out = p.result(item, m);
        const float factor = 1 / s.normalizers[m];
        for (int e = 0; e < E; e++) out[e] = sums[e] * factor;
    }
}

// The parts of one item's keys, merged: each is weighted by how far its maximum lies below the best.
template <class T>
void merge(const Problem<T>& p, const Item* parts, int num_parts) {
    const int num_rows = parts[0].num_queries * p.group(), E = p.E;
    for (int m = 0; m < num_rows; m++) {
        float best = MINUS_INF, normalizer = 0;
        for (int i = 0; i < num_parts; i++) best = std::max(best, parts[i].partial[size_t(m) * (E + 2) + E]);
        float* out = p.result(parts[0], m);
        std::fill(out, out + E, 0.0f);
        for (int i = 0; i < num_parts; i++) {
            const float* partial = parts[i].partial + size_t(m) * (E + 2);
            const float weight = std::exp(partial[E] - best);
            normalizer += weight * partial[E + 1];
            for (int e = 0; e < E; e++) out[e] += weight * partial[e];
        }
        for (int e = 0; e < E; e++) out[e] /= normalizer;
    }
}

template <class T>
void attend(const Problem<T>& p, int num_threads) {
    const auto max_rows = [&](const Span& span) {
        const int64_t share = int64_t(span.query_len) * p.num_heads / (4 * num_threads);
        return HAS_AMX ? int(std::clamp<int64_t>(share, TILED_ROWS[0], TILED_ROWS[1])) : MAX_ROWS;
    };
    std::vector<Item> whole = items_of(p, max_rows), items;
    const int wanted = (2 * num_threads + std::max<int>(whole.size(), 1) - 1) / std::max<int>(whole.size(), 1);
    std::vector<int> ends;
    size_t num_partial = 0;
    for (const Item& item : whole) {
        const int num_keys = item.key_end - item.key_begin;
        const int parts = std::max(1, std::min(wanted, num_keys / MIN_SPLIT)), share = (num_keys + parts - 1) / parts;
        for (int i = 0; i < parts; i++) {
            Item part = item;
            part.key_begin = item.key_begin + i * share;
            part.key_end = std::min(item.key_end, part.key_begin + share);
            part.has_sink = i == 0;
            items.push_back(part);
        }
        if (parts > 1) num_partial += size_t(parts) * item.num_queries * p.group() * (p.E + 2);
        ends.push_back(int(items.size()));
    }
    std::vector<float> partials(num_partial);
    float* next = partials.data();
    for (size_t w = 0, begin = 0; w < whole.size(); begin = ends[w++])
        if (ends[w] - begin > 1)
            for (size_t i = begin; i < size_t(ends[w]); i++, next += size_t(whole[w].num_queries) * p.group() * (p.E + 2))
                items[i].partial = next;
#pragma omp parallel num_threads(num_threads)
    {
        static thread_local Scratch scratch;
#if HAS_AMX
        static thread_local TileScratch tile_scratch;
        std::optional<amx::Shaped> shaped;
#endif
#pragma omp for schedule(dynamic, 1)
        for (int i = 0; i < int(items.size()); i++) {
#if HAS_AMX
            const bool is_tiled = items[i].num_queries * p.group() >= MIN_TILED_ROWS<T>;
            if (is_tiled && !shaped) shaped.emplace();
            if (is_tiled && ItemTiles(p, items[i], tile_scratch).run()) continue;
#endif
            run_item(p, items[i], scratch);
        }
        if (num_partial) {
#pragma omp for schedule(dynamic, 1)
            for (int w = 0; w < int(whole.size()); w++) {
                const int begin = w ? ends[w - 1] : 0;
                if (ends[w] - begin > 1) merge(p, &items[begin], ends[w] - begin);
            }
        }
    }
}

}  // namespace

// Strides count elements. The pools are float32, bfloat16 or, with factors, int8 (`pool_type` 0, 1, 2); keys with `k_parts` 2 have two
// factors, one for as many values as a value has, one for the rest. `soft_cap` and `window` 0: none; `sinks` and `slopes` null:
// none. `spans` is [num_spans, 4]: row of the slot table, first token, query_len, seq_len. `out` is contiguous [T, H, E].
extern "C" void actorllm_attend(
    const float* q, int64_t q_token_stride, int64_t q_head_stride, int pool_type,
    const void* k, int64_t k_token_stride, int64_t k_head_stride, const float* k_factors, int64_t k_factor_stride, int k_parts,
    const void* v, int64_t v_token_stride, int64_t v_head_stride, const float* v_factors, int64_t v_factor_stride,
    const int32_t* table, int64_t table_stride, const int32_t* spans, int num_spans,
    int num_heads, int num_kv_heads, int D, int E, float scale, float soft_cap,
    const float* sinks, const float* slopes, int window, float* out, int num_threads) {
    const auto run = [&](auto type) {
        using T = decltype(type);
        const Problem<T> problem{
            q, q_token_stride, q_head_stride,
            {static_cast<const T*>(k), k_token_stride, k_head_stride, k_factors, k_factor_stride, k_parts, E},
            {static_cast<const T*>(v), v_token_stride, v_head_stride, v_factors, v_factor_stride, 1, E},
            table, table_stride, reinterpret_cast<const Span*>(spans),
            num_spans, num_heads, num_kv_heads, D, E, scale, soft_cap, sinks, slopes, window, out};
        attend(problem, num_threads);
    };
    if (pool_type == 2) run(int8_t{});
    else if (pool_type == 1) run(uint16_t{});
    else run(float{});
}

REPLAYABLE(actorllm_attend)
