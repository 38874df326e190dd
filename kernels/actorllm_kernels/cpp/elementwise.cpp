// What lies between the products of a layer, each in one pass: normalising, rotating and storing, the gated product.
//
// Rows are shared out over threads only where there is enough to do: waking them costs more than a row.
#include <cmath>

#include "simd.h"

namespace {

constexpr int64_t MIN_PARALLEL = 32768;  // values: about 10 us of work

inline int threads_for(int64_t num_values, int num_threads) { return num_values < MIN_PARALLEL ? 1 : num_threads; }

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

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

inline vf silu(vf x) { return x * sigmoid(x); }

// gelu by tanh: 0.5 x (1 + tanh(u)) is x * sigmoid(2u).
inline vf gelu_tanh(vf x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

template <class Activation>
void gated_row(const float* gate, const float* up, int64_t I, float* out, Activation act) {
    int64_t i = 0;
    for (; i + VL <= I; i += VL) store(out + i, act(load(gate + i)) * load(up + i));
    if (i < I) {
        float g[VL] = {}, u[VL] = {}, o[VL];
        memcpy(g, gate + i, (I - i) * sizeof(float));
        memcpy(u, up + i, (I - i) * sizeof(float));
        store(o, act(load(g)) * load(u));
        memcpy(out + i, o, (I - i) * sizeof(float));
    }
}

inline void put(float* p, float x) { *p = x; }

// To bfloat16 by rounding to nearest, ties to even.
inline void put(uint16_t* p, float x) {
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    *p = std::isnan(x) ? uint16_t((u >> 16) | 0x40) : uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

struct Rotation {
    const float *cos, *sin;  // [R] of one token
    int R;
    bool is_interleaved;

    template <class T>
    void head(const float* x, int D, T* out) const {
        if (is_interleaved) {
            for (int r = 0; r < R; r += 2) {
                put(out + r, x[r] * cos[r] - x[r + 1] * sin[r]);
                put(out + r + 1, x[r + 1] * cos[r + 1] + x[r] * sin[r + 1]);
            }
        } else {
            const int half = R / 2;
            for (int r = 0; r < half; r++) {
                put(out + r, x[r] * cos[r] - x[r + half] * sin[r]);
                put(out + r + half, x[r + half] * cos[r + half] + x[r] * sin[r + half]);
            }
        }
        for (int d = R; d < D; d++) put(out + d, x[d]);
    }
};

template <class T>
struct Strided {
    T* data;
    int64_t token_stride, head_stride;
    T* at(int64_t token, int head) const { return data + token * token_stride + head * head_stride; }
};

}  // namespace

// Strides count elements. Without y and sum: x alone.
extern "C" void actorllm_rms_norm(
    const float* x, int64_t x_stride, const float* y, int64_t y_stride, const float* weight, float eps,
    int64_t num_rows, int64_t D, float* sum, float* out, int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * D, num_threads)) schedule(static)
    for (int64_t t = 0; t < num_rows; t++)
        rms_norm_row(x + t * x_stride, y ? y + t * y_stride : nullptr, weight, eps, D, sum ? sum + t * D : nullptr, out + t * D);
}

// `activation` 0: SiLU, 1: GELU by tanh.
extern "C" void actorllm_gated(
    const float* gate, int64_t gate_stride, const float* up, int64_t up_stride, int64_t num_rows, int64_t I, int activation, float* out, int num_threads) {
#pragma omp parallel for num_threads(threads_for(num_rows * I, num_threads)) schedule(static)
    for (int64_t t = 0; t < num_rows; t++) {
        const float *gates = gate + t * gate_stride, *ups = up + t * up_stride;
        if (activation == 0) gated_row(gates, ups, I, out + t * I, silu);
        else gated_row(gates, ups, I, out + t * I, gelu_tanh);
    }
}

// The pools are float32, or bfloat16 if `is_bf16`; `cos` and `sin` are [num_tokens, R], `out` is [num_tokens, num_heads, D].
extern "C" void actorllm_rotate_and_store(
    const float* q, int64_t q_token_stride, int64_t q_head_stride, const float* k, int64_t k_token_stride, int64_t k_head_stride,
    const float* v, int64_t v_token_stride, int64_t v_head_stride,
    const float* cos, const float* sin, int R, int is_interleaved, const int64_t* slots,
    void* k_pool, int64_t k_slot_stride, int64_t k_pool_head_stride, void* v_pool, int64_t v_slot_stride, int64_t v_pool_head_stride,
    int is_bf16, float* out, int num_tokens, int num_heads, int num_kv_heads, int D, int E, int num_threads) {
    const Strided<const float> queries{q, q_token_stride, q_head_stride}, keys{k, k_token_stride, k_head_stride},
        values{v, v_token_stride, v_head_stride};
    const auto run = [&](auto type) {
        using T = decltype(type);
        const Strided<T> key_pool{static_cast<T*>(k_pool), k_slot_stride, k_pool_head_stride};
        const Strided<T> value_pool{static_cast<T*>(v_pool), v_slot_stride, v_pool_head_stride};
        const int threads = threads_for(int64_t(num_tokens) * (num_heads + 2 * num_kv_heads) * D, num_threads);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (int t = 0; t < num_tokens; t++) {
            const Rotation rotation{cos + int64_t(t) * R, sin + int64_t(t) * R, R, is_interleaved != 0};
            for (int h = 0; h < num_heads; h++) rotation.head(queries.at(t, h), D, out + (int64_t(t) * num_heads + h) * D);
            for (int h = 0; h < num_kv_heads; h++) {
                rotation.head(keys.at(t, h), D, key_pool.at(slots[t], h));
                const float* value = values.at(t, h);
                T* stored = value_pool.at(slots[t], h);
                for (int e = 0; e < E; e++) put(stored + e, value[e]);
            }
        }
    };
    if (is_bf16) run(uint16_t{});
    else run(float{});
}
