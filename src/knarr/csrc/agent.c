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
#include <linux/capability.h>
#include <linux/filter.h>
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
#include "agent/root.h"
#include "agent/user.h"
#include "agent/tar.h"

#define VERSION 1
#define QUEUE_MAX (256u << 10)
/* Output beyond this may wait in a full pipe of the host's, unseen from here: then the host must confirm before power off. */
#define UNCONFIRMED_MAX 4096
#define CONFIRM_SECONDS 60

enum { BOOTED, RUNNING, ENDED };

struct session {
	struct session *next;
	unsigned id;
	int op;			/* 'x' program, 'g' get, 'p' put, 's' stat */
	pid_t pid;
	int report, in, out[2], master;
	int started, exited, eof_in, orphan, code;
	unsigned credit;
	struct bytes input;
	struct request *q;
};

static int control = -1, status_port = -1, stdin_port = -1, ports[3] = { -1, -1, -1 }, state = BOOTED, workload_pidfd = -1;
static struct session workload = { .report = -1, .in = -1, .out = { -1, -1 }, .master = -1 }, *sessions = &workload;
static struct bytes output, input, message, stdin_bytes, stream[3];
static int message_type;
static unsigned message_session;
static long long sent[3], power_off_at;

static long long now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static void status_line(const char *format, ...)
{
	char line[600];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line - 1, format, args);
	va_end(args);
	if (n > (int)sizeof line - 2)
		n = sizeof line - 2;
	for (int i = 0; i < n; i++)
		if (line[i] == '\n')
			line[i] = ' ';
	line[n++] = '\n';
	if (write(status_port, line, n) != n)
		console("<3>knarr: the status port takes nothing\n");
}

static void send_records(int type, unsigned session, struct bytes *b)
{
	frame_add(&output, type, session, 0, b->data + b->start, b->len);
	free(b->data);
}

static void send_error(unsigned session, int error, int code, const char *text)
{
	struct bytes b = { 0 };
	record_number(&b, "errno", error);
	record_number(&b, "code", code);
	record_text(&b, "text", text);
	send_records(G_ERROR, session, &b);
}

static void send_number(int type, unsigned session, unsigned value)
{
	unsigned char p[4];
	put32(p, value);
	frame_add(&output, type, session, 0, p, 4);
}

static void power_off(void)
{
	umount2(ROOTFS, MNT_DETACH);
	sync();
	umount2(DISK, 0);
	reboot(RB_POWER_OFF);
}

/* ---- children ---- */

static void child_signals(int report, int others[3])
{
	sigset_t none;
	char go;
	report_fd = report;
	(void)others;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	if (recv(report, &go, 1, 0) != 1)
		_exit(125);
}

static void write_self_into_cgroup(void)
{
	write_file("/proc/self/oom_score_adj", "0");
	if (write_file(CGROUP "/cgroup.procs", "0") < 0)
		fail("enter the cgroup");
}

static void workload_child(struct request *q, int report, int streams[3])
{
	child_signals(report, streams);
	write_self_into_cgroup();
	const char *hostname = request_text(q, "hostname");
	if (unshare(CLONE_NEWCGROUP) < 0)
		fail("unshare the cgroup namespace");
	if (hostname && sethostname(hostname, strlen(hostname)) < 0)
		fail("set the hostname");
	build_root(q);
	run_program(q, streams, 1);
}

/* Into the workload's namespaces, where the second child is the program; CLONE_PARENT makes the agent its parent. */
static void session_child(struct session *s, int report, int streams[3])
{
	struct {
		char kind;
		char pad[3];
		int pid;
	} m = { .kind = 'P' };
	report_fd = report;
	if (workload_pidfd < 0) {
		if (chroot(ROOTFS) < 0 || chdir("/") < 0)
			fail("enter the root");
	} else {
		int spaces = CLONE_NEWNS;
		if (s->op == 'x') {
			write_self_into_cgroup();
			spaces |= CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP;
		}
		if (setns(workload_pidfd, spaces) < 0)
			fail("enter the workload");
	}
	m.pid = syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0);
	if (m.pid < 0)
		fail("fork");
	if (m.pid > 0) {
		send(report, &m, sizeof m, MSG_NOSIGNAL);
		_exit(0);
	}
	child_signals(report, streams);
	if (s->op == 'x')
		run_program(s->q, streams, 0);
	for (int i = 0; i < 3; i++)
		dup2(streams[i], i);
	syscall(SYS_close_range, 3, report - 1, 0);
	syscall(SYS_close_range, report + 1, ~0u, 0);
	_exit(archive_run(s->op, request_text(s->q, "path")));
}

