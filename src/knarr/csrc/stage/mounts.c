/* Steps that build a root: overlay, pivot, and what is mounted into it.
 *
 * Before PivotRoot paths are the keeper's; after it the old root is gone, and every path is opened beneath the new one without
 * magic links. Nobody runs in the new root yet, but volumes may be shared with workloads that do: so a mount point is opened
 * once and mounted by descriptor. */
#define _GNU_SOURCE
#include <linux/mount.h>
#include <stdio.h>
#include <stdlib.h>

#include "stage.h"

enum { DETACH = 2, RECURSIVE = 0x8000, EMPTY_PATH = 0x1000 };
#define OPTIONS 64

/* ---- the calls ---- */

int mount_at(const char *source, const char *target, const char *kind, unsigned long flags, const char *data) {
    return syscall(SYS_mount, source, target, kind, flags, data) ? fail(target) : 0;
}

/* A detached copy of the mount at `path` (empty: what `directory` is). */
int open_tree_at(int directory, const char *path, int recursive) {
    unsigned flags = OPEN_TREE_CLOEXEC | OPEN_TREE_CLONE | (*path ? 0 : EMPTY_PATH) | (recursive ? RECURSIVE : 0);
    int fd = syscall(SYS_open_tree, directory, path, flags);
    return fd < 0 ? fail(path) : fd;
}

int attach(int tree, int target, const char *path) {
    return syscall(SYS_move_mount, tree, "", target, "", MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH) ? fail(path) : 0;
}

/* Of the mount that `tree` is, or of the one at `path` when `tree` is AT_FDCWD. */
int set_attributes(int tree, const char *path, uint64_t add, uint64_t propagation, int recursive) {
    struct mount_attr wanted = {.attr_set = add, .propagation = propagation};
    unsigned flags = (*path ? 0 : EMPTY_PATH) | (recursive ? RECURSIVE : 0);
    return syscall(SYS_mount_setattr, tree, path, flags, &wanted, sizeof wanted) ? fail(path) : 0;
}

static int configured(int context, const char *kind, const struct option *options, size_t count) {
    char place[256];
    for (size_t i = 0; i < count; i++) {
        unsigned command = options[i].value ? FSCONFIG_SET_STRING : FSCONFIG_SET_FLAG;
        if (!syscall(SYS_fsconfig, context, command, options[i].key, options[i].value, 0)) continue;
        snprintf(place, sizeof place, "%s %s", kind, options[i].key);
        return fail(place);
    }
    return syscall(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) ? fail(kind) : 0;
}

/* A detached mount. */
int new_filesystem(const char *kind, const struct option *options, size_t count, unsigned attributes) {
    int context = syscall(SYS_fsopen, kind, FSOPEN_CLOEXEC), tree = -1;
    if (context < 0) return fail(kind);
    if (!configured(context, kind, options, count)) {
        tree = syscall(SYS_fsmount, context, FSMOUNT_CLOEXEC, attributes);
        if (tree < 0) fail(kind);
    }
    drop(context);
    return tree;
}

/* ---- before the pivot ---- */

int step_make_private(struct reader *r) {
    (void)r;
    return mount_at("", "/", NULL, MS_REC | MS_PRIVATE, NULL);
}

int step_overlay(struct reader *r) {
    const char *paths[4]; /* image, changes, work, what lies below the image */
    int fds[4], result = 0;
    char data[160], below[40] = "";
    for (int i = 0; i < 3; i++) paths[i] = text(r);
    const char *target = text(r);
    paths[3] = text(r);
    for (int i = 0; i < 4; i++) {
        fds[i] = result || !*paths[i] ? -1 : open(paths[i], O_PATH | O_DIRECTORY | O_CLOEXEC);
        if (fds[i] < 0 && !result && *paths[i]) result = fail(paths[i]);
    }
    /* by descriptor: no escaping of commas and colons, no limit of a page, no host paths in mountinfo */
    if (fds[3] >= 0) snprintf(below, sizeof below, ":/proc/self/fd/%d", fds[3]);
    snprintf(data, sizeof data, "lowerdir=/proc/self/fd/%d%s,upperdir=/proc/self/fd/%d,workdir=/proc/self/fd/%d", fds[0], below, fds[1],
             fds[2]);
    if (!result) result = mount_at("overlay", target, "overlay", 0, data);
    for (int i = 0; i < 4; i++) drop(fds[i]);
    return result;
}

int step_bind_here(struct reader *r) {
    const char *source = text(r), *target = text(r);
    int read_only = number(r), recursive = number(r);
    uint64_t add = number(r) | (read_only ? MOUNT_ATTR_RDONLY : 0);
    int tree = open_tree_at(AT_FDCWD, source, recursive);
    if (tree < 0) return -1;
    int result = set_attributes(tree, "", add, MS_PRIVATE, recursive);
    /* by a path that nobody else can change meanwhile */
    if (!result && syscall(SYS_move_mount, tree, "", AT_FDCWD, target, MOVE_MOUNT_F_EMPTY_PATH)) result = fail(target);
    drop(tree);
    return result;
}

int step_open_source(struct reader *r) {
    const char *name = text(r), *path = text(r);
    int recursive = number(r);
    const char *origin = text(r);
    if (!*origin) {
        int tree = open_tree_at(AT_FDCWD, path, recursive);
        return tree < 0 ? -1 : name_fd(name, tree);
    }
    int beneath = need(origin);
    if (beneath < 0) return -1;
    int found = open_in(beneath, path, O_PATH, AS_ROOT);
    if (found < 0) return fail(path);
    int tree = open_tree_at(found, "", recursive);
    drop(found);
    return tree < 0 ? -1 : name_fd(name, tree);
}

