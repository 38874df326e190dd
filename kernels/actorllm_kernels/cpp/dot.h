// Products of 8-bit codes, four inputs of COLS outputs at a time, for what the machine has: AVX-512 or AVX VNNI, AVX2, or neither.
// All give the exact integer.
#pragma once

#include <cstdint>
#include <cstring>

#include "simd.h"

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
// Keeps the compiler from adding products among themselves first, for which it runs out of registers.
static inline __m256i in_order(__m256i sums) {
    asm("" : "+x"(sums));
    return sums;
}
#endif

// `Weights` are the codes of 4 inputs of COLS outputs, which lie as [COLS, 4]; `x` are 4 codes of a row. A `Code` is what a row's
// codes are kept as. VNNI multiplies unsigned by signed bytes: weights are taken as w + 128, and -128 times the row's sum, `row_sum`, is added.

#if defined(__AVX512VNNI__)

struct Dot {
    static constexpr int COLS = 16;
    typedef int8_t Code;
    typedef __m512i Weights, Sums;
    static void weights(Weights& to, const int8_t* w) { to = _mm512_xor_si512(_mm512_loadu_si512(w), _mm512_set1_epi8(-128)); }
    static void zero(Sums& sums) { sums = _mm512_setzero_si512(); }
    static void add(Sums& sums, const Weights& w, const Code* x) {
        int32_t four;
        memcpy(&four, x, sizeof four);
        sums = _mm512_dpbusd_epi32(sums, w, _mm512_set1_epi32(four));
    }
    static void totals(const Sums& sums, int32_t row_sum, int32_t* to) {
        _mm512_storeu_si512(to, _mm512_add_epi32(sums, _mm512_set1_epi32(row_sum)));
    }
};

#elif defined(__AVXVNNI__)

struct Dot {
    static constexpr int COLS = 8;
    typedef int8_t Code;
    typedef __m256i Weights, Sums;
    static void weights(Weights& to, const int8_t* w) {
        to = _mm256_xor_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)), _mm256_set1_epi8(-128));
    }
    static void zero(Sums& sums) { sums = _mm256_setzero_si256(); }
    static void add(Sums& sums, const Weights& w, const Code* x) {
        int32_t four;
        memcpy(&four, x, sizeof four);
        sums = _mm256_dpbusd_avx_epi32(sums, w, _mm256_set1_epi32(four));
    }
    static void totals(const Sums& sums, int32_t row_sum, int32_t* to) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_add_epi32(sums, _mm256_set1_epi32(row_sum)));
    }
};

#elif defined(__AVX2__)

// AVX2's product of unsigned by signed bytes gives 16-bit sums of pairs: |w| times x with w's sign fits them, 2 * 128 * 127 < 2^15.
struct Dot {
    static constexpr int COLS = 8;
    typedef int8_t Code;
    typedef __m256i Sums;
    struct Weights {
        __m256i signs, sizes;
    };
    static void weights(Weights& to, const int8_t* w) {
        to.signs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
        to.sizes = _mm256_abs_epi8(to.signs);
    }
    static void zero(Sums& sums) { sums = _mm256_setzero_si256(); }
    static void add(Sums& sums, const Weights& w, const Code* x) {
        int32_t four;
        memcpy(&four, x, sizeof four);
        const __m256i pairs = _mm256_maddubs_epi16(w.sizes, _mm256_sign_epi8(_mm256_set1_epi32(four), w.signs));
        sums = in_order(_mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))));
    }
    static void totals(const Sums& sums, int32_t, int32_t* to) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), sums); }
};

#else

struct Dot {
    static constexpr int COLS = 16;
    typedef int16_t Code;
    typedef const int8_t* Weights;
    struct Sums {
        int32_t of[COLS];
    };
    static void weights(Weights& to, const int8_t* w) { to = w; }
    static void zero(Sums& sums) { sums = {}; }
    static void add(Sums& sums, const Weights& w, const Code* x) {
        for (int n = 0; n < COLS; n++)
            for (int j = 0; j < 4; j++) sums.of[n] += int32_t(w[n * 4 + j]) * x[j];
    }
    static void totals(const Sums& sums, int32_t, int32_t* to) { memcpy(to, sums.of, sizeof sums.of); }
};

#endif

// Products of unsigned 4-bit weights, which lie as bytes [COLS, 4] with other inputs in the upper bits, and a row's 8-bit codes. `Sums`
// hold what 32 inputs make; `widen` gives them as one 32-bit integer an output.

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)

struct Dot4 {
    static constexpr int COLS = Dot::COLS;
    typedef int32_t Totals __attribute__((vector_size(COLS * 4)));
    typedef Dot::Weights Weights, Sums;
#if defined(__AVX512VNNI__)
    static void split(const uint8_t* w, Weights& low, Weights& high) {
        const __m512i both = _mm512_loadu_si512(w), mask = _mm512_set1_epi8(15);
        low = _mm512_and_si512(both, mask);
        high = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
    }
#else
    static void split(const uint8_t* w, Weights& low, Weights& high) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)), mask = _mm256_set1_epi8(15);
        low = _mm256_and_si256(both, mask);
        high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    }
#endif
    static void add(Sums& sums, const Weights& w, const int8_t* x) { Dot::add(sums, w, x); }
    static Totals widen(const Sums& sums) { return (Totals)sums; }
};

#elif defined(__AVX2__)

struct Dot4 {
    static constexpr int COLS = 8;
    typedef int32_t Totals __attribute__((vector_size(COLS * 4)));
    typedef __m256i Weights, Sums;
    static void split(const uint8_t* w, Weights& low, Weights& high) {
        const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w)), mask = _mm256_set1_epi8(15);
        low = _mm256_and_si256(both, mask);
        high = _mm256_and_si256(_mm256_srli_epi16(both, 4), mask);
    }
    // Pairs sum to at most 2 * 15 * 127, and 8 of them to less than 2^15.
    static void add(Sums& sums, const Weights& w, const int8_t* x) {
        int32_t four;
        memcpy(&four, x, sizeof four);
        sums = in_order(_mm256_add_epi16(sums, _mm256_maddubs_epi16(w, _mm256_set1_epi32(four))));
    }
    static Totals widen(const Sums& sums) { return (Totals)_mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
};

#else

struct Dot4 {
    static constexpr int COLS = VL;
    typedef int32_t Totals __attribute__((vector_size(COLS * 4)));
    typedef Totals Sums;
    struct Weights {
        uint8_t of[COLS * 4];
    };
    static void split(const uint8_t* w, Weights& low, Weights& high) {
        for (int i = 0; i < COLS * 4; i++) {
            low.of[i] = w[i] & 15;
            high.of[i] = w[i] >> 4;
        }
    }
    static void add(Sums& sums, const Weights& w, const int8_t* x) {
        for (int n = 0; n < COLS; n++)
            for (int j = 0; j < 4; j++) sums[n] += int32_t(w.of[n * 4 + j]) * x[j];
    }
    static Totals widen(const Sums& sums) { return sums; }
};

#endif
