/* The kernel floor: one container start with the system calls Knarr needs, and nothing else.
 *
 * Reads a line from stdin, starts PROGRAM of the image tree once behind every namespace with overlay, mounts, masks, a veth
 * pair on a bridge with an address, cgroups, capabilities and a seccomp filter, waits for its exit, removes what it made,
 * prints the milliseconds. So `knarr bench start` can interleave it with the others.
 *
 *   floor container LOWER WORK BRIDGE CGROUP PROGRAM    CGROUP: a folder name made in each v1 hierarchy or in v2
 *   floor fork PROGRAM                                  bare fork + exec + wait on the host
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/if_addr.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static char lower[1024], work[1024], bridge[64], cgroup[64], program[256];
static const char *controllers[] = {"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"};
static char groups[8][160];
static int group_count, unified;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    _exit(99);
}

static int put(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t done = write(fd, text, strlen(text));
    close(fd);
    return done < 0 ? -1 : 0;
}

/* ---- netlink ------------------------------------------------------------------------------------------------- */

struct message {
    struct nlmsghdr header;
    char body[1024];
};

static void attribute(struct message *m, int type, const void *data, int length) {
    struct rtattr *a = (void *)((char *)m + NLMSG_ALIGN(m->header.nlmsg_len));
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(length);
    if (length) memcpy(RTA_DATA(a), data, length);
    m->header.nlmsg_len = NLMSG_ALIGN(m->header.nlmsg_len) + RTA_ALIGN(a->rta_len);
}

static struct rtattr *open_nest(struct message *m, int type, const void *data, int length) {
    struct rtattr *a = (void *)((char *)m + NLMSG_ALIGN(m->header.nlmsg_len));
    attribute(m, type, data, length);
    return a;
}

static void close_nest(struct message *m, struct rtattr *a) {
    a->rta_len = (char *)m + m->header.nlmsg_len - (char *)a;
}

static void start_message(struct message *m, int type, int flags, const void *head, int length) {
    memset(m, 0, sizeof *m);
    m->header.nlmsg_type = type;
    m->header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    m->header.nlmsg_len = NLMSG_LENGTH(length);
    memcpy(NLMSG_DATA(&m->header), head, length);
}

static void talk(int fd, struct message *m) {
    char buffer[4096];
    if (send(fd, m, m->header.nlmsg_len, 0) < 0) die("netlink send");
    if (recv(fd, buffer, sizeof buffer, 0) < 0) die("netlink recv");
    struct nlmsghdr *h = (void *)buffer;
    if (h->nlmsg_type == NLMSG_ERROR) {
        int code = ((struct nlmsgerr *)NLMSG_DATA(h))->error;
        if (code) {
            errno = -code;
            die("netlink");
        }
    }
}

static int route_socket(void) {
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK};
    if (fd < 0 || bind(fd, (void *)&address, sizeof address)) die("netlink socket");
    return fd;
}