int step_pivot_root(struct reader *r) {
    const char *target = text(r);
    if (chdir(target)) return fail(target);
    if (syscall(SYS_pivot_root, ".", ".")) return fail(target);
    if (syscall(SYS_umount2, ".", DETACH)) return fail(target);
    if (chdir("/")) return fail("/");
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return root < 0 ? fail("/") : name_fd("root", root);
}

/* ---- after it ---- */

int step_mount_fs(struct reader *r) {
    const char *kind = text(r), *target = text(r);
    unsigned long flags = number(r);
    const char *data = text(r), *source = text(r);
    if (plain_folder(target)) return -1;
    return mount_at(*source ? source : kind, target, kind, flags, *data ? data : NULL);
}

/* A link of the image's may lead to `/`: execs would stand in the mount, the first process below it. And whatever path led
 * there, a mount over a part of /proc would undo its masks. */
static int allowed(int target, const char *path, int in_proc) {
    struct stat at, root, proc;
    int fd = root_fd();
    if (fd < 0) return -1;
    if (fstat(target, &at) || fstat(fd, &root)) return fail(path);
    if (at.st_dev == root.st_dev && at.st_ino == root.st_ino) return refuse(EPERM, path, "the image's own link there leads to the root");
    if (in_proc || stat("/proc", &proc)) return 0;
    if (at.st_dev == proc.st_dev && proc.st_dev != root.st_dev) return refuse(EPERM, path, "nothing can be mounted inside /proc");
    return 0;
}

static int mount_tmpfs(int target, const char *path, struct option *options, size_t count, unsigned attributes) {
    char mode[16];
    struct stat status;
    size_t i = 0;
    if (allowed(target, path, 0)) return -1;
    while (i < count && strcmp(options[i].key, "mode")) i++;
    if (i == count) {
        if (fstat(target, &status)) return fail(path);
        snprintf(mode, sizeof mode, "%o", status.st_mode & 07777);
        options[count++] = (struct option){"mode", mode};
    }
    int tree = new_filesystem("tmpfs", options, count, attributes);
    if (tree < 0) return -1;
    int result = attach(tree, target, path);
    drop(tree);
    return result;
}

int step_tmpfs(struct reader *r) {
    struct option options[OPTIONS + 1];
    const char *path = text(r);
    const char **given = texts(r, 0);
    unsigned attributes = number(r);
    size_t count = 0;
    int root = root_fd();
    if (root < 0 || !given) return -1;
    for (; given[count]; count++) {
        if (count == OPTIONS) return refuse(EINVAL, path, "too many options");
        char *key = strdup(given[count]), *equals = key ? strchr(key, '=') : NULL;
        if (!key) return -1;
        if (equals) *equals++ = 0;
        options[count] = (struct option){key, equals};
    }
    int target = make_folders(root, path);
    if (target < 0) return -1;
    int result = mount_tmpfs(target, path, options, count, attributes);
    drop(target);
    return result;
}

static int attach_source(int tree, const char *path, int in_proc) {
    int folder = is_folder(tree), root = root_fd();
    if (folder < 0 || root < 0) return fail(path);
    int target = folder ? make_folders(root, path) : make_file(root, path, 0644);
    if (target < 0) return -1;
    int result = allowed(target, path, in_proc);
    if (!result && is_folder(target) != folder)
        result = refuse(folder ? ENOTDIR : EISDIR, path, "a folder can't be mounted on a file, nor a file on a folder");
    if (!result) result = attach(tree, target, path);
    drop(target);
    return result;
}

int step_bind(struct reader *r) {
    const char *name = text(r), *path = text(r);
    int read_only = number(r);
    uint64_t kind = number(r);
    int recursive = number(r), in_proc = number(r);
    int tree = take(name);
    if (tree < 0) return -1;
    int result = read_only ? set_attributes(tree, "", MOUNT_ATTR_RDONLY, 0, 1) : 0;
    if (!result && kind != MS_SHARED) result = set_attributes(tree, "", 0, MS_PRIVATE, 1);
    if (!result && kind != MS_PRIVATE) result = set_attributes(tree, "", 0, kind, recursive);
    if (!result) result = attach_source(tree, path, in_proc);
    drop(tree);
    return result;
}

static int hierarchy(const char *base, const char *name, const char *options, unsigned long flags) {
    char place[256], link[256];
    snprintf(place, sizeof place, "%s/%s", base, name);
    if (mkdir(place, 0755)) return fail(place);
    if (mount_at("cgroup", place, "cgroup", flags, options)) return -1;
    if (!strchr(options, ',')) return 0;
    while (*options) {
        size_t size = strcspn(options, ",");
        snprintf(link, sizeof link, "%s/%.*s", base, (int)size, options);
        if (symlink(name, link)) return fail(link);
        options += size + (options[size] == ',');
    }
    return 0;
}

int step_cgroup_mounts(struct reader *r) {
    static const char base[] = "/sys/fs/cgroup";
    struct reader given = *r;
    unsigned long flags = MS_NOSUID | MS_NODEV | MS_NOEXEC;
    int64_t count = items(r);
    for (int64_t i = 0; i < count; i++) items(r), text(r), text(r);
    unsigned long only = number(r) ? MS_RDONLY : 0;
    if (!items(&given)) return mount_at("cgroup", base, "cgroup2", flags | only, NULL);
    if (mount_at("tmpfs", base, "tmpfs", flags, "mode=755")) return -1;
    for (int64_t i = 0; i < count; i++) {
        items(&given);
        const char *name = text(&given), *options = text(&given);
        if (hierarchy(base, name, options, flags | only)) return -1;
    }
    return only ? mount_at("tmpfs", base, NULL, flags | MS_REMOUNT | MS_BIND | only, NULL) : 0;
}
