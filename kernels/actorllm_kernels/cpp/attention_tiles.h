// The attention of many score rows by Intel's AMX, block by block of keys with a running maximum (FlashAttention, arXiv 2205.14135).
//
// Scores are computed as K Q^T: a vector holds 16 score rows, so that maxima and sums need no shuffles, keys are left operands as they
// lie in the pool, and the weights that come of scores are right operands of V^T P^T as they are. All are exact sums of bfloat16 values. An
// item's queries and sums stay in the second-level cache while blocks of keys pass.
#pragma once

#include "attention_layouts.h"

#if HAS_AMX

#include <climits>

#include "amx_rows.h"

namespace {

constexpr int MOST_BLOCK_KEYS = 512;    // that are unpacked at once
constexpr int KEY_BLOCK_BYTES = 512 << 10;  // of tiles that they become
constexpr int SLICE_KEYS = 128;         // whose scores with a pair of tiles of rows stay in the first-level cache
constexpr float LOG2_E = 1.44269504f;

// 2^x within 3 units in the last place (a minimax polynomial on [0, 1]).
inline vf exp2(vf x) {
    const vf r = (vf)_mm512_reduce_ps((__m512)x, 9);  // what is left of the largest integer below
    vf p = splat(1.877576766e-3f);
    p = p * r + 8.989339877e-3f;
    p = p * r + 5.582631823e-2f;
    p = p * r + 2.40153617e-1f;
    p = p * r + 6.931530732e-1f;
    p = p * r + 9.999999251e-1f;
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)x);
}

// Memory for an item, kept from one to the next.
struct TileScratch {
    AlignedMemory queries, keys, values, weights, scores, sums;
    std::vector<vf> maxima, normalizers, slopes, positions;  // of tiles of rows
    std::vector<vi> firsts, lasts;        // the keys that each row sees
    std::vector<float> key_factors, value_factors;
};

template <class T>
class ItemTiles {
public:
    ItemTiles(const Problem<T>& problem, const Item& its_item, TileScratch& scratch)
        : p(problem), item(its_item), s(scratch), M(item.num_queries * p.group()), num_tiles(round_up(M, PAIR) / amx::ROWS),
          depth(round_up(p.D, 32) / 32), num_columns(round_up(p.E, PAIR) / amx::ROWS),
          k_parts(sizeof(T) == 4 || p.k.parts > 1 ? amx::FLOAT_PARTS : 1) {
        const int key_bytes = depth * k_parts * 64 + num_columns * V_PARTS * 32;
        const int most = std::clamp(KEY_BLOCK_BYTES / key_bytes / PAIR * PAIR, PAIR, MOST_BLOCK_KEYS);
        block = std::min(most, round_up(item.key_end - item.key_begin, PAIR));
        slice_keys = std::min(block, SLICE_KEYS);
        slots = p.table + p.spans[item.span].row * p.table_stride;
        is_adjusted = p.soft_cap > 0 || p.slopes || !(p.scale > 0);
        unit = is_adjusted ? LOG2_E : p.scale * LOG2_E;
        keys = s.keys.resize(int64_t(block) / amx::ROWS * k_parts * depth * amx::TILE);
        values = s.values.resize(int64_t(num_columns) * V_PARTS * block / 32 * amx::TILE);
        weights = s.weights.resize(int64_t(2) * amx::FLOAT_PARTS * slice_keys / 32 * amx::TILE);
        scores = reinterpret_cast<float*>(s.scores.resize(int64_t(4) * slice_keys * VL * sizeof(float)));
    }

    // False, with nothing written, if a value is not finite, which has no parts.
    bool run() {
        if (!lay_out_rows()) return false;
        for (int key = item.key_begin; key < item.key_end; key += block) {
            const int n = std::min(block, item.key_end - key);
            if (!unpack(key, n)) return false;
            attend(key, n);
        }
        for (int tile = 0; tile * amx::ROWS < M; tile++) finish(tile);
        return true;
    }

private:
    static constexpr int V_PARTS = sizeof(T) == 4 ? amx::FLOAT_PARTS : 1;

    const Problem<T>& p;
    const Item& item;
    TileScratch& s;
    const int M, num_tiles, depth, num_columns, k_parts;  // tiles of rows, chunks of D, tiles of E
    int q_parts, block, slice_keys;
    bool is_adjusted;
    float unit;  // a score's in logarithms to the base 2
    const int32_t* slots;
    char *queries, *keys;     // tiles as [tile of rows or of keys, part, chunk of D]
    char *values, *weights;   // tiles as [tile of E or of rows, part, chunk of keys]
    float *scores, *sums;     // [tile of rows, key or column of values, 16]

