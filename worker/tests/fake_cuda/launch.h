// What the fake driver tells a compiled kernel.
#pragma once

namespace fake {

struct Extent {
    unsigned x, y, z;
};

/// One launch. The kernel's function `fake_run_NAME` runs it and returns an empty string, or why it failed;
/// `fake_kinds_NAME` returns a letter for each parameter: `p` for a pointer, else its bytes, 4 or 8.
struct Launch {
    const char* name;
    Extent grid, block;
    unsigned shared_bytes;
    void** arguments;
    /// In which order threads run and copies arrive: see `next_ready` and `copy_async`. Blocks: backwards with 1.
    unsigned seed;
};

}  // namespace fake
