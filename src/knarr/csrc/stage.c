/* stage: carries out a plan's inside steps in a new process, then becomes the program.
 *
 *   stage CHANNEL                               the keeper cloned it into its namespaces already
 *   stage CHANNEL PIDFD FLAGS CGROUP            born in the pid namespace of PIDFD's process, with clone3's FLAGS
 *
 * CHANNEL is a seqpacket socket: one message comes down (the plan with its descriptors), `fd NAME` goes up and is answered
 * `kept`, a failure goes up as `error STEP ERRNO PATH REASON`; a successful exec is its end. Words end in NUL.
 * It is executed instead of forked: nothing of the keeper's memory is ever in a process that a workload can see.
 * Out of scope: deciding anything, and the order of the steps.
 */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "stage/stage.h"

enum { PACKET = 65536, PASSED = 253, NEVER_BEGAN = 253, NOT_EXECUTABLE = 126 };

struct identity identity;

static struct {
    char path[4096];
    const char *reason;
    int code;
} failure;

static struct {
    const char *name;
    int fd;
} descriptors[NAMES];
static size_t descriptor_count;

static const char *upward_name;
static int upward = -1;

/* ---- reading ---- */

static const char *piece(struct reader *r, size_t size) {
    const char *found = r->at;
    if ((size_t)(r->end - r->at) < size) {
        r->broken = 1;
        r->at = r->end;
        return NULL;
    }
    r->at += size;
    return found;
}

int64_t number(struct reader *r) {
    int64_t value = 0;
    const char *found = piece(r, sizeof value);
    if (found) memcpy(&value, found, sizeof value);
    return value;
}

int64_t items(struct reader *r) {
    int64_t count = number(r);
    /* each takes some bytes: who says more than there can be gets none */
    if (count >= 0 && count <= r->end - r->at) return count;
    r->broken = 1;
    return 0;
}

const char *bytes(struct reader *r, size_t *size) {
    uint32_t length = 0;
    const char *found = piece(r, sizeof length);
    if (found) memcpy(&length, found, sizeof length);
    found = found ? piece(r, (size_t)length + 1) : NULL;
    *size = found ? length : 0;
    return found ? found : "";
}

const char *text(struct reader *r) {
    size_t size;
    return bytes(r, &size);
}

const char **texts(struct reader *r, size_t more) {
    int64_t count = items(r);
    const char **list = calloc(count + more + 1, sizeof *list);
    if (!list) return NULL;
    for (int64_t i = 0; i < count; i++) list[i] = text(r);
    return list;
}

/* ---- failing ---- */

int refuse(int code, const char *path, const char *reason) {
    if (!failure.code) {
        failure.code = code;
        failure.reason = reason;
        snprintf(failure.path, sizeof failure.path, "%s", path);
    }
    errno = code;
    return -1;
}

int fail(const char *path) {
    return refuse(errno, path, "");
}

static void complain(int channel, const char *step) {
    char message[sizeof failure.path + 512];
    int size = snprintf(message, sizeof message, "error%c%s%c%d%c%s%c%s", 0, step, 0, failure.code, 0, failure.path, 0, failure.reason);
    send(channel, message, size < (int)sizeof message ? size : (int)sizeof message, MSG_NOSIGNAL);
    _exit(failure.code == ENOENT || failure.code == ENOTDIR ? 127 : 126);
}

/* ---- descriptors ---- */

void drop(int fd) {
    int code = errno;
    if (fd >= 0) close(fd);
    errno = code;
}

static int find(const char *name) {
    for (size_t i = 0; i < descriptor_count; i++)
        if (!strcmp(descriptors[i].name, name)) return i;
    return -1;
}

int named(const char *name) {
    int index = find(name);
    return index < 0 ? -1 : descriptors[index].fd;
}

int need(const char *name) {
    int fd = named(name);
    return fd < 0 ? refuse(EBADF, name, "no descriptor of this name came along") : fd;
}

int take(const char *name) {
    int fd = need(name), index = find(name);
    if (index >= 0) descriptors[index].fd = -1;
    return fd;
}

int name_fd(const char *name, int fd) {
    int index = find(name);
    if (index < 0 && descriptor_count == NAMES) return refuse(EMFILE, name, "too many descriptors in one plan");
    if (index < 0) index = descriptor_count++;
    descriptors[index].name = name;
    descriptors[index].fd = fd;
    return 0;
}

int send_up(const char *name, int fd) {
    if (upward >= 0) return refuse(EINVAL, name, "one descriptor at most is handed up");
    upward_name = name;
    upward = fd;
    return 0;
}

/* ---- the conversation ---- */

static ssize_t receive(int channel, char *into, size_t room, int *fds, size_t *count) {
    union { char room[CMSG_SPACE(PASSED * sizeof(int))]; struct cmsghdr align; } control;
    struct iovec data = {into, room};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    ssize_t size;
    do size = recvmsg(channel, &m, MSG_CMSG_CLOEXEC);
    while (size < 0 && errno == EINTR);
    struct cmsghdr *c = size > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
        *count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(fds, CMSG_DATA(c), *count * sizeof(int));
    }
    return m.msg_flags & (MSG_TRUNC | MSG_CTRUNC) ? -1 : size;
}

