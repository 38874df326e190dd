// The product in the middle of a gated MLP: act(gate) * up.
#pragma once

#include "aligned_memory.h"
#include "row_loop.h"
#include "simd.h"

enum Activation { NONE = -1, SILU = 0, GELU_TANH = 1 };

inline vf sigmoid(vf x) { return 1.0f / (1.0f + exp(-x)); }

inline vf silu(vf x) { return x * sigmoid(x); }

// gelu by tanh: 0.5 x (1 + tanh(u)) is x * sigmoid(2u).
inline vf gelu_tanh(vf x) { return x * sigmoid(1.59576912f * (x + 0.044715f * x * x * x)); }

template <class Act>
void gated_row(const float* gate, const float* up, int64_t I, float* out, Act act) {
    int64_t i = 0;
    for (; i + VL <= I; i += VL) store(out + i, act(load(gate + i)) * load(up + i));
    if (i < I) {
        float o[VL];
        store(o, act(load_few(gate + i, int(I - i))) * load_few(up + i, int(I - i)));
        memcpy(out + i, o, (I - i) * sizeof(float));
    }
}

inline void gated_row(const float* gate, const float* up, int64_t I, int activation, float* out) {
    if (activation == SILU) gated_row(gate, up, I, out, silu);
    else gated_row(gate, up, I, out, gelu_tanh);
}

// linear(where [M, N] go) and what becomes of it, for kernels that do not do both at once.
template <class Linear>
void linear_then_gated(int M, int N, int activation, float* out, int num_threads, Linear linear) {
    if (activation == NONE) return linear(out);
    AlignedMemory memory;
    float* both = reinterpret_cast<float*>(memory.resize(int64_t(M) * N * sizeof(float)));
    linear(both);
    const int64_t I = N / 2;
    for_rows(M, M * I, num_threads, [&](int64_t m) { gated_row(both + m * N, both + m * N + I, I, activation, out + m * I); });
}
