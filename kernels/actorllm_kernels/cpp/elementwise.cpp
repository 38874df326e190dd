// What lies between the products of a layer, each in one pass: normalising, rotating and storing, the gated product.
//
// Rows are shared out over threads only where there is enough to do: waking them costs more than a row.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "gated.h"
#include "replay.h"
#include "row_loop.h"
#include "simd.h"

namespace {

// out = (x + y) / rms(x + y) * weight over D values; the sum is kept in `sum` if there is a y.
void rms_norm_row(const float* x, const float* y, const float* weight, float eps, int64_t D, float* sum_out, float* out) {
    vf squares{};
    float rest = 0;
    int64_t d = 0;
    const float* values = x;
    if (y) {
        for (; d + VL <= D; d += VL) {
            const vf v = load(x + d) + load(y + d);
            store(sum_out + d, v);
            squares += v * v;
        }
        for (; d < D; d++) {
            sum_out[d] = x[d] + y[d];
            rest += sum_out[d] * sum_out[d];
        }
        values = sum_out;
    } else {
        for (; d + VL <= D; d += VL) squares += load(x + d) * load(x + d);
        for (; d < D; d++) rest += x[d] * x[d];
    }
    const float scale = 1.0f / std::sqrt((sum(squares) + rest) / float(D) + eps);
    for (d = 0; d + VL <= D; d += VL) store(out + d, load(values + d) * scale * load(weight + d));
    for (; d < D; d++) out[d] = values[d] * scale * weight[d];
}

// To bfloat16 by rounding to nearest, ties to even.
inline void put(uint16_t* p, float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    *p = std::isnan(x) ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

inline void put_row(uint16_t* __restrict to, const float* x, int D) {
    for (int d = 0; d < D; d++) put(to + d, x[d]);
}

// One head as codes of one byte, see quantize.py; returns their factor.
inline float put_codes(const float* x, int D, int8_t* codes) {
    const float largest = magnitude(x, D), factor = largest / 127;
    if (!(largest >= 1e-30f && largest < INFINITY)) {
        for (int d = 0; d < D; d++) codes[d] = 0;
        return largest < INFINITY ? 0.0f : NAN;
    }
    for (int d = 0; d < D; d++) {
        const float rounded = x[d] / factor + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
        int32_t bits;
        memcpy(&bits, &rounded, sizeof bits);
        codes[d] = int8_t(bits - 0x4b400000);
    }
    return factor;
}

// The sums and differences of a Walsh-Hadamard transform of V vectors. Each step takes the highest bit of a value's place and makes it
// the lowest, so that the last one leaves all where they were.
template <int V>
inline void walsh_vectors(float* x) {
    vf now[V], next[V];
    for (int i = 0; i < V; i++) now[i] = load(x + i * VL);
    for (int step = V * VL; step > 1; step /= 2) {
        for (int i = 0; i < V / 2; i++) {
            const vf sum = now[i] + now[i + V / 2], difference = now[i] - now[i + V / 2];
            next[2 * i] = interleave<0>(sum, difference);
            next[2 * i + 1] = interleave<1>(sum, difference);
        }
        for (int i = 0; i < V; i++) now[i] = next[i];
    }
    for (int i = 0; i < V; i++) store(x + i * VL, now[i]);
}

// The same of `size` values, in blocks of the largest power of two that divides it.
inline void walsh(float* x, int size) {
    const int block = size & -size;
    for (int begin = 0; begin < size; begin += block) switch (float* at = x + begin; block / VL) {
        case 2: walsh_vectors<2>(at); break;
        case 4: walsh_vectors<4>(at); break;
        case 8: walsh_vectors<8>(at); break;
        case 16: walsh_vectors<16>(at); break;
        default:
            for (int half = 1; half < block; half *= 2)
                for (int i = 0; i < block; i++) {
                    if (i & half) continue;
                    const float a = at[i], b = at[i + half];
                    at[i] = a + b;
                    at[i + half] = a - b;
                }
    }
}

struct Rotation {
    const float *cos, *sin;  // [R] of one token
    int R;
    bool is_interleaved;

    // As reference.py's `spread`.
    void spread(float* x, int D) const {
        const int P = R / 2, rest = D - R;
        if (is_interleaved) {
            walsh(x, R);  // pairs are neighbours: their sums and differences are the first of its steps
        } else {
            for (int p = 0; p < P; p++) {
                const float a = x[p], b = x[p + P];
                x[p] = a + b;
                x[p + P] = a - b;
            }
            walsh(x, P);
            walsh(x + P, P);
        }
        walsh(x + R, rest);
        const float factor = R ? 1 / std::sqrt(2.0f * (P & -P)) : 0, rest_factor = rest ? 1 / std::sqrt(float(rest & -rest)) : 0;
        for (int d = 0; d < R; d++) x[d] *= factor;
        for (int d = R; d < D; d++) x[d] *= rest_factor;
    }

    void head(const float* x, int D, float* out) const {
        if (is_interleaved) {
            for (int r = 0; r < R; r += 2) {
                out[r] = x[r] * cos[r] - x[r + 1] * sin[r];
                out[r + 1] = x[r + 1] * cos[r + 1] + x[r] * sin[r + 1];
            }
        } else {
            const int half = R / 2;
            int r = 0;
            for (; r + VL <= half; r += VL) {
                const vf first = load(x + r), second = load(x + r + half);
                store(out + r, first * load(cos + r) - second * load(sin + r));
                store(out + r + half, second * load(cos + r + half) + first * load(sin + r + half));
            }
            for (; r < half; r++) {
                out[r] = x[r] * cos[r] - x[r + half] * sin[r];
                out[r + half] = x[r + half] * cos[r + half] + x[r] * sin[r + half];
            }
        }
        std::copy(x + R, x + D, out + R);
    }
};

template <class T>
struct Strided {
    T* data;
    int64_t token_stride, head_stride;
    T* at(int64_t token, int head) const { return data + token * token_stride + head * head_stride; }
};

// A pool of keys or values; one of codes has a factor for each token and head.
template <class T>
struct Pool {
    Strided<T> values;
    float* factors;
    int64_t factor_stride;

    // Store a head of D values that `write(to)` writes.
    template <class Write>
    void store(int64_t slot, int head, int D, Write write) const {
        if constexpr (std::is_same_v<T, float>) {
            write(values.at(slot, head));
        } else {
            static thread_local std::vector<float> row;
            row.resize(D);
            write(row.data());
            copy(slot, head, D, row.data());
        }
    }

    void copy(int64_t slot, int head, int D, const float* x) const {
        T* to = values.at(slot, head);
        if constexpr (std::is_same_v<T, int8_t>) factors[slot * factor_stride + head] = put_codes(x, D, to);
        else if constexpr (std::is_same_v<T, uint16_t>) put_row(to, x, D);
        else std::copy(x, x + D, to);
    }
};

}  // namespace

// Strides count elements. Without y and sum: x alone.
extern "C" void actorllm_rms_norm(
    const float* x, int64_t x_stride, const float* y, int64_t y_stride, const float* weight, float eps,
    int64_t num_rows, int64_t D, float* sum, float* out, int num_threads) {
    for_rows(num_rows, num_rows * D, num_threads, [&](int64_t t) {
        rms_norm_row(x + t * x_stride, y ? y + t * y_stride : nullptr, weight, eps, D, sum ? sum + t * D : nullptr, out + t * D);
    });
}

// A `y_stride` of 0 adds the same row to all.
extern "C" void actorllm_add(
    const float* x, int64_t x_stride, const float* y, int64_t y_stride, int64_t num_rows, int64_t D, float* out, int num_threads) {
    for_rows(num_rows, num_rows * D, num_threads, [&](int64_t t) {
        for (int64_t d = 0; d < D; d++) out[t * D + d] = x[t * x_stride + d] + y[t * y_stride + d];
    });
}

extern "C" void actorllm_gated(
    const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t num_rows, int64_t I, int activation, float* out,
    int num_threads) {
    for_rows(num_rows, num_rows * I, num_threads, [&](int64_t t) {
        const float *gates = gate + t * gate_stride, *ups = up + t * up_stride;
        gated_row(gates, ups, I, activation, out + t * I);
    });
}

// The pools are float32, bfloat16 or, with factors, int8 (`pool_type` 0, 1, 2); `cos` and `sin` are [num_tokens, R], `out` is
// [num_tokens, num_heads, D]. With `is_spread` (for int8) queries and keys are spread. Without query heads, rotated values and E it
// stores one buffer as it is.
extern "C" void actorllm_rotate_and_store(
    const float* q, int64_t q_token_stride, int64_t q_head_stride, const float* k, int64_t k_token_stride, int64_t k_head_stride,
    const float* v, int64_t v_token_stride, int64_t v_head_stride,
    const float* cos, const float* sin, int R, int is_interleaved, const int64_t* slots,
    void* k_pool, int64_t k_slot_stride, int64_t k_pool_head_stride, float* k_factors, int64_t k_factor_stride,
    void* v_pool, int64_t v_slot_stride, int64_t v_pool_head_stride, float* v_factors, int64_t v_factor_stride,
    int pool_type, int is_spread, float* out, int num_tokens, int num_heads, int num_kv_heads, int D, int E, int num_threads) {
    const Strided<const float> queries{q, q_token_stride, q_head_stride}, keys{k, k_token_stride, k_head_stride},
        values{v, v_token_stride, v_head_stride};
    const auto run = [&](auto type) {
        using T = decltype(type);
        const Pool<T> key_pool{{static_cast<T*>(k_pool), k_slot_stride, k_pool_head_stride}, k_factors, k_factor_stride};
        const Pool<T> value_pool{{static_cast<T*>(v_pool), v_slot_stride, v_pool_head_stride}, v_factors, v_factor_stride};
        for_rows(num_tokens, int64_t(num_tokens) * (num_heads + 2 * num_kv_heads) * D, num_threads, [&](int64_t t) {
            const Rotation rotation{cos + t * R, sin + t * R, R, is_interleaved != 0};
            for (int h = 0; h < num_heads; h++) {
                float* to = out + (t * num_heads + h) * D;
                rotation.head(queries.at(t, h), D, to);
                if (is_spread) rotation.spread(to, D);
            }
            for (int h = 0; h < num_kv_heads; h++) {
                key_pool.store(slots[t], h, D, [&](float* to) {
                    rotation.head(keys.at(t, h), D, to);
                    if (is_spread) rotation.spread(to, D);
                });
                if (E) value_pool.copy(slots[t], h, E, values.at(t, h));
            }
        });
    };
    if (pool_type == 2) run(int8_t{});
    else if (pool_type == 1) run(uint16_t{});
    else run(float{});
}

REPLAYABLE(actorllm_add)
REPLAYABLE(actorllm_rms_norm)
REPLAYABLE(actorllm_gated)
REPLAYABLE(actorllm_rotate_and_store)
