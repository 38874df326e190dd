// The attention of many score rows by Intel's AMX, block by block of keys with a running maximum (FlashAttention, arXiv 2205.14135).
//
// Scores are computed as K Q^T: a vector holds 16 score rows, so that maxima and sums need no shuffles, keys are left operands as they
// lie in the pool, and the weights that come of scores are right operands of V^T P^T as they are. Queries are exact, as are keys; weights
// and float32 values have 16 bits. An item's queries and sums stay in the second-level cache while blocks of keys pass.
#pragma once

#include "bf16_parts.h"

#if HAS_AMX

#include "amx_rows.h"
#include "attention_items.h"

namespace {

constexpr int PAIR = 2 * amx::ROWS;          // score rows, keys or columns of values that are multiplied at a time
constexpr int BLOCK_BYTES = 512 << 10;       // of keys and values that are unpacked at once
constexpr int MOST_BLOCK_KEYS = 512;         // whose scores with a pair of rows are in the nearest caches
constexpr float LOG2_E = 1.44269504f;

inline int round_up(int x, int unit) { return (x + unit - 1) / unit * unit; }

// The first values of some, zeros behind them.
template <class T>
inline vf load_some(const T* p, int num) {
    if (num >= VL) return load(p);
    float some[VL] = {};
    for (int i = 0; i < num; i++) some[i] = load_one(p + i);
    return load(some);
}

// Memory for an item, kept from one to the next.
struct TileScratch {
    amx::Tiles queries, keys, values, weights, scores, sums;
    std::vector<vf> maxima, normalizers;  // of tiles of rows; maxima are logarithms to the base 2
    std::vector<vi> firsts, lasts;        // the keys that each row sees
    std::vector<float> key_factors, value_factors;
};

template <class T>
class ItemTiles {
public:
    ItemTiles(const Problem<T>& problem, const Item& its_item, TileScratch& scratch)
        : p(problem), item(its_item), s(scratch), M(item.num_queries * p.group()), num_tiles(round_up(M, PAIR) / amx::ROWS),
          depth(round_up(p.D, 32) / 32), num_columns(round_up(p.E, PAIR) / amx::ROWS), k_parts(sizeof(T) == 4 || p.k.parts > 1 ? 3 : 1) {
        const int key_bytes = depth * k_parts * 64 + num_columns * V_PARTS * 32;
        const int most = std::clamp(BLOCK_BYTES / key_bytes / PAIR * PAIR, PAIR, MOST_BLOCK_KEYS);
        block = std::min(most, round_up(item.key_end - item.key_begin, PAIR));
        slots = p.table + p.spans[item.span].row * p.table_stride;
        is_adjusted = p.soft_cap > 0 || p.slopes || !(p.scale > 0);
        unit = is_adjusted ? LOG2_E : p.scale * LOG2_E;
        keys = s.keys.resize(int64_t(block) / amx::ROWS * k_parts * depth * amx::TILE);
        values = s.values.resize(int64_t(num_columns) * V_PARTS * block / 32 * amx::TILE);
        weights = s.weights.resize(int64_t(2) * W_PARTS * block / 32 * amx::TILE);
        scores = reinterpret_cast<float*>(s.scores.resize(int64_t(2) * block * VL * sizeof(float)));
    }

    // False, with nothing written, if a value is not finite, which has no parts.
    bool run() {
        if (!lay_out_rows()) return false;
        for (int key = item.key_begin; key < item.key_end; key += block) {
            const int n = std::min(block, item.key_end - key);
            if (!unpack_keys(key, n) || !unpack_values(key, n)) return false;
            for (int tile = 0; tile < num_tiles; tile += 2) attend(tile, key, n);
        }
        for (int tile = 0; tile * amx::ROWS < M; tile++) finish(tile);
        return true;
    }

private:
    static constexpr int V_PARTS = sizeof(T) == 4 ? 2 : 1, W_PARTS = 2;

