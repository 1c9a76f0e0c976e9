#include "stub.h"
enum { LOST = 3 };
int rsmi_init(u64 flags) { (void)flags; INIT(8); }
int rsmi_num_monitor_devices(u32 *count) { CALL; GIVE(count, 2); }
int rsmi_dev_name_get(u32 card, char *to, size_t size) { OF(card); return text(to, size, "K100 AI"); }
int rsmi_dev_unique_id_get(u32 card, u64 *id) { OF(card); GIVE(id, 0xabcdef0000ull + card); }
int rsmi_dev_pci_id_get(u32 card, u64 *bdf) { OF(card); GIVE(bdf, (u64)bus(card) << 8 | 1ull << 28); }
int rsmi_dev_memory_total_get(u32 card, u32 kind, u64 *bytes) { OF(card); GIVE(bytes, kind ? 1 : 64ull << 30); }
int rsmi_dev_ecc_count_get(u32 card, u32 block, u64 *counts) {
    OF(card);
    counts[0] = 9;
    GIVE(counts + 1, block == 1 && sick(card) ? 2 : 0);
}
int rsmi_topo_get_link_type(u32 one, u32 other, u64 *hops, u32 *kind) {
    OF(one);
    *hops = 1;
    GIVE(kind, one == other ? 0 : 2);
}
