// A process with PART_DIE=N in its environment is killed before its Nth call that changes something, or after it
// (PART_DIE=Na).
#include <signal.h>
#include <stdlib.h>

static void dies(int after) {
    static int calls;
    const char *when = getenv("PART_DIE");
    if (when && atoi(when) == calls && (strchr(when, 'a') != NULL) == after) raise(SIGKILL);
    calls += after;
}