    const Problem<T>& p;
    const Item& item;
    TileScratch& s;
    const int M, num_tiles, depth, num_columns, k_parts;  // tiles of rows, chunks of D, tiles of E
    int q_parts, block;
    bool is_adjusted;
    float unit;  // scores times this are logarithms to the base 2
    const int32_t* slots;
    char *queries, *keys;     // tiles as [tile of rows or of keys, part, chunk of D]
    char *values, *weights;   // tiles as [tile of E or of rows, part, chunk of keys]
    float *scores, *sums;     // [tile of rows, key or column of values, 16]

    int query(int m) const { return item.first_query + std::min(m, M - 1) / p.group(); }
    vf* sums_of(int tile) const { return reinterpret_cast<vf*>(sums) + int64_t(tile) * num_columns * amx::ROWS; }

    bool lay_out_rows() {
        queries = s.queries.resize(int64_t(num_tiles) * 3 * depth * amx::TILE);
        sums = reinterpret_cast<float*>(s.sums.resize(int64_t(num_tiles) * num_columns * amx::TILE));
        memset(sums, 0, int64_t(num_tiles) * num_columns * amx::TILE);
        s.maxima.assign(num_tiles, splat(MINUS_INF));
        s.normalizers.assign(num_tiles, vf{});
        s.firsts.resize(num_tiles);
        s.lasts.resize(num_tiles);
        amx::Finite finite;
        vu low_bits = {};
        for (int tile = 0; tile < num_tiles; tile++) {
            const float* rows[VL];
            for (int i = 0; i < VL; i++) {
                const int m = tile * amx::ROWS + i;
                rows[i] = p.query(item, std::min(m, M - 1));
                s.lasts[tile][i] = std::min(query(m), item.key_end - 1);
                s.firsts[tile][i] = p.window ? query(m) - p.window + 1 : 0;
                if (p.sinks && item.has_sink && m < M) {
                    s.maxima[tile][i] = p.sinks[p.head(item, m)] * LOG2_E;
                    s.normalizers[tile][i] = 1;
                }
            }
            for (int d = 0; d < depth * 32; d += VL) {
                vf values[VL];
                for (int i = 0; i < VL; i++) values[i] = finite(load_some(rows[i] + d, p.D - d));
                transpose(values);
                for (int i = 0; i < VL; i += 2) {
                    vu first[3], second[3];
                    amx::split<3>(values[i], first);
                    amx::split<3>(values[i + 1], second);
                    low_bits |= first[1] | second[1];
                    for (int part = 0; part < 3; part++)
                        store_tile(queries, (tile * 3 + part) * depth, (d + i) / 2, amx::in_pairs(first[part], second[part]));
                }
            }
        }
        uint32_t any = 0;
        for (int i = 0; i < VL; i++) any |= low_bits[i];
        q_parts = any ? 3 : 1;
        return finite.holds();
    }

    // Row `row` of tiles that follow each other.
    template <class V>
    static void store_tile(char* tiles, int64_t first, int row, V v) {
        memcpy(tiles + first * amx::TILE + int64_t(row) * amx::BYTES, &v, sizeof v);
    }

    bool unpack_keys(int key, int n) { return k_parts == 3 ? unpack_keys<3>(key, n) : unpack_keys<1>(key, n); }

    template <int PARTS>
    bool unpack_keys(int key, int n) {
        amx::Finite finite;
        for (int j = 0; j < round_up(n, PAIR); j++) {
            const int32_t slot = slots[key + std::min(j, n - 1)];
            const T* k = p.k.at(slot, item.kv_head);
            if (j + PAIR < n) p.k.prefetch(slots[key + j + PAIR], item.kv_head, p.D);
            for (int d = 0; d < depth * 32; d += VL) {
                vf x = load_some(k + d, p.D - d);
                if (p.k.parts > 1) {
                    const float* factors = p.k.factors_at(slot, item.kv_head);
                    for (int i = 0; i < VL; i++) x[i] *= factors[d + i >= p.k.first_part];
                }
                vu parts[PARTS];
                amx::split<PARTS>(finite(x), parts);
                for (int part = 0; part < PARTS; part++) {
                    const vh values = amx::in_row(parts[part]);
                    char* tile = keys + (int64_t(j / amx::ROWS * PARTS + part) * depth + d / 32) * amx::TILE;
                    memcpy(tile + j % amx::ROWS * amx::BYTES + d % 32 * 2, &values, sizeof values);
                }
            }
        }
        return finite.holds() && gather_factors(p.k, key, n, s.key_factors);
    }

