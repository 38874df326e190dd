// Stands in for the compiler's header where the processor lacks AVX-512 or AVX VNNI: the same names as plain loops over lanes, after
// Intel's Intrinsics Guide. Only what the kernels use is here; a compiler's vector extensions do the rest.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

typedef long long __m128i __attribute__((vector_size(16), may_alias));
typedef long long __m256i __attribute__((vector_size(32), may_alias));
typedef long long __m512i __attribute__((vector_size(64), may_alias));
typedef float __m256 __attribute__((vector_size(32), may_alias));
typedef float __m512 __attribute__((vector_size(64), may_alias));

namespace emulated {

template <class Lane, class Vector>
struct Lanes {
    static constexpr int NUM = sizeof(Vector) / sizeof(Lane);
    Lane of[NUM];
    Lanes() = default;
    Lanes(const Vector& vector) { memcpy(of, &vector, sizeof of); }
    operator Vector() const {
        Vector vector;
        memcpy(&vector, of, sizeof vector);
        return vector;
    }
};

template <class Vector>
Vector loaded(const void* from) {
    Vector vector;
    memcpy(&vector, from, sizeof vector);
    return vector;
}

template <class Lane, class Vector>
Vector all(Lane value) {
    Lanes<Lane, Vector> lanes;
    for (Lane& lane : lanes.of) lane = value;
    return lanes;
}

template <class To, class From, class Wide, class Narrow>
Wide converted(const Narrow& narrow) {
    const Lanes<From, Narrow> from(narrow);
    Lanes<To, Wide> to;
    static_assert(to.NUM == from.NUM, "one lane becomes one lane");
    for (int i = 0; i < to.NUM; i++) to.of[i] = To(from.of[i]);
    return to;
}

template <class Vector>
Vector shifted_right(const Vector& vector, int count) {
    Lanes<uint16_t, Vector> lanes(vector);
    for (uint16_t& lane : lanes.of) lane = uint16_t(lane >> count);
    return lanes;
}

template <class Vector>
Vector added(const Vector& a, const Vector& b) {
    Lanes<uint32_t, Vector> sums(a);
    const Lanes<uint32_t, Vector> more(b);
    for (int i = 0; i < sums.NUM; i++) sums.of[i] += more.of[i];
    return sums;
}

// VPDPBUSD: each 32-bit lane of `sums` gains four products of an unsigned byte of `a` by a signed byte of `b`.
template <class Vector>
Vector gained(const Vector& sums, const Vector& a, const Vector& b) {
    Lanes<int32_t, Vector> totals(sums);
    const Lanes<uint8_t, Vector> unsigned_bytes(a);
    const Lanes<int8_t, Vector> signed_bytes(b);
    for (int i = 0; i < unsigned_bytes.NUM; i++) totals.of[i / 4] += int32_t(unsigned_bytes.of[i]) * signed_bytes.of[i];
    return totals;
}

template <class Vector, class F>
Vector by_lanes(const Vector& a, const Vector& b, F f) {
    Lanes<float, Vector> lanes(a);
    const Lanes<float, Vector> others(b);
    for (int i = 0; i < lanes.NUM; i++) lanes.of[i] = f(lanes.of[i], others.of[i]);
    return lanes;
}

template <class Vector>
Vector fused(const Vector& a, const Vector& b, const Vector& c) {
    Lanes<float, Vector> lanes(a);
    const Lanes<float, Vector> factors(b), added(c);
    for (int i = 0; i < lanes.NUM; i++) lanes.of[i] = std::fma(lanes.of[i], factors.of[i], added.of[i]);
    return lanes;
}

}  // namespace emulated

inline __m128i _mm_loadu_si128(const void* p) { return emulated::loaded<__m128i>(p); }
inline __m128i _mm_loadl_epi64(const void* p) {
    __m128i low = {};
    memcpy(&low, p, 8);
    return low;
}

inline __m256i _mm256_loadu_si256(const void* p) { return emulated::loaded<__m256i>(p); }
inline void _mm256_storeu_si256(void* p, __m256i v) { memcpy(p, &v, sizeof v); }
inline __m256i _mm256_setzero_si256() { return __m256i{}; }
inline __m256i _mm256_set1_epi8(char x) { return emulated::all<char, __m256i>(x); }
inline __m256i _mm256_set1_epi32(int x) { return emulated::all<int, __m256i>(x); }
inline __m256i _mm256_and_si256(__m256i a, __m256i b) { return a & b; }
inline __m256i _mm256_xor_si256(__m256i a, __m256i b) { return a ^ b; }
inline __m256i _mm256_srli_epi16(__m256i v, int count) { return emulated::shifted_right(v, count); }
inline __m256i _mm256_add_epi32(__m256i a, __m256i b) { return emulated::added(a, b); }
inline __m256i _mm256_dpbusd_avx_epi32(__m256i sums, __m256i a, __m256i b) { return emulated::gained(sums, a, b); }
inline __m256 _mm256_cvtepi32_ps(__m256i v) { return emulated::converted<float, int32_t, __m256>(v); }
inline __m256i _mm256_cvtepu16_epi32(__m128i v) { return emulated::converted<int32_t, uint16_t, __m256i>(v); }
inline __m256i _mm256_cvtepi8_epi32(__m128i v) {
    int8_t low[8];
    memcpy(low, &v, sizeof low);
    emulated::Lanes<int32_t, __m256i> lanes;
    for (int i = 0; i < 8; i++) lanes.of[i] = low[i];
    return lanes;
}

