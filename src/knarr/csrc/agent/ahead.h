/* A machine that is made ready ahead of its workload: everything but what only the start request says, and a rehearsal.
 *
 * Emulated code is translated when it first runs, which takes longer than running it. So a program is started as the
 * workload will be, in namespaces and a control group of its own that are gone afterwards. It is the agent itself: nothing
 * of the image runs before somebody asks for it.
 */

#define REHEARSALS 3
#define REHEARSAL_MS 20000

static int ready_done;

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

static int join_network(struct request *q)
{
	if (request_text(q, "address"))
		load_modules("/boot/modules.net");
	return set_up_network(q);
}

static void open_streams(void)
{
	if (stdin_ready >= 0)
		return;
	ports[1] = wait_port("stdout", O_WRONLY | O_NONBLOCK);
	ports[2] = wait_port("stderr", O_WRONLY | O_NONBLOCK);
	stdin_ready = wait_port("stdin", O_RDONLY | O_NONBLOCK);
}

static void read_ready(int fd)
{
	char buffer[4096];
	struct pollfd p = { fd, POLLIN, 0 };
	long long end = now_ms() + REHEARSAL_MS;
	for (;;) {
		long long left = end - now_ms();
		if (left <= 0 || poll(&p, 1, left) <= 0)
			return;
		ssize_t n = read(fd, buffer, sizeof buffer);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			return;
	}
}

static int rehearse(struct request *q)
{
	struct session s = { .op = 'x', .first = 1, .rehearsal = 1, .report = -1, .in = -1, .out = { -1, -1 }, .master = -1, .q = q };
	int status = 0;
	mkdir(REHEARSAL, 0755);
	if (session_start(&s) < 0)
		return -1;
	/* its last words, its output and its end, in the order in which the workload's are met */
	read_ready(s.report);
	read_ready(s.out[0]);
	read_ready(s.out[1]);
	kill(s.pid, SIGKILL);
	waitpid(s.pid, &status, 0);
	close_fd(&s.report);
	close_fd(&s.in);
	close_fd(&s.out[0]);
	close_fd(&s.out[1]);
	rmdir(REHEARSAL);
	return 0;
}

/* The request is a start's without its program, limits and identity. 0, or -1 and *step names what failed. */
static int make_ready(struct request *q, const char **step)
{
	int at = 0;
	set_clock(request_number(q, "time", 0));
	seed_random(request_next(q, "seed", &at));
	if (mount_disks(step) < 0)
		return -1;
	*step = "set up the network";
	if (join_network(q) < 0)
		return -1;
	*step = "prepare the mounts";
	if (write_etc(q) < 0)
		return -1;
	open_streams();
	*step = "rehearse a start";
	for (int i = 0; i < REHEARSALS; i++)
		if (rehearse(q) < 0)
			return -1;
	ready_done = 1;
	return 0;
}
