// Two cards of one chip each, and a controller; the logical number of a chip is its card's, the physical one is not.
// Virtual chips stand in the file DIR/parts, a line of number, card and template for each, so that they outlive whoever made
// them. DIR/busy: they cannot be destroyed while it exists.
#include "stub.h"
#include "dying.h"
enum { LOST = -8008 };
struct chip_info { char type[32], name[32], version[32]; u32 cores; };
struct chip_info_v2 { char type[32], name[32], version[32]; u32 cores; char npu[32]; };
struct pcie { u32 device, vendor, subvendor, subdevice, bdf_device, bdf_bus, bdf_function; };
struct pcie_all { u32 vendor, subvendor, device, subdevice; int domain; u32 bus, bdf_device, function; char spare[32]; };
struct die { u32 word[5]; };
struct hbm { u64 size; u32 frequency; u64 usage; int temperature; u32 bandwidth; };
struct memory { u64 size, available; u32 frequency; unsigned long page, total, free; u32 used; unsigned char spare[60]; };
SIZE(struct chip_info, 100); SIZE(struct chip_info_v2, 132); SIZE(struct pcie_all, 64); SIZE(struct die, 20);
SIZE(struct hbm, 32); SIZE(struct memory, 112); SIZE(struct pcie, 28);

static int die(int card, struct die *die) {
    *die = (struct die){{0x10000000 + card, 2, 3, 4, 5}};
    return 0;
}
static int chip(char *name) { return text(name, 32, "910B3"); }
enum { CORES = 20, MOST = 32, VDEV_MNG = 52, TOTAL = 1, FREE = 2 };
static int place(int card, struct pcie_all *pcie) {
    *pcie = (struct pcie_all){.domain = 0, .bus = bus(card), .bdf_device = 0, .function = 0};
    return 0;
}

int dcmi_init(void) { INIT(-8005); }
int dcmi_get_card_list(int *count, int *list, int length) {
    CALL;
    if (length < 2) return -8001;
    list[0] = 0, list[1] = 1;
    GIVE(count, 2);
}
int dcmi_get_device_num_in_card(int card, int *count) { OF(card); GIVE(count, 2); }
int dcmi_get_device_type(int card, int chip, int *type) { OF(card); GIVE(type, chip); }
int dcmi_get_device_logic_id(int *logical, int card, int chip) { OF(card); (void)chip; GIVE(logical, card); }
int dcmi_get_device_phyid_from_logicid(u32 logical, u32 *physical) { OF(logical); GIVE(physical, 5 - logical); }
int dcmi_get_device_die_v2(int card, int chip, int kind, struct die *to) {
    OF(card);
    (void)chip;
    return kind == 1 ? die(card, to) : -8001;
}
int dcmi_get_device_die(int card, int chip, struct die *to) { OF(card); (void)chip; return die(card, to); }
int dcmi_get_device_chip_info_v2(int card, int at, struct chip_info_v2 *to) { OF(card); (void)at; to->cores = CORES; return chip(to->name); }
int dcmi_get_device_chip_info(int card, int at, struct chip_info *to) { OF(card); (void)at; to->cores = CORES; return chip(to->name); }
int dcmi_get_device_pcie_info_v2(int card, int at, struct pcie_all *to) { OF(card); (void)at; return place(card, to); }
int dcmi_get_device_pcie_info(int card, int at, struct pcie *to) {
    OF(card);
    (void)at;
    *to = (struct pcie){.bdf_bus = bus(card)};
    return 0;
}
int dcmi_get_device_hbm_info(int card, int at, struct hbm *to) { OF(card); (void)at; GIVE(&to->size, 65536); }
int dcmi_get_device_memory_info_v3(int card, int at, struct memory *to) { OF(card); (void)at; GIVE(&to->size, 65536); }
int dcmi_get_device_health(int card, int at, u32 *health) { OF(card); (void)at; GIVE(health, sick(card) ? 3 : 0); }
int dcmi_get_device_errorcode_v2(int card, int at, int *count, u32 *list, u32 length) {
    OF(card);
    (void)at;
    GIVE(count, codes(card, list, length));
}
int dcmi_get_topo_info_by_device_id(int one, int at, int other, int to, int *way) {
    OF(one);
    (void)at, (void)to;
    GIVE(way, one == other ? 0 : 3);
}

