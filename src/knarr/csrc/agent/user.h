/* Who the program is: users of the image, rlimits, capabilities, seccomp, and the exec itself. Runs in the child, inside. */

#define DATABASE_MAX (4u << 20)
#define GROUPS_MAX 256
#define READ_MAX (16u << 20)

struct user {
	unsigned uid, gid;
	gid_t groups[GROUPS_MAX];
	int n;
	char home[1024], name[256];
};

/* A whole file of the image, bounded: a group file of gigabytes must not fill the guest. NULL when there is none. */
static char *slurp(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size > DATABASE_MAX) {
		if (fd >= 0)
			close(fd);
		return NULL;
	}
	char *text = malloc(st.st_size + 1);
	ssize_t n = text ? read(fd, text, st.st_size) : -1;
	close(fd);
	if (n < 0) {
		free(text);
		return NULL;
	}
	text[n] = 0;
	return text;
}

/* A decimal id up to 2^31-1, or -1. */
static long parse_id(const char *text)
{
	long value = 0;
	if (!*text)
		return -1;
	for (; *text; text++) {
		if (*text < '0' || *text > '9')
			return -1;
		value = value * 10 + (*text - '0');
		if (value > 0x7fffffff)
			return -1;
	}
	return value;
}

/* Split one line at colons in place; the number of fields. */
static int split(char *line, char **field, int max)
{
	int n = 0;
	while (n < max) {
		field[n++] = line;
		line = strchr(line, ':');
		if (!line)
			break;
		*line++ = 0;
	}
	return n;
}

/* A numeric name is always an id: an entry *named* 1000 with uid 0 must not turn `--user 1000` into root. 1 = found. */
static int find_user(const char *who, struct user *user)
{
	char *text = slurp("/etc/passwd"), *save = NULL, *field[7];
	long number = parse_id(who);
	int found = 0;
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
		if (split(line, field, 7) < 6)
			continue;
		long uid = parse_id(field[2]), gid = parse_id(field[3]);
		if (uid < 0 || gid < 0 || !(number >= 0 ? uid == number : !strcmp(field[0], who)))
			continue;
		user->uid = uid;
		user->gid = gid;
		snprintf(user->home, sizeof user->home, "%s", field[5]);
		snprintf(user->name, sizeof user->name, "%s", field[0]);
		found = 1;
		break;
	}
	free(text);
	return found;
}

/* The number itself, or the gid of a group named so; -1 when there is neither. */
static long find_group(const char *who)
{
	char *text, *save = NULL, *field[4];
	long gid = parse_id(who);
	if (gid >= 0)
		return gid;
	text = slurp("/etc/group");
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line && gid < 0; line = strtok_r(NULL, "\n", &save))
		if (split(line, field, 4) >= 3 && !strcmp(field[0], who))
			gid = parse_id(field[2]);
	free(text);
	return gid;
}

static void add_group(struct user *user, long gid)
{
	for (int i = 0; i < user->n; i++)
		if (user->groups[i] == (gid_t)gid)
			return;
	if (user->n < GROUPS_MAX)
		user->groups[user->n++] = gid;
}

static void add_memberships(struct user *user)
{
	char *text = slurp("/etc/group"), *save = NULL, *field[4];
	for (char *line = text ? strtok_r(text, "\n", &save) : NULL; line; line = strtok_r(NULL, "\n", &save)) {
		char *inner = NULL;
		if (split(line, field, 4) < 4)
			continue;
		for (char *member = strtok_r(field[3], ",", &inner); member; member = strtok_r(NULL, ",", &inner))
			if (!strcmp(member, user->name) && parse_id(field[2]) >= 0)
				add_group(user, parse_id(field[2]));
	}
	free(text);
}

static void resolve_user(struct request *q, struct user *user)
{
	char text[512], *group;
	snprintf(text, sizeof text, "%s", request_text(q, "user") ? request_text(q, "user") : "");
	group = strchr(text, ':');
	if (group)
		*group++ = 0;
	const char *who = *text ? text : "0";
	snprintf(user->home, sizeof user->home, "/");
	if (!find_user(who, user)) {
		if (parse_id(who) < 0)
			fail_code(ENOENT, 125, "unable to find user %s: no matching entries in passwd file", who);
		user->uid = parse_id(who);
	}
	if (group && *group) {
		long gid = find_group(group);
		if (gid < 0)
			fail_code(ENOENT, 125, "unable to find group %s: no matching entries in group file", group);
		user->gid = gid;
	} else if (*user->name) {
		add_memberships(user);
	}
	for (char **extra = request_list(q, "group"); *extra; extra++) {
		long gid = find_group(*extra);
		if (gid < 0)
			fail_code(ENOENT, 125, "unable to find group %s: no matching entries in group file", *extra);
		add_group(user, gid);
	}
	add_group(user, user->gid);
}

