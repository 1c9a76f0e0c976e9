// Two cards of one chip each, and a controller; the logical number of a chip is its card's, the physical one is not.
#include "stub.h"
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
int dcmi_get_device_chip_info_v2(int card, int at, struct chip_info_v2 *to) { OF(card); (void)at; return chip(to->name); }
int dcmi_get_device_chip_info(int card, int at, struct chip_info *to) { OF(card); (void)at; return chip(to->name); }
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
