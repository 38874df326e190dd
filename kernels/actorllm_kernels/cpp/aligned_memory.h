// Memory for vectors and tiles, which no line of the cache splits.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

// Is kept from call to call.
class AlignedMemory {
public:
    char* resize(int64_t bytes) {
        if (bytes > size) {
            memory.reset(static_cast<char*>(::operator new[](bytes, LINE)));
            size = bytes;
        }
        return memory.get();
    }

private:
    static constexpr std::align_val_t LINE{64};
    struct Delete {
        void operator()(char* memory) const { ::operator delete[](memory, LINE); }
    };
    std::unique_ptr<char[], Delete> memory;
    int64_t size = 0;
};