    bool unpack_values(int key, int n) {
        amx::Finite finite;
        for (int j = 0; j < n; j += 32) {
            const T* v[32];
            for (int i = 0; i < 32; i++) v[i] = p.v.at(slots[key + std::min(j + i, n - 1)], item.kv_head);
            for (int e = 0; e < num_columns * VL; e += VL) {
                vf parts[V_PARTS][VL];
                for (int i = 0; i < VL; i++) {
                    vu first[V_PARTS], second[V_PARTS];
                    amx::split<V_PARTS>(finite(load_some(v[2 * i] + e, p.E - e)), first);
                    amx::split<V_PARTS>(finite(load_some(v[2 * i + 1] + e, p.E - e)), second);
                    for (int part = 0; part < V_PARTS; part++) parts[part][i] = (vf)amx::in_pairs(first[part], second[part]);
                }
                for (int part = 0; part < V_PARTS; part++) {
                    transpose(parts[part]);
                    char* tile = values + (int64_t(e / VL * V_PARTS + part) * (block / 32) + j / 32) * amx::TILE;
                    for (int i = 0; i < VL; i++) memcpy(tile + i * amx::BYTES, &parts[part][i], amx::BYTES);
                }
            }
        }
        return finite.holds() && gather_factors(p.v, key, n, s.value_factors);
    }

    // The factors of some tokens, if the tiles do not have them yet.
    bool gather_factors(const Pool<T>& pool, int key, int n, std::vector<float>& to) {
        to.clear();
        if (!pool.factors || pool.parts > 1) return true;
        to.assign(block, 0.0f);
        for (int j = 0; j < n; j++) to[j] = *pool.factors_at(slots[key + j], item.kv_head);
        return magnitude(to.data(), block) < INFINITY;
    }

    // Two tiles of rows with a block of keys, of which whole pairs of tiles are left out that no row sees.
    void attend(int tile, int key, int n) {
        const int first_query = query(tile * amx::ROWS), last_query = query((tile + 2) * amx::ROWS - 1);
        const int end = round_up(std::min(n, last_query + 1 - key), PAIR);
        const int begin = p.window ? std::max(0, first_query - p.window + 1 - key) / PAIR * PAIR : 0;
        if (begin >= end) return;
        const int64_t row_bytes = depth * amx::TILE, key_bytes = block / 32 * amx::TILE;
        const amx::Operand of_rows{queries + tile * 3 * row_bytes, 3 * row_bytes, row_bytes, amx::TILE, q_parts};
        for (int j = begin; j < end; j += PAIR) {
            const amx::Operand of_keys{keys + j / amx::ROWS * k_parts * row_bytes, k_parts * row_bytes, row_bytes, amx::TILE, k_parts};
            amx::multiply_pair(of_keys, of_rows, depth, scores + j * VL, amx::ROWS * VL, int64_t(block) * VL, false);
        }
        const int whole_begin = p.window ? std::clamp(last_query - p.window + 1 - key, begin, end) : begin;
        const int whole_end = std::clamp(std::min(n, first_query + 1 - key), whole_begin, end);
        for (int i = tile; i < tile + 2; i++) {
            const Range range{key, begin, whole_begin, whole_end, end};
            weigh(i, range, scores + (i - tile) * block * VL, weights + (i - tile) * W_PARTS * key_bytes);
        }
        const int64_t first = begin / 32 * amx::TILE;
        const amx::Operand of_weights{weights + first, W_PARTS * key_bytes, key_bytes, amx::TILE, W_PARTS};
        for (int e = 0; e < num_columns; e += 2) {
            const amx::Operand of_values{values + e * V_PARTS * key_bytes + first, V_PARTS * key_bytes, key_bytes, amx::TILE, V_PARTS};
            float* to = sums + (int64_t(tile) * num_columns + e) * amx::ROWS * VL;
            amx::multiply_pair(of_values, of_weights, (end - begin) / 32, to, amx::ROWS * VL, int64_t(num_columns) * amx::ROWS * VL, true);
        }
    }

