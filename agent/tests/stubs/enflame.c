// The old generation; the new one is in the shape of NVML.
#include "stub.h"
#include <stdbool.h>
enum { LOST = 5 };
typedef struct { char name[128]; u32 vendor, deviceId, domain, bus, device, function, logical; } Info;
typedef struct { u64 total; u32 used; } Memory;
SIZE(Info, 156); SIZE(Memory, 16);

int EfmlInit(bool without_driver) { if (without_driver) return 1; INIT(2); }
int EfmlGetDevCount(u32 *count) { CALL; GIVE(count, 2); }
int EfmlGetDevName(u32 card, char *to) { OF(card); return text(to, 128, "S60"); }
int EfmlGetDevUuid(u32 card, char *to) { OF(card); return text(to, 64, "T6R-%d", card); }
int EfmlGetDevInfo(u32 card, Info *info) { OF(card); *info = (Info){.bus = bus(card), .logical = card}; return 0; }
int EfmlGetDevMem(u32 card, Memory *memory) { OF(card); GIVE(&memory->total, 49152); }
int EfmlGetDevIsHealth(u32 card, bool *well) { OF(card); GIVE(well, !sick(card)); }
