// Rows as tiles for AMX, and how threads share the products of tiles with panels.
#pragma once

#include "amx.h"

#if HAS_AMX

#include <vector>

#include "aligned_memory.h"
#include "gated.h"
#include "rows.h"
#include "turns.h"

namespace amx {

constexpr int64_t BLOCK_BYTES = 768 << 10;  // of rows that pass over a group of panels: they stay in the second-level cache
constexpr int64_t GATED_BYTES = 512 << 10;  // more, where their gates and what is gated stay there, too
constexpr int64_t GATED_TILE = 2 * ROWS * GROUP * PANEL * sizeof(float);  // of a tile of rows

// Rows as 8-bit codes with a scale for each (rows.h), as [tile, chunk, 16, 64].
struct CodedTiles {
    int M, K, num_tiles, num_chunks;
    std::vector<float> scales;
    int8_t* codes;

    // For rows of `num_inputs`, which are filled up with zeros to `padded` and further to whole chunks.
    void resize(int num_rows, int num_inputs, int padded) {
        M = num_rows, K = num_inputs, num_tiles = (M + ROWS - 1) / ROWS, num_chunks = (padded + BYTES - 1) / BYTES;
        codes = reinterpret_cast<int8_t*>(tiles.resize(int64_t(num_tiles) * num_chunks * TILE));
        if (scales.size() < size_t(M)) scales.resize(M);
    }

    Rows rows() const { return {reinterpret_cast<const char*>(codes), num_tiles, 1, num_chunks}; }

    void code(int row, const float* x) {
        const RowScale of(x, K);
        scales[row] = of.scale;
        int8_t* to = codes + (int64_t(row / ROWS) * num_chunks * ROWS + row % ROWS) * BYTES;
        for (int begin = 0; begin < num_chunks * BYTES; begin += BYTES, to += TILE)
            for (int k = begin; k < begin + BYTES; k += VL) {
                const __m128i some = of.factor && k < K ? codes_of(load_some(x + k, K - k), of.factor) : __m128i{};
                memcpy(to + (k - begin), &some, sizeof some);
            }
    }

private:
    AlignedMemory tiles;

    // Adding 1.5 * 2^23 rounds to an integer, which the last bits are.
    static __m128i codes_of(vf x, float factor) {
        return _mm512_cvtepi32_epi8((__m512i)_mm512_fmadd_ps((__m512)x, _mm512_set1_ps(factor), _mm512_set1_ps(12582912.0f)));
    }
};

// Rows of floats as NUM sums of halves (bfloat16), as [tile, part, chunk, 16, 32]. A part is the upper half of what the parts before it
// leave of a value, so three are the value, but for what is below the smallest normal float.
template <int NUM>
struct Halves {
    int M, K, num_tiles, num_chunks;
    char* halves;

    void resize(int num_rows, int num_inputs) {
        M = num_rows, K = num_inputs, num_tiles = (M + ROWS - 1) / ROWS, num_chunks = (K + BYTES / 2 - 1) / (BYTES / 2);
        halves = tiles.resize(int64_t(num_tiles) * NUM * num_chunks * TILE);
    }

    Rows rows() const { return {halves, num_tiles, NUM, num_chunks}; }

