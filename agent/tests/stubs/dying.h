// A process with PART_DIE=N in its environment is killed before the library's Nth call that changes something, or after it
// (PART_DIE=Na); with PART_DIE=Nc or Nac what has the library is killed alone.
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static void dies(int after) {
    static int calls;
    const char *when = getenv("PART_DIE");
    if (when && atoi(when) == calls && (strchr(when, 'a') != NULL) == after) {
        if (!strchr(when, 'c')) kill(getppid(), SIGKILL);
        raise(SIGKILL);
    }
    calls += after;
}
