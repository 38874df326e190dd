// Vectors of floats by the compiler's vector extensions: one source for AVX-512, AVX2 and any other machine.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// AVX-512 counts from VNNI on: processors with the one and not the other run slower while they use it, and products of codes
// (dot.h) have vectors of the same length as floats.
#if defined(__AVX512VNNI__)
constexpr int VL = 16;  // floats in a vector
#elif defined(__AVX2__)
constexpr int VL = 8;
#else
constexpr int VL = 4;
#endif

typedef float vf __attribute__((vector_size(VL * 4)));
typedef int32_t vi __attribute__((vector_size(VL * 4)));
typedef uint32_t vu __attribute__((vector_size(VL * 4)));
typedef uint16_t vh __attribute__((vector_size(VL * 2)));
typedef int8_t vb __attribute__((vector_size(VL)));

static inline vf splat(float x) { return x - vf{}; }

static inline vf load(const float* p) {
    vf v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vu load_words(const void* p) {
    vu v;
    memcpy(&v, p, sizeof v);
    return v;
}

static inline vi load_ints(const int32_t* p) {
    vi v;
    memcpy(&v, p, sizeof v);
    return v;
}

// bfloat16 is the upper half of a float32.
static inline vf load(const uint16_t* p) {
    vh h;
    memcpy(&h, p, sizeof h);
#if defined(__AVX512VNNI__)  // compilers make several instructions of the conversion
    vu u = (vu)_mm512_cvtepu16_epi32((__m256i)h) << 16;
#elif defined(__AVX2__)
    vu u = (vu)_mm256_cvtepu16_epi32((__m128i)h) << 16;
#else
    vu u = __builtin_convertvector(h, vu) << 16;
#endif
    vf v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static inline vf load(const int8_t* p) {
#if defined(__AVX512VNNI__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#else
    vb b;
    memcpy(&b, p, sizeof b);
    return __builtin_convertvector(b, vf);
#endif
}

static inline float load_one(const float* p) { return *p; }

static inline float load_one(const int8_t* p) { return *p; }

static inline float load_one(const uint16_t* p) {
    uint32_t u = uint32_t(*p) << 16;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

// The first values of some, zeros behind them.
template <class T>
__attribute__((noinline)) static vf load_few(const T* p, int num) {
    float some[VL] = {};
    for (int i = 0; i < num; i++) some[i] = load_one(p + i);
    return load(some);
}

// The same where there mostly are enough.
template <class T>
static inline vf load_some(const T* p, int num) { return num >= VL ? load(p) : load_few(p, num); }

static inline void store(float* p, vf v) { memcpy(p, &v, sizeof v); }

// Of a number and NaN in either order: b.
static inline vf max(vf a, vf b) {
#if defined(__AVX512VNNI__)  // compilers make two instructions of it, the one waiting for the other
    return (vf)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return a > b ? a : b;
#endif
}

static inline bool any(vi are) {
    int some = 0;
    for (int i = 0; i < VL; i++) some |= are[i];
    return some != 0;
}

static inline float sum(vf v) {
    float total = 0;
    for (int i = 0; i < VL; i++) total += v[i];
    return total;
}

static inline float max(vf v) {
    float best = v[0];
    for (int i = 1; i < VL; i++) best = v[i] > best ? v[i] : best;
    return best;
}

// The values of a and b in turns: those of their first halves (`second` 0) or of their second ones.
template <int second>
static inline vf interleave(vf a, vf b) {
#if defined(__GNUC__) && !defined(__clang__)
    vi from;
    for (int i = 0; i < VL; i++) from[i] = second * VL / 2 + i / 2 + i % 2 * VL;
    return __builtin_shuffle(a, b, from);
#else
    vf mixed;
    for (int i = 0; i < VL; i++) mixed[i] = (i % 2 ? b : a)[second * VL / 2 + i / 2];
    return mixed;
#endif
}

// to[i] = sum(v[i]) for four vectors.
static inline void store_sums(float* to, const vf* v) {
    const vf even = interleave<0>(v[0], v[2]) + interleave<1>(v[0], v[2]);
    const vf odd = interleave<0>(v[1], v[3]) + interleave<1>(v[1], v[3]);
    const vf fours = interleave<0>(even, odd) + interleave<1>(even, odd);  // sums of 0, 1, 2, 3, 0, 1, ...
    float total[4] = {};
    for (int i = 0; i < VL; i++) total[i % 4] += fours[i];
    memcpy(to, total, sizeof total);
}

// v[i][j] becomes v[j][i].
static inline void transpose(vf* v) {
#pragma GCC unroll 4
    for (int half = 1; half < VL; half *= 2) {
        vf mixed[VL];
#pragma GCC unroll 16
        for (int i = 0; i < VL / 2; i++) {
            mixed[2 * i] = interleave<0>(v[i], v[i + VL / 2]);
            mixed[2 * i + 1] = interleave<1>(v[i], v[i + VL / 2]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < VL; i++) v[i] = mixed[i];
    }
}

// e^x within 2 units in the last place, and exactly 0 below the smallest normal float (Cody-Waite reduction, a polynomial).
static inline vf exp(vf x) {
    const vi is_zero = x < splat(-87.3f);
    x = x < splat(-87.3f) ? splat(-87.3f) : x;
    x = x > splat(88.0f) ? splat(88.0f) : x;
    const vf shifter = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
    const vf n = (x * 1.44269504f + shifter) - shifter;
    const vf r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    const vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    vf power;
    memcpy(&power, &bits, sizeof power);
    return is_zero ? vf{} : p * power;
}

// Within a few units in the last place also near 0, where the formula by e^2x would lose the digits (an odd polynomial there).
static inline vf tanh(vf x) {
    const vf square = x * x, far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
    vf p = splat(-5.70498872745e-3f);
    p = p * square + 2.06390887954e-2f;
    p = p * square - 5.37397155531e-2f;
    p = p * square + 1.33314422036e-1f;
    p = p * square - 3.33332819422e-1f;
    return square < splat(0.390625f) ? x + x * square * p : far;
}

// x times factor, rounded to whole numbers, ties to even: they are below 2^22.
static inline vf rounded_product(vf x, float factor) { return (x * factor + 12582912.0f) - 12582912.0f; }  // 1.5 * 2^23

// The largest |x|; infinity or NaN if there is one. Magnitudes of floats are ordered as their bits are.
static inline float magnitude(const float* x, int num) {
    vu most[2] = {};  // two, so that one need not wait for the other
    const auto take = [](vu& most, vf x) {
        const vu bits = (vu)x & 0x7fffffffu;
        most = bits > most ? bits : most;
    };
    int i = 0;
    for (; i + 2 * VL <= num; i += 2 * VL) take(most[0], load(x + i)), take(most[1], load(x + i + VL));
    for (; i < num; i += VL) take(most[0], load_some(x + i, num - i));
    uint32_t bits = 0;
    for (int lane = 0; lane < VL; lane++) bits = std::max({bits, uint32_t(most[0][lane]), uint32_t(most[1][lane])});
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    return largest;
}