    int query(int m) const { return item.first_query + std::min(m, M - 1) / p.group(); }
    vf* sums_of(int tile) const { return reinterpret_cast<vf*>(sums) + int64_t(tile) * num_columns * amx::ROWS; }

    bool lay_out_rows() {
        const int64_t tile_bytes = amx::FLOAT_PARTS * depth * amx::TILE, sums_bytes = int64_t(num_tiles) * num_columns * amx::TILE;
        queries = s.queries.resize(num_tiles * tile_bytes);
        sums = reinterpret_cast<float*>(s.sums.resize(sums_bytes));
        memset(sums, 0, sums_bytes);
        s.maxima.assign(num_tiles, splat(MINUS_INF));
        s.normalizers.assign(num_tiles, vf{});
        s.slopes.assign(num_tiles, vf{});
        s.positions.resize(num_tiles);
        s.firsts.resize(num_tiles);
        s.lasts.resize(num_tiles);
        vu low_bits = {};
        for (int tile = 0; tile < num_tiles; tile++) {
            const float* rows[VL];
            for (int i = 0; i < VL; i++) {
                const int m = std::min(tile * amx::ROWS + i, M - 1), position = query(m);
                rows[i] = p.query(item, m);
                s.positions[tile][i] = float(position);
                if (p.slopes) s.slopes[tile][i] = p.slopes[p.head(item, m)];
                s.lasts[tile][i] = std::min(position, item.key_end - 1);
                s.firsts[tile][i] = p.window ? position - p.window + 1 : 0;
                if (p.sinks && item.has_sink) {
                    s.maxima[tile][i] = p.sinks[p.head(item, m)] * LOG2_E / unit;
                    s.normalizers[tile][i] = 1;
                }
            }
            if (!lay_out_queries(rows, p.D, queries + tile * tile_bytes, low_bits)) return false;
        }
        uint32_t any = 0;
        for (int i = 0; i < VL; i++) any |= low_bits[i];
        q_parts = any ? amx::FLOAT_PARTS : 1;  // one where queries are bfloat16s
        return true;
    }

    static bool are_finite(const std::vector<float>& x) { return magnitude(x.data(), int(x.size())) < INFINITY; }

    bool unpack(int key, int n) {
        const int32_t* from = slots + key;
        const bool are_keys_finite = k_parts == 1 ? unpack_key_tiles<1>(p.k, item.kv_head, p.D, from, n, keys)
                                                  : unpack_key_tiles<amx::FLOAT_PARTS>(p.k, item.kv_head, p.D, from, n, keys);
        gather_factors(p.k, item.kv_head, from, n, s.key_factors);
        gather_factors(p.v, item.kv_head, from, n, s.value_factors);
        return are_keys_finite && unpack_value_tiles<V_PARTS>(p.v, item.kv_head, p.E, from, n, values, block / 32) &&
               are_finite(s.key_factors) && are_finite(s.value_factors);
    }

    // A pair of tiles of rows with some keys of a block, counted from `first` on: some rows see those from `begin` to `end`, all rows see the
    // whole ones. What was summed before shrinks as a maximum rises.
    struct Slice {
        int tile, first, key;
        int begin, whole_begin, whole_end, end;
        float* scores;  // [tile of the pair, key, 16]
        vf best[2];    // its own scores
        vf maxima[2];  // of all up to it, and finite
        vf shrinks[2], totals[2];
        bool is_empty() const { return begin >= end; }
        bool has(int j) const { return begin <= j && j < end; }
        bool is_whole(int j) const { return whole_begin <= j && j + PAIR <= whole_end; }
    };

    Slice slice_of(int tile, int key, int first, int n, float* scores) const {
        const int first_query = query(tile * amx::ROWS), last_query = query((tile + 2) * amx::ROWS - 1);
        Slice it{tile, first, key + first, 0, 0, 0, 0, scores, {splat(MINUS_INF), splat(MINUS_INF)}, {}, {}, {}};
        it.end = round_up(std::min(n, last_query + 1 - it.key), PAIR);
        if (p.window) it.begin = std::max(0, first_query - p.window + 1 - it.key) / PAIR * PAIR;
        if (it.is_empty()) return it;
        it.whole_begin = p.window ? std::clamp(last_query - p.window + 1 - it.key, it.begin, it.end) : it.begin;
        it.whole_end = std::clamp(std::min(n, first_query + 1 - it.key), it.whole_begin, it.end);
        return it;
    }

