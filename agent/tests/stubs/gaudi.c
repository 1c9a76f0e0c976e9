#include "stub.h"
enum { LOST = 15 };
typedef struct { u32 bus; char bus_id[15]; u32 device, domain, id; char speed[10], width[10]; } Pci;
typedef struct { u64 free, total, used; } Memory;
SIZE(Pci, 52); SIZE(Memory, 24);
static int cards[2] = {0, 1};

int hlml_init(void) { INIT(9); }
int hlml_device_get_count(u32 *count) { CALL; GIVE(count, 2); }
int hlml_device_get_handle_by_index(u32 index, int **card) { OF(index); GIVE(card, &cards[index]); }
int hlml_device_get_uuid(int *card, char *to, u32 size) { OF(*card); return text(to, size, "01P0-HL%d", *card); }
int hlml_device_get_name(int *card, char *to, u32 size) { OF(*card); return text(to, size, "HL-225"); }
int hlml_device_get_minor_number(int *card, u32 *minor) { OF(*card); GIVE(minor, 1 - *card); }
int hlml_device_get_module_id(int *card, u32 *module) { OF(*card); GIVE(module, 6 + *card); }
int hlml_device_get_pci_info(int *card, Pci *pci) { OF(*card); *pci = (Pci){.bus = bus(*card)}; return 0; }
int hlml_device_get_memory_info(int *card, Memory *memory) {
    OF(*card);
    *memory = (Memory){.free = 1, .total = 96ull << 30};
    return 0;
}
int hlml_device_get_total_ecc_errors(int *card, u32 type, u32 counter, u64 *count) {
    OF(*card);
    GIVE(count, type == 1 && counter == 0 && sick(*card) ? 3 : 0);
}
int hlml_device_get_current_clocks_throttle_reasons(int *card, u64 *reasons) {
    OF(*card);
    GIVE(reasons, *card == 1 && on("hot") ? 3 : 1);
}
