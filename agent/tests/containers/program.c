/* What a worker does in an image that has nothing else. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static volatile sig_atomic_t asked;

static void on_term(int number) { asked = number; }

int main(int count, char **words) {
    const char *dir = getenv("AQUIFER_RUN_DIR"), *greeting = getenv("GREETING");
    const char *what = 1 < count ? words[1] : "";
    char path[4096];
    signal(SIGTERM, strcmp(what, "obey") ? SIG_IGN : on_term);
    printf("%s\n%s\n%s\n", greeting ? greeting : "", dir ? dir : "", what);
    fflush(stdout);
    if (dir) {
        snprintf(path, sizeof path, "%s/from-within", dir);
        FILE *file = fopen(path, "w");
        if (file) fclose(file);
    }
    if (!strcmp(what, "exit")) return atoi(words[2]);
    if (!strcmp(what, "signal")) {
        signal(atoi(words[2]), SIG_DFL);
        raise(atoi(words[2]));
    }
    while (!asked) usleep(10000);
    return 3;
}
