/* Sessions: the workload and whatever else runs inside, from their start to their end. */

#define VERSION 1
#define QUEUE_MAX (256u << 10)
/* Output beyond this may wait in a full pipe of the host's, unseen from here: then the host must confirm before power off. */
#define UNCONFIRMED_MAX 4096
#define CONFIRM_SECONDS 60
#define REHEARSAL "/sys/fs/cgroup/rehearsal"

enum { BOOTED, RUNNING, ENDED };

struct session {
	struct session *next;
	unsigned id;
	int op;			/* 'x' program, 'g' get, 'p' put, 's' stat, 'd' diff, 't' tree, 'u' upper */
	pid_t pid;
	int report, in, out[2], master;
	int started, exited, eof_in, orphan, code;
	int first, rehearsal;	/* the workload's own process, or the agent in its place */
	unsigned credit;
	struct bytes input;
	struct request *q;
};

static int control = -1, status_port = -1, stdin_port = -1, stdin_ready = -1, ports[3] = { -1, -1, -1 }, state = BOOTED, workload_pidfd = -1;
static struct session workload = { .first = 1, .report = -1, .in = -1, .out = { -1, -1 }, .master = -1 }, *sessions = &workload;
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

static void enter_cgroup(struct request *q, const char *processes)
{
	const char *score = request_text(q, "oom_score_adj");
	write_file("/proc/self/oom_score_adj", score ? score : "0");
	if (write_file(processes, "0") < 0)
		fail("enter the cgroup");
}

static void workload_child(struct session *s, int report, int streams[3])
{
	struct request *q = s->q;
	child_signals(report, streams);
	enter_cgroup(q, s->rehearsal ? REHEARSAL "/cgroup.procs" : CGROUP "/cgroup.procs");
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
	if (s->op == 'd') {
		; /* the layers are seen from here, not from inside */
	} else if (s->op == 'u') {
		if (chroot(DISK "/upper") < 0 || chdir("/") < 0)
			fail("enter the writable layer");
	} else if (workload_pidfd < 0 || s->op == 't') {
		/* the agent's own view has nothing mounted in it */
		if (chroot(ROOTFS) < 0 || chdir("/") < 0)
			fail("enter the root");
	} else {
		int spaces = CLONE_NEWNS;
		if (s->op == 'x') {
			enter_cgroup(s->q, CGROUP "/cgroup.procs");
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
	if (s->op == 'd')
		_exit(changes_run());
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
	if (s->op == 'x' && (s->rehearsal || !request_number(s->q, "stdin", 0))) {
		far[0] = open(s->rehearsal ? "/boot/init" : "/dev/null", O_RDONLY | O_CLOEXEC);
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
	unsigned long spaces = s->first ? CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWUTS | CLONE_NEWIPC : 0;
	if (make_streams(s, far) < 0 || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	pid_t pid = syscall(SYS_clone, spaces | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0) {
		if (s->first)
			workload_child(s, pair[1], far);
		session_child(s, pair[1], far);
		_exit(125);
	}
	int saved = errno;
	for (int i = 0; i < 3; i++)
		close_fd(&far[i]);
	close(pair[1]);
	s->report = pair[0];
	errno = saved;
	if (pid > 0 && s->first) {
		s->pid = pid;
		if (s == &workload)
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
