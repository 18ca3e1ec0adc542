/* The guest agent: PID 1 of a microVM. It assembles the image's disks into a root, runs one workload in namespaces of its
 * own, and does for the host what the keeper does for a container: exec, signals, terminals, archives, counters.
 *
 * Static, no dependencies, one thread, one poll loop. The pieces in agent/ are parts of this one translation unit: the
 * compiler drops what is not used and scripts/build-native builds one program for each .c file.
 * Out of scope: deciding anything. What is mounted where, which capabilities and limits: the start request says so.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <grp.h>
#include <linux/bpf.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/fs.h>
#include <linux/random.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "agent/wire.h"
#include "agent/sys.h"
#include "agent/verbs.h"
#include "agent/devices.h"
#include "agent/root.h"
#include "agent/user.h"
#include "agent/tar.h"
#include "agent/unpack.h"
#include "agent/session.h"
#include "agent/streams.h"
#include "agent/ahead.h"
#include "agent/host.h"

struct interest {
	int kind;
	struct session *s;
};

static struct pollfd fds[1024];
static struct interest interests[1024];
static int n_fds;

static void watch(int fd, int events, int kind, struct session *s)
{
	if (fd < 0 || !events || n_fds == 1024)
		return;
	fds[n_fds] = (struct pollfd){ fd, events, 0 };
	interests[n_fds++] = (struct interest){ kind, s };
}

static void watch_session(struct session *s)
{
	watch(s->report, POLLIN, 'r', s);
	if (wants_output(s, 1)) {
		watch(s->out[0], POLLIN, '1', s);
		watch(s->master, POLLIN, 'm', s);
	}
	if (wants_output(s, 2))
		watch(s->out[1], POLLIN, '2', s);
	if (s->input.len)
		watch(s->master >= 0 ? s->master : s->in, POLLOUT, 'i', s);
}

static void collect(int children)
{
	n_fds = 0;
	watch(children, POLLIN, 'c', NULL);
	watch(control, POLLIN | (output.len ? POLLOUT : 0), 'a', NULL);
	if (stdin_port >= 0 && workload.input.len < WINDOW && !workload.eof_in && workload.started > 0)
		watch(stdin_port, POLLIN, 's', NULL);
	watch(ports[1], stream[1].len ? POLLOUT : 0, 'o', NULL);
	watch(ports[2], stream[2].len ? POLLOUT : 0, 'e', NULL);
	for (struct session *s = sessions; s; s = s->next)
		watch_session(s);
}

static int alive(struct session *wanted)
{
	for (struct session *s = sessions; s; s = s->next)
		if (s == wanted)
			return 1;
	return 0;
}

/* An ended process may leave others that hold its streams; what it wrote itself is there by now, more is not waited for. */
static void close_quiet(struct session *s)
{
	int *const mine[] = { &s->out[0], &s->out[1], &s->master };
	for (int i = 0; i < 3; i++) {
		struct pollfd p = { *mine[i], POLLIN, 0 };
		if (*mine[i] >= 0 && poll(&p, 1, 0) == 0)
			close_fd(mine[i]);
	}
}

static void end_sessions(void)
{
	struct session *next;
	for (struct session *s = sessions; s; s = next) {
		next = s->next;
		if (s == &workload || !s->exited)
			continue;
		close_quiet(s);
		session_ended(s);
	}
}

static void drain_signals(int children)
{
	struct signalfd_siginfo info[8];
	if (read(children, info, sizeof info) > 0)
		reap();
}

static void dispatch(int children, int kind, struct session *s)
{
	if (s && !alive(s))
		return;
	switch (kind) {
	case 'c': drain_signals(children); break;
	case 'a': on_control(); break;
	case 's': on_stdin(); break;
	case 'r': on_report(s); break;
	case '1': on_output(s, &s->out[0], 1); break;
	case '2': on_output(s, &s->out[1], 2); break;
	case 'm': on_output(s, &s->master, 1); break;
	case 'i': push_input(s); break;
	}
}

static void flush_all(void)
{
	if (control >= 0)
		bytes_flush(&output, control);
	for (int i = 1; i < 3; i++)
		if (stream[i].len && ports[i] >= 0)
			bytes_flush(&stream[i], ports[i]);
	workload_ended();
	end_sessions();
}

static void loop(int children)
{
	for (;;) {
		int hung_up = 0, timeout = -1;
		flush_all();
		if (state == ENDED) {
			long long left = power_off_at - now_ms();
			if (left <= 0)
				power_off();
			timeout = left;
		}
		collect(children);
		poll(fds, n_fds, timeout);
		for (int i = 0; i < n_fds; i++) {
			if (fds[i].revents)
				dispatch(children, interests[i].kind, interests[i].s);
			/* a port whose host end is gone is "ready" for ever */
			hung_up |= (fds[i].revents & POLLHUP) && strchr("asoe", interests[i].kind);
		}
		if (hung_up)
			usleep(20000);
	}
}

/* The initramfs can't be pivoted away from; a tmpfs on top of it can, and it holds everything the agent makes. */
static void leave_initramfs(void)
{
	mkdir("/base", 0755);
	mount("tmpfs", "/base", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	static const char *const folders[] = { "dev", "proc", "sys", "run" };
	for (unsigned i = 0; i < sizeof folders / sizeof *folders; i++) {
		char path[32];
		snprintf(path, sizeof path, "/base/%s", folders[i]);
		mkdir(path, 0755);
	}
	mount("devtmpfs", "/base/dev", "devtmpfs", MS_NOSUID, "");
	mount("proc", "/base/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mount("sysfs", "/base/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
	mkdir("/base/boot", 0755);
	mount("/", "/base/boot", NULL, MS_BIND, NULL);
	if (chdir("/base") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0)
		console("<3>knarr: leave the initramfs: %s\n", strerror(errno));
}

int main(int argc, char **argv)
{
	sigset_t set;
	if (argc == 1 && !strcmp(argv[0], "rehearsal"))
		return write(1, "\n", 1) != 1;
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int children = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	leave_initramfs();
	for (int i = 0; i < 3; i++)
		if (open("/dev/null", O_RDWR) > 2)
			break;
	load_modules("/boot/modules.early");
	/* the ports take a while to appear: the disks' drivers are loaded in that time */
	load_modules("/boot/modules.late");
	control = wait_port("control", O_RDWR | O_NONBLOCK);
	status_port = wait_port("status", O_WRONLY);
	loop(children);
}
