// The memory of the fake card: every allocation lies between addresses that nobody may touch, is filled with NaNs when it is
// given out, and is never given out again, so that what comes too late or goes too far is noticed.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace fake {

class Memory {
  public:
    explicit Memory(size_t total) : total_(total) {}

    /// Zero if there is no room.
    uintptr_t allocate(size_t bytes) {
        if (bytes == 0 || total_ - used_ < bytes) return 0;
        size_t page = (size_t)sysconf(_SC_PAGESIZE), inner = (bytes + ALIGNMENT + page - 1) / page * page;
        char* base = (char*)mmap(nullptr, inner + 2 * AROUND, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (base == MAP_FAILED) return 0;
        char *first = base + AROUND, *end = first + inner;
        mprotect(first, inner, PROT_READ | PROT_WRITE);
        memset(first, 0xff, inner);
        uintptr_t at = (uintptr_t)(end - bytes) & ~(uintptr_t)(ALIGNMENT - 1);
        live_[at] = {bytes, first, end};
        used_ += bytes;
        return at;
    }

    /// False if nothing that is in use begins there.
    bool free(uintptr_t at) {
        auto found = live_.find(at);
        if (found == live_.end()) return false;
        mprotect(found->second.first, found->second.end - found->second.first, PROT_NONE);
        madvise(found->second.first, found->second.end - found->second.first, MADV_DONTNEED);
        used_ -= found->second.bytes;
        live_.erase(found);
        return true;
    }

    /// Whether all of these bytes are in one allocation that is in use; the end counts as inside if there are none.
    bool holds(uintptr_t at, size_t bytes) const {
        auto next = live_.upper_bound(at);
        if (next == live_.begin()) return false;
        auto found = std::prev(next);
        return at - found->first <= found->second.bytes && bytes <= found->second.bytes - (at - found->first);
    }

    /// An allocation whose surroundings were written to, or zero.
    uintptr_t damaged() const {
        for (auto& [at, allocation] : live_) {
            for (char* x = allocation.first; x < (char*)at; x++)
                if (*x != (char)0xff) return at;
            for (char* x = (char*)at + allocation.bytes; x < allocation.end; x++)
                if (*x != (char)0xff) return at;
        }
        return 0;
    }

    std::vector<std::string> contents() const {
        std::vector<std::string> all;
        for (auto& [at, allocation] : live_) all.emplace_back((const char*)at, allocation.bytes);
        return all;
    }

    void restore(const std::vector<std::string>& all) {
        size_t i = 0;
        for (auto& [at, allocation] : live_) memcpy((void*)at, all[i++].data(), allocation.bytes);
    }

    size_t total() const { return total_; }
    size_t used() const { return used_; }

  private:
    static const size_t ALIGNMENT = 256, AROUND = 16 << 20;  // bytes; the latter of addresses, not of memory
    struct Allocation {
        size_t bytes;
        char *first, *end;
    };
    std::map<uintptr_t, Allocation> live_;
    size_t total_, used_ = 0;
};

}  // namespace fake
