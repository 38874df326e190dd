// Queries, keys and values as AMX's tiles, in parts (bf16_parts.h). All give whether every value has finite parts.
//
// Behind the last value of a head are zeros, behind the last token of a tile it is repeated.
//
// Legend: D head_dim of keys, E head_dim of values.
#pragma once

#include "bf16_parts.h"

#if HAS_AMX

#include "attention_items.h"

namespace {

constexpr int PAIR = 2 * amx::ROWS;  // score rows, keys or columns of values that are multiplied at a time

// 16 rows of queries as right operands, [part, chunk of D]. Adds to `low_bits` those of other parts than the first.
inline bool lay_out_queries(const float* const* rows, int D, char* tiles, vu& low_bits) {
    const int depth = round_up(D, 32) / 32;
    amx::Finite finite;
    for (int d = 0; d < depth * 32; d += VL) {
        vf values[VL];
        for (int i = 0; i < VL; i++) values[i] = finite(load_some(rows[i] + d, D - d));
        transpose(values);
        for (int i = 0; i < VL; i += 2) {
            vu first[amx::FLOAT_PARTS], second[amx::FLOAT_PARTS];
            amx::split<amx::FLOAT_PARTS>(values[i], first);
            amx::split<amx::FLOAT_PARTS>(values[i + 1], second);
            low_bits |= first[1] | second[1];
            for (int part = 0; part < amx::FLOAT_PARTS; part++) {
                const vu pairs = amx::in_pairs(first[part], second[part]);
                memcpy(tiles + part * depth * amx::TILE + (d + i) / 2 * amx::BYTES, &pairs, sizeof pairs);
            }
        }
    }
    return finite.holds();
}

// Whole pairs of tiles of keys as left operands, [tile, part, chunk of D].
template <int PARTS, class T>
bool unpack_key_tiles(const Pool<T>& pool, int head, int D, const int32_t* slots, int num_keys, char* tiles) {
    const int depth = round_up(D, 32) / 32;
    amx::Finite finite;
    for (int j = 0; j < round_up(num_keys, PAIR); j++) {
        const int32_t slot = slots[std::min(j, num_keys - 1)];
        const T* k = pool.at(slot, head);
        if (j + AHEAD < num_keys) pool.prefetch(slots[j + AHEAD], head, D);
        for (int d = 0; d < depth * 32; d += VL) {
            vf x = load_some(k + d, D - d);
            if (pool.parts > 1) {
                const float* factors = pool.factors_at(slot, head);
                for (int i = 0; i < VL; i++) x[i] *= factors[d + i >= pool.first_part];
            }
            vu parts[PARTS];
            amx::split<PARTS>(finite(x), parts);
            for (int part = 0; part < PARTS; part++) {
                const vh values = amx::in_row(parts[part]);
                char* tile = tiles + (int64_t(j / amx::ROWS * PARTS + part) * depth + d / 32) * amx::TILE;
                memcpy(tile + j % amx::ROWS * amx::BYTES + d % 32 * sizeof(uint16_t), &values, sizeof values);
            }
        }
    }
    return finite.holds();
}

// Values as left operands, turned over, [tile of E, part, chunk of keys]: `num_chunks` in all, of which as many as needed are written.
template <int PARTS, class T>
bool unpack_value_tiles(const Pool<T>& pool, int head, int E, const int32_t* slots, int num_keys, char* tiles, int num_chunks) {
    amx::Finite finite;
    for (int j = 0; j < num_keys; j += 32) {
        const T* v[32];
        for (int i = 0; i < 32; i++) v[i] = pool.at(slots[std::min(j + i, num_keys - 1)], head);
        for (int i = 32; i < std::min(64, num_keys - j); i++) pool.prefetch(slots[j + i], head, E);
        for (int e = 0; e < round_up(E, PAIR); e += VL) {
            vf parts[PARTS][VL];
            for (int i = 0; i < VL; i++) {
                vu first[PARTS], second[PARTS];
                amx::split<PARTS>(finite(load_some(v[2 * i] + e, E - e)), first);
                amx::split<PARTS>(finite(load_some(v[2 * i + 1] + e, E - e)), second);
                for (int part = 0; part < PARTS; part++) parts[part][i] = (vf)amx::in_pairs(first[part], second[part]);
            }
            for (int part = 0; part < PARTS; part++) {
                transpose(parts[part]);
                memcpy(tiles + (int64_t(e / VL * PARTS + part) * num_chunks + j / 32) * amx::TILE, parts[part], amx::TILE);
            }
        }
    }
    return finite.holds();
}

}  // namespace
#endif
