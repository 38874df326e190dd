// Pieces of work that several threads share.
#pragma once

#include <omp.h>

#include <atomic>
#include <vector>

// Each thread takes the pieces of a stretch of its own in order, and then what others have left of theirs: memory is read onwards, as
// the processor fetches it ahead, and a thread that has to wait for its processor does not hold the others up.
class Turns {
public:
    Turns(int num_pieces, int num_threads) : stretches(num_threads) {
        for (int t = 0; t < num_threads; t++) {
            stretches[t].next = int(int64_t(num_pieces) * t / num_threads);
            stretches[t].end = int(int64_t(num_pieces) * (t + 1) / num_threads);
        }
    }

    // Calls f(piece); by every thread of the region, after which all pieces are done.
    template <class F>
    void take(F f) {
        const int num = int(stretches.size()), own = omp_get_thread_num();
        for (int t = 0; t < num; t++) {
            Stretch& of = stretches[(own + t) % num];
            for (int i; (i = of.next.fetch_add(1, std::memory_order_relaxed)) < of.end;) f(i);
        }
    }

private:
    struct alignas(64) Stretch {  // a line of the cache each
        std::atomic<int> next{0};
        int end = 0;
    };
    std::vector<Stretch> stretches;
};
