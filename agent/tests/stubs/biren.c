#include "stub.h"
enum { LOST = 999 };
typedef struct { u32 domain, bus, device, function, id, subsystem; char busId[32]; } Pci;
typedef struct { u64 total, free, used; } Memory;
SIZE(Pci, 56); SIZE(Memory, 24);
static int cards[2] = {0, 1};

int brmlInit(void) { INIT(9); }
int brmlDeviceGetCount_v1(u32 *count) { CALL; GIVE(count, 2); }
int brmlDeviceGetCount(u32 *count) { CALL; GIVE(count, 2); }
int brmlDeviceGetHandleByIndex_v1(u32 index, int **card) { OF(index); GIVE(card, &cards[index]); }
int brmlDeviceGetHandleByIndex(u32 index, int **card) { OF(index); GIVE(card, &cards[index]); }
int brmlDeviceGetUUID(int *card, char *to, u32 size) { OF(*card); return text(to, size, "BR-%d", *card); }
int brmlDeviceGetBoardPartNumber(int *card, char *to, u32 size) { OF(*card); return text(to, size, "BR106M"); }
int brmlDeviceGetMinorNumber(int *card, u32 *minor) { OF(*card); GIVE(minor, 1 - *card); }
int brmlDeviceGetPciInfo_v1(int *card, Pci *pci) { OF(*card); *pci = (Pci){.bus = bus(*card)}; return 0; }
int brmlDeviceGetPciInfo(int *card, Pci *pci) { return brmlDeviceGetPciInfo_v1(card, pci); }
int brmlDeviceGetMemoryInfo(int *card, Memory *memory) { OF(*card); GIVE(&memory->total, 32ull << 30); }
int brmlDeviceGetHealthStatus(int *card, u32 *status) { OF(*card); GIVE(status, sick(*card) ? 3 : 0); }
int brmlDeviceGetP2PStatus(int *one, int *other, u32 *port) { OF(*one); GIVE(port, one == other ? 9999 : 4); }
