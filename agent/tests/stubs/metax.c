#include "stub.h"
enum { LOST = 6 };
typedef struct { u32 id, type; char bdf[32]; u32 gpu, node; char uuid[96]; u32 brand, mode; char name[32]; } Info;
typedef struct { long visTotal, visUse, total, use, xttTotal, xttUse; } Memory;
typedef struct { u32 sramCE, sramUE, dramCE, dramUE, retired; } Ecc;
typedef struct { int code; char reason[64]; } Reason;
SIZE(Info, 184); SIZE(Memory, 48); SIZE(Ecc, 20);

int mxSmlInit(void) { INIT(1); }
u32 mxSmlGetDeviceCount(void) { CALL; return 2; }
int mxSmlGetDeviceInfo(u32 card, Info *info) {
    OF(card);
    text(info->bdf, 32, "0000:%02x:00.0", bus(card));
    text(info->uuid, 96, "GPU-mx-%d", card);
    return text(info->name, 32, "MXC500");
}
int mxSmlGetMemoryInfo(u32 card, Memory *memory) { OF(card); *memory = (Memory){.total = 64l << 20}; return 0; }
int mxSmlGetTotalEccErrors(u32 card, Ecc *ecc) { OF(card); *ecc = (Ecc){.dramCE = 7}; return 0; }
int mxSmlGetDeviceUnavailableReason(u32 card, Reason *reason) { OF(card); GIVE(&reason->code, sick(card) ? 2 : 0); }
int mxSmlGetDeviceTopology(u32 one, u32 other, u32 *level) { OF(one); GIVE(level, one == other ? 0 : 5); }
int mxSmlGetCurrentClocksThrottleReason(u32 card, u64 *reasons) { OF(card); GIVE(reasons, card == 1 && on("hot") ? 0x24 : 0x4); }