struct base { u64 token, token_max, timeout; u32 group; unsigned char vip, spare[31]; };
struct computing {
    float aic, aiv;
    unsigned short units[8];
    u64 memory;
    u32 ids[4];
    unsigned short cpus[5];
    u32 used;
    u64 total, free;
    unsigned char spare[12];
};
struct media { float units[6]; unsigned char spare[32]; };
struct wanted { u32 number, group; char template[32]; unsigned char spare[64]; };
struct created { u32 number, bus, device, function, group; unsigned char spare[32]; };
struct of_chip { u32 count, numbers[MOST], groups, bitmap; struct base base; struct computing computing; struct media media; };
struct free_of { u32 groups, bitmap; struct base base; struct computing computing; struct media media; };
SIZE(struct base, 64); SIZE(struct computing, 96); SIZE(struct media, 56); SIZE(struct wanted, 104); SIZE(struct created, 52);
SIZE(struct of_chip, 360); SIZE(struct free_of, 224);

static struct { int number, card; char template[32]; } all[MOST];
static int count;
static void load(void) {
    FILE *file = fopen(DIR "/parts", "r");
    count = 0;
    while (file && count < MOST && fscanf(file, "%d %d %31s", &all[count].number, &all[count].card, all[count].template) == 3) count++;
    if (file) fclose(file);
}
static void save(void) {
    FILE *file = fopen(DIR "/parts", "w");
    for (int at = 0; at < count; at++) fprintf(file, "%d %d %s\n", all[at].number, all[at].card, all[at].template);
    fclose(file);
}
// The number behind "vir" is that of cores.
static int cores(const char *template) { return atoi(template + 3); }
static int room(int card) {
    int left = CORES;
    load();
    for (int at = 0; at < count; at++) if (all[at].card == card) left -= cores(all[at].template);
    return left;
}
enum { CHIP_INF = 12, SPOD_INFO = 1 };
struct spod { u32 sdid, size, number, server, spare[8]; };
SIZE(struct spod, 48);
int dcmi_get_device_info(int card, int at, int command, u32 what, void *to, u32 *size) {
    OF(card);
    (void)at;
    // DIR/super-pod: the chips are in the one with the number 17.
    if (command == CHIP_INF && what == SPOD_INFO && on("super-pod") && *size == sizeof(struct spod)) {
        *(struct spod *)to = (struct spod){.sdid = 3, .size = 384, .number = 17, .server = 2};
        return 0;
    }
    if (command != VDEV_MNG || *size != (what == TOTAL ? sizeof(struct of_chip) : sizeof(struct free_of))) return -8001;
    if (what == FREE) {
        *(struct free_of *)to = (struct free_of){.computing = {.aic = room(card)}};
        return 0;
    }
    struct of_chip found = {.computing = {.aic = CORES}};
    load();
    for (int it = 0; it < count; it++) if (all[it].card == card) found.numbers[found.count++] = all[it].number;
    *(struct of_chip *)to = found;
    return 0;
}
int dcmi_create_vdevice(int card, int at, struct wanted *wanted, struct created *created) {
    OF(card);
    (void)at;
    dies(0);
    if (wanted->number != ~0u || wanted->group != ~0u || (strcmp(wanted->template, "vir05_1c_16g") && strcmp(wanted->template, "vir10_3c_32g"))) return -8001;
    if (room(card) < cores(wanted->template)) return -8020;
    int number = 100 + 16 * card;
    for (int it = 0; it < count; it++) if (all[it].number == number) number++, it = -1;
    all[count].number = number, all[count].card = card;
    strcpy(all[count++].template, wanted->template);
    save();
    dies(1);
    GIVE(&created->number, number);
}
int dcmi_set_destroy_vdevice(int card, int at, u32 number) {
    OF(card);
    (void)at;
    dies(0);
    load();
    for (int it = 0; it < count; it++) if (all[it].card == card && all[it].number == (int)number) {
        if (on("busy")) return -8020;
        all[it] = all[--count];
        save();
        dies(1);
        return 0;
    }
    return -8001;
}

int dcmiv2_init(void) { INIT(-8005); }
int dcmiv2_get_device_list(int *list, int *count, int length) {
    CALL;
    if (length < 2) return -8001;
    list[0] = 0, list[1] = 1;
    GIVE(count, 2);
}
int dcmiv2_get_chip_phyid_from_dev_id(u32 device, u32 *physical) { OF(device); GIVE(physical, 5 - device); }
int dcmiv2_get_device_die(int device, int kind, struct die *to) { OF(device); return kind == 1 ? die(device, to) : -8001; }
int dcmiv2_get_device_chip_info(int device, struct chip_info_v2 *to) { OF(device); return chip(to->name); }
int dcmiv2_get_device_pcie_info(int device, struct pcie_all *to) { OF(device); return place(device, to); }
int dcmiv2_get_device_hbm_info(int device, struct hbm *to) { OF(device); GIVE(&to->size, 65536); }
int dcmiv2_get_device_health(int device, u32 *health) { OF(device); GIVE(health, sick(device) ? 3 : 0); }
int dcmiv2_get_device_error_code_list(int device, int *count, u32 *list, u32 length) {
    OF(device);
    GIVE(count, codes(device, list, length));
}