/* The plan in as many packets as it takes; the first says how long it is and brings the descriptors. */
static struct reader receive_plan(int channel, int *fds, size_t *count) {
    static char first[PACKET];
    size_t ignored, total;
    ssize_t size = receive(channel, first, sizeof first, fds, count);
    if (size < (ssize_t)sizeof total) _exit(NEVER_BEGAN);
    memcpy(&total, first, sizeof total);
    char *all = first;
    if (total > sizeof first) {
        all = malloc(total);
        if (!all) _exit(NEVER_BEGAN);
        memcpy(all, first, size);
    }
    for (size_t have = size; have < total; have += size) {
        int none[PASSED];
        size = receive(channel, all + have, total - have, none, &ignored);
        if (size <= 0) _exit(NEVER_BEGAN);
    }
    return (struct reader){all + sizeof total, all + total, 0};
}

static int name_received(struct reader *plan, const int *fds, size_t count) {
    if ((size_t)items(plan) != count) return refuse(EPROTO, "", "names and descriptors differ in number");
    for (size_t i = 0; i < count; i++)
        if (name_fd(text(plan), fds[i])) return -1;
    return 0;
}

static void hand_up(int channel) {
    char answer[16];
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    if (upward < 0) return;
    char message[64];
    struct iovec data = {message, snprintf(message, sizeof message, "fd%c%s", 0, upward_name)};
    struct msghdr m = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&m);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &upward, sizeof(int));
    /* it must not get lost with a keeper that dies now: a pty without a master hangs its programs up */
    if (sendmsg(channel, &m, MSG_NOSIGNAL) < 0 || recv(channel, answer, sizeof answer, 0) != 4 || memcmp(answer, "kept", 4))
        _exit(NEVER_BEGAN);
}

/* ---- the steps ---- */

#define STEP(name, function) int function(struct reader *r);
#include "stage/steps.h"
#undef STEP

static const struct {
    const char *name;
    int (*run)(struct reader *r);
} vocabulary[] = {
#define STEP(name, function) {#name, function},
#include "stage/steps.h"
#undef STEP
};

static int run_step(const char *name, struct reader *fields) {
    for (size_t i = 0; i < sizeof vocabulary / sizeof *vocabulary; i++)
        if (!strcmp(vocabulary[i].name, name)) {
            if (vocabulary[i].run(fields)) return fail("");
            return fields->broken || fields->at != fields->end ? refuse(EPROTO, "", "the step's fields are not what stage knows") : 0;
        }
    return refuse(EPROTO, "", "the step is unknown to stage: keeper and stage are of different versions");
}

static const char *run_steps(struct reader *plan) {
    for (int64_t left = items(plan); left > 0; left--) {
        const char *name = text(plan);
        size_t size;
        struct reader fields = {.at = bytes(plan, &size)};
        failure.code = 0; /* what an earlier step tried and did without */
        fields.end = fields.at + size;
        if (run_step(name, &fields)) return name;
    }
    return NULL;
}

/* ---- the start ---- */

/* Go on as a child of the keeper that is born in another's pid namespace. What is copied there is this program's memory only. */
static void be_born(int channel, char **words) {
    int pidfd = atoi(words[0]), group = atoi(words[2]);
    struct clone_args arguments = {.flags = strtoull(words[1], NULL, 10) | CLONE_PARENT};
    if (group >= 0) {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = group;
    }
    long pid = setns(pidfd, CLONE_NEWPID) ? -1 : syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid < 0) {
        fail("");
        complain(channel, "clone");
    }
    if (pid > 0) {
        char message[32];
        send(channel, message, snprintf(message, sizeof message, "pid%c%ld", 0, pid), MSG_NOSIGNAL);
        _exit(0);
    }
    close(pidfd);
    if (group >= 0) close(group);
}

/* What is ignored outlives an exec: Python ignores SIGPIPE, a shell's background job SIGINT, nohup SIGHUP. */
static void reset_signals(void) {
    sigset_t none;
    for (int i = 1; i < _NSIG; i++) signal(i, SIG_DFL);
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

int main(int argc, char **argv) {
    int fds[PASSED];
    size_t count = 0;
    /* before anything that somebody in a workload's namespace could want to look at */
    if (prctl(PR_SET_DUMPABLE, 0)) return NEVER_BEGAN;
    /* a script of an image names /proc/self/exe as its interpreter */
    if (argc < 2 || strcmp(argv[0], "stage")) return NOT_EXECUTABLE;
    int channel = atoi(argv[1]);
    fcntl(channel, F_SETFD, FD_CLOEXEC);
    if (argc == 5) be_born(channel, argv + 2);
    prctl(PR_SET_NAME, "knarr-stage");
    reset_signals();
    syscall(SYS_close_range, 0, 2, 0);
    struct reader plan = receive_plan(channel, fds, &count);
    if (name_received(&plan, fds, count)) complain(channel, "stage");
    const char *step = run_steps(&plan);
    if (step) complain(channel, step);
    hand_up(channel);
    run_program(&plan, &channel);
    complain(channel, "exec");
}
