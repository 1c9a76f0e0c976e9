// Libraries in the shape of NVML, under another prefix: -DPREFIX=nvml, with -DNAME and -DUUID.
#include "stub.h"

enum { LOST = 15, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, TIMEOUT = 10 };
#define JOIN(prefix, name) prefix##name
#define EXPAND(prefix, name) JOIN(prefix, name)
#define F(name) EXPAND(PREFIX, name)

typedef struct { int card, slice; } Device;
static Device cards[2] = {{0, -1}, {1, -1}};

typedef struct { u64 total, free, used; } Memory;
typedef struct { u32 version; u64 total, reserved, free, used; } MemoryV2;
typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char busId[32]; } Pci;
typedef struct { Device *device; u64 type, data; u32 gpu, compute; } Event;
typedef struct { u32 id, scope; int64_t time, latency; u32 type, status; union { u32 number; u64 wide; } value; } Field;
SIZE(Memory, 24); SIZE(MemoryV2, 40); SIZE(Pci, 68); SIZE(Event, 32); SIZE(Field, 40);

int F(Init_v2)(void) { INIT(DRIVER_NOT_LOADED); }
const char *F(ErrorString)(int status) { return status == DRIVER_NOT_LOADED ? "Driver Not Loaded" : "An Error"; }
int F(DeviceGetCount_v2)(u32 *count) { CALL; GIVE(count, 2); }
int F(DeviceGetHandleByIndex_v2)(u32 index, Device **device) { OF(index); GIVE(device, &cards[index]); }
int F(DeviceGetUUID)(Device *device, char *to, u32 size) {
    OF(device->card);
    if (device->slice < 0) return text(to, size, UUID "-%d", device->card);
    return text(to, size, "MIG-0000-%d", device->slice);
}
int F(DeviceGetName)(Device *device, char *to, u32 size) {
    OF(device->card);
    return text(to, size, "%s%s", NAME, device->slice < 0 ? "" : " MIG 1g.10gb");
}
int F(DeviceGetMinorNumber)(Device *device, u32 *minor) { OF(device->card); GIVE(minor, 1 - device->card); }
int F(DeviceGetPciInfo_v3)(Device *device, Pci *pci) {
    OF(device->card);
    memset(pci, 0xee, sizeof *pci);
    pci->domain = 0, pci->bus = bus(device->card), pci->device = 0;
    return text(pci->busId, 32, "00000000:%02X:00.0", bus(device->card));
}
static u64 bytes(Device *device) { return device->slice < 0 ? 80ull << 30 : 10ull << 30; }
int F(DeviceGetMemoryInfo_v2)(Device *device, MemoryV2 *memory) {
    OF(device->card);
    if (memory->version != (sizeof *memory | 2 << 24)) return 25;
    GIVE(&memory->total, bytes(device));
}
int F(DeviceGetMemoryInfo)(Device *device, Memory *memory) { OF(device->card); GIVE(&memory->total, bytes(device)); }
// Both cards are linked.
int F(DeviceGetP2PStatus)(Device *one, Device *other, u32 index, u32 *status) {
    OF(one->card);
    GIVE(status, index == 2 && one != other ? 0 : 3);
}
#ifdef FABRIC
// DIR/registering: card 1 is not yet part of its fabric. DIR/split: it is in another clique.
typedef struct { u32 version; unsigned char cluster[16]; u32 status, clique; unsigned char state; u32 health; } Fabric;
SIZE(Fabric, 36);
int nvmlDeviceGetGpuFabricInfoV(Device *device, Fabric *fabric) {
    OF(device->card);
    if (fabric->version != (sizeof *fabric | 2 << 24)) return 25;
    u32 version = fabric->version;
    *fabric = (Fabric){.version = version, .clique = 7, .state = 3, .health = 0xffff};
    if (!on("alone")) for (int at = 0; at < 16; at++) fabric->cluster[at] = 0xa0 + at;
    if (device->card == 1 && on("registering")) fabric->state = 2;
    if (device->card == 1 && on("split")) fabric->clique = 8;
    return 0;
}
#endif
#if defined ILUVATAR || defined RECOVERY
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *device, u64 *reasons) {
    OF(device->card);
    GIVE(reasons, device->card == 1 && on("hot") ? 0x48 : 1);
}
#endif
#ifdef ILUVATAR
int ixmlDeviceGetHealth(Device *device, int64_t *health) { OF(device->card); GIVE(health, sick(device->card) ? 0x40 : 0); }
#endif
#ifdef MIG
static Device slices[2] = {{0, 0}, {0, 1}};
int nvmlDeviceGetMigMode(Device *device, u32 *current, u32 *pending) { *pending = 0; GIVE(current, device->card == 0); }
int nvmlDeviceGetMaxMigDeviceCount(Device *device, u32 *count) { (void)device; GIVE(count, 7); }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, u32 index, Device **slice) {
    if (device->card != 0 || index >= 2) return NOT_FOUND;
    GIVE(slice, &slices[index]);
}
int nvmlDeviceGetGpuInstanceId(Device *slice, u32 *to) { GIVE(to, slice->slice + 1); }
int nvmlDeviceGetComputeInstanceId(Device *slice, u32 *to) { (void)slice; GIVE(to, 0); }
#endif
#ifdef RECOVERY
int nvmlSystemGetDriverVersion(char *to, u32 size) { return text(to, size, "%s", on("new-driver") ? "580.65.06" : "570.86.15"); }
typedef struct { u32 pid; u64 used; u32 gpu, compute; } Process;
SIZE(Process, 24);
// Card 1 is used by one program, or by more than there is room for. Three versions of the call; the first has smaller structs.
static int programs(Device *device, u32 *count, u32 *pid) {
    OF(device->card);
    u32 there = device->card != 1 ? 0 : on("crowded") ? *count + 1 : (u32)on("used");
    if (*count < there) return 7;
    if (there) *pid = 1;
    GIVE(count, there);
}
int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, u32 *count, Process *all) { return programs(device, count, &all->pid); }
int nvmlDeviceGetComputeRunningProcesses_v2(Device *device, u32 *count, Process *all) { return programs(device, count, &all->pid); }
typedef struct { u32 pid; u64 used; } OldProcess;
SIZE(OldProcess, 16);
int nvmlDeviceGetComputeRunningProcesses(Device *device, u32 *count, OldProcess *all) { return programs(device, count, &all->pid); }
int nvmlDeviceGetFieldValues(Device *device, int count, Field *field) {
    OF(device->card);
    field->status = count == 1 && field->id == 230 ? 0 : 3;
    GIVE(&field->value.number, sick(device->card) ? 2 : 0);
}
#endif
#ifdef XID
static int set, registered, told;
int nvmlEventSetCreate(void **to) { GIVE(to, &set); }
int nvmlDeviceRegisterEvents(Device *device, u64 types, void *to) {
    if (types != 8 || to != &set) return 2;
    registered |= 1 << device->card;
    return 0;
}
// One event of card 1, when there is the file; then one that a program caused.
int nvmlEventSetWait_v2(void *from, Event *event, u32 wait_ms) {
    if (from != &set || wait_ms != 0 || registered != 3 || !on("sick") || told == 2) return TIMEOUT;
    *event = (Event){.device = &cards[1 - told], .type = 8, .data = told ? 31 : 79};
    told++;
    return 0;
}
int nvmlDeviceGetRemappedRows(Device *device, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failed) {
    *corrected = 1, *uncorrected = 0, *failed = 0;
    GIVE(pending, device->card == 0);
}
#endif
