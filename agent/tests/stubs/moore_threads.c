#include "stub.h"
enum { LOST = 2 };
typedef struct {
    char sbdf[32];
    u32 segment, bus, device, id, subsystem, width;
    float most, now;
    u32 mostWidth, nowWidth, mostGeneration, nowGeneration;
    int spare[6];
} Pci;
SIZE(Pci, 104);
static int library, cards[2] = {0, 1}, opened[2];

int mtmlLibraryInit(int **to) { CALL; *to = &library; return on("no-init") ? 1 : 0; }
const char *mtmlErrorString(int status) { return status == 1 ? "driver not loaded" : "driver failure"; }
int mtmlLibraryCountDevice(int *of, u32 *count) { CALL; if (of != &library) return 3; GIVE(count, 2); }
// Whoever asks for a handle twice has lost the first one.
int mtmlLibraryInitDeviceByIndex(int *of, u32 index, int **card) {
    OF(index);
    if (of != &library || opened[index]++) return 3;
    GIVE(card, &cards[index]);
}
int mtmlDeviceInitMemory(int *card, int **memory) { OF(*card); GIVE(memory, card); }
int mtmlDeviceGetUUID(int *card, char *to, u32 size) { OF(*card); return text(to, size, "mt-%d", *card); }
int mtmlDeviceGetName(int *card, char *to, u32 size) { OF(*card); return text(to, size, "MTT S4000"); }
int mtmlDeviceGetPciInfo(int *card, Pci *pci) { OF(*card); *pci = (Pci){.bus = bus(*card)}; return 0; }
int mtmlMemoryGetTotal(int *memory, u64 *bytes) { OF(*memory); GIVE(bytes, 48ull << 30); }
int mtmlMemoryGetEccErrorCounter(int *memory, u32 type, u32 counter, u32 location, u32 *count) {
    OF(*memory);
    GIVE(count, type == 1 && counter == 0 && location == 1 && sick(*memory) ? 2 : 0);
}
int mtmlDeviceCountMtLinkLayouts(int *one, int *other, u32 *links) { OF(*one); GIVE(links, one == other ? 0 : 2); }
