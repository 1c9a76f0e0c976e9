// A stand-in for libnvidia-ml.so.1 with two cards. Built by tests/devices.rs with
//   -DLOST_FILE="…"  the second card is lost while this file exists
//   -DHANG_FILE="…"  counting devices never returns while this file exists
//   -DNO_MEMORY      without the memory symbol, as of an old driver
//   -DNO_INIT        initialisation fails: the driver is not loaded
//   -DMIG            the first card is divided into two slices
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, INVALID = 2, NOT_FOUND = 6, DRIVER_NOT_LOADED = 9, LOST = 15 };
typedef struct { int card, slice; } Device;
static Device cards[2] = {{0, -1}, {1, -1}}, slices[2] = {{0, 0}, {0, 1}};

#ifdef LOST_FILE
static int lost(const Device *device) { return device->card == 1 && access(LOST_FILE, F_OK) == 0; }
#else
static int lost(const Device *device) { (void)device; return 0; }
#endif

#ifdef NO_INIT
int nvmlInit_v2(void) { return DRIVER_NOT_LOADED; }
#else
int nvmlInit_v2(void) { return OK; }
#endif
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int error) { (void)error; return "an error of the stand-in"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
#ifdef HANG_FILE
    while (access(HANG_FILE, F_OK) == 0) usleep(1000);
#endif
    *count = 2;
    return OK;
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    if (index >= 2) return INVALID;
    *device = &cards[index];
    return lost(*device) ? LOST : OK;
}
int nvmlDeviceGetName(Device *device, char *text, unsigned size) {
    const char *slice = device->slice < 0 ? "" : " MIG 1g.10gb";
    snprintf(text, size, "NVIDIA H100 80GB HBM3%s", slice);
    return OK;
}
int nvmlDeviceGetUUID(Device *device, char *text, unsigned size) {
    if (device->slice < 0) snprintf(text, size, "GPU-0000-%d", device->card);
    else snprintf(text, size, "MIG-0000-%d", device->slice);
    return OK;
}
int nvmlDeviceGetMinorNumber(Device *device, unsigned *minor) { *minor = 1 - device->card; return OK; }

typedef struct {
    char legacy[16];
    unsigned domain, bus, device, id, subsystem;
    char bus_id[32];
} Pci;
int nvmlDeviceGetPciInfo_v3(Device *device, Pci *pci) {
    memset(pci, 0, sizeof *pci);
    // The second card is plugged in before the first.
    snprintf(pci->bus_id, sizeof pci->bus_id, "00000000:%02X:00.0", 0x2b - device->card);
    return OK;
}
#ifndef NO_MEMORY
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory;
int nvmlDeviceGetMemoryInfo_v2(Device *device, Memory *memory) {
    memory->total = device->slice < 0 ? 80ull << 30 : 10ull << 30;
    memory->reserved = memory->used = 0;
    memory->free = memory->total;
    return OK;
}
#endif
#ifdef MIG
int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    *current = *pending = device->card == 0;
    return OK;
}
int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) { (void)device; *count = 7; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **slice) {
    if (device->card != 0 || index >= 2) return NOT_FOUND;
    *slice = &slices[index];
    return OK;
}
#endif
