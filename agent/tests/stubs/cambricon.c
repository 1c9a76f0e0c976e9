#include "stub.h"
enum { LOST = 6, UNSUPPORTED_VERSION = 3 };
typedef struct { int version; u32 number; } CardInfo;
typedef struct { int version; uint8_t uuid[37]; u64 ncs; } Uuid;
typedef struct { int64_t total, used, reserved, virtualTotal, virtualUsed; u64 global, spare[16]; } MemoryV2;
typedef struct { int version; int64_t total, used, virtualTotal, virtualUsed; } Memory;
typedef struct {
    u32 subsystem, deviceId;
    uint16_t vendor, subvendor;
    u32 domain, bus, device, function;
    uint16_t module, slot;
    u32 spare[8];
} Pcie;
typedef struct { int version, health, device, driver; } Health;
typedef struct { char msg[512]; u32 device, bdf; int code; u32 category, severity; } Detail;
typedef struct { int system, health; Detail error; } Incident;
typedef struct { int health, device, driver, overall; u32 count; Incident incidents[64]; u32 spare[8]; } HealthV2;
SIZE(CardInfo, 8); SIZE(Uuid, 56); SIZE(MemoryV2, 176); SIZE(Pcie, 64); SIZE(Health, 16); SIZE(Incident, 540); SIZE(HealthV2, 34612);
#define STAMPED(struct) if ((struct)->version != 6) return UNSUPPORTED_VERSION

int cndevInit(int reserved) { (void)reserved; INIT(1); }
const char *cndevGetErrorString(int status) { return status == 1 ? "no driver" : "an error"; }
int cndevGetDeviceCount(CardInfo *info) { CALL; STAMPED(info); GIVE(&info->number, 2); }
int cndevGetDeviceHandleByIndex(int index, int *handle) { OF(index); GIVE(handle, index + 100); }
int cndevGetUUID(Uuid *uuid, int handle) {
    OF(handle - 100);
    STAMPED(uuid);
    return text((char *)uuid->uuid, 37, "44000000-0000-0000-0000-00000000000%d", handle - 100);
}
const char *cndevGetCardNameStringByDevId(int handle) { (void)handle; return "MLU590-M9"; }
int cndevGetPCIeInfoV2(Pcie *pcie, int handle) { OF(handle - 100); *pcie = (Pcie){.bus = bus(handle - 100)}; return 0; }
int cndevGetMemoryUsageV2(MemoryV2 *memory, int handle) { OF(handle - 100); GIVE(&memory->total, 81920); }
int cndevGetMemoryUsage(Memory *memory, int handle) { OF(handle - 100); STAMPED(memory); GIVE(&memory->total, 81920); }
int cndevGetCardHealthStateV2(HealthV2 *health, int handle) {
    OF(handle - 100);
    memset(health, 0xee, sizeof *health);
    u32 all[64];
    health->count = codes(handle - 100, all, 64);
    for (u32 at = 0; at < health->count; at++) health->incidents[at].error.code = all[at];
    health->overall = sick(handle - 100) ? 20 : health->count ? 10 : 0;
    GIVE(&health->health, !sick(handle - 100));
}
int cndevGetCardHealthState(Health *health, int handle) {
    OF(handle - 100);
    STAMPED(health);
    GIVE(&health->health, !sick(handle - 100));
}
