/* Inside the workload's child: its root, its mounts, its terminal. Every failure is reported to the agent by fail(). */

static int report_fd = -1;

/* Child → agent, one seqpacket each: 'P' + pid, 'T' + the terminal's master, 'E' + errno, exit code, text; the end of file
 * means that the program runs. Agent → child: 'G', go. */
static void fail_code(int error, int code, const char *format, ...)
{
	struct {
		char kind;
		char pad[3];
		int error, code;
		char text[400];
	} m = { .kind = 'E', .error = error, .code = code };
	va_list args;
	va_start(args, format);
	vsnprintf(m.text, sizeof m.text, format, args);
	va_end(args);
	if (report_fd >= 0)
		send(report_fd, &m, offsetof(typeof(m), text) + strlen(m.text), MSG_NOSIGNAL);
	_exit(code);
}

#define fail(...) fail_code(errno, 125, __VA_ARGS__)

static void report_fd_to(int fd)
{
	char kind = 'T', control[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { &kind, 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
	struct cmsghdr *c = CMSG_FIRSTHDR(&m);
	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(c), &fd, sizeof fd);
	if (sendmsg(report_fd, &m, MSG_NOSIGNAL) < 0)
		fail("hand over the terminal");
}

/* mkdir -p, or an empty file below such folders. */
static void make_target(const char *target, int is_file)
{
	char path[4096];
	snprintf(path, sizeof path, "%s", target);
	for (char *p = path + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = 0;
		mkdir(path, 0755);
		*p = '/';
	}
	if (!is_file)
		mkdir(path, 0755);
	else if (access(path, F_OK) < 0) /* to open the image's for writing would copy it up */
		close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC | O_NOCTTY, 0644));
}

/* A mount record: NUL-separated fields, kind "in" (made in the workload's root) or "out" (made before, in the agent's). */
struct mount_fields {
	const char *place, *type, *source, *target, *data, *shape;
	unsigned long flags;
};

static struct mount_fields mount_parse(const struct record *r)
{
	const char *field[7] = { "", "", "", "", "0", "", "" };
	size_t at = 0;
	for (int i = 0; i < 7 && at < r->len; i++) {
		field[i] = r->value + at;
		at += strlen(field[i]) + 1;
	}
	return (struct mount_fields){ field[0], field[1], field[2], field[3], field[5], field[6], strtoul(field[4], NULL, 10) };
}

static int clone_tree(const char *source)
{
	return syscall(SYS_open_tree, AT_FDCWD, source, 1 /* OPEN_TREE_CLONE */ | O_CLOEXEC);
}

static int set_read_only(const char *path)
{
	struct {
		unsigned long long set, clear, propagation, userns;
	} attr = { .set = 1 /* MOUNT_ATTR_RDONLY */ };
	return syscall(SYS_mount_setattr, AT_FDCWD, path, AT_RECURSIVE, &attr, sizeof attr);
}

static void make_devices(void)
{
	static const struct {
		const char *path;
		int major, minor;
	} nodes[] = { { "/dev/null", 1, 3 }, { "/dev/zero", 1, 5 }, { "/dev/full", 1, 7 }, { "/dev/random", 1, 8 },
		{ "/dev/urandom", 1, 9 }, { "/dev/tty", 5, 0 } };
	for (unsigned i = 0; i < sizeof nodes / sizeof *nodes; i++)
		if (mknod(nodes[i].path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) < 0 && errno != EEXIST)
			fail("make %s", nodes[i].path);
	static const char *const links[][2] = { { "/proc/self/fd", "/dev/fd" }, { "/proc/self/fd/0", "/dev/stdin" },
		{ "/proc/self/fd/1", "/dev/stdout" }, { "/proc/self/fd/2", "/dev/stderr" }, { "pts/ptmx", "/dev/ptmx" },
		{ "/proc/kcore", "/dev/core" } };
	for (unsigned i = 0; i < sizeof links / sizeof *links; i++)
		if (symlink(links[i][0], links[i][1]) < 0 && errno != EEXIST)
			fail("link %s", links[i][1]);
}

