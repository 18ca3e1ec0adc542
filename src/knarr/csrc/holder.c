/* holder: parent of every process of an instance. It stores descriptors by name, reaps orphans and keeps their
 * statuses until somebody acknowledges them, starts roles and starts them again when they die.
 * Messages: docs/architecture.md section 6. Out of scope: any decision, any file but its socket.
 *
 * usage: holder RUN     binds RUN/holder.sock, then leaves the foreground: whoever waited for it may connect.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PACKET = 65536, LIST = 32768, WORDS = 256, ENTRIES = 18000, ROLES = 32, LIVED = 10000, DELAY = 2000, GRACE = 5000 };

struct entry { char *name; int fd; };
struct status { uint64_t seq; pid_t pid; int status; };
struct role { char *name, *block, **argv; pid_t pid; int delay; int64_t started, due; int wanted; };
struct conn { int fd, watching, blocked; uint64_t next; struct conn *link; };

static struct entry *entries;
static size_t entry_count, entry_room;
static struct status *statuses;
static size_t status_count, status_room;
static uint64_t last_seq;
static struct role roles[ROLES];
static int role_count;
static struct conn *conns, listener, signals;
static int poller;
static char in[PACKET + 1], out[PACKET];
static size_t out_len;

static void *must(void *memory) {
    if (!memory) {
        perror("holder: memory");
        exit(1);
    }
    return memory;
}

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void begin(const char *text) {
    out_len = strlen(text);
    memcpy(out, text, out_len);
}

static void word(const char *text) {
    size_t n = strlen(text);
    if (out_len + 1 + n > sizeof out) return;
    out[out_len++] = 0;
    memcpy(out + out_len, text, n);
    out_len += n;
}

static void number(long value) {
    char text[24];
    snprintf(text, sizeof text, "%ld", value);
    word(text);
}

static int post(struct conn *c, int fd) {
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct iovec data = { out, out_len };
    struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1 };
    if (fd >= 0) {
        memset(&control, 0, sizeof control);
        m.msg_control = control.room;
        m.msg_controllen = sizeof control.room;
        struct cmsghdr *h = CMSG_FIRSTHDR(&m);
        h->cmsg_level = SOL_SOCKET;
        h->cmsg_type = SCM_RIGHTS;
        h->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(h), &fd, sizeof fd);
    }
    return sendmsg(c->fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

static void hang_up(struct conn *c) {
    for (struct conn **p = &conns; *p; p = &(*p)->link)
        if (*p == c) {
            *p = c->link;
            break;
        }
    /* a child between fork and exec still has the descriptor: closing it alone would leave it in the poller */
    epoll_ctl(poller, EPOLL_CTL_DEL, c->fd, NULL);
    close(c->fd);
    free(c);
}

static void flush(struct conn *c) {
    int error = 0;
    for (size_t i = 0; i < status_count && !error; i++) {
        if (statuses[i].seq < c->next) continue;
        begin("exit");
        number(statuses[i].pid);
        number(statuses[i].status);
        error = post(c, -1);
        if (!error) c->next = statuses[i].seq + 1;
    }
    /* a watcher that doesn't read gets the rest when it does; one that is gone is noticed by its end of file */
    int blocked = error == -EAGAIN;
    if (blocked == c->blocked) return;
    c->blocked = blocked;
    struct epoll_event e = { .events = EPOLLIN | (blocked ? EPOLLOUT : 0), .data.ptr = c };
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void keep_status(pid_t pid, int status) {
    if (status_count == status_room) {
        status_room = status_room ? status_room * 2 : 16;
        statuses = must(realloc(statuses, status_room * sizeof *statuses));
    }
    statuses[status_count++] = (struct status){ ++last_seq, pid, status };
}

static void drop_status(pid_t pid) {
    for (size_t i = 0; i < status_count; i++)
        if (statuses[i].pid == pid) {
            memmove(statuses + i, statuses + i + 1, (--status_count - i) * sizeof *statuses);
            return;
        }
}

static void start_role(struct role *r) {
    sigset_t none;
    r->started = now_ms();
    pid_t parent = getpid();
    r->pid = fork();
    if (r->pid < 0) {
        r->pid = 0;
        r->due = r->started + DELAY;
        return;
    }
    if (r->pid) return;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGHUP, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGPIPE, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(1);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "0", 1) < 0) perror("holder: oom_score_adj");
    execv(r->argv[0], r->argv);
    perror(r->argv[0]);
    _exit(127);
}

static void forget_role(struct role *r) {
    free(r->name);
    free(r->block);
    free(r->argv);
    memmove(r, r + 1, (size_t)(&roles[--role_count] - r) * sizeof *r);
}

