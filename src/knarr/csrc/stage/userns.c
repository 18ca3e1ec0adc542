/* Steps of a workload in a user namespace of its own, and of one that shares another's IPC. */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/mount.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/sysmacros.h>

#include "stage.h"

enum { EMPTY_PATH = 0x1000, RECURSIVE = 0x8000 };

/* Ids in a detached mount, and in those below it, are the namespace's from here on. */
static int map_ids(int tree, int userns, const char *path) {
    struct mount_attr wanted = {.attr_set = MOUNT_ATTR_IDMAP, .userns_fd = userns};
    if (!syscall(SYS_mount_setattr, tree, "", EMPTY_PATH | RECURSIVE, &wanted, sizeof wanted)) return 0;
    if (errno == EINVAL || errno == EPERM || errno == ENOSYS)
        return refuse(EOPNOTSUPP, path, "its file system can't map user ids");
    return fail(path);
}

int step_idmap(struct reader *r) {
    struct reader sources = *r;
    int64_t count = items(r);
    for (int64_t i = 0; i < count; i++) items(r), text(r), text(r);
    int userns = need(text(r));
    if (userns < 0) return -1;
    items(&sources);
    for (int64_t i = 0; i < count; i++) {
        items(&sources);
        int tree = need(text(&sources));
        if (tree < 0 || map_ids(tree, userns, text(&sources))) return -1;
    }
    return 0;
}

static int map_here(const char *path, int userns) {
    int tree = open_tree_at(AT_FDCWD, path, 0);
    if (tree < 0) return -1;
    int result = set_attributes(tree, "", 0, MS_PRIVATE, 1);
    if (!result) result = map_ids(tree, userns, path);
    if (!result && syscall(SYS_move_mount, tree, "", AT_FDCWD, path, MOVE_MOUNT_F_EMPTY_PATH)) result = fail(path);
    drop(tree);
    return result;
}

int step_idmap_here(struct reader *r) {
    const char **paths = texts(r, 0);
    int userns = need(text(r)), result = userns < 0 || !paths ? -1 : 0;
    for (; !result && *paths; paths++) result = map_here(*paths, userns);
    return result;
}

/* File system ids alone; the capabilities that the change takes away come back. */
int step_fs_ids(struct reader *r) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    uid_t uid = number(r);
    gid_t gid = number(r);
    syscall(SYS_setfsgid, gid);
    syscall(SYS_setfsuid, uid);
    if (syscall(SYS_capget, &header, data)) return fail("");
    for (int i = 0; i < 2; i++) {
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    return syscall(SYS_capset, &header, data) ? fail("") : 0;
}

static int give(const char *name, uid_t uid, gid_t gid) {
    struct stat status;
    int fd = named(name);
    if (fd < 0) return 0;
    if (fstat(fd, &status)) return fail(name);
    /* a pipe or terminal is this workload's alone; /dev/null and its like are everybody's */
    if (status.st_rdev && major(status.st_rdev) == 1) return 0;
    if (!fchown(fd, uid, gid) || errno == EPERM || errno == EROFS || errno == EINVAL) return 0;
    return fail(name);
}

/* Become root of the user namespace that a descriptor (or the process it is) has, with new namespaces of its own. */
int step_enter_user(struct reader *r) {
    int fd = need(text(r));
    uid_t uid = number(r);
    gid_t gid = number(r);
    int flags = number(r);
    if (fd < 0 || give("stdin", uid, gid) || give("stdout", uid, gid) || give("stderr", uid, gid)) return -1;
    if (prctl(PR_SET_DUMPABLE, 0) || setns(fd, CLONE_NEWUSER)) return fail("");
    if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, 0, 0, 0) || syscall(SYS_setresuid, 0, 0, 0)) return fail("");
    if (prctl(PR_SET_DUMPABLE, 0)) return fail("");
    if (flags && unshare(flags)) return fail("");
    if (named("root") < 0) return 0;
    /* the same folder in the new mounts: in the old ones nothing can be mounted from here */
    close(named("root"));
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return root < 0 ? fail("/") : name_fd("root", root);
}

/* The /dev/shm of another's, as a detached mount: a mount can only be copied by who stands in its namespace. */
static int copy_shm(void) {
    int root = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (root < 0) return fail("/");
    int found = open_in(root, "dev/shm", O_PATH | O_DIRECTORY | O_NOFOLLOW, PLAIN);
    drop(root);
    if (found < 0) return fail("/dev/shm");
    int tree = open_tree_at(found, "", 0);
    drop(found);
    if (tree < 0) return -1;
    /* whatever its owner made of that place: it brings no programs, devices or set-user-id bits along */
    if (!set_attributes(tree, "", MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, 0, 0)) return tree;
    drop(tree);
    return -1;
}

int step_joined_shm(struct reader *r) {
    const char *name = text(r);
    int fd = need(text(r)), home = open("/proc/self/ns/mnt", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    if (home < 0 || setns(fd, CLONE_NEWNS)) return fail("");
    int tree = copy_shm(), back = setns(home, CLONE_NEWNS);
    drop(home);
    if (back) return fail("");
    return tree < 0 ? -1 : name_fd(name, tree);
}