static void mount_one(const struct mount_fields *m, int tree)
{
	make_target(m->target, !strcmp(m->shape, "file"));
	if (tree >= 0) {
		if (syscall(SYS_move_mount, tree, "", AT_FDCWD, m->target, 4 /* MOVE_MOUNT_F_EMPTY_PATH */) < 0)
			fail("mount %s on %s", m->source, m->target);
		if ((m->flags & MS_RDONLY) && set_read_only(m->target) < 0)
			fail("make %s read-only", m->target);
		return;
	}
	if (mount(m->source, m->target, m->type, m->flags, m->data) < 0)
		fail("mount %s on %s", m->type, m->target);
	if (!strcmp(m->shape, "devices"))
		make_devices();
}

static void mask_paths(struct request *q)
{
	struct record *r;
	int at = 0;
	while ((r = request_next(q, "mask", &at))) {
		glob_t found;
		if (glob(r->value, GLOB_NOSORT, NULL, &found))
			continue;
		for (size_t i = 0; i < found.gl_pathc; i++) {
			struct stat st;
			if (lstat(found.gl_pathv[i], &st) < 0)
				continue;
			int bad = S_ISDIR(st.st_mode) ? mount("tmpfs", found.gl_pathv[i], "tmpfs", MS_RDONLY, "size=0")
						      : mount("/dev/null", found.gl_pathv[i], NULL, MS_BIND, NULL);
			if (bad)
				fail("mask %s", found.gl_pathv[i]);
		}
		globfree(&found);
	}
	at = 0;
	while ((r = request_next(q, "protect", &at)))
		if (!mount(r->value, r->value, NULL, MS_BIND | MS_REC, NULL)) {
			if (set_read_only(r->value) < 0)
				fail("make %s read-only", r->value);
		} else if (errno != ENOENT)
			fail("protect %s", r->value);
}

/* Of the workload's namespaces: written inside them, before /proc/sys is protected. */
static void set_sysctls(struct request *q)
{
	struct record *r;
	int at = 0;
	while ((r = request_next(q, "sysctl", &at))) {
		char path[512];
		snprintf(path, sizeof path, "/proc/sys/%s", r->value);
		if (write_file(path, r->value + strlen(r->value) + 1) < 0)
			fail("sysctl '%s'", r->value);
	}
}

/* The root becomes "/", the agent's own tree disappears. */
static void pivot(void)
{
	if (chdir(ROOTFS) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		fail("enter the root");
}

static void build_root(struct request *q)
{
	int trees[256], n = 0, at = 0;
	struct record *r;
	umask(0);
	if (mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		fail("make mounts private");
	/* sources of binds lie in the agent's tree, so they are cloned before it is gone */
	while ((r = request_next(q, "mount", &at)) && n < 256) {
		struct mount_fields m = mount_parse(r);
		int bind = !strcmp(m.place, "in") && !strcmp(m.type, "bind");
		trees[n] = bind ? clone_tree(m.source) : -1;
		if (bind && trees[n] < 0)
			fail("open %s", m.source);
		n++;
	}
	pivot();
	at = 0;
	for (int i = 0; i < n && (r = request_next(q, "mount", &at)); i++) {
		struct mount_fields m = mount_parse(r);
		if (!strcmp(m.place, "in"))
			mount_one(&m, trees[i]);
		if (trees[i] >= 0)
			close(trees[i]);
	}
	set_sysctls(q);
	mask_paths(q);
	if (request_number(q, "read_only", 0) && mount(NULL, "/", NULL, MS_REMOUNT | MS_BIND | MS_RDONLY, NULL) < 0)
		fail("make the root read-only");
}

/* A terminal of the workload's own devpts becomes standard input, output and error; the master goes up to the agent. */
static void open_terminal(struct request *q, int is_init)
{
	struct winsize size = { .ws_col = request_number(q, "columns", 80), .ws_row = request_number(q, "rows", 24) };
	int master = open("/dev/pts/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), zero = 0;
	if (master < 0 || ioctl(master, TIOCSPTLCK, &zero) < 0)
		fail("open a terminal");
	int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (slave < 0 || ioctl(master, TIOCSWINSZ, &size) < 0)
		fail("open a terminal");
	if (is_init) {
		char self[64];
		snprintf(self, sizeof self, "/proc/self/fd/%d", slave);
		make_target("/dev/console", 1);
		if (mount(self, "/dev/console", NULL, MS_BIND, NULL) < 0)
			fail("mount /dev/console");
	}
	report_fd_to(master);
	close(master);
	if (ioctl(slave, TIOCSCTTY, 1) < 0)
		fail("take the terminal");
	for (int i = 0; i < 3; i++)
		if (dup2(slave, i) < 0)
			fail("take the terminal");
}