static void role_ended(struct role *r) {
    r->pid = 0;
    if (!r->wanted) {
        forget_role(r);
        return;
    }
    int64_t now = now_ms();
    if (now - r->started >= LIVED) r->delay = 0;
    r->due = now + r->delay;
    r->delay = r->delay ? r->delay * 2 : 50;
    if (r->delay > DELAY) r->delay = DELAY;
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        int i = 0;
        while (i < role_count && roles[i].pid != pid) i++;
        if (i < role_count) role_ended(&roles[i]);
        else keep_status(pid, status);
    }
    for (struct conn *c = conns; c; c = c->link)
        if (c->watching && !c->blocked) flush(c);
}

static int start_due_roles(void) {
    int64_t now = now_ms(), wait = -1;
    for (int i = 0; i < role_count; i++) {
        if (roles[i].pid || !roles[i].wanted) continue;
        if (roles[i].due <= now) start_role(&roles[i]);
        else if (wait < 0 || roles[i].due - now < wait) wait = roles[i].due - now;
    }
    return (int)wait;
}

/* Reverse order, one after the other: the daemon goes before the keeper that it needs. */
static void quit(void) {
    for (int i = role_count; i-- > 0;) {
        int64_t end = now_ms() + GRACE;
        struct timespec pause = { 0, 5000000 };
        if (!roles[i].pid) continue;
        kill(roles[i].pid, SIGTERM);
        while (waitpid(roles[i].pid, NULL, WNOHANG) == 0) {
            if (now_ms() > end) kill(roles[i].pid, SIGKILL);
            nanosleep(&pause, NULL);
        }
    }
    unlink("holder.sock");
    exit(0);
}

static size_t find(const char *name) {
    size_t low = 0, high = entry_count;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (strcmp(entries[middle].name, name) < 0) low = middle + 1;
        else high = middle;
    }
    return low;
}

static int holds(size_t at, const char *name) { return at < entry_count && !strcmp(entries[at].name, name); }

static const char *put(const char *name, int fd) {
    size_t at = find(name);
    if (fd < 0) return "no descriptor came with it";
    if (holds(at, name)) {
        close(entries[at].fd);
        entries[at].fd = fd;
        return NULL;
    }
    if (entry_count == ENTRIES) {
        close(fd);
        return "full";
    }
    if (entry_count == entry_room) {
        entry_room = entry_room ? entry_room * 2 : 64;
        entries = must(realloc(entries, entry_room * sizeof *entries));
    }
    memmove(entries + at + 1, entries + at, (entry_count++ - at) * sizeof *entries);
    entries[at] = (struct entry){ must(strdup(name)), fd };
    return NULL;
}

static long drop(char *pattern) {
    size_t n = strlen(pattern), end;
    int prefix = n && pattern[n - 1] == '*';
    if (prefix) pattern[--n] = 0;
    size_t at = end = find(pattern);
    while (end < entry_count && (prefix ? !strncmp(entries[end].name, pattern, n) : !strcmp(entries[end].name, pattern))) {
        close(entries[end].fd);
        free(entries[end++].name);
    }
    memmove(entries + at, entries + end, (entry_count - end) * sizeof *entries);
    entry_count -= end - at;
    return (long)(end - at);
}

static void list(const char *prefix, const char *after) {
    size_t n = strlen(prefix), at = find(after ? after : prefix);
    if (after && holds(at, after)) at++;
    begin("end");
    for (; at < entry_count && !strncmp(entries[at].name, prefix, n); at++) {
        if (out_len + strlen(entries[at].name) + 1 > LIST) {
            memcpy(out, "ok", 2);
            memmove(out + 2, out + 3, --out_len - 2);
            return;
        }
        word(entries[at].name);
    }
}

static struct role *role_named(const char *name) {
    for (int i = 0; i < role_count; i++)
        if (!strcmp(roles[i].name, name)) return &roles[i];
    return NULL;
}

/* A role that runs already keeps running; a new command line counts from its next start. */
static void define_role(int count, char **words, size_t size) {
    struct role *r = role_named(words[0]);
    if (!r && role_count == ROLES) {
        begin("error");
        word("too many roles");
        return;
    }
    if (!r) {
        r = &roles[role_count++];
        memset(r, 0, sizeof *r);
        r->name = must(strdup(words[0]));
    }
    free(r->block);
    free(r->argv);
    r->wanted = 1;
    r->block = must(malloc(size));
    memcpy(r->block, words[1], size);
    r->argv = must(calloc((size_t)count, sizeof *r->argv));
    for (int i = 0; i < count - 1; i++) r->argv[i] = r->block + (words[i + 1] - words[1]);
    if (!r->pid) start_role(r);
    begin("ok");
    number(r->pid);
}

static void undefine_role(const char *name) {
    struct role *r = role_named(name);
    begin("ok");
    if (!r) return;
    r->wanted = 0;
    if (r->pid) kill(r->pid, SIGTERM);
    else forget_role(r);
}

static void answer_roles(void) {
    begin("ok");
    for (int i = 0; i < role_count; i++) {
        word(roles[i].name);
        number(roles[i].pid);
    }
}

