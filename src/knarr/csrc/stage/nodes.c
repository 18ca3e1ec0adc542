/* Steps that fill file systems which earlier steps just mounted: device nodes, links, folders. */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>

#include "stage.h"

static int folders_above(char *path) {
    for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = 0;
        int failed = mkdir(path, 0755) && errno != EEXIST;
        *slash = '/';
        if (failed) return fail(path);
    }
    return 0;
}

/* (path below the folder, mode with type, device number)… with exact modes; `there` = those there already stay. */
static int make_nodes(struct reader *r, int there) {
    struct reader nodes = *r;
    char path[4096];
    int result = 0;
    int64_t count = items(r);
    for (int64_t i = 0; i < count; i++) items(r), text(r), number(r), number(r);
    const char *folder = text(r);
    mode_t mask = umask(0);
    items(&nodes);
    for (int64_t i = 0; i < count && !result; i++) {
        items(&nodes);
        const char *name = text(&nodes);
        mode_t mode = number(&nodes);
        dev_t device = number(&nodes);
        snprintf(path, sizeof path, "%s/%s", folder, name);
        if (there) result = folders_above(path);
        if (!result && mknod(path, mode, device) && !(there && errno == EEXIST)) result = fail(path);
    }
    umask(mask);
    return result;
}

int step_devices(struct reader *r) {
    return make_nodes(r, 0);
}

int step_nodes(struct reader *r) {
    return make_nodes(r, 1);
}

int step_symlinks(struct reader *r) {
    int result = 0;
    for (int64_t count = items(r); count > 0; count--) {
        items(r);
        const char *says = text(r), *where = text(r);
        if (!result && symlink(says, where)) result = fail(where);
    }
    return result;
}

int step_folders(struct reader *r) {
    const char **paths = texts(r, 0);
    mode_t mode = number(r);
    if (!paths) return -1;
    for (; *paths; paths++)
        if (mkdir(*paths, mode)) return fail(*paths);
    return 0;
}
