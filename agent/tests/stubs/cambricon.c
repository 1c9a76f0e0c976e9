// sMLU instances stand in the file DIR/parts, a line of card, number and profile for each, and profiles in DIR/profiles, a line
// of card, number, percent and bytes. DIR/smlu: cards are in sMLU mode while it exists; DIR/busy: instances cannot be destroyed; DIR/no-node: they get no
// device node.
#include "stub.h"
#include "dying.h"
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
typedef struct { int version, tdp, powerSetting, clockSetting, frequencyLocked, powerBrake, thermalSlowdown; } Throttle;
SIZE(CardInfo, 8); SIZE(Throttle, 28); SIZE(Uuid, 56); SIZE(MemoryV2, 176); SIZE(Pcie, 64); SIZE(Health, 16); SIZE(Incident, 540); SIZE(HealthV2, 34612);
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
int cndevGetPerformanceThrottleReason(Throttle *reason, int handle) {
    OF(handle - 100);
    STAMPED(reason);
    *reason = (Throttle){.version = 6, .tdp = 1, .thermalSlowdown = handle == 101 && on("hot")};
    return 0;
}

enum { INVALID = 5, NO_ROOM = 9, NOT_FOUND = 14, IN_USE = 15, DUPLICATE = 16, MOST = 128 };
typedef struct { int version, on; } Mode;
typedef struct { int version; u32 percent; u64 memory; } Set;
typedef struct { int version, count, ids[MOST]; } Ids;
typedef struct { int version, id; char name[100]; u32 total, remain, percent[2]; u64 memory[2]; } Profile;
typedef struct {
    int version, profile, number;
    uint8_t uuid[37];
    int domain, bus, device, function;
    char profileName[100], name[100], node[100];
    u32 percent[2];
    u64 memory[2];
    u32 spare[128];
} Info;
SIZE(Mode, 8); SIZE(Set, 16); SIZE(Ids, 520); SIZE(Profile, 144); SIZE(Info, 904);

static struct { int card, number, profile; } all[MOST];
static struct { int card, id; u32 percent; u64 memory; } profiles[MOST];
static int count, kinds;
static void load(void) {
    FILE *file = fopen(DIR "/parts", "r");
    count = kinds = 0;
    while (file && count < MOST && fscanf(file, "%d %d %d", &all[count].card, &all[count].number, &all[count].profile) == 3) count++;
    if (file) fclose(file);
    file = fopen(DIR "/profiles", "r");
    while (file && kinds < MOST && fscanf(file, "%d %d %u %llu", &profiles[kinds].card, &profiles[kinds].id, &profiles[kinds].percent, &profiles[kinds].memory) == 4) kinds++;
    if (file) fclose(file);
}
static void save(void) {
    FILE *file = fopen(DIR "/parts", "w");
    for (int at = 0; at < count; at++) fprintf(file, "%d %d %d\n", all[at].card, all[at].number, all[at].profile);
    fclose(file);
    file = fopen(DIR "/profiles", "w");
    for (int at = 0; at < kinds; at++) fprintf(file, "%d %d %u %llu\n", profiles[at].card, profiles[at].id, profiles[at].percent, profiles[at].memory);
    fclose(file);
}
static int kind(int card, int id) {
    load();
    for (int at = 0; at < kinds; at++) if (profiles[at].card == card && profiles[at].id == id) return at;
    return -1;
}
static void node(char *to, int card, int number) { text(to, 100, DIR "/cap_dev%d_mi%d", card, number); }
static void describe(Info *info, int at) {
    int of = kind(all[at].card, all[at].profile);
    info->profile = all[at].profile, info->number = all[at].number;
    info->percent[0] = profiles[of].percent, info->memory[0] = profiles[of].memory;
    text((char *)info->uuid, 37, "part-%d-%d", all[at].card, all[at].number);
    text(info->name, 100, "smlu%d", all[at].number);
    node(info->node, all[at].card, all[at].number);
}

int cndevGetSMLUMode(Mode *mode, int handle) { OF(handle - 100); STAMPED(mode); GIVE(&mode->on, on("smlu")); }
int cndevGetSMluProfileIdInfo(Ids *ids, int handle) {
    OF(handle - 100);
    STAMPED(ids);
    load();
    ids->count = 0;
    for (int at = 0; at < kinds; at++) if (profiles[at].card == handle - 100) ids->ids[ids->count++] = profiles[at].id;
    return 0;
}
int cndevGetSMluProfileInfo(Profile *to, int id, int handle) {
    OF(handle - 100);
    STAMPED(to);
    int at = kind(handle - 100, id);
    if (at < 0) return INVALID;
    to->percent[0] = profiles[at].percent, to->memory[0] = profiles[at].memory;
    return 0;
}
int cndevCreateSMluProfileInfo(Set *set, int *id, int handle) {
    OF(handle - 100);
    STAMPED(set);
    dies(0);
    *id = 3;
    while (kind(handle - 100, *id) >= 0) ++*id;
    profiles[kinds].card = handle - 100, profiles[kinds].id = *id;
    profiles[kinds].percent = set->percent, profiles[kinds++].memory = set->memory;
    save();
    dies(1);
    return 0;
}
int cndevDestroySMluProfileInfo(int id, int handle) {
    OF(handle - 100);
    dies(0);
    int at = kind(handle - 100, id);
    if (at < 0) return INVALID;
    for (int it = 0; it < count; it++) if (all[it].card == handle - 100 && all[it].profile == id) return DUPLICATE;
    profiles[at] = profiles[--kinds];
    save();
    dies(1);
    return 0;
}
int cndevCreateSMluInstanceByProfileId(int *made, u32 profile, int handle, char *name) {
    OF(handle - 100);
    dies(0);
    int at = kind(handle - 100, profile), number = 1, percent = 0;
    if (at < 0 || *name) return INVALID;
    for (int it = 0; it < count; it++) if (all[it].card == handle - 100) percent += profiles[kind(handle - 100, all[it].profile)].percent;
    if (percent + profiles[at].percent > 100) return NO_ROOM;
    for (int it = 0; it < count; it++) if (all[it].card == handle - 100 && all[it].number == number) number++, it = -1;
    all[count].card = handle - 100, all[count].number = number, all[count++].profile = profile;
    save();
    char path[100];
    node(path, handle - 100, number);
    if (!on("no-node")) fclose(fopen(path, "w"));
    dies(1);
    GIVE(made, number << 8 | (handle - 100));
}
int cndevGetSMluInstanceInfo(Info *info, int made) {
    STAMPED(info);
    load();
    for (int at = 0; at < count; at++) if ((all[at].number << 8 | all[at].card) == made) return describe(info, at), 0;
    return INVALID;
}
int cndevGetAllSMluInstanceInfo(int *number, Info *infos, int handle) {
    OF(handle - 100);
    STAMPED(infos);
    load();
    int most = *number;
    *number = 0;
    for (int at = 0; at < count && *number < most; at++) if (all[at].card == handle - 100) describe(&infos[(*number)++], at);
    return 0;
}
int cndevDestroySMluInstanceByInstanceName(int handle, char *name) {
    OF(handle - 100);
    dies(0);
    load();
    for (int at = 0; at < count; at++) if (all[at].card == handle - 100 && all[at].number == atoi(name + 4)) {
        if (on("busy")) return IN_USE;
        char path[100];
        node(path, all[at].card, all[at].number);
        all[at] = all[--count];
        save();
        unlink(path);
        dies(1);
        return 0;
    }
    return NOT_FOUND;
}
