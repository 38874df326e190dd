// Floats as sums of bfloat16 values, which AMX's tiles multiply, and the products of such sums.
//
// A bfloat16 has 8 of a float32's 24 bits. Each part is the nearest to what is left of a value, so three are a float, but for what is below
// the smallest normal one. Products of two small parts, below the last bit that counts, are left out.
#pragma once

#include "amx.h"

#if HAS_AMX

#include "simd.h"

namespace amx {

constexpr int FLOAT_PARTS = 3;

// The upper halves of parts[i] are bfloat16s, whose sum is x.
template <int PARTS>
inline void split(vf x, vu* parts) {
    static_assert(PARTS == 1 || PARTS == FLOAT_PARTS);
    for (int i = 0; i < PARTS - 1; i++) {
        parts[i] = ((vu)x + 0x8000u) & 0xffff0000u;
        x -= (vf)parts[i];
    }
    parts[PARTS - 1] = (vu)x;  // which has no bits left
}

// As a left operand has them: the values of a row one after the other.
inline vh in_row(vu part) { return __builtin_convertvector(part >> 16, vh); }

// As a right operand has them: two rows, a value of each in turn.
inline vu in_pairs(vu first, vu second) { return first >> 16 | (second & 0xffff0000u); }

// Whether all values that went through it have finite parts.
class Finite {
public:
    vf operator()(vf x) {
        const vu magnitude = (vu)x & 0x7fffffffu;
        most = magnitude > most ? magnitude : most;
        return x;
    }
    bool holds() const {
        uint32_t largest = 0;
        for (int i = 0; i < VL; i++) largest = std::max(largest, uint32_t(most[i]));
        return largest < 0x7f7f8000;  // the least that is rounded to infinity
    }

private:
    vu most = {};
};

// Two tiles beside each other, `next` bytes apart, of `num_parts` parts of chunks of 32 inputs.
struct Operand {
    const char* tiles;
    int64_t next, part, chunk;
    int num_parts;
};

// The products of two tiles of `a` and two of `b` become, or are added to, sums[i * next_a + j * next_b]: 16 x 16 each.
__attribute__((noinline)) inline void multiply_pair(
    const Operand& a, const Operand& b, int num_chunks, float* sums, int64_t next_a, int64_t next_b, bool adds) {
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not know that tiles are read from memory
    if (adds) {
        _tile_loadd(0, sums, BYTES);
        _tile_loadd(1, sums + next_b, BYTES);
        _tile_loadd(2, sums + next_a, BYTES);
        _tile_loadd(3, sums + next_a + next_b, BYTES);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    const int depth = std::max(a.num_parts, b.num_parts);
    for (int chunk = 0; chunk < num_chunks; chunk++)
        for (int i = 0; i < a.num_parts; i++) {
            const char* left = a.tiles + i * a.part + chunk * a.chunk;
            _tile_loadd(4, left, BYTES);
            _tile_loadd(5, left + a.next, BYTES);
            for (int j = 0; j < std::min(b.num_parts, depth - i); j++) {
                const char* right = b.tiles + j * b.part + chunk * b.chunk;
                _tile_loadd(6, right, BYTES);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(2, 5, 6);
                _tile_loadd(7, right + b.next, BYTES);
                _tile_dpbf16ps(1, 4, 7);
                _tile_dpbf16ps(3, 5, 7);
            }
        }
    _tile_stored(0, sums, BYTES);
    _tile_stored(1, sums + next_b, BYTES);
    _tile_stored(2, sums + next_a, BYTES);
    _tile_stored(3, sums + next_a + next_b, BYTES);
}

}  // namespace amx
#endif
