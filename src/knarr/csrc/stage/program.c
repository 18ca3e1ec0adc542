/* The end: find the program, put the declared descriptors at their numbers, close all others, become it. */
#define _GNU_SOURCE
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>

#include "stage.h"

#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

/* Magic links such as /proc/self/exe are refused: 0 or errno. */
static int check_program(const char *path) {
    struct stat status;
    int fd = open_in(AT_FDCWD, path, O_PATH, NO_MAGICLINKS);
    if (fd < 0) return errno;
    int failed = fstat(fd, &status) ? errno : 0;
    close(fd);
    if (failed) return failed;
    if (!S_ISREG(status.st_mode) || syscall(SYS_faccessat2, AT_FDCWD, path, X_OK, AT_EACCESS)) return EACCES;
    return 0;
}

/* As execvp(3) finds it. */
static const char *find_program(const char *name, const char *search) {
    static char path[PATH_MAX];
    int denied = 0, code;
    if (!*name) return refuse(ENOENT, name, ""), NULL;
    if (strchr(name, '/')) {
        errno = check_program(name);
        return errno ? fail(name), NULL : name;
    }
    for (const char *end; search; search = *end ? end + 1 : NULL) {
        end = search + strcspn(search, ":");
        int size = end > search ? snprintf(path, sizeof path, "%.*s/%s", (int)(end - search), search, name)
                                : snprintf(path, sizeof path, "./%s", name);
        code = size < (int)sizeof path ? check_program(path) : ENAMETOOLONG;
        if (!code) return path;
        if (code != ENOENT && code != ENOTDIR) denied = code;
    }
    errno = denied ? denied : ENOENT;
    return fail(name), NULL;
}

static const char *variable(const char **environment, const char *name) {
    size_t size = strlen(name);
    for (; *environment; environment++)
        if (!strncmp(*environment, name, size) && (*environment)[size] == '=') return *environment + size + 1;
    return NULL;
}

/* ---- descriptors ---- */

struct place {
    int number, fd;
};

/* Each at its number; `*channel` just above the highest, close-on-exec; everything else closed. */
static int arrange(struct place *places, int count, int top, int *channel) {
    /* copies above everything first: a wanted number may be another's source */
    for (int i = 0; i < count; i++) {
        places[i].fd = fcntl(places[i].fd, F_DUPFD_CLOEXEC, top + 1);
        if (places[i].fd < 0) return fail("descriptors");
    }
    int kept = fcntl(*channel, F_DUPFD_CLOEXEC, top + 1);
    if (kept < 0 || dup3(kept, top, O_CLOEXEC) < 0) return fail("descriptors");
    *channel = top;
    for (int i = 0; i < count; i++)
        if (dup2(places[i].fd, places[i].number) < 0) return fail("descriptors");
    if (syscall(SYS_close_range, top + 1, ~0U, 0)) return fail("descriptors");
    for (int number = 0; number < top; number++) {
        int wanted = 0;
        for (int i = 0; i < count; i++) wanted |= places[i].number == number;
        if (!wanted) close(number);
    }
    return 0;
}

static int add(struct place *places, int *count, int number, int fd) {
    for (int i = 0; i < *count; i++)
        if (places[i].number == number) return 0;
    if (*count == NAMES) return refuse(EMFILE, "", "too many descriptors in one plan");
    places[(*count)++] = (struct place){number, fd};
    return 0;
}

/* The plan's (name, number)…; what is missing, and 0 to 2, are /dev/null. */
static int declared(struct reader *plan, struct place *places, int *count, int *top) {
    int null = need("null");
    if (null < 0) return -1;
    *top = 3;
    for (int64_t left = items(plan); left > 0; left--) {
        items(plan);
        int fd = named(text(plan)), wanted = number(plan);
        if (add(places, count, wanted, fd < 0 ? null : fd)) return -1;
        if (wanted >= *top) *top = wanted + 1;
    }
    for (int i = 0; i < 3; i++)
        if (add(places, count, i, null)) return -1;
    return 0;
}

/* ---- becoming it ---- */

static const char **with_home(const char **environment) {
    if (!identity.home || !*identity.home || variable(environment, "HOME")) return environment;
    char *entry = malloc(strlen(identity.home) + 6);
    const char **end = environment;
    if (!entry) return environment;
    sprintf(entry, "HOME=%s", identity.home);
    while (*end) end++;
    *end = entry; /* `texts` left room */
    return environment;
}

/* The reaper is a program of ours in a sealed memfd: `knarr-init PATH ARGV…`. */
static void run_reaper(int fd, const char *program, const char **argv, const char **environment) {
    size_t count = 0;
    while (argv[count]) count++;
    const char **words = calloc(count + 3, sizeof *words);
    if (!words) return;
    words[0] = "knarr-init";
    words[1] = program;
    memcpy(words + 2, argv, count * sizeof *argv);
    syscall(SYS_execveat, fd, "", words, environment, AT_EMPTY_PATH);
}

int run_program(struct reader *plan, int *channel) {
    struct place places[NAMES];
    int count = 0, top;
    if (declared(plan, places, &count, &top)) return -1;
    const char **argv = texts(plan, 0), **environment = texts(plan, 1);
    if (!argv || !environment) return fail("");
    if (plan->broken || plan->at != plan->end || !argv[0]) return refuse(EPROTO, "", "the plan is not what stage knows");
    const char *search = variable(environment, "PATH"), *program = find_program(argv[0], search ? search : DEFAULT_PATH);
    if (!program) return -1;
    with_home(environment);
    int reaper = named("init"), reaper_at = top;
    if (reaper >= 0 && add(places, &count, top++, reaper)) return -1;
    if (arrange(places, count, top, channel)) return -1;
    if (reaper < 0) {
        execve(program, (char **)argv, (char **)environment);
    } else {
        fcntl(reaper_at, F_SETFD, FD_CLOEXEC);
        run_reaper(reaper_at, program, argv, environment);
    }
    return fail(program);
}