    // A block of keys with all rows, slice by slice. While tiles are multiplied for the next slice, vectors make weights of the one before.
    void attend(int key, int n) {
        Slice slices[2];
        Slice* before = nullptr;
        int turn = 0;
        for (int tile = 0; tile < num_tiles; tile += 2)
            for (int first = 0; first < n; first += slice_keys) {
                slices[turn] = slice_of(tile, key, first, std::min(slice_keys, n - first), scores + int64_t(turn) * 2 * slice_keys * VL);
                if (slices[turn].is_empty()) continue;
                advance(&slices[turn], before);
                before = &slices[turn];
                turn = 1 - turn;
            }
        if (before) advance(nullptr, before);
    }

    // Scores of the slice `next`, and the sums of the one before.
    void advance(Slice* next, Slice* before) {
        const int begin = std::min(next ? next->begin : INT_MAX, before ? before->begin : INT_MAX);
        const int end = std::max(next ? next->end : 0, before ? before->end : 0);
        for (int j = begin; j < end; j += PAIR) {
            const bool is_scored = next && next->has(j);
            if (is_scored) multiply_keys(*next, j);
            if (before && before->has(j)) weigh(*before, j);
            if (is_scored) finish_scores(*next, j);
        }
        if (next) take_maxima(*next);
        if (!before) return;
        shrink_sums(*before);
        for (int e = 0; e < num_columns; e += 2) multiply_values(*before, e);
    }

    void multiply_keys(const Slice& slice, int j) {
        const int64_t row_bytes = depth * amx::TILE;
        const int64_t query_bytes = amx::FLOAT_PARTS * row_bytes, key_bytes = k_parts * row_bytes;
        const amx::Operand of_rows{queries + slice.tile * query_bytes, query_bytes, row_bytes, amx::TILE, q_parts};
        const amx::Operand of_keys{keys + (slice.first + j) / amx::ROWS * key_bytes, key_bytes, row_bytes, amx::TILE, k_parts};
        amx::multiply_pair(of_keys, of_rows, depth, slice.scores + j * VL, amx::ROWS * VL, int64_t(slice_keys) * VL, false);
    }

    void multiply_values(const Slice& slice, int e) {
        const int64_t row_bytes = slice_keys / 32 * amx::TILE, column_bytes = block / 32 * amx::TILE;
        const char* first_weights = weights + slice.begin / 32 * amx::TILE;
        const amx::Operand of_weights{first_weights, amx::FLOAT_PARTS * row_bytes, row_bytes, amx::TILE, amx::FLOAT_PARTS};
        const char* first = values + e * V_PARTS * column_bytes + (slice.first + slice.begin) / 32 * amx::TILE;
        const amx::Operand of_values{first, V_PARTS * column_bytes, column_bytes, amx::TILE, V_PARTS};
        float* to = sums + (int64_t(slice.tile) * num_columns + e) * amx::ROWS * VL;
        amx::multiply_pair(of_values, of_weights, (slice.end - slice.begin) / 32, to, amx::ROWS * VL, int64_t(num_columns) * amx::ROWS * VL, true);
    }

    void weigh(Slice& slice, int j) {
        for (int i = 0; i < 2; i++)
            slice.totals[i] += s.value_factors.empty() ? exponentiate<false>(slice, i, j) : exponentiate<true>(slice, i, j);
    }

    void shrink_sums(const Slice& slice) {
        for (int i = 0; i < 2; i++) {
            const vf shrink = slice.shrinks[i];
            vf& normalizer = s.normalizers[slice.tile + i];
            normalizer = normalizer * shrink + slice.totals[i];
            if (any(shrink < 1.0f))
                for (int e = 0; e < num_columns * amx::ROWS; e++) sums_of(slice.tile + i)[e] *= shrink;
        }
    }

    void take_maxima(Slice& slice) {
        for (int i = 0; i < 2; i++) {
            const vf before = s.maxima[slice.tile + i], now = max(before, slice.best[i]);
            slice.maxima[i] = now == MINUS_INF ? vf{} : now;  // nothing to see yet
            slice.shrinks[i] = now > before ? exp2((before - slice.maxima[i]) * unit) : splat(1);
            s.maxima[slice.tile + i] = now;
        }
    }