static rlim_t nr_open(void)
{
	char text[32] = "";
	int fd = open("/proc/sys/fs/nr_open", O_RDONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (read(fd, text, sizeof text - 1) < 0)
			text[0] = 0;
		close(fd);
	}
	return strtoull(text, NULL, 10);
}

static void set_rlimits(struct request *q)
{
	struct record *r;
	int at = 0;
	while ((r = request_next(q, "rlimit", &at))) {
		long long soft, hard;
		int which;
		if (sscanf(r->value, "%d %lld %lld", &which, &soft, &hard) != 3)
			continue;
		struct rlimit limit = { soft < 0 ? RLIM_INFINITY : (rlim_t)soft, hard < 0 ? RLIM_INFINITY : (rlim_t)hard };
		if (setrlimit(which, &limit) == 0)
			continue;
		/* the one limit that the kernel bounds even for root */
		struct rlimit most = { nr_open(), nr_open() };
		most.rlim_cur = limit.rlim_cur < most.rlim_cur ? limit.rlim_cur : most.rlim_cur;
		if (which != RLIMIT_NOFILE || setrlimit(which, &most) < 0)
			fail("set rlimit %d", which);
	}
}

static void set_capabilities(unsigned long long keep, int is_root)
{
	struct __user_cap_header_struct head = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { 0 };
	if (is_root)
		for (int i = 0; i < 2; i++)
			data[i].effective = data[i].permitted = keep >> (32 * i);
	if (syscall(SYS_capset, &head, data) < 0)
		fail("set capabilities");
}

static void drop_bounding(unsigned long long keep)
{
	for (int cap = 0; cap < 64; cap++)
		if (!(keep >> cap & 1) && prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && errno != EINVAL)
			fail("drop capability %d", cap);
	if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0)
		fail("clear ambient capabilities");
}

static void load_seccomp(struct request *q)
{
	int at = 0;
	struct record *r = request_next(q, "seccomp", &at);
	if (!r || !r->len)
		return;
	struct sock_fprog program = { .len = r->len / sizeof(struct sock_filter), .filter = (void *)r->value };
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) < 0)
		fail("load the seccomp filter");
}