static int answer_get(struct conn *c, const char *name) {
    size_t at = find(name);
    int found = holds(at, name);
    begin(found ? "ok" : "no");
    return post(c, found ? entries[at].fd : -1);
}

static int obey(struct conn *c, int n, char **w, char *end, int *fd) {
    const char *what = w[0], *trouble = NULL;
    if (!strcmp(what, "get") && n == 2) return answer_get(c, w[1]);
    if (!strcmp(what, "put") && n == 2) {
        trouble = put(w[1], *fd);
        *fd = -1;
        begin(trouble ? "error" : "ok");
        if (trouble) word(trouble);
    } else if (!strcmp(what, "del") && n == 2) {
        long gone = drop(w[1]);
        begin("ok");
        number(gone);
    } else if (!strcmp(what, "list") && (n == 2 || n == 3)) {
        list(w[1], n == 3 ? w[2] : NULL);
    } else if (!strcmp(what, "role") && n >= 3) {
        define_role(n - 1, w + 1, (size_t)(end - w[2]) + 1);
    } else if (!strcmp(what, "norole") && n == 2) {
        undefine_role(w[1]);
    } else if (!strcmp(what, "roles") && n == 1) {
        answer_roles();
    } else if (!strcmp(what, "ack") && n == 2) {
        drop_status(atoi(w[1]));
        begin("ok");
    } else if (!strcmp(what, "watch") && n == 1) {
        begin("ok");
        int error = post(c, -1);
        c->watching = 1;
        flush(c);
        return error;
    } else if (!strcmp(what, "quit") && n == 1) {
        begin("ok");
        post(c, -1);
        quit();
    } else {
        begin("error");
        word("unknown request");
    }
    return post(c, -1);
}

static void receive(struct conn *c) {
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct iovec data = { in, PACKET };
    struct msghdr m = { .msg_iov = &data, .msg_iovlen = 1, .msg_control = control.room, .msg_controllen = sizeof control.room };
    char *words[WORDS + 1];
    int count = 0, fd = -1;
    ssize_t n = recvmsg(c->fd, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    struct cmsghdr *h = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
    if (h && h->cmsg_level == SOL_SOCKET && h->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(h), sizeof fd);
    if (n <= 0 || m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) {
        if (fd >= 0) close(fd);
        hang_up(c);
        return;
    }
    in[n] = 0;
    for (char *p = in; p <= in + n && count < WORDS; p += strlen(p) + 1) words[count++] = p;
    /* answers are small and clients wait for them: one that lets its buffer run full is broken */
    int error = obey(c, count, words, in + n, &fd);
    if (fd >= 0) close(fd);
    if (error) hang_up(c);
}

static void welcome(void) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    int fd = accept4(listener.fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) return;
    struct conn *c = must(calloc(1, sizeof *c));
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = c };
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) || peer.uid != geteuid() ||
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e)) {
        close(fd);
        free(c);
        return;
    }
    c->fd = fd;
    c->link = conns;
    conns = c;
}

static void take_signal(void) {
    struct signalfd_siginfo info;
    if (read(signals.fd, &info, sizeof info) != sizeof info) return;
    if (info.ssi_signo == SIGTERM) quit();
    reap();
}

static int fail(const char *what) {
    perror(what);
    return 1;
}

static int listen_here(void) {
    struct sockaddr_un address = { .sun_family = AF_UNIX, .sun_path = "holder.sock" };
    unlink(address.sun_path);
    umask(077);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 128)) return -1;
    return fd;
}

static int watch_signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigaddset(&set, SIGTERM);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGHUP, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    return signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
}

static void harden(void) {
    struct rlimit files;
    getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    setrlimit(RLIMIT_NOFILE, &files);
    int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
    if (fd < 0) return;
    /* needs CAP_SYS_RESOURCE: without it the holder dies no sooner than anybody else */
    if (write(fd, "-999", 4) < 0) errno = 0;
    close(fd);
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1])) return fail("holder: RUN");
    listener.fd = listen_here();
    if (listener.fd < 0) return fail("holder: holder.sock");
    pid_t pid = fork();
    if (pid) return pid < 0 ? fail("holder: fork") : 0;
    setsid();
    prctl(PR_SET_NAME, "knarr-holder");
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    harden();
    signals.fd = watch_signals();
    poller = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = { .events = EPOLLIN, .data.ptr = &listener };
    epoll_ctl(poller, EPOLL_CTL_ADD, listener.fd, &e);
    e.data.ptr = &signals;
    epoll_ctl(poller, EPOLL_CTL_ADD, signals.fd, &e);
    for (;;) {
        int wait = start_due_roles();
        /* one event a turn: handling it may free the connection of another */
        if (epoll_wait(poller, &e, 1, wait) != 1) continue;
        struct conn *c = e.data.ptr;
        if (c == &listener) welcome();
        else if (c == &signals) take_signal();
        else if (e.events & EPOLLOUT) flush(c);
        else receive(c);
    }
}