static void make_veth(int fd, const char *outer, pid_t pid, int master) {
    struct message m;
    struct ifinfomsg head = {0};
    unsigned target = pid;
    start_message(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &head, sizeof head);
    attribute(&m, IFLA_IFNAME, outer, strlen(outer) + 1);
    if (master) attribute(&m, IFLA_MASTER, &master, 4);
    struct rtattr *info = open_nest(&m, IFLA_LINKINFO, NULL, 0);
    attribute(&m, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = open_nest(&m, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *peer = open_nest(&m, VETH_INFO_PEER, &head, sizeof head);
    attribute(&m, IFLA_IFNAME, "eth0", 5);
    attribute(&m, IFLA_NET_NS_PID, &target, 4);
    close_nest(&m, peer);
    close_nest(&m, data);
    close_nest(&m, info);
    talk(fd, &m);
}

static void link_up(int fd, int index) {
    struct message m;
    struct ifinfomsg head = {.ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP};
    start_message(&m, RTM_NEWLINK, 0, &head, sizeof head);
    talk(fd, &m);
}

static void configure_inside(void) {
    int fd = route_socket(), index = if_nametoindex("eth0");
    struct message m;
    struct ifaddrmsg address = {.ifa_family = AF_INET, .ifa_prefixlen = 16, .ifa_index = index};
    uint32_t ip = htonl(0x0a580002 + (getpid() & 1)), gateway = htonl(0x0a580001);
    struct rtmsg route = {.rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT, .rtm_type = RTN_UNICAST};
    link_up(fd, 1);
    start_message(&m, RTM_NEWADDR, NLM_F_CREATE, &address, sizeof address);
    attribute(&m, IFA_LOCAL, &ip, 4);
    attribute(&m, IFA_ADDRESS, &ip, 4);
    talk(fd, &m);
    link_up(fd, index);
    start_message(&m, RTM_NEWROUTE, NLM_F_CREATE, &route, sizeof route);
    attribute(&m, RTA_GATEWAY, &gateway, 4);
    attribute(&m, RTA_OIF, &index, 4);
    talk(fd, &m);
    close(fd);
}

/* ---- inside -------------------------------------------------------------------------------------------------- */

static void fs(const char *root, const char *type, const char *at, unsigned long flags, const char *data) {
    char path[1200];
    snprintf(path, sizeof path, "%s%s", root, at);
    mkdir(path, 0755);
    if (mount(type, path, type, flags, data)) die(at);
}

static void devices(const char *root) {
    static const struct { const char *name; int minor, major; } list[] = {
        {"null", 3, 1}, {"zero", 5, 1}, {"full", 7, 1}, {"random", 8, 1}, {"urandom", 9, 1}, {"tty", 0, 5}};
    char path[1200];
    for (int i = 0; i < 6; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", root, list[i].name);
        if (mknod(path, S_IFCHR | 0666, makedev(list[i].major, list[i].minor))) die("mknod");
    }
    static const char *links[][2] = {{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"},
                                     {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"}};
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/dev/%s", root, links[i][1]);
        if (symlink(links[i][0], path)) die("symlink");
    }
}

static void masks(const char *root) {
    static const char *files[] = {"interrupts", "kcore", "keys", "timer_list"};
    static const char *folders[] = {"/proc/acpi", "/proc/asound", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"};
    static const char *read_only[] = {"bus", "fs", "irq", "sys", "sysrq-trigger"};
    char path[1200];
    for (int i = 0; i < 4; i++) {
        snprintf(path, sizeof path, "%s/proc/%s", root, files[i]);
        if (mount("/dev/null", path, NULL, MS_BIND, NULL) && errno != ENOENT) die(path);
    }
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s%s", root, folders[i]);
        if (mount("tmpfs", path, "tmpfs", MS_RDONLY, NULL) && errno != ENOENT) die(path);
    }
    for (int i = 0; i < 5; i++) {
        snprintf(path, sizeof path, "%s/proc/%s", root, read_only[i]);
        if (mount(path, path, NULL, MS_BIND | MS_REC, NULL) && errno != ENOENT) die(path);
        if (mount(NULL, path, NULL, MS_BIND | MS_REMOUNT | MS_RDONLY, NULL) && errno != ENOENT && errno != EINVAL) die(path);
    }
}

static void mounts(void) {
    char root[1100], options[4096];
    snprintf(root, sizeof root, "%s/m", work);
    snprintf(options, sizeof options, "lowerdir=%s,upperdir=%s/u,workdir=%s/w", lower, work, work);
    if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("private");
    if (mount("overlay", root, "overlay", 0, options)) die("overlay");
    fs(root, "proc", "/proc", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    fs(root, "tmpfs", "/dev", MS_NOSUID, "mode=755,size=65536k");
    devices(root);
    fs(root, "devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
    fs(root, "tmpfs", "/dev/shm", MS_NOSUID | MS_NOEXEC | MS_NODEV, "mode=1777,size=65536k");
    fs(root, "mqueue", "/dev/mqueue", MS_NOSUID | MS_NOEXEC | MS_NODEV, NULL);
    fs(root, "sysfs", "/sys", MS_NOSUID | MS_NOEXEC | MS_NODEV | MS_RDONLY, NULL);
    masks(root);
    if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH) || chdir("/")) die("pivot_root");
}

static void restrict_self(void) {
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog filter = {1, allow};
    for (int cap = 14; cap <= 40; cap++) prctl(PR_CAPBSET_DROP, cap);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter)) die("seccomp");
}

static void inside(const int *pipe_ends) {
    char byte;
    char *argv[] = {program, NULL}, *envp[] = {"PATH=/usr/bin:/bin", NULL};
    close(pipe_ends[1]); /* or a dead parent would never be an end of file */
    if (read(pipe_ends[0], &byte, 1) != 1) _exit(98);
    if (*bridge) configure_inside();
    sethostname("floor", 5);
    mounts();
    restrict_self();
    execve(program, argv, envp);
    die(program);
}

/* ---- outside ------------------------------------------------------------------------------------------------- */

static void find_groups(void) {
    for (int i = 0; i < 8; i++) {
        char path[64];
        snprintf(path, sizeof path, "/sys/fs/cgroup/%s", controllers[i]);
        if (access(path, F_OK) == 0) snprintf(groups[group_count++], sizeof groups[0], "%s/%s", path, cgroup);
    }
    if (!group_count) {
        snprintf(groups[group_count++], sizeof groups[0], "/sys/fs/cgroup/%s", cgroup);
        unified = 1;
    }
}

static void copy_file(const char *folder, const char *parent_of, const char *name) {
    char path[400], text[256];
    snprintf(path, sizeof path, "%s", parent_of);
    *strrchr(path, '/') = 0;
    strcat(path, "/");
    strcat(path, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    if (n <= 0) return;
    text[n] = 0;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    put(path, text);
}

static void make_groups(void) {
    for (int i = 0; i < group_count; i++) {
        mkdir(groups[i], 0755);
        if (strstr(groups[i], "/cpuset/")) {
            copy_file(groups[i], groups[i], "cpuset.cpus");
            copy_file(groups[i], groups[i], "cpuset.mems");
        }
    }
}

static void enter_groups(pid_t pid) {
    char text[32], path[2048];
    snprintf(text, sizeof text, "%d", pid);
    for (int i = 0; i < group_count; i++) {
        snprintf(path, sizeof path, "%s/cgroup.procs", groups[i]);
        if (put(path, text)) die(path);
    }
}

static void remove_groups(void) {
    for (int i = 0; i < group_count; i++)
        for (int tries = 0; rmdir(groups[i]) && errno == EBUSY && tries < 1000; tries++) usleep(100);
}

static void folders(int make) {
    static const char *names[] = {"m", "u", "w"};
    char path[1200];
    snprintf(path, sizeof path, "%s/w/work", work);
    if (!make) rmdir(path);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", work, names[i]);
        if (make) mkdir(path, 0755);
        else rmdir(path);
    }
    if (make) return;
    /* folders that the mounts made in the upper */
    static const char *made[] = {"dev", "proc", "sys"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/u/%s", work, made[i]);
        rmdir(path);
    }
    snprintf(path, sizeof path, "%s/u", work);
    rmdir(path);
}

static void check(int status) {
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return;
    fprintf(stderr, "floor: child status %#x\n", status);
    exit(1);
}

static void run_container(int route, int master, int turn) {
    int gate[2], status;
    char name[16];
    struct clone_args args = {.flags = CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWNET,
                              .exit_signal = SIGCHLD};
    folders(1);
    make_groups();
    if (pipe2(gate, O_CLOEXEC)) die("pipe");
    if (unified) {
        args.cgroup = open(groups[0], O_PATH | O_CLOEXEC);
        args.flags |= CLONE_INTO_CGROUP;
    }
    pid_t pid = syscall(SYS_clone3, &args, sizeof args);
    if (pid < 0) die("clone3");
    if (!pid) inside(gate);
    if (unified) close(args.cgroup);
    else enter_groups(pid);
    snprintf(name, sizeof name, "flr%d", (getpid() * 131 + turn) % 1000000);
    if (*bridge) {
        make_veth(route, name, pid, master);
        link_up(route, if_nametoindex(name));
    }
    if (write(gate[1], "g", 1) != 1) die("go");
    close(gate[0]);
    close(gate[1]);
    if (waitpid(pid, &status, 0) < 0) die("wait");
    check(status);
    folders(0);
    remove_groups();
}

static void run_fork(void) {
    char *argv[] = {program, NULL}, *envp[] = {NULL};
    int status;
    pid_t pid = vfork();
    if (!pid) {
        execve(program, argv, envp);
        _exit(98);
    }
    if (waitpid(pid, &status, 0) < 0) die("wait");
    check(status);
}

int main(int count, char **words) {
    char line[64];
    int container = count == 7 && !strcmp(words[1], "container");
    if (!container && !(count == 3 && !strcmp(words[1], "fork"))) {
        fprintf(stderr, "usage: floor container LOWER WORK BRIDGE CGROUP PROGRAM | floor fork PROGRAM\n");
        return 2;
    }
    snprintf(program, sizeof program, "%s", words[count - 1]);
    int route = -1, master = 0;
    if (container) {
        snprintf(lower, sizeof lower, "%s", words[2]);
        snprintf(work, sizeof work, "%s", words[3]);
        snprintf(bridge, sizeof bridge, "%s", words[4]);
        snprintf(cgroup, sizeof cgroup, "%s", words[5]);
        route = route_socket();
        master = *bridge ? (int)if_nametoindex(bridge) : 0;
        find_groups();
    }
    for (int turn = 0; fgets(line, sizeof line, stdin); turn++) {
        double start = now();
        if (container) run_container(route, master, turn);
        else run_fork();
        printf("%.3f\n", now() - start);
        fflush(stdout);
    }
    return 0;
}
