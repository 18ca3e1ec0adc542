/* Steps that close a root after everything is mounted: masks, read-only paths, a read-only root. */
#define _GNU_SOURCE
#include <linux/mount.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include "stage.h"

/* What is not there needs no cover: -1 with errno 0. */
static int open_plain(int root, const char *path) {
    int fd = open_in(root, path, O_PATH | O_NOFOLLOW, PLAIN);
    if (fd < 0 && (errno == ENOENT || errno == ENOTDIR)) return errno = 0, -1;
    return fd < 0 ? fail(path) : fd;
}

static int empty_folder(void) {
    static const struct option options[] = {{"mode", "555"}, {"nr_inodes", "2"}};
    return new_filesystem("tmpfs", options, 2, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC);
}

/* A tmpfs is made and attached for the first folder, copies of it cover the others. */
static int cover(int target, const char *path, int null, int *empty) {
    int folder = is_folder(target);
    if (folder < 0) return fail(path);
    if (folder && *empty < 0) {
        *empty = empty_folder();
        return *empty < 0 ? -1 : attach(*empty, target, path);
    }
    int tree = open_tree_at(folder ? *empty : null, "", 0);
    if (tree < 0) return -1;
    int result = attach(tree, target, path);
    drop(tree);
    return result;
}

static int open_null(int root) {
    struct stat status;
    int fd = open_in(root, "dev/null", O_PATH | O_NOFOLLOW, PLAIN);
    if (fd < 0) return fail("/dev/null");
    if (fstat(fd, &status) || status.st_rdev != makedev(1, 3)) return refuse(ENODEV, "/dev/null", "not the null device");
    return fd;
}

int step_mask(struct reader *r) {
    const char **paths = texts(r, 0);
    int root = root_fd(), null = root < 0 ? -1 : open_null(root), empty = -1, result = null < 0 || !paths ? -1 : 0;
    for (; !result && *paths; paths++) {
        int target = open_plain(root, *paths);
        if (target < 0) {
            result = errno ? -1 : 0;
            continue;
        }
        result = cover(target, *paths, null, &empty);
        drop(target);
    }
    drop(null);
    drop(empty);
    return result;
}

static int read_only(int target, const char *path) {
    int tree = open_tree_at(target, "", 1);
    if (tree < 0) return -1;
    int result = set_attributes(tree, "", MOUNT_ATTR_RDONLY, 0, 1);
    if (!result) result = attach(tree, target, path);
    drop(tree);
    return result;
}

int step_read_only_paths(struct reader *r) {
    const char **paths = texts(r, 0);
    int root = root_fd(), result = root < 0 || !paths ? -1 : 0;
    for (; !result && *paths; paths++) {
        int target = open_plain(root, *paths);
        if (target < 0) {
            result = errno ? -1 : 0;
            continue;
        }
        result = read_only(target, *paths);
        drop(target);
    }
    return result;
}

int step_read_only_root(struct reader *r) {
    (void)r;
    return set_attributes(AT_FDCWD, "/", MOUNT_ATTR_RDONLY, 0, 0);
}
