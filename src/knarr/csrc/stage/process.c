/* Steps about the process itself: its groups, namespaces, limits, privileges, folder. */
#define _GNU_SOURCE
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

#include "stage.h"

enum { INIT_LIMIT = 4 << 20, LAST_CAPABILITY = CAP_LAST_CAP };

/* A process moves itself: as a single thread it needs no grace period. */
int step_cgroup_enter(struct reader *r) {
    const char **files = texts(r, 0);
    if (!files) return -1;
    for (; *files; files++)
        if (write_file(*files, "0", 1)) return -1;
    return 0;
}

int step_guard(struct reader *r) {
    (void)r;
    if (prctl(PR_SET_DUMPABLE, 0)) return fail("");
    umask(022);
    return getsid(0) != getpid() && setsid() < 0 ? fail("") : 0;
}

int step_unshare(struct reader *r) {
    return unshare(number(r)) ? fail("") : 0;
}

int step_set_ns(struct reader *r) {
    const char *name = text(r);
    int flags = number(r), fd = need(name);
    if (fd < 0) return -1;
    if (prctl(PR_SET_DUMPABLE, 0)) return fail("");
    return setns(fd, flags) ? fail("") : 0;
}

int step_loopback_up(struct reader *r) {
    struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    (void)r;
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0) return fail("lo");
    int result = ioctl(fd, SIOCSIFFLAGS, &request) ? fail("lo") : 0;
    drop(fd);
    return result;
}

int step_sethostname(struct reader *r) {
    size_t size;
    const char *name = bytes(r, &size);
    return sethostname(name, size) ? fail("") : 0;
}

int step_sysctl(struct reader *r) {
    struct reader values = *r;
    int64_t count = items(r);
    for (int64_t i = 0; i < count; i++) items(r), text(r), text(r);
    int optional = number(r);
    items(&values);
    for (int64_t i = 0; i < count; i++) {
        size_t size;
        items(&values);
        const char *path = text(&values), *value = bytes(&values, &size);
        if (write_file(path, value, size) && !optional) return -1;
    }
    return 0;
}

/* ---- limits ---- */

/* The bound that not even root passes, unless it is hidden from here. */
static rlim_t most_files(rlim_t own) {
    char line[32] = "";
    int fd = open("/proc/sys/fs/nr_open", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return own;
    ssize_t size = read(fd, line, sizeof line - 1);
    drop(fd);
    return size > 0 ? strtoull(line, NULL, 10) : own;
}

static rlim_t capped(rlim_t value, rlim_t top) {
    return value > top ? top : value; /* RLIM_INFINITY is the largest number */
}

static int set_limit(int which, struct rlimit wanted) {
    struct rlimit own, tried;
    if (!setrlimit(which, &wanted)) return 0;
    if (getrlimit(which, &own)) return fail("");
    if (which == RLIMIT_NOFILE) {
        rlim_t top = most_files(own.rlim_max);
        tried = (struct rlimit){capped(wanted.rlim_cur, top), capped(wanted.rlim_max, top)};
        if (!setrlimit(which, &tried)) return 0;
    }
    tried = (struct rlimit){capped(wanted.rlim_cur, own.rlim_max), capped(wanted.rlim_max, own.rlim_max)};
    return setrlimit(which, &tried) ? fail("") : 0;
}

int step_rlimits(struct reader *r) {
    int result = 0;
    for (int64_t count = items(r); count > 0; count--) {
        items(r);
        int which = number(r);
        struct rlimit wanted = {.rlim_cur = number(r)};
        wanted.rlim_max = number(r);
        if (!result) result = set_limit(which, wanted);
    }
    return result;
}

int step_oom_score(struct reader *r) {
    size_t size;
    const char *value = bytes(r, &size);
    return write_file("/proc/self/oom_score_adj", value, size);
}

/* ---- privileges ---- */

int step_bounding_set(struct reader *r) {
    uint64_t keep = number(r);
    for (int i = 0; i < 64; i++) {
        if (keep >> i & 1 || !prctl(PR_CAPBSET_DROP, i)) continue;
        /* past the last capability of this kernel */
        return i <= LAST_CAPABILITY ? fail("") : 0;
    }
    return 0;
}

int step_capabilities(struct reader *r) {
    struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
    struct __user_cap_data_struct data[2];
    uint64_t wanted = number(r);
    if (identity.uid) wanted = 0;
    if (syscall(SYS_capget, &header, data)) return fail("");
    for (int i = 0; i < 2; i++) {
        data[i].permitted &= (uint32_t)(wanted >> 32 * i);
        data[i].effective = data[i].permitted;
        data[i].inheritable = 0;
    }
    if (syscall(SYS_capset, &header, data)) return fail("");
    return prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) ? fail("") : 0;
}

int step_no_new_privs(struct reader *r) {
    (void)r;
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ? fail("") : 0;
}

int step_seccomp(struct reader *r) {
    size_t size;
    const char *program = bytes(r, &size);
    struct sock_fprog filter = {size / sizeof(struct sock_filter), (struct sock_filter *)(uintptr_t)program};
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &filter) ? fail("") : 0;
}

/* ---- folder and program ---- */

/* Opened beneath the root, so never outside of it; made when missing, as root. */
int step_chdir(struct reader *r) {
    const char *path = text(r);
    int root = root_fd(), folder = root < 0 ? -1 : make_folders(root, path);
    if (folder < 0) return -1;
    int result = fchdir(folder) ? fail(path) : 0;
    drop(folder);
    return result;
}

static int copied(int from, int into) {
    for (size_t left = INIT_LIMIT; left;) {
        ssize_t size = sendfile(into, from, NULL, left);
        if (size <= 0) return size ? fail("init") : 0;
        left -= size;
    }
    return 0;
}

/* A sealed copy of the `--init` program, while the host's files are still there. */
int step_init_program(struct reader *r) {
    const char *path = text(r);
    int from = open(path, O_RDONLY | O_CLOEXEC);
    if (from < 0) return fail(path);
    int into = syscall(SYS_memfd_create, "knarr-init", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    int result = into < 0 ? fail(path) : copied(from, into);
    drop(from);
    if (!result && fcntl(into, F_ADD_SEALS, F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)) result = fail(path);
    return result ? -1 : name_fd("init", into);
}
