// The two products of attention: scores of queries with keys, and mixtures of values, read from pools of any type.
//
// Few rows read keys and values where they lie, each once. Many rows share a tile that is unpacked to floats first. Knows no masks and no
// softmax; factors of int8 pools are applied by whoever calls, but where a key has two of them.
//
// Legend: M score rows, J keys, W vectors of a value, D head_dim of keys, E head_dim of values.
#pragma once

#include <algorithm>

#include "simd.h"
#include "tiles.h"

namespace {

constexpr int TILE = 128;                     // keys that are unpacked at once
constexpr int TILE_ROWS = 6;                  // rows of two vectors of keys or values: 12 sums fit the registers
constexpr int AHEAD = 16;                     // keys between what is read and what is fetched: slots may lie anywhere
constexpr int ROWS_AT_ONCE = VL == 16 ? 6 : 2;  // of keys that are read where they lie: sums of all must fit the registers

// Keys or values of one layer. Codes of one byte have `parts` factors for each token and head: with two, the first `first_part`
// values of a head have the first one and the others the second.
template <class T>
struct Pool {
    const T* data;
    int64_t token_stride, head_stride;
    const float* factors;
    int64_t factor_stride;
    int parts, first_part;

    const T* at(int64_t slot, int head) const { return data + slot * token_stride + head * head_stride; }
    const float* factors_at(int64_t slot, int head) const { return factors + slot * factor_stride + head * parts; }
    void prefetch(int64_t slot, int head, int size) const {
        const char* ahead = reinterpret_cast<const char*>(at(slot, head));
        for (size_t byte = 0; byte < size * sizeof(T); byte += 64) __builtin_prefetch(ahead + byte);
    }
};

// scores[m][j] = q[m] . k[j] for J keys.
template <int M, int J, class T>
inline void products(const float* const* q, const T* const* k, int D, float* scores, int stride) {
    const int whole = D / VL * VL;
    vf acc[M][J] = {};
    for (int d = 0; d < whole; d += VL) {
        vf x[M];
        for (int m = 0; m < M; m++) x[m] = load(q[m] + d);
        for (int j = 0; j < J; j++) {
            const vf key = load(k[j] + d);
            for (int m = 0; m < M; m++) acc[m][j] += x[m] * key;
        }
    }
    for (int m = 0; m < M; m++) {
        float* to = scores + m * stride;
        if constexpr (J == 4) store_sums(to, acc[m]);
        else for (int j = 0; j < J; j++) to[j] = sum(acc[m][j]);
        for (int d = whole; d < D; d++)
            for (int j = 0; j < J; j++) to[j] += q[m][d] * load_one(k[j] + d);
    }
}

// The same for all keys of some slots.
template <int M, class T>
void scores_of_rows(const float* const* q, const Pool<T>& pool, int head, int D, const int32_t* slots, int num_keys, float* scores, int stride) {
    if constexpr (M > ROWS_AT_ONCE) {
        scores_of_rows<ROWS_AT_ONCE>(q, pool, head, D, slots, num_keys, scores, stride);
        scores_of_rows<M - ROWS_AT_ONCE>(q + ROWS_AT_ONCE, pool, head, D, slots, num_keys, scores + ROWS_AT_ONCE * stride, stride);
    } else {
        int j = 0;
        for (; j + 4 <= num_keys; j += 4) {
            const T* k[4];
            for (int i = 0; i < 4; i++) k[i] = pool.at(slots[j + i], head);
            for (int i = AHEAD; i < std::min(AHEAD + 4, num_keys - j); i++) pool.prefetch(slots[j + i], head, D);
            products<M, 4>(q, k, D, scores + j, stride);
        }
        for (; j < num_keys; j++) {
            const T* k = pool.at(slots[j], head);
            products<M, 1>(q, &k, D, scores + j, stride);
        }
    }
}

// The same for many rows and two vectors of keys of a tile, which is transposed: a vector holds VL keys.
template <int M>
void scores_of_pair(const float* const* q, const float* keys_DL, int D, float* scores, int stride) {
    vf acc[M][2] = {};
    for (int d = 0; d < D; d++) {
        const vf first = load(keys_DL + d * TILE), second = load(keys_DL + d * TILE + VL);
        for (int m = 0; m < M; m++) {
            const vf x = splat(q[m][d]);
            acc[m][0] += x * first;
            acc[m][1] += x * second;
        }
    }
    for (int m = 0; m < M; m++) {
        store(scores + m * stride, acc[m][0]);
        store(scores + m * stride + VL, acc[m][1]);
    }
}

// A tile of keys as floats, [D, TILE]; behind the last key it is repeated.
template <class T>
void unpack_keys(const Pool<T>& pool, int head, int D, const int32_t* slots, int num_keys, float* keys_DL) {
    for (int j = 0; j < TILE; j += VL) {
        const T* k[VL];
        for (int i = 0; i < VL; i++) k[i] = pool.at(slots[std::min(j + i, num_keys - 1)], head);
        int d = 0;
        for (; d + VL <= D; d += VL) {
            vf block[VL];
            for (int i = 0; i < VL; i++) block[i] = load(k[i] + d);
            transpose(block);
            for (int i = 0; i < VL; i++) store(keys_DL + (d + i) * TILE + j, block[i]);
        }
        for (; d < D; d++)
            for (int i = 0; i < VL; i++) keys_DL[d * TILE + j + i] = load_one(k[i] + d);
        if (pool.parts < 2) continue;
        vf factors[2];
        for (int i = 0; i < VL; i++)
            for (int part = 0; part < 2; part++) factors[part][i] = pool.factors_at(slots[std::min(j + i, num_keys - 1)], head)[part];
        for (d = 0; d < D; d++) {
            float* key = keys_DL + d * TILE + j;
            store(key, load(key) * factors[d >= pool.first_part]);
        }
    }
}

// A tile of values as floats, [TILE, E].
template <class T>
void unpack_values(const Pool<T>& pool, int head, int E, const int32_t* slots, int num_keys, float* values) {
    for (int j = 0; j < num_keys; j++) {
        const T* v = pool.at(slots[j], head);
        int e = 0;
        for (; e + VL <= E; e += VL) store(values + j * E + e, load(v + e));
        for (; e < E; e++) values[j * E + e] = load_one(v + e);
    }
}

// sums[m] += weights[m] . values in W vectors of columns; `value(j)` is where they begin in value j.
template <int M, int W, class Value>
inline void add_columns(const float* weights, int stride, int num_keys, Value value, float* sums, int sums_stride) {
    vf acc[M][W];
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) acc[m][w] = load(sums + m * sums_stride + w * VL);
    for (int j = 0; j < num_keys; j++) {
        const auto* v = value(j);
        vf parts[W];
        for (int w = 0; w < W; w++) parts[w] = load(v + w * VL);
        for (int m = 0; m < M; m++) {
            const vf x = splat(weights[m * stride + j]);
            for (int w = 0; w < W; w++) acc[m][w] += x * parts[w];
        }
    }
    for (int m = 0; m < M; m++)
        for (int w = 0; w < W; w++) store(sums + m * sums_stride + w * VL, acc[m][w]);
}

// The same for E columns, in as wide passes as the registers hold: each pass reads a part of every value.
template <int M, class Value>
void add_values(const float* weights, int stride, int num_keys, Value value, int E, float* sums, int sums_stride) {
    constexpr int WIDE = VL == 16 ? (M < 3 ? 8 : 4) : M < 2 ? 8 : M < 3 ? 4 : 2;
    int e = 0;
    const auto from = [&](int first) { return [&value, first](int j) { return value(j) + first; }; };
    for (; e + WIDE * VL <= E; e += WIDE * VL) add_columns<M, WIDE>(weights, stride, num_keys, from(e), sums + e, sums_stride);
    for (; e + 2 * VL <= E; e += 2 * VL) add_columns<M, 2>(weights, stride, num_keys, from(e), sums + e, sums_stride);
    for (; e + VL <= E; e += VL) add_columns<M, 1>(weights, stride, num_keys, from(e), sums + e, sums_stride);
    for (; e < E; e++)
        for (int m = 0; m < M; m++) {
            float total = sums[m * sums_stride + e];
            for (int j = 0; j < num_keys; j++) total += weights[m * stride + j] * load_one(value(j) + e);
            sums[m * sums_stride + e] = total;
        }
}

}  // namespace