inline __m512i _mm512_loadu_si512(const void* p) { return emulated::loaded<__m512i>(p); }
inline void _mm512_storeu_si512(void* p, __m512i v) { memcpy(p, &v, sizeof v); }
inline __m512i _mm512_setzero_si512() { return __m512i{}; }
inline __m512i _mm512_set1_epi8(char x) { return emulated::all<char, __m512i>(x); }
inline __m512i _mm512_set1_epi32(int x) { return emulated::all<int, __m512i>(x); }
inline __m512i _mm512_and_si512(__m512i a, __m512i b) { return a & b; }
inline __m512i _mm512_xor_si512(__m512i a, __m512i b) { return a ^ b; }
inline __m512i _mm512_srli_epi16(__m512i v, unsigned count) { return emulated::shifted_right(v, int(count)); }
inline __m512i _mm512_add_epi32(__m512i a, __m512i b) { return emulated::added(a, b); }
inline __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) { return emulated::gained(sums, a, b); }
inline __m512 _mm512_cvtepi32_ps(__m512i v) { return emulated::converted<float, int32_t, __m512>(v); }
inline __m512i _mm512_cvtepu16_epi32(__m256i v) { return emulated::converted<int32_t, uint16_t, __m512i>(v); }
inline __m512 _mm512_set1_ps(float x) { return emulated::all<float, __m512>(x); }
inline __m512 _mm512_fmadd_ps(__m512 a, __m512 b, __m512 c) { return emulated::fused(a, b, c); }
inline __m512 _mm512_max_ps(__m512 a, __m512 b) { return emulated::by_lanes(a, b, [](float x, float y) { return x > y ? x : y; }); }
inline __m512 _mm512_scalef_ps(__m512 a, __m512 b) { return emulated::by_lanes(a, b, [](float x, float y) { return x * std::exp2(std::floor(y)); }); }
inline __m512 _mm512_reduce_ps(__m512 a, int) {  // as the kernels ask for it: what is left of the largest whole number below
    return emulated::by_lanes(a, a, [](float x, float) { return std::isinf(x) ? 0 : x - std::floor(x); });
}
inline __m128i _mm512_cvtepi32_epi8(__m512i v) { return emulated::converted<int8_t, int32_t, __m128i>(v); }
inline __m512i _mm512_cvtepi8_epi32(__m128i v) { return emulated::converted<int32_t, int8_t, __m512i>(v); }

// The tiles of AMX: a thread has eight, whose shapes it sets.
namespace emulated {

struct Shapes {
    uint8_t palette, start, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

inline thread_local Shapes shapes = {};
inline thread_local char tiles[8][16][64];

// `sums` gains the products of the rows of `a` with the columns of `b`, a 32-bit lane of each at a time.
template <class Sum, class Product>
void gain(int sums, int a, int b, Product product) {
    for (int m = 0; m < shapes.rows[sums]; m++)
        for (int n = 0; n < shapes.row_bytes[sums] / 4; n++)
            for (int k = 0; k < shapes.row_bytes[a] / 4; k++) {
                Sum total;
                memcpy(&total, tiles[sums][m] + n * 4, 4);
                total += product(tiles[a][m] + k * 4, tiles[b][k] + n * 4);
                memcpy(tiles[sums][m] + n * 4, &total, 4);
            }
}

inline float half(const char* p) {
    uint16_t bits;
    memcpy(&bits, p, 2);
    const uint32_t whole = uint32_t(bits) << 16;
    float value;
    memcpy(&value, &whole, 4);
    return value;
}

}  // namespace emulated

inline void _tile_loadconfig(const void* shapes) { memcpy(&emulated::shapes, shapes, sizeof emulated::shapes); }
inline void _tile_release() { emulated::shapes = {}; }
inline void _tile_zero(int tile) { memset(emulated::tiles[tile], 0, sizeof emulated::tiles[tile]); }
inline void _tile_loadd(int tile, const void* from, long stride) {
    _tile_zero(tile);
    for (int m = 0; m < emulated::shapes.rows[tile]; m++)
        memcpy(emulated::tiles[tile][m], static_cast<const char*>(from) + m * stride, emulated::shapes.row_bytes[tile]);
}
inline void _tile_stored(int tile, void* to, long stride) {
    for (int m = 0; m < emulated::shapes.rows[tile]; m++)
        memcpy(static_cast<char*>(to) + m * stride, emulated::tiles[tile][m], emulated::shapes.row_bytes[tile]);
}
inline void _tile_dpbssd(int sums, int a, int b) {
    emulated::gain<int32_t>(sums, a, b, [](const char* x, const char* w) {
        int32_t total = 0;
        for (int i = 0; i < 4; i++) total += int32_t(static_cast<signed char>(x[i])) * static_cast<signed char>(w[i]);
        return total;
    });
}
inline void _tile_dpbf16ps(int sums, int a, int b) {
    emulated::gain<float>(sums, a, b, [](const char* x, const char* w) {
        return emulated::half(x) * emulated::half(w) + emulated::half(x + 2) * emulated::half(w + 2);
    });
}