    void split(int row, const float* x) {
        char* to = halves + (int64_t(row / ROWS) * NUM * num_chunks * ROWS + row % ROWS) * BYTES;
        for (int chunk = 0; chunk < num_chunks; chunk++, to += TILE)
            for (int i = 0; i < BYTES / 2; i += VL) {
                const int k = chunk * (BYTES / 2) + i;
                vf left = k < K ? load_some(x + k, K - k) : vf{};
                for (int part = 0; part < NUM; part++) {
                    const vu upper = (vu)left & 0xffff0000u;
                    const vh half = __builtin_convertvector(upper >> 16, vh);
                    memcpy(to + part * num_chunks * TILE + i * 2, &half, sizeof half);
                    left -= (vf)upper;
                    left = left == left ? left : vf{};  // an infinity has no rest
                }
            }
    }

private:
    AlignedMemory tiles;
};

// Where products go: `first` is where the first row of `tile` has its first output of `panel`. There are M rows and N outputs in all.
struct Outputs {
    float* first;
    int64_t stride;  // of a row
    int tile, panel, M, N;
};

// write(row of the tile, where its outputs of a panel are) for the rows that a tile has.
template <class Write>
void write_tile(const Outputs& outputs, int tile, int panel, Write write) {
    const int num_rows = std::min(ROWS, outputs.M - tile * ROWS), num = std::min(PANEL, outputs.N - panel * PANEL);
    float* to = outputs.first + int64_t(tile - outputs.tile) * ROWS * outputs.stride + int64_t(panel - outputs.panel) * PANEL;
    if (num == PANEL) {
        for (int r = 0; r < num_rows; r++, to += outputs.stride) write(r, to);
        return;
    }
    for (int r = 0; r < num_rows; r++, to += outputs.stride) {
        float whole[PANEL] = {};
        memcpy(whole, to, num * sizeof(float));
        write(r, whole);
        memcpy(to, whole, num * sizeof(float));
    }
}

// lay_out(row) for all rows, then multiply(first tile of rows, their end, panel, number of panels, outputs) for all of them with all panels
// of N outputs. With an activation the first half of them are gates, and `out` is [M, N / 2]: where halves are whole panels, and blocks and
// groups keep the threads busy, nothing else leaves the second-level cache.
template <class LayOut, class Multiply>
void for_panels(const Rows& rows, float* out, int M, int N, int K, int activation, int num_threads, LayOut lay_out, Multiply multiply) {
    const bool is_gated = activation != NONE;
    const int width = is_gated ? N / 2 : N;
    const Shares shares(M, width, K, num_threads);
    const int64_t tile_bytes = int64_t(rows.num_parts) * rows.num_chunks * TILE;
    const int64_t most = is_gated ? (BLOCK_BYTES + GATED_BYTES) / (tile_bytes + GATED_TILE) : BLOCK_BYTES / std::max<int64_t>(1, tile_bytes);
    const int block = int(std::clamp<int64_t>(most / 2 * 2, 2, std::max(2, rows.num_tiles)));
    const int num_blocks = (rows.num_tiles + block - 1) / block;
    if (is_gated && (N % (2 * PANEL) || num_blocks * shares.num_groups < 4 * num_threads)) {
        return linear_then_gated(M, N, activation, out, num_threads, [&](float* both) {
            for_panels(rows, both, M, N, K, NONE, num_threads, lay_out, multiply);
        });
    }
    const bool is_little = rows.num_tiles * tile_bytes < LITTLE;
    if (is_little)
        for (int m = 0; m < M; m++) lay_out(m);
    Turns turns(num_blocks * shares.num_groups, shares.num_threads);
#pragma omp parallel num_threads(shares.num_threads)
    {
        if (!is_little) {
#pragma omp for schedule(static)
            for (int m = 0; m < M; m++) lay_out(m);
        }
        const Shaped shaped;
        turns.take([&](int i) {
            const int first = i / shares.num_groups * block, end = std::min(rows.num_tiles, first + block);
            const int group = i % shares.num_groups, panel = group * GROUP, num = shares.size(group);
            if (!is_gated) return multiply(first, end, panel, num, Outputs{out, N, 0, 0, M, N});
            static thread_local AlignedMemory memory;
            const int64_t size = (end - first) * GATED_TILE / 2 / int64_t(sizeof(float));
            float* gates = reinterpret_cast<float*>(memory.resize((end - first) * GATED_TILE));
            const int others = panel + width / PANEL;
            multiply(first, end, panel, num, Outputs{gates, GROUP * PANEL, first, panel, M, N});
            multiply(first, end, others, num, Outputs{gates + size, GROUP * PANEL, first, others, M, N});
            for (int m = first * ROWS; m < std::min(M, end * ROWS); m++, gates += GROUP * PANEL)
                gated_row(gates, gates + size, num * PANEL, activation, out + int64_t(m) * width + panel * PANEL);
        });
    }
}

}  // namespace amx
#endif
