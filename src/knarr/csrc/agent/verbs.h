/* What is asked about a workload as a whole: its processes, what changed in its files; freezing it. */

#define PROCESSES_MAX 2000
#define PROCESSES_BYTES (900u << 10)

/* v2 answers at once and freezes in a moment; a process in the middle of a system call gets a second for it. */
static int freeze(int frozen)
{
	if (write_file(CGROUP "/cgroup.freeze", frozen ? "1" : "0") < 0)
		return -1;
	for (int i = 0; i < 500 && cgroup_counter("cgroup.events", "frozen") != frozen; i++)
		usleep(2000);
	return 0;
}

/* The nth (from 0) or, below 0, the last word behind `key` in a text of lines. */
static long field(const char *text, const char *key, int nth)
{
	const char *at = strstr(text, key);
	long value = 0;
	char *next;
	if (!at)
		return 0;
	at += strlen(key);
	for (int i = 0; nth < 0 || i <= nth; i++) {
		while (*at == ' ' || *at == '\t')
			at++;
		if (*at < '0' || *at > '9')
			break;
		value = strtol(at, &next, 10);
		at = next;
	}
	return value;
}

/* "UID PID-INSIDE", the line of stat, the command line: apart by NULs, which none of the first two can hold. */
static void add_process(struct bytes *b, const char *pid)
{
	char path[64], text[4096], value[8192];
	snprintf(path, sizeof path, "/proc/%s/status", pid);
	if (read_file(path, text, sizeof text) <= 0)
		return;
	size_t n = snprintf(value, 64, "%ld %ld", field(text, "\nUid:", 1), field(text, "\nNSpid:", -1)) + 1;
	snprintf(path, sizeof path, "/proc/%s/stat", pid);
	if (read_file(path, value + n, 2048) <= 0)
		return;
	n += strlen(value + n) + 1;
	snprintf(path, sizeof path, "/proc/%s/cmdline", pid);
	ssize_t words = read_file(path, value + n, 4096);
	record_add(b, pid, value, n + (words > 0 ? words : 0));
}

static void processes(struct bytes *b)
{
	static char pids[64 << 10];
	char uptime[64], *save = NULL;
	if (read_file("/proc/uptime", uptime, sizeof uptime) > 0)
		record_text(b, "uptime", uptime);
	if (read_file(CGROUP "/cgroup.procs", pids, sizeof pids) <= 0)
		return;
	char *pid = strtok_r(pids, "\n", &save);
	for (int i = 0; pid && i < PROCESSES_MAX && b->len < PROCESSES_BYTES; i++, pid = strtok_r(NULL, "\n", &save))
		add_process(b, pid);
}

/* ---- what the writable layer says about the image's files ---- */

static char change_path[4096];

static void change(int kind, size_t length)
{
	putchar(kind);
	fwrite(change_path, 1, length, stdout);
	putchar(0);
}

static size_t change_name(size_t length, const char *name)
{
	int n = snprintf(change_path + length, sizeof change_path - length, "/%s", name);
	if (n >= (int)(sizeof change_path - length))
		_exit(ENAMETOOLONG);
	return length + n;
}

static DIR *open_folder(int at, const char *name)
{
	int fd = openat(at, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	if (!dir)
		_exit(errno);
	return dir;
}

/* An opaque folder hides all of the image's: what it does not have itself is gone. */
static void hidden(int upper, int lower, size_t length)
{
	char opaque = 0;
	struct dirent *entry;
	struct stat st;
	if (fgetxattr(upper, "trusted.overlay.opaque", &opaque, 1) != 1 || opaque != 'y')
		return;
	DIR *dir = open_folder(lower, ".");
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, "..") &&
		    fstatat(upper, entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0)
			change('D', change_name(length, entry->d_name));
	closedir(dir);
}

static void compare(int upper, int lower, size_t length);

static void compare_entry(int upper, int lower, const char *name, size_t length)
{
	struct stat now, was;
	if (fstatat(upper, name, &now, AT_SYMLINK_NOFOLLOW) < 0)
		_exit(errno);
	int had = lower >= 0 && fstatat(lower, name, &was, AT_SYMLINK_NOFOLLOW) == 0;
	if (S_ISCHR(now.st_mode) && now.st_rdev == 0) {
		change('D', length);
		return;
	}
	if (!S_ISDIR(now.st_mode)) {
		change(had ? 'C' : 'A', length);
		return;
	}
	int both = had && S_ISDIR(was.st_mode);
	int same = both && now.st_mode == was.st_mode && now.st_uid == was.st_uid && now.st_gid == was.st_gid;
	change(same ? 'P' : had ? 'C' : 'A', length);
	DIR *here = open_folder(upper, name), *there = both ? open_folder(lower, name) : NULL;
	if (there)
		hidden(dirfd(here), dirfd(there), length);
	compare(dirfd(here), there ? dirfd(there) : -1, length);
	closedir(here);
	if (there)
		closedir(there);
}

static void compare(int upper, int lower, size_t length)
{
	struct dirent *entry;
	DIR *dir = open_folder(upper, ".");
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") && strcmp(entry->d_name, ".."))
			compare_entry(upper, lower, entry->d_name, change_name(length, entry->d_name));
	closedir(dir);
}

/* In a child whose stdout is the session's: NUL-ended entries, a letter and a path; P is a folder on the way to others. */
static int changes_run(void)
{
	int upper = open(DISK "/upper", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int lower = open(LOWER, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (upper < 0 || lower < 0)
		return errno;
	compare(upper, lower, 0);
	return fflush(stdout) ? errno : 0;
}
