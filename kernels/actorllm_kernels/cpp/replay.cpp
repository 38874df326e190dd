// Repeats noted calls of kernels, one after another, without returning to Python between them.

#include "replay.h"

// Call i is `kernels[i]`, with its arguments from `words[starts[i]]` on.
extern "C" void actorllm_replay(void (*const* kernels)(const int64_t*), const int64_t* starts, const int64_t* words, int64_t num_calls) {
    for (int64_t i = 0; i < num_calls; i++) kernels[i](words + starts[i]);
}