    // Keys of a block, which begins at `key`: some rows see those from `begin` to `end`, all rows the whole ones.
    struct Range {
        int key, begin, whole_begin, whole_end, end;
    };

    // From a tile's scores to the weights of its values.
    void weigh(int tile, const Range& range, float* scores, char* weights) {
        vf best = splat(MINUS_INF);
        const auto see = [&](int from, int to, bool is_whole) { best = max(best, finish_scores(tile, range.key, scores, from, to, is_whole)); };
        see(range.begin, range.whole_begin, false);
        see(range.whole_begin, range.whole_end, true);
        see(range.whole_end, range.end, false);
        const vf before = s.maxima[tile], now = max(before, best * unit);
        const vf maximum = now == MINUS_INF ? vf{} : now;  // nothing to see yet
        const vf shrink = exp2(before - maximum);
        s.maxima[tile] = now;
        const vf total = s.value_factors.empty() ? exponentiate<false>(scores, range, maximum, weights) : exponentiate<true>(scores, range, maximum, weights);
        s.normalizers[tile] = s.normalizers[tile] * shrink + total;
        if (max(1 - shrink) > 0)
            for (int e = 0; e < num_columns * amx::ROWS; e++) sums_of(tile)[e] *= shrink;
    }

    // Scores times `unit` are logarithms of weights; those of keys that a row does not see are infinitely small. Returns the maxima.
    vf finish_scores(int tile, int key, float* scores, int from, int to, bool is_whole) {
        vf best = splat(MINUS_INF);
        if (from == to) return best;
        if (is_whole && !is_adjusted && s.key_factors.empty()) {
            for (int j = from; j < to; j++) best = max(best, load(scores + j * VL));
            return best;
        }
        vf slopes = {}, positions;
        for (int i = 0; i < VL; i++) {
            const int m = std::min(tile * amx::ROWS + i, M - 1);
            if (p.slopes) slopes[i] = p.slopes[p.head(item, m)];
            positions[i] = float(query(m));
        }
        for (int j = from; j < to; j++) {
            vf x = load(scores + j * VL);
            if (!s.key_factors.empty()) x *= s.key_factors[j];
            if (is_adjusted) {
                x *= p.scale;
                if (p.soft_cap > 0) x = p.soft_cap * tanh(x / p.soft_cap);
                x += slopes * (float(key + j) - positions);
            }
            if (!is_whole) {
                const vi at = key + j - vi{};
                x = at <= s.lasts[tile] ? x : splat(MINUS_INF);
                x = at >= s.firsts[tile] ? x : splat(MINUS_INF);
            }
            store(scores + j * VL, x);
            best = max(best, x);
        }
        return best;
    }

    // Weights as right operands; returns their sums.
    template <bool HAS_FACTORS>
    vf exponentiate(const float* scores, const Range& range, vf maximum, char* weights) const {
        vf totals[2] = {};
        const vf factor = splat(unit);
        const float* value_factors = s.value_factors.data();
        const int64_t part_bytes = block / 32 * amx::TILE;
        for (int j = range.begin; j < range.end; j += 2) {
            vu parts[2][W_PARTS];
            for (int i = 0; i < 2; i++) {
                vf x = exp2(load(scores + (j + i) * VL) * factor - maximum);
                totals[i] += x;
                if constexpr (HAS_FACTORS) x *= value_factors[j + i];
                amx::split<W_PARTS>(x, parts[i]);
            }
            for (int part = 0; part < W_PARTS; part++) {
                const vu pairs = amx::in_pairs(parts[0][part], parts[1][part]);
                memcpy(weights + part * part_bytes + j / 2 * amx::BYTES, &pairs, sizeof pairs);
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
                if (num > 0) memcpy(to + e * VL, &columns[i], num * sizeof(float));
            }
        }
        if (!item.partial) return;
        for (int i = 0; i < std::min(VL, M - tile * amx::ROWS); i++) {
            float* partial = item.partial + size_t(tile * amx::ROWS + i) * (p.E + 2);
            partial[p.E] = s.maxima[tile][i] / LOG2_E;
            partial[p.E + 1] = s.normalizers[tile][i];
        }
    }
};

}  // namespace
#endif