    void finish_scores(Slice& slice, int j) {
        for (int i = 0; i < 2; i++)
            slice.best[i] = max(slice.best[i], slice.is_whole(j) && !is_adjusted ? finish_tile<true>(slice, i, j) : finish_tile<false>(slice, i, j));
    }

    // Factors, caps, slopes and masks, of keys that a row does not see; the latter three not where scores are plain. Returns the maxima.
    template <bool ARE_PLAIN>
    vf finish_tile(const Slice& slice, int i, int first) {
        const int tile = slice.tile + i;
        const float* factors = s.key_factors.empty() ? nullptr : s.key_factors.data() + slice.first + first;
        float* scores = slice.scores + (i * slice_keys + first) * VL;
        vf best = splat(MINUS_INF);
        for (int j = 0; j < PAIR; j++) {
            vf x = load(scores + j * VL);
            if (factors) x *= factors[j];
            if constexpr (!ARE_PLAIN) {
                const int key = slice.key + first + j;
                if (is_adjusted) {
                    x *= p.scale;
                    if (p.soft_cap > 0) x = p.soft_cap * tanh(x / p.soft_cap);
                    x += s.slopes[tile] * (float(key) - s.positions[tile]);
                }
                x = key - vi{} <= s.lasts[tile] ? x : splat(MINUS_INF);
                x = key - vi{} >= s.firsts[tile] ? x : splat(MINUS_INF);
            }
            if (!ARE_PLAIN || factors) store(scores + j * VL, x);
            best = max(best, x);
        }
        return best;
    }

    // The weights of a pair of tiles of keys, as right operands; returns their sums.
    template <bool HAS_FACTORS>
    vf exponentiate(const Slice& slice, int tile, int first) const {
        vf totals[2] = {};
        const vf factor = splat(unit), maximum = slice.maxima[tile];
        const float* scores = slice.scores + (tile * slice_keys + first) * VL;
        const float* value_factors = s.value_factors.data() + slice.first + first;
        const int64_t part_bytes = slice_keys / 32 * amx::TILE;
        char* to = weights + tile * amx::FLOAT_PARTS * part_bytes + first / 32 * amx::TILE;
        for (int j = 0; j < PAIR; j += 2) {
            vu parts[2][amx::FLOAT_PARTS];
            for (int i = 0; i < 2; i++) {
                vf x = exp2((load(scores + (j + i) * VL) - maximum) * factor);
                totals[i] += x;
                if constexpr (HAS_FACTORS) x *= value_factors[j + i];
                amx::split<amx::FLOAT_PARTS>(x, parts[i]);
            }
            for (int part = 0; part < amx::FLOAT_PARTS; part++) {
                const vu pairs = amx::in_pairs(parts[0][part], parts[1][part]);
                memcpy(to + part * part_bytes + j / 2 * amx::BYTES, &pairs, sizeof pairs);
            }
        }
        return totals[0] + totals[1];
    }

    // The results of a tile of rows, or what they are merged from later.
    void finish(int tile) {
        const vf factor = item.partial ? splat(1) : 1 / s.normalizers[tile];
        for (int e = 0; e < num_columns; e++) {
            vf columns[VL];
            for (int i = 0; i < VL; i++) columns[i] = sums_of(tile)[e * VL + i] * factor;
            transpose(columns);
            for (int i = 0; i < std::min(VL, M - tile * amx::ROWS); i++) {
                const int m = tile * amx::ROWS + i, num = std::min(VL, p.E - e * VL);
                float* to = item.partial ? item.partial + size_t(m) * (p.E + 2) : p.result(item, m);
                if (num == VL) store(to + e * VL, columns[i]);
                else if (num > 0) memcpy(to + e * VL, &columns[i], num * sizeof(float));
            }
        }
        if (!item.partial) return;
        for (int i = 0; i < std::min(VL, M - tile * amx::ROWS); i++) {
            float* partial = item.partial + size_t(tile * amx::ROWS + i) * (p.E + 2);
            partial[p.E] = s.maxima[tile][i] * (unit / LOG2_E);
            partial[p.E + 1] = s.normalizers[tile][i];
        }
    }
};

}  // namespace
#endif