static void become(struct request *q, const struct user *user)
{
	const char *caps = request_text(q, "capabilities");
	unsigned long long keep = caps ? strtoull(caps, NULL, 10) : 0;
	drop_bounding(keep);
	/* the filter is loaded while CAP_SYS_ADMIN is still there, else it would need no_new_privs, which is off by default */
	if (request_number(q, "no_new_privileges", 0) && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		fail("set no_new_privs");
	load_seccomp(q);
	if (setgroups(user->n, user->groups) < 0 || setresgid(user->gid, user->gid, user->gid) < 0)
		fail("set groups");
	if (setresuid(user->uid, user->uid, user->uid) < 0)
		fail("set user %u", user->uid);
	set_capabilities(keep, user->uid == 0);
}

/* in the words of engine/drivers/failures.py, which adds the hints: an error means the same behind every wall */
static const char *fact(int error)
{
	static char text[128];
	snprintf(text, sizeof text, "%s", strerror(error));
	for (char *c = text; *c; c++)
		if (*c >= 'A' && *c <= 'Z')
			*c += 'a' - 'A';
	return text;
}

static void enter_cwd(struct request *q, const struct user *user)
{
	const char *cwd = request_text(q, "cwd");
	struct stat st;
	if (!cwd || !*cwd)
		cwd = "/";
	if (stat(cwd, &st) < 0 && errno == ENOENT) {
		make_target(cwd, 0);
		if (chown(cwd, user->uid, user->gid) < 0)
			errno = 0; /* a read-only root: chdir below tells */
	}
	if (chdir(cwd) < 0)
		fail_code(errno, 126, "working directory '%s': %s", cwd, fact(errno));
}

static char **environment(struct request *q, const struct user *user)
{
	char **env = request_list(q, "env"), *home;
	int n = 0;
	for (; env[n]; n++)
		if (!strncmp(env[n], "HOME=", 5))
			return env;
	char **with = calloc(n + 2, sizeof *with);
	if (!with || asprintf(&home, "HOME=%s", *user->home ? user->home : "/") < 0)
		fail("out of memory");
	memcpy(with, env, n * sizeof *env);
	with[n] = home;
	return with;
}

static int exec_code(int error)
{
	return error == ENOENT || error == ENOTDIR ? 127 : 126;
}

static const char *exec_fact(int error)
{
	return exec_code(error) == 127 ? "no such file, or its interpreter is missing" : fact(error);
}

static void exec_program(char **argv, char **env)
{
	const char *path = NULL;
	int last = ENOENT;
	if (!argv[0] || !*argv[0])
		fail_code(ENOENT, 127, "no command given");
	if (strchr(argv[0], '/')) {
		execve(argv[0], argv, env);
		fail_code(errno, exec_code(errno), "exec '%s': %s", argv[0], exec_fact(errno));
	}
	for (char **e = env; *e; e++)
		if (!strncmp(*e, "PATH=", 5))
			path = *e + 5;
	for (; path && *path; path += strcspn(path, ":"), path += *path == ':') {
		char full[4096];
		int n = strcspn(path, ":");
		snprintf(full, sizeof full, "%.*s/%s", n ? n : 1, n ? path : ".", argv[0]);
		execve(full, argv, env);
		if (errno != ENOENT && errno != ENOTDIR)
			last = errno;
	}
	if (last == ENOENT)
		fail_code(ENOENT, 127, "exec '%s': executable file not found in $PATH", argv[0]);
	fail_code(last, exec_code(last), "exec '%s': %s", argv[0], exec_fact(last));
}

/* What the last workload of the image was started from is read into the page cache, and the way there is translated. */
static void read_pages(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	if (fd >= 0 && fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && st.st_size > 0) {
		size_t size = st.st_size < READ_MAX ? st.st_size : READ_MAX;
		volatile char *p = mmap(NULL, size, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
		for (size_t at = 0; p != MAP_FAILED && at < size; at += 4096)
			(void)p[at];
	}
	if (fd >= 0)
		close(fd);
}

/* A rehearsal's program: the agent, which the caller has put where standard input is. */
static void exec_agent(struct request *q, char **env)
{
	char *argv[] = { "rehearsal", NULL };
	for (char **path = request_list(q, "touch"); *path; path++)
		read_pages(*path);
	syscall(SYS_execveat, 0, "", argv, env, 0x1000 /* AT_EMPTY_PATH */);
	fail("rehearse");
}

static volatile pid_t init_child;

static void forward(int signum)
{
	if (init_child > 0)
		kill(init_child, signum);
}

/* --init: PID 1 passes signals on and reaps; the program is PID 2. Returns in the program. */
static void run_init(void)
{
	sigset_t all;
	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, NULL);
	init_child = fork();
	if (init_child < 0)
		fail("fork the program");
	if (init_child == 0) {
		sigemptyset(&all);
		setpgid(0, 0);
		if (isatty(0))
			tcsetpgrp(0, getpid());
		sigprocmask(SIG_SETMASK, &all, NULL);
		return;
	}
	close(report_fd);
	struct sigaction action = { .sa_handler = forward };
	for (int i = 1; i < 65; i++)
		if (i != SIGCHLD && i != SIGTTIN && i != SIGTTOU)
			sigaction(i, &action, NULL);
	sigemptyset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, 0);
		if (pid == init_child)
			_exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
		if (pid < 0 && errno == ECHILD)
			_exit(0);
	}
}

/* From inside the namespaces to the program. `streams`: in, out, err when there is no terminal. */
static void run_program(struct request *q, const int streams[3], int is_init)
{
	struct user user = { 0 };
	sigset_t none;
	setsid();
	if (request_number(q, "tty", 0)) {
		open_terminal(q, is_init);
	} else {
		for (int i = 0; i < 3; i++)
			if (dup2(streams[i], i) < 0)
				fail("connect the streams");
	}
	resolve_user(q, &user);
	/* the program may open /dev/stdout again, which asks for the owner of pipe or terminal */
	for (int i = 0; i < 3; i++)
		if (fchown(i, user.uid, -1) < 0)
			errno = 0;
	set_rlimits(q);
	char **env = environment(q, &user);
	sigemptyset(&none);
	for (int i = 1; i < 65; i++)
		signal(i, SIG_DFL);
	sigprocmask(SIG_SETMASK, &none, NULL);
	umask(022);
	if (report_fd > 3)
		syscall(SYS_close_range, 3, report_fd - 1, 0);
	syscall(SYS_close_range, report_fd + 1, ~0u, 0);
	if (is_init && request_number(q, "init", 0))
		run_init();
	/* before the user changes: WORKDIR may have to be made */
	enter_cwd(q, &user);
	become(q, &user);
	if (request_number(q, "rehearsal", 0))
		exec_agent(q, env);
	exec_program(request_list(q, "arg"), env);
}
