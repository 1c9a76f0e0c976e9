// NVML of one card in MIG mode, for making instances. What was made stands in the file DIR/instances, a line of number,
// profile and whether it has compute for each instance, so that it outlives whoever made it.
// DIR/busy: instances cannot be destroyed while it exists.
#include "stub.h"
#include "dying.h"

enum { INVALID = 2, NOT_FOUND = 6, NO_ROOM = 7, IN_USE = 19 };
typedef struct { int part; } Device;
typedef struct { int number, profile, compute; } Instance;
typedef struct { u32 id, p2p, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa; u64 memoryMB; } Profile;
typedef struct { Device *device; u32 id, profile, start, size; } Info;
typedef struct { u32 id, slices, instances, multiprocessors, copy, decoder, encoder, jpeg, ofa; } Compute;
SIZE(Profile, 48); SIZE(Info, 24); SIZE(Compute, 36);

static Device card = {-1}, parts[8] = {{0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}};
static Instance all[8];
static int count;

// By the kind that is asked for; -1: the card has none.
static const struct { int kind, id, slices, memoryMB; } kinds[] = {{0, 19, 1, 9728}, {1, 14, 2, 19968}, {2, 9, 3, 40192}, {4, 0, 7, 81079}};
static int slices_of(int id) {
    for (unsigned at = 0; at < 4; at++) if (kinds[at].id == id) return kinds[at].slices;
    return 0;
}
static void load(void) {
    FILE *file = fopen(DIR "/instances", "r");
    count = 0;
    while (file && count < 8 && fscanf(file, "%d %d %d", &all[count].number, &all[count].profile, &all[count].compute) == 3) count++;
    if (file) fclose(file);
}
static void save(void) {
    FILE *file = fopen(DIR "/instances", "w");
    for (int at = 0; at < count; at++) fprintf(file, "%d %d %d\n", all[at].number, all[at].profile, all[at].compute);
    fclose(file);
}
static Instance *at(int number) {
    load();
    for (int it = 0; it < count; it++) if (all[it].number == number) return &all[it];
    return NULL;
}
// A handle is the number of the instance, and one more, so that it is not null.
#define NUMBER(handle) ((int)(intptr_t)(handle) - 1)
#define HANDLE(number) ((void *)(intptr_t)((number) + 1))

int nvmlInit_v2(void) { INIT(9); }
int nvmlDeviceGetCount_v2(u32 *to) { GIVE(to, 1); }
int nvmlDeviceGetHandleByIndex_v2(u32 index, Device **to) { if (index) return INVALID; GIVE(to, &card); }
int nvmlDeviceGetHandleByUUID(const char *uuid, Device **to) { if (strcmp(uuid, "GPU-0000")) return NOT_FOUND; GIVE(to, &card); }
int nvmlDeviceGetUUID(Device *device, char *to, u32 size) {
    if (device == &card) return text(to, size, "GPU-0000");
    load();
    return text(to, size, "MIG-%d", all[device->part].number);
}
int nvmlDeviceGetMigMode(Device *device, u32 *now, u32 *pending) { (void)device; *pending = 1; GIVE(now, 1); }
int nvmlDeviceGetMaxMigDeviceCount(Device *device, u32 *to) { (void)device; GIVE(to, 7); }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, u32 index, Device **to) {
    (void)device;
    load();
    if ((int)index >= count || !all[index].compute) return NOT_FOUND;
    GIVE(to, &parts[index]);
}
int nvmlDeviceGetGpuInstanceId(Device *part, u32 *to) { load(); GIVE(to, (u32)all[part->part].number); }
int nvmlDeviceGetComputeInstanceId(Device *part, u32 *to) { (void)part; GIVE(to, 0); }
int nvmlDeviceGetMinorNumber(Device *device, u32 *to) { (void)device; GIVE(to, 3); }
int nvmlDeviceGetGpuInstanceProfileInfo(Device *device, u32 kind, Profile *to) {
    (void)device;
    for (unsigned it = 0; it < 4; it++) if (kinds[it].kind == (int)kind) {
        memset(to, 0, sizeof *to);
        to->id = kinds[it].id, to->slices = kinds[it].slices, to->instances = 7 / kinds[it].slices, to->memoryMB = kinds[it].memoryMB;
        return 0;
    }
    return 3;
}
static int room(int id) {
    int left = 7;
    load();
    for (int it = 0; it < count; it++) left -= slices_of(all[it].profile);
    return left / slices_of(id);
}
int nvmlDeviceGetGpuInstanceRemainingCapacity(Device *device, u32 id, u32 *to) { (void)device; GIVE(to, (u32)room(id)); }
int nvmlDeviceCreateGpuInstance(Device *device, u32 id, void **to) {
    (void)device;
    dies(0);
    if (!room(id)) return NO_ROOM;
    int number = 1;
    while (at(number)) number++;
    all[count++] = (Instance){number, (int)id, 0};
    save();
    dies(1);
    GIVE(to, HANDLE(number));
}
int nvmlGpuInstanceGetInfo(void *handle, Info *to) {
    Instance *it = at(NUMBER(handle));
    if (!it) return NOT_FOUND;
    *to = (Info){&card, it->number, it->profile, 0, 0};
    return 0;
}
int nvmlGpuInstanceGetComputeInstanceProfileInfo(void *handle, u32 kind, u32 engines, Compute *to) {
    Instance *it = at(NUMBER(handle));
    if (!it || engines || kind > 4) return INVALID;
    int slices = kind == 4 ? 7 : (int)kind + 1;
    if (slices > slices_of(it->profile)) return 3;
    memset(to, 0, sizeof *to);
    to->id = kind, to->slices = slices;
    return 0;
}
int nvmlGpuInstanceCreateComputeInstance(void *handle, u32 id, void **to) {
    dies(0);
    Instance *it = at(NUMBER(handle));
    if (!it || (id == 4 ? 7 : (int)id + 1) != slices_of(it->profile)) return INVALID;
    it->compute = 1;
    save();
    dies(1);
    GIVE(to, handle);
}
int nvmlDeviceGetGpuInstances(Device *device, u32 id, void **to, u32 *found) {
    (void)device;
    load();
    *found = 0;
    for (int it = 0; it < count; it++) if (all[it].profile == (int)id) to[(*found)++] = HANDLE(all[it].number);
    return 0;
}
int nvmlGpuInstanceGetComputeInstances(void *handle, u32 id, void **to, u32 *found) {
    Instance *it = at(NUMBER(handle));
    if (!it) return NOT_FOUND;
    *found = it->compute && (id == 4 ? 7 : (int)id + 1) == slices_of(it->profile);
    if (*found) *to = handle;
    return 0;
}
int nvmlComputeInstanceDestroy(void *handle) {
    dies(0);
    Instance *it = at(NUMBER(handle));
    if (!it) return NOT_FOUND;
    it->compute = 0;
    save();
    dies(1);
    return 0;
}
int nvmlGpuInstanceDestroy(void *handle) {
    dies(0);
    Instance *it = at(NUMBER(handle));
    if (!it) return NOT_FOUND;
    if (it->compute || on("busy")) return IN_USE;
    *it = all[--count];
    save();
    dies(1);
    return 0;
}