static int make_streams(struct session *s, int far[3])
{
	int pair[2];
	far[0] = far[1] = far[2] = -1;
	if (s->op == 'x' && request_number(s->q, "tty", 0))
		return 0;
	if (request_number(s->q, "detach", 0)) { /* nobody will read or write: it outlives the daemon that asked */
		for (int i = 0; i < 3; i++)
			far[i] = open("/dev/null", O_RDWR | O_CLOEXEC);
		return far[2] < 0 ? -1 : 0;
	}
	for (int i = 1; i < 3; i++) {
		if (pipe2(pair, O_CLOEXEC) < 0)
			return -1;
		s->out[i - 1] = pair[0];
		far[i] = pair[1];
		fcntl(pair[0], F_SETFL, O_NONBLOCK);
	}
	if (s->op == 'x' && !request_number(s->q, "stdin", 0)) {
		far[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
		return far[0] < 0 ? -1 : 0;
	}
	if (pipe2(pair, O_CLOEXEC) < 0)
		return -1;
	far[0] = pair[0];
	s->in = pair[1];
	return fcntl(s->in, F_SETFL, O_NONBLOCK);
}

/* Start the child of a session; it waits for our `go` once its pid is known. */
static int session_start(struct session *s)
{
	int far[3], pair[2] = { -1, -1 };
	unsigned long spaces = s == &workload ? CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC : 0;
	if (make_streams(s, far) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	pid_t pid = syscall(SYS_clone, spaces | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0) {
		if (s == &workload)
			workload_child(s->q, pair[1], far);
		session_child(s, pair[1], far);
		_exit(125);
	}
	int saved = errno;
	for (int i = 0; i < 3; i++)
		close_fd(&far[i]);
	close(pair[1]);
	s->report = pair[0];
	errno = saved;
	if (pid > 0 && s == &workload) {
		s->pid = pid;
		workload_pidfd = syscall(SYS_pidfd_open, pid, 0);
		send(s->report, "G", 1, MSG_NOSIGNAL);
	}
	return pid < 0 ? -1 : 0;
}

static void session_drop(struct session *s)
{
	struct session **p = &sessions;
	while (*p != s)
		p = &(*p)->next;
	*p = s->next;
	close_fd(&s->report);
	close_fd(&s->in);
	close_fd(&s->out[0]);
	close_fd(&s->out[1]);
	close_fd(&s->master);
	free(s->input.data);
	request_free(s->q);
	free(s);
}

static struct session *session_find(unsigned id)
{
	for (struct session *s = sessions; s; s = s->next)
		if (s->id == id)
			return s;
	return NULL;
}

static void workload_failed(int error, int code, const char *text)
{
	status_line("failed %d %d %s", error, code, text);
	struct bytes b = { 0 };
	record_number(&b, "errno", error);
	record_number(&b, "code", code);
	record_text(&b, "text", text);
	send_records(G_ERROR, 0, &b);
	state = ENDED;
	power_off_at = now_ms();
}

static int all_read(const struct session *s)
{
	return s->out[0] < 0 && s->out[1] < 0 && s->master < 0 && s->report < 0;
}

/* The workload and its output are at their end: tell it durably, then wait for the host only when output may be under way. */
static void workload_ended(void)
{
	int oom = cgroup_counter("memory.events", "oom_kill") > 0;
	if (state == ENDED || !workload.exited || !all_read(&workload) || stream[1].len || stream[2].len)
		return;
	state = ENDED;
	if (oom)
		status_line("oom");
	status_line("exit %d", workload.code);
	struct bytes b = { 0 };
	record_number(&b, "code", workload.code);
	record_number(&b, "oom", oom);
	record_number(&b, "out", sent[1]);
	record_number(&b, "err", sent[2]);
	send_records(G_ENDED, 0, &b);
	power_off_at = now_ms() + (sent[1] + sent[2] > UNCONFIRMED_MAX ? CONFIRM_SECONDS * 1000 : 0);
}

static void session_ended(struct session *s)
{
	if (s == &workload) {
		workload_ended();
		return;
	}
	if (!s->exited || !all_read(s))
		return;
	if (!s->orphan)
		send_number(G_EXIT, s->id, s->code);
	session_drop(s);
}

static void reap(void)
{
	int status;
	pid_t pid;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct session *s = sessions; s; s = s->next)
			if (s->pid == pid) {
				s->exited = 1;
				s->code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
				session_ended(s);
				break;
			}
}

/* ---- what comes from children ---- */

static void on_report(struct session *s)
{
	char text[512], box[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { text, sizeof text - 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = box, .msg_controllen = sizeof box };
	ssize_t n = recvmsg(s->report, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	int word[3];
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0 && text[0] == 'P' && n >= 8) {
		memcpy(&s->pid, text + 4, 4);
		send(s->report, "G", 1, MSG_NOSIGNAL);
	} else if (n > 0 && text[0] == 'T' && c) {
		memcpy(&s->master, CMSG_DATA(c), sizeof s->master);
		fcntl(s->master, F_SETFL, O_NONBLOCK);
	} else if (n >= 12 && text[0] == 'E') {
		memcpy(word, text, 12);
		text[n] = 0;
		s->started = -1;
		if (s == &workload) {
			workload_failed(word[1], word[2], text + 12);
		} else {
			send_error(s->id, word[1], word[2], text + 12);
			s->orphan = 1;
			s->exited |= !s->pid;
		}
	} else if (n <= 0) {
		close_fd(&s->report);
		if (s->started >= 0 && s->op == 'x') {
			s->started = 1;
			if (s == &workload && state == BOOTED) {
				state = RUNNING;
				status_line("started");
			}
			if (!s->orphan)
				frame_add(&output, G_STARTED, s->id, 0, NULL, 0);
		}
		session_ended(s);
	}
}

/* Bytes of a session's output: the workload's go to the ports, the others' to the daemon as far as its credit reaches. */
static void on_output(struct session *s, int *fd, int which)
{
	static unsigned char buffer[32768];
	size_t room = sizeof buffer;
	if (s != &workload && !s->orphan && room > s->credit)
		room = s->credit;
	ssize_t n = read(*fd, buffer, room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) { /* a pty answers EIO when its last user is gone */
		close_fd(fd);
		session_ended(s);
		return;
	}
	if (s == &workload) {
		sent[which] += n;
		bytes_add(&stream[which], buffer, n);
	} else if (!s->orphan) {
		s->credit -= n;
		frame_add(&output, G_DATA, s->id, which, buffer, n);
	}
}

static int wants_output(const struct session *s, int which)
{
	if (s == &workload)
		return stream[which].len < WINDOW;
	return s->orphan || (s->credit && output.len < QUEUE_MAX);
}

/* Hand input to the program and give the sender new credit for what it took. */
static void push_input(struct session *s)
{
	int fd = s->master >= 0 ? s->master : s->in;
	size_t before = s->input.len;
	if (fd >= 0 && bytes_flush(&s->input, fd) < 0) {
		bytes_clear(&s->input);
		close_fd(&s->in);
	}
	if (fd < 0 && s->report < 0)
		bytes_clear(&s->input); /* nobody will ever read it */
	if (s != &workload && !s->orphan && before > s->input.len)
		send_number(G_CREDIT, s->id, before - s->input.len);
	if (s->eof_in && !s->input.len)
		close_fd(&s->in);
}

/* ---- what comes from the host ---- */

static void on_hello(const unsigned char *nonce, size_t len)
{
	unsigned char body[2] = { VERSION, state };
	for (struct session *s = sessions; s; s = s->next)
		if (s != &workload) {
			s->orphan = 1;
			s->eof_in = 1;
			bytes_clear(&s->input);
			push_input(s);
		}
	bytes_clear(&output);
	bytes_add(&output, "KNSYNC\r\n", 8);
	bytes_add(&output, nonce, len);
	frame_add(&output, G_HELLO, 0, 0, body, sizeof body);
	if (state == RUNNING)
		frame_add(&output, G_STARTED, 0, 0, NULL, 0);
}

static void start_failed(const char *step)
{
	char text[300];
	int error = errno;
	snprintf(text, sizeof text, "%s: %s", step, strerror(error));
	workload_failed(error, 125, text);
}

/* etc files arrive with the request; the workload sees them as bind mounts of these copies. */
static int write_etc(struct request *q)
{
	struct record *r;
	int at = 0;
	mkdir("/run/etc", 0755);
	while ((r = request_next(q, "etc", &at))) {
		char path[300];
		size_t name = strlen(r->value);
		snprintf(path, sizeof path, "/run/etc/%s", r->value);
		int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (fd < 0 || write(fd, r->value + name + 1, r->len - name - 1) < 0)
			return -1;
		close(fd);
	}
	return 0;
}

/* Mounts that are made in the agent's own tree, such as folders of the host of which only one file is wanted. */
static int mount_outside(struct request *q)
{
	struct record *r;
	int at = 0;
	while ((r = request_next(q, "mount", &at))) {
		struct mount_fields m = mount_parse(r);
		if (strcmp(m.place, "out"))
			continue;
		make_target(m.target, 0);
		if (mount(m.source, m.target, m.type, m.flags, m.data) < 0)
			return -1;
	}
	return 0;
}

static void prepare_streams(struct request *q)
{
	ports[1] = wait_port("stdout", O_WRONLY | O_NONBLOCK);
	if (!request_number(q, "tty", 0))
		ports[2] = wait_port("stderr", O_WRONLY | O_NONBLOCK);
	if (request_number(q, "stdin", 0))
		stdin_port = wait_port("stdin", O_RDONLY | O_NONBLOCK);
}

static void on_start(struct request *q)
{
	const char *step = "";
	int at = 0;
	if (workload.q) {
		request_free(q);
		return;
	}
	workload.q = q;
	workload.op = 'x';
	set_clock(request_number(q, "time", 0));
	seed_random(request_next(q, "seed", &at));
	load_modules("/boot/modules.late");
	if (request_number(q, "folders", 0))
		load_modules("/boot/modules.folders");
	if (mount_disks(&step) < 0)
		return start_failed(step);
	if (request_number(q, "idle", 0)) {
		state = RUNNING; /* only archives are wanted of it */
		frame_add(&output, G_STARTED, 0, 0, NULL, 0);
		return;
	}
	if (request_text(q, "address"))
		load_modules("/boot/modules.net");
	if (set_up_network(q) < 0)
		return start_failed("set up the network");
	if (set_up_cgroup(q) < 0)
		return start_failed("set up the cgroup");
	if (write_etc(q) < 0 || mount_outside(q) < 0)
		return start_failed("prepare the mounts");
	prepare_streams(q);
	if (session_start(&workload) < 0)
		return start_failed("start the workload");
}

static void on_session(unsigned id, struct request *q, int op)
{
	struct session *s = session_find(id);
	if (s || !id || state != RUNNING) {
		send_error(id, s ? EEXIST : ESRCH, 125, "the workload does not run");
		request_free(q);
		return;
	}
	s = calloc(1, sizeof *s);
	if (!s)
		abort();
	s->id = id;
	s->op = op;
	s->q = q;
	s->report = s->in = s->out[0] = s->out[1] = s->master = -1;
	s->credit = WINDOW;
	s->next = sessions;
	sessions = s;
	if (session_start(s) < 0) {
		send_error(id, errno, 125, "start the process");
		session_drop(s);
	}
}

static void counters(unsigned id)
{
	struct bytes b = { 0 };
	char text[4096];
	record_number(&b, "cpu_ns", cgroup_counter("cpu.stat", "usage_usec") * 1000);
	record_number(&b, "memory", cgroup_counter("memory.current", "") - cgroup_counter("memory.stat", "inactive_file"));
	record_number(&b, "pids", cgroup_counter("pids.current", ""));
	if (read_file(CGROUP "/io.stat", text, sizeof text) > 0)
		record_text(&b, "io", text);
	if (read_file("/proc/net/dev", text, sizeof text) > 0)
		record_text(&b, "net", text);
	send_records(G_RESULT, id, &b);
}

static void on_ask(unsigned id, struct request *q)
{
	const char *op = request_text(q, "op");
	int failed;
	if (op && (!strcmp(op, "get") || !strcmp(op, "put") || !strcmp(op, "lstat"))) {
		on_session(id, q, op[0] == 'l' ? 's' : op[0]);
		return;
	}
	if (op && !strcmp(op, "stats")) {
		counters(id);
	} else if (op && !strcmp(op, "update")) {
		failed = set_limits(q);
		struct bytes b = { 0 };
		if (failed)
			send_error(id, errno, 125, "set the limits");
		else
			send_records(G_RESULT, id, &b);
	} else {
		send_error(id, EINVAL, 125, "unknown question");
	}
	request_free(q);
}

static void on_signal(unsigned id, int signum)
{
	struct session *s = session_find(id);
	if (s && s->pid > 0 && !s->exited)
		kill(s->pid, signum);
	else if (s == &workload && state == RUNNING && !s->pid) {
		state = ENDED; /* an agent without workload ends by any signal */
		power_off_at = now_ms();
	}
}

static void on_resize(unsigned id, unsigned columns, unsigned rows)
{
	struct session *s = session_find(id);
	struct winsize size = { .ws_col = columns, .ws_row = rows };
	if (s && s->master >= 0)
		ioctl(s->master, TIOCSWINSZ, &size);
}

static void on_data(unsigned id, const unsigned char *p, size_t len)
{
	struct session *s = session_find(id);
	if (!s || s == &workload || s->orphan || s->input.len + len > 2 * WINDOW)
		return;
	bytes_add(&s->input, p, len);
	push_input(s);
}

static void on_small(int type, unsigned id, const unsigned char *p, size_t len)
{
	struct session *s = session_find(id);
	if (type == H_HELLO && len == 16)
		on_hello(p, len);
	else if (type == H_SIGNAL && len == 1)
		on_signal(id, p[0]);
	else if (type == H_RESIZE && len == 4)
		on_resize(id, get16(p), get16(p + 2));
	else if (type == H_DATA)
		on_data(id, p, len);
	else if (type == H_CREDIT && len == 4 && s)
		s->credit += get32(p);
	else if (type == H_OFF && state == ENDED)
		power_off_at = now_ms();
	else if ((type == H_EOF || type == H_CLOSE) && s && s != &workload) {
		s->eof_in = 1;
		s->orphan |= type == H_CLOSE;
		push_input(s);
	}
}

static void on_frame(const unsigned char *h, const unsigned char *p, size_t len)
{
	int type = h[2], more = h[3] & 1;
	unsigned id = get32(h + 4);
	if (type == H_HELLO) /* a new daemon: what the old one began to say is void */
		bytes_clear(&message);
	if (type != H_START && type != H_EXEC && type != H_ASK) {
		on_small(type, id, p, len);
		return;
	}
	if (message.len && (message_type != type || message_session != id))
		bytes_clear(&message);
	message_type = type;
	message_session = id;
	if (message.len + len > MESSAGE_MAX) {
		bytes_clear(&message);
		return;
	}
	bytes_add(&message, p, len);
	if (more)
		return;
	struct request *q = request_parse(message.data + message.start, message.len);
	bytes_clear(&message);
	if (type == H_START)
		on_start(q);
	else if (type == H_EXEC)
		on_session(id, q, 'x');
	else
		on_ask(id, q);
}

static void on_control(void)
{
	unsigned char buffer[16384];
	ssize_t n = read(control, buffer, sizeof buffer);
	if (n <= 0)
		return;
	bytes_add(&input, buffer, n);
	while (input.len >= HEADER) {
		unsigned char *h = input.data + input.start;
		size_t len = get16(h);
		if (len > PAYLOAD_MAX) { /* can't come from our host: frames are sent whole */
			bytes_clear(&input);
			return;
		}
		if (input.len < HEADER + len)
			return;
		on_frame(h, h + HEADER, len);
		bytes_skip(&input, HEADER + len);
	}
}

/* stdin: u16 length and bytes; length 0 is the end. Read only while the workload takes it, so that the sender waits. */
static void on_stdin(void)
{
	unsigned char buffer[16384];
	ssize_t n = read(stdin_port, buffer, sizeof buffer);
	if (n <= 0)
		return;
	bytes_add(&stdin_bytes, buffer, n);
	while (stdin_bytes.len >= 2) {
		unsigned char *p = stdin_bytes.data + stdin_bytes.start;
		size_t len = get16(p);
		if (stdin_bytes.len < 2 + len)
			break;
		if (!len)
			workload.eof_in = 1;
		else if (!workload.eof_in)
			bytes_add(&workload.input, p + 2, len);
		bytes_skip(&stdin_bytes, 2 + len);
	}
	push_input(&workload);
}

/* ---- the loop ---- */

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

int main(void)
{
	sigset_t set;
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
	control = wait_port("control", O_RDWR | O_NONBLOCK);
	status_port = wait_port("status", O_WRONLY);
	loop(children);
}
