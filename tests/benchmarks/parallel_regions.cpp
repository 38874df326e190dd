// Counts the parallel regions that a process opens: preloaded, it stands in front of libgomp's entry point for them.
// torch, its libraries and our kernels are all compiled for GNU OpenMP, and all call this one symbol.
#include <atomic>
#include <dlfcn.h>

namespace {

using Open = void (*)(void (*)(void *), void *, unsigned, unsigned);

std::atomic<long> regions{0};
thread_local long regions_here = 0;

void *libgomp(const char *name) {
    static void *library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);  // torch's, which is not in the global scope
    return dlsym(library, name);
}

}  // namespace

extern "C" void GOMP_parallel(void (*work)(void *), void *data, unsigned num_threads, unsigned flags) {
    static const Open open = reinterpret_cast<Open>(libgomp("GOMP_parallel"));
    static const auto level = reinterpret_cast<int (*)()>(libgomp("omp_get_level"));
    if (level() == 0) {  // a region within another one runs on its own thread alone and wakes nobody (MKL's cos in torch's)
        regions.fetch_add(1);
        ++regions_here;
    }
    open(work, data, num_threads, flags);
}

// All regions of the process so far, and those that the calling thread opened.
extern "C" long parallel_regions() { return regions.load(); }
extern "C" long parallel_regions_here() { return regions_here; }
