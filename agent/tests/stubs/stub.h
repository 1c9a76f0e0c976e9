// What all stand-ins for vendors' libraries share: two cards, 0 and 1, of which card 1 is plugged in before card 0.
// Built by tests/vendors with -DDIR="…", a directory whose files say what goes wrong, at any time:
//   lost           card 1 is gone
//   sick           card 1 says that it is not well
//   hot            card 1 is too hot
//   codes          what it has is what card 1 has of error codes, in hexadecimal digits, or of incidents
//   no-init        initialisation fails
//   used, crowded  a program uses card 1, or more of them than are counted; where the library tells
//   new-driver     the driver is another one; where its version matters
//   hang-FUNCTION  this function does not return while the file exists; one that is about a card, for card 1 only;
//                  while one does, there is a file hanging
//   crash-FUNCTION, abort-FUNCTION, exit-FUNCTION  it reads from nowhere, aborts or ends its process instead
// A library without a symbol is built with -DSYMBOL=absent, one that crashes while it is loaded with -DCRASH_AT_LOAD.
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int u32;
typedef unsigned long long u64;

static inline int on(const char *name) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", DIR, name);
    return access(path, F_OK) == 0;
}
static inline int goes(const char *how, const char *function) {
    char name[128];
    snprintf(name, sizeof name, "%s-%s", how, function);
    return on(name);
}
static inline void crash(void) { *(volatile int *)0 = 1; }
static inline void hang(const char *function) {
    for (; goes("hang", function); usleep(1000)) {
        FILE *file = fopen(DIR "/hanging", "w");
        if (file) fclose(file);
    }
    if (goes("crash", function)) crash();
    if (goes("abort", function)) abort();
    if (goes("exit", function)) exit(3);
}
#ifdef CRASH_AT_LOAD
__attribute__((constructor)) static void loaded(void) { crash(); }
#endif
static inline int bus(u32 card) { return 0x2b - card; }
static inline int sick(u32 card) { return card == 1 && on("sick"); }
static inline int codes(u32 card, u32 *to, int most) {
    int number = 0;
    FILE *file = card == 1 ? fopen(DIR "/codes", "r") : NULL;
    while (file && number < most && fscanf(file, "%x", &to[number]) == 1) number++;
    if (file) fclose(file);
    return number;
}
static inline int text(char *to, unsigned size, const char *format, ...) {
    va_list values;
    va_start(values, format);
    vsnprintf(to, size, format, values);
    va_end(values);
    return 0;
}

// The start of a function about no card, and of one about a card.
#define CALL hang(__func__)
#define OF(card) \
    if ((card) == 1) hang(__func__); \
    if ((card) == 1 && on("lost")) return LOST
#define INIT(failure) CALL; return on("no-init") ? failure : 0
#define SIZE(type, bytes) _Static_assert(sizeof(type) == bytes, "the size of " #type)
#define GIVE(pointer, value) do { *(pointer) = (value); return 0; } while (0)
