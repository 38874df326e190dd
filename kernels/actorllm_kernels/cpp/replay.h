// Kernels whose calls can be noted and repeated: each has a second entry that takes its arguments as words of 64 bits.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

// One argument: a pointer, a whole number, or a float in the lower half.
template <class T>
T from_word(int64_t word) {
    if constexpr (std::is_pointer_v<T>) {
        return reinterpret_cast<T>(word);
    } else if constexpr (std::is_same_v<T, float>) {
        const auto bits = static_cast<uint32_t>(word);
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    } else {
        static_assert(std::is_integral_v<T>);
        return static_cast<T>(word);
    }
}

template <class... Arguments, size_t... I>
void call_with_words(void (*kernel)(Arguments...), const int64_t* words, std::index_sequence<I...>) {
    kernel(from_word<Arguments>(words[I])...);
}

template <class... Arguments>
void call_with_words(void (*kernel)(Arguments...), const int64_t* words) {
    call_with_words(kernel, words, std::index_sequence_for<Arguments...>{});
}

#define REPLAYABLE(kernel) \
    extern "C" void kernel##_words(const int64_t* words) { call_with_words(kernel, words); }
