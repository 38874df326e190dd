// Products of tiles by Intel's AMX: 16 rows with the 16 outputs of a panel, 64 bytes of inputs at a time, which is how weights lie.
//
// Rows lie as [tile, part, chunk, 16, 64 bytes]; what a tile has beyond the last row is multiplied, and not kept. Values that a
// half does not hold are sums of several parts.
//
// Legend: R tiles of rows, P panels.
#pragma once

#if defined(__AMX_INT8__) && defined(__AMX_BF16__) && defined(__AVX512VNNI__)
#define HAS_AMX 1
#else
#define HAS_AMX 0
#endif

#if HAS_AMX

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "panels.h"
#include "tiles.h"

namespace amx {

constexpr int ROWS = 16;     // of a tile
constexpr int BYTES = 64;    // of a tile's row: inputs that are multiplied at a time
constexpr int64_t TILE = ROWS * BYTES;

// While it lives its thread can multiply tiles. Other libraries shape them otherwise, so it lives no longer than a kernel's call.
class Shaped {
public:
    Shaped() {
        struct {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t row_bytes[16] = {};
            uint8_t rows[16] = {};
        } shape;
        for (int i = 0; i < 8; i++) shape.row_bytes[i] = BYTES, shape.rows[i] = ROWS;
        _tile_loadconfig(&shape);
    }
    ~Shaped() { _tile_release(); }
    Shaped(const Shaped&) = delete;
};

struct Rows {
    const char* tiles;
    int num_tiles, num_parts, num_chunks;
    const char* at(int tile, int part, int chunk) const {
        return tiles + ((int64_t(tile) * num_parts + part) * num_chunks + chunk) * TILE;
    }
};

// Neighbouring panels. The last chunk of what lies anywhere may be shorter: it is filled up with zeros in a place of its own.
struct Panels {
    const char* first;
    int64_t bytes;  // of a panel
    int num;
    int num_whole;  // chunks
    alignas(64) char last[GROUP][TILE];

    Panels(const void* panels, int64_t panel_bytes, int panel, int num_panels)
        : first(static_cast<const char*>(panels) + panel * panel_bytes), bytes(panel_bytes), num(num_panels),
          num_whole(int(bytes / TILE)) {
        if (const int64_t rest = bytes % TILE)
            for (int i = 0; i < num; i++) {
                memcpy(last[i], first + i * bytes + num_whole * TILE, rest);
                memset(last[i] + rest, 0, TILE - rest);
            }
    }

    const char* at(int panel, int chunk) const { return chunk < num_whole ? first + panel * bytes + chunk * TILE : last[panel]; }
};

#define MULTIPLY(sums, rows, panel) \
    if constexpr (std::is_integral_v<Sum>) _tile_dpbssd(sums, rows, panel); \
    else _tile_dpbf16ps(sums, rows, panel)

// sums[R P] of neighbouring tiles of rows and panels: 8-bit integers where sums are integers, else halves (bfloat16).
template <int R, int P, class Sum>
void products(const Rows& rows, int tile, const Panels& panels, int panel, Sum (*sums)[ROWS * PANEL]) {
    static_assert(R == 1 ? P <= 4 : R == 2 && P <= 2, "there are four tiles for sums");
    std::atomic_signal_fence(std::memory_order_seq_cst);  // compilers do not know that tiles are read from memory
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int chunk = 0; chunk < rows.num_chunks; chunk++)
        for (int part = 0; part < rows.num_parts; part++) {
            const bool are_new = part == 0 || P > 2;  // panels
            _tile_loadd(4, rows.at(tile, part, chunk), BYTES);
            if constexpr (R == 2) {
                _tile_loadd(5, rows.at(tile + 1, part, chunk), BYTES);
            }
            if (are_new) {
                _tile_loadd(6, panels.at(panel, chunk), BYTES);
            }
            MULTIPLY(0, 4, 6);
            if constexpr (P > 1) {
                if (are_new) {
                    _tile_loadd(7, panels.at(panel + 1, chunk), BYTES);
                }
                MULTIPLY(1, 4, 7);
            }
            if constexpr (R == 2) {
                MULTIPLY(2, 5, 6);
            }
            if constexpr (R == 2 && P == 2) {
                MULTIPLY(3, 5, 7);
            }
            if constexpr (P > 2) {
                _tile_loadd(6, panels.at(panel + 2, chunk), BYTES);
                MULTIPLY(2, 4, 6);
            }
            if constexpr (P > 3) {
                _tile_loadd(7, panels.at(panel + 3, chunk), BYTES);
                MULTIPLY(3, 4, 7);
            }
        }
    _tile_stored(0, sums[0], BYTES);
    if constexpr (P > 1) _tile_stored(1, sums[1], BYTES);
    if constexpr (R == 2 || P > 2) _tile_stored(2, sums[R == 2 ? P : 2], BYTES);
    if constexpr (R * P == 4) _tile_stored(3, sums[3], BYTES);
}

#undef MULTIPLY

// finish(tile of rows, panel of the group, sums [NUM, 16, 16]) for tiles of rows from `begin` to `end` with each NUM panels.
template <class Sum, int NUM = 1, class Finish>
void multiply(const Rows& rows, int begin, int end, const Panels& panels, Finish finish) {
    alignas(64) Sum sums[4][ROWS * PANEL];
    const auto run = [&](int tile, int panel, auto R, auto P) {
        products<R, P>(rows, tile, panels, panel, sums);
        for (int r = 0; r < R; r++)
            for (int i = 0; i < P; i += NUM) finish(tile + r, panel + i, &sums[r * P + i]);
    };
    int tile = begin;
    constexpr std::integral_constant<int, 1> one;
    constexpr std::integral_constant<int, 2> two;
    for (; tile + 2 <= end; tile += 2) by_tiles<2>(0, panels.num, [&](int panel, auto P) { run(tile, panel, two, P); });
    if (tile < end) by_tiles<4>(0, panels.num, [&](int panel, auto P) { run(tile, panel, one, P); });
}

}  // namespace amx
#endif
