/* The other direction of tar.h: entries of an untrusted archive into a folder. */

struct entry {
	char type, *name, *link;
	unsigned long long size;
	struct stat st;
	struct request xattrs;
};

#define DEPTH_MAX 512
#define SIZE_MAX_TAR (1LL << 50)
#define ID_MAX 0xfffffffell
#define BROKEN(what) "an extended header of the archive has a broken " what
#define IMPOSSIBLE(what) "an entry of the archive has an impossible " what
#define LATEST ((1LL << 33) - 1)

/* The rules are those of the host's reader (kernel/archive_reader.py): what the one refuses the other does. */
static void broken(const char *what)
{
	dprintf(2, "%s", what);
	_exit(EINVAL);
}

/* Octal digits up to the first space or NUL, or GNU's base 256, of which only what fits is taken. */
static long long number(const char *field, size_t size, const char *what)
{
	unsigned long long value = 0;
	const unsigned char *p = (const unsigned char *)field, *end = p + size;
	if (*p & 0x80) {
		int negative = *p == 0xff;
		value = negative ? ~0ull : *p & 0x7f;
		while (++p < end) {
			if (value >> 55 != (negative ? 0x1ff : 0))
				broken(what);
			value = value << 8 | *p;
		}
		return value;
	}
	while (p < end && *p == ' ')
		p++;
	for (; p < end && *p && *p != ' '; p++) {
		if (*p < '0' || *p > '7')
			broken(what);
		value = value << 3 | (*p - '0');
	}
	return value;
}

static unsigned long long within(long long value, long long limit, const char *what)
{
	if (value < 0 || value > limit)
		broken(what);
	return value;
}

static unsigned long long decimal(const char *text, size_t len, const char *what)
{
	size_t n = strspn(text, "0123456789");
	if (!n || n != len || n > 18)
		broken(what);
	return strtoull(text, NULL, 10);
}

static void set_text(char **to, const char *value, size_t len)
{
	if (memchr(value, 0, len))
		broken("the archive has a name with a zero byte");
	free(*to);
	*to = strndup(value, len);
	if (!*to)
		abort();
}

static char *body_of(unsigned long long size)
{
	if (size > PAX_MAX)
		broken("an extended header of the archive is too large");
	size_t room = (size + BLOCK - 1) / BLOCK * BLOCK;
	char *body = malloc(room + 1);
	if (!body || read_all(0, body, room) != room)
		broken("the archive is cut off");
	body[size] = 0;
	return body;
}

/* The same as into a container; a guest's own labels are its own business. */
static int carried(const char *name)
{
	return !strncmp(name, "user.", 5) || !strcmp(name, "security.capability") ||
	       !strncmp(name, "system.posix_acl_", 17);
}

static void keep_xattr(struct request *to, const char *name, const char *value, size_t len)
{
	if (!carried(name))
		return;
	to->r = realloc(to->r, (to->n + 1) * sizeof *to->r);
	if (!to->r)
		abort();
	char *copy = malloc(len + 1), *called = strdup(name);
	if (!copy || !called)
		abort();
	memcpy(copy, value, len);
	to->r[to->n++] = (struct record){ called, copy, len };
}

static void pax_time(struct entry *e, const char *value, size_t len)
{
	const char *whole = value + (*value == '-');
	size_t n = strspn(whole, "0123456789");
	const char *dot = whole + n;
	long unit = 100000000;
	if (strlen(value) != len || !n || n > 12 || (*dot && *dot != '.') || (*dot && dot[1 + strspn(dot + 1, "0123456789")]))
		broken(BROKEN("mtime"));
	e->st.st_mtim.tv_sec = strtoll(whole, NULL, 10);
	e->st.st_mtim.tv_nsec = 0;
	for (dot += *dot == '.'; *dot && unit; dot++, unit /= 10)
		e->st.st_mtim.tv_nsec += (*dot - '0') * unit;
	if (e->st.st_mtim.tv_sec > LATEST)
		e->st.st_mtim.tv_sec = LATEST;
	if (*value == '-')
		e->st.st_mtim.tv_sec = e->st.st_mtim.tv_nsec = 0;
}

static void pax_field(struct entry *e, const char *key, const char *value, size_t len)
{
	if (!strncmp(key, "GNU.sparse", 10))
		broken("sparse entries are not supported: make the archive without --sparse");
	else if (!strncmp(key, "SCHILY.xattr.", 13))
		keep_xattr(&e->xattrs, key + 13, value, len);
	else if (!len)
		return; /* an empty record says nothing */
	else if (!strcmp(key, "path"))
		set_text(&e->name, value, len);
	else if (!strcmp(key, "linkpath"))
		set_text(&e->link, value, len);
	else if (!strcmp(key, "size"))
		e->size = within(decimal(value, len, BROKEN("size")), SIZE_MAX_TAR, IMPOSSIBLE("size"));
	else if (!strcmp(key, "uid"))
		e->st.st_uid = within(decimal(value, len, BROKEN("uid")), ID_MAX, IMPOSSIBLE("uid"));
	else if (!strcmp(key, "gid"))
		e->st.st_gid = within(decimal(value, len, BROKEN("gid")), ID_MAX, IMPOSSIBLE("gid"));
	else if (!strcmp(key, "mtime"))
		pax_time(e, value, len);
}

/* Overrides are applied after the ustar fields, so a pax block is kept until its entry has been read. */
static void pax_apply(struct entry *e, char *pax, size_t len)
{
	for (char *p = pax, *end = pax + len; p < end;) {
		size_t digits = strspn(p, "0123456789");
		unsigned long n = digits && digits < 20 ? strtoul(p, NULL, 10) : 0;
		char *key = p + digits + 1;
		if (!n || n > (size_t)(end - p) || p[digits] != ' ' || key >= p + n || p[n - 1] != '\n')
			broken("an extended header of the archive is broken");
		char *equals = memchr(key, '=', p + n - 1 - key);
		if (!equals || equals == key || memchr(key, 0, equals - key))
			broken("an extended header of the archive is broken");
		*equals = 0;
		p[n - 1] = 0;
		pax_field(e, key, equals + 1, p + n - 1 - (equals + 1));
		p += n;
	}
}

static void entry_free(struct entry *e)
{
	for (int i = 0; i < e->xattrs.n; i++) {
		free(e->xattrs.r[i].name);
		free(e->xattrs.r[i].value);
	}
	free(e->xattrs.r);
	free(e->name);
	free(e->link);
	memset(e, 0, sizeof *e);
}

static void entry_fields(struct entry *e, const struct header *h)
{
	char full[300];
	int ustar = !memcmp(h->magic, "ustar\0", 6) && h->prefix[0];
	snprintf(full, sizeof full, "%.155s%s%.100s", ustar ? h->prefix : "", ustar ? "/" : "", h->name);
	if (!e->name || !*e->name)
		set_text(&e->name, full, strlen(full));
	if (!e->link || !*e->link)
		set_text(&e->link, h->link, strnlen(h->link, 100));
	e->type = h->type ? h->type : '0';
	e->size = within(number(h->size, 12, IMPOSSIBLE("size")), SIZE_MAX_TAR, IMPOSSIBLE("size"));
	e->st.st_mode = within(number(h->mode, 8, IMPOSSIBLE("mode")), 1LL << 56, IMPOSSIBLE("mode")) & 07777;
	e->st.st_uid = within(number(h->uid, 8, IMPOSSIBLE("uid")), ID_MAX, IMPOSSIBLE("uid"));
	e->st.st_gid = within(number(h->gid, 8, IMPOSSIBLE("gid")), ID_MAX, IMPOSSIBLE("gid"));
	long long seconds = number(h->mtime, 12, IMPOSSIBLE("mtime"));
	e->st.st_mtim.tv_sec = seconds < 0 ? 0 : seconds > LATEST ? LATEST : seconds;
	if (e->type == '3' || e->type == '4')
		e->st.st_rdev = makedev(within(number(h->major, 8, IMPOSSIBLE("device")), 0xfff, IMPOSSIBLE("device")),
					within(number(h->minor, 8, IMPOSSIBLE("device")), 0xfffff, IMPOSSIBLE("device")));
}

/* What the kinds mean; a name with a slash at its end is a folder's. */
static void entry_kind(struct entry *e)
{
	size_t n = strlen(e->name);
	if (e->type == 'S')
		broken("sparse entries are not supported: make the archive without --sparse");
	if (e->type == '7')
		e->type = '0';
	if (e->type == '0' && n && e->name[n - 1] == '/')
		e->type = '5';
	if (e->type < '0' || e->type > '6')
		broken("an entry of the archive is of an unknown type");
}

static int checked(const struct header *h)
{
	unsigned sum = 8 * ' ', told = 0;
	for (unsigned i = 0; i < BLOCK; i++)
		sum += i >= 148 && i < 156 ? 0 : ((const unsigned char *)h)[i];
	const char *p = h->sum, *end = p + sizeof h->sum;
	while (p < end && *p == ' ')
		p++;
	for (; p < end && *p >= '0' && *p <= '7'; p++)
		told = told << 3 | (*p - '0');
	return told == sum && (p == end || !*p || *p == ' ');
}

static int all_zero(const struct header *h)
{
	const char *p = (const char *)h;
	return !*p && !memcmp(p, p + 1, BLOCK - 1);
}

/* The next entry with all its overrides; 0 at the end. */
static int entry_read(struct entry *e)
{
	struct header h;
	char *pax = NULL;
	size_t pax_len = 0;
	for (;;) {
		size_t n = read_all(0, &h, BLOCK);
		if (n == 0 || (n == BLOCK && all_zero(&h)))
			return free(pax), 0;
		if (n < BLOCK)
			broken("the archive is cut off");
		if (!checked(&h))
			broken("not a tar archive: a header's checksum is wrong");
		if (!h.type || !strchr("LKxg", h.type))
			break;
		unsigned long long size = within(number(h.size, 12, IMPOSSIBLE("size")), SIZE_MAX_TAR, IMPOSSIBLE("size"));
		char *body = body_of(size);
		if (h.type == 'x') { /* several count together */
			pax = realloc(pax, pax_len + size + 1);
			if (!pax)
				abort();
			memcpy(pax + pax_len, body, size + 1);
			pax_len += size;
			free(body);
			continue;
		}
		while (size && !body[size - 1])
			size--;
		if (h.type != 'g')
			set_text(h.type == 'L' ? &e->name : &e->link, body, size);
		free(body);
	}
	entry_fields(e, &h);
	if (pax)
		pax_apply(e, pax, pax_len);
	free(pax);
	entry_kind(e);
	return 1;
}

static void read_content(const char *path, unsigned long long size)
{
	static char buffer[65536];
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		archive_fail(errno, path);
	for (unsigned long long left = size; left;) {
		size_t want = left > sizeof buffer ? sizeof buffer : left;
		if (read_all(0, buffer, want) != want)
			broken("the archive is cut off");
		for (size_t at = 0; at < want;) {
			ssize_t n = write(fd, buffer + at, want - at);
			if (n < 0)
				archive_fail(errno, path);
			at += n;
		}
		left -= want;
	}
	close(fd);
	if (size % BLOCK && read_all(0, buffer, BLOCK - size % BLOCK) != BLOCK - size % BLOCK)
		broken("the archive is cut off");
}

/* Names are taken relative to the target folder; "…/.." is refused rather than guessed at. The folder itself is "". */
static const char *safe_name(const char *name)
{
	int depth = 0;
	while (*name == '/' || (name[0] == '.' && (name[1] == '/' || !name[1])))
		name++;
	for (const char *p = name; *p; p += strcspn(p, "/"), p += *p == '/') {
		size_t n = strcspn(p, "/");
		if (n == 2 && !strncmp(p, "..", 2))
			broken("an entry leads out of the archive");
		if (n && (n > 1 || *p != '.') && ++depth > DEPTH_MAX)
			broken("an entry of the archive lies too deep");
	}
	return name;
}

static void make_parents(const char *path)
{
	static char last[4096];
	char copy[4096];
	const char *slash = strrchr(path, '/');
	size_t n = slash ? slash - path : 0;
	if (n == strlen(last) && !memcmp(last, path, n))
		return;
	snprintf(copy, sizeof copy, "%s", path);
	for (char *p = strchr(copy, '/'); p; p = strchr(p + 1, '/')) {
		*p = 0;
		mkdir(copy, 0755);
		*p = '/';
	}
	memcpy(last, path, n);
	last[n] = 0;
}

static void apply_metadata(const char *path, struct entry *e)
{
	struct timespec times[2] = { e->st.st_mtim, e->st.st_mtim };
	int follow = e->type == '5' ? 0 : AT_SYMLINK_NOFOLLOW; /* a link that leads to a folder counts as one */
	if (fchownat(AT_FDCWD, path, e->st.st_uid, e->st.st_gid, follow) < 0)
		archive_fail(errno, path);
	if (e->type != '2' && fchmodat(AT_FDCWD, path, e->st.st_mode, 0) < 0)
		archive_fail(errno, path);
	for (int i = 0; (e->type == '0' || e->type == '5') && i < e->xattrs.n; i++) {
		struct record *x = &e->xattrs.r[i];
		if (lsetxattr(path, x->name, x->value, x->len, 0) < 0 && errno != ENOTSUP && errno != EPERM &&
		    errno != EINVAL)
			archive_fail(errno, path);
	}
	utimensat(AT_FDCWD, path, times, AT_SYMLINK_NOFOLLOW);
}

static void make_room(const char *path, struct entry *e)
{
	struct stat st;
	if (lstat(path, &st) < 0)
		return;
	if (S_ISDIR(st.st_mode) && e->type == '5')
		return;
	if (S_ISDIR(st.st_mode))
		archive_fail(EISDIR, path);
	if (e->type == '5' && S_ISLNK(st.st_mode) && !stat(path, &st) && S_ISDIR(st.st_mode))
		return; /* a folder lands in the folder that the link leads to */
	if (e->type == '5')
		archive_fail(ENOTDIR, path);
	if (unlink(path) < 0)
		archive_fail(errno, path);
}

/* Times of folders come last: filling them changes them. */
struct filled {
	struct filled *next;
	struct timespec time;
	char path[];
};

static struct filled *folders;

static void remember(const char *path, struct entry *e)
{
	struct filled *f = malloc(sizeof *f + strlen(path) + 1);
	if (!f)
		abort();
	strcpy(f->path, path);
	f->time = e->st.st_mtim;
	f->next = folders;
	folders = f;
}

static void finish_folders(void)
{
	for (struct filled *f = folders; f; f = f->next) {
		struct timespec times[2] = { f->time, f->time };
		utimensat(AT_FDCWD, f->path, times, 0);
	}
}

static void unpack_entry(struct entry *e)
{
	static const int types[] = { ['3'] = S_IFCHR, ['4'] = S_IFBLK, ['6'] = S_IFIFO };
	const char *name = safe_name(e->name), *target = e->type == '1' ? safe_name(e->link) : NULL;
	char path[4096];
	int bad = 0;
	if (snprintf(path, sizeof path, "%s", name) >= (int)sizeof path)
		archive_fail(ENAMETOOLONG, name);
	for (size_t n = strlen(path); n && (path[n - 1] == '/' || (path[n - 1] == '.' && (n == 1 || path[n - 2] == '/'))); n--)
		path[n - 1] = 0;
	if (!*path && e->type == '5')
		return; /* the folder itself: it exists, and keeps its own mode */
	if (!*path)
		broken("an entry of the archive would replace the folder itself");
	if (target && !*target)
		broken("an entry of the archive is a hard link to nothing");
	make_parents(path);
	make_room(path, e);
	switch (e->type) {
	case '0': read_content(path, e->size); break;
	case '1': bad = link(target, path); break;
	case '2': bad = symlink(e->link, path); break;
	case '5': bad = mkdir(path, 0700) && errno != EEXIST; break;
	default: bad = mknod(path, types[(int)e->type] | 0600, e->st.st_rdev); break;
	}
	if (bad)
		archive_fail(errno, path);
	if (e->type == '1')
		return;
	apply_metadata(path, e);
	if (e->type == '5')
		remember(path, e);
}

static void unpack(const char *folder)
{
	struct entry e = { 0 };
	char rest[4096];
	if (chdir(folder) < 0)
		archive_fail(errno, folder);
	umask(0);
	while (entry_read(&e)) {
		unpack_entry(&e);
		entry_free(&e);
	}
	finish_folders();
	while (read_all(0, rest, sizeof rest))
		; /* padding behind the end mark, so that the sender never meets a closed pipe */
}

static int archive_run(int op, const char *path)
{
	signal(SIGPIPE, SIG_DFL);
	if (!path || *path != '/')
		archive_fail(EINVAL, path ? path : "no path");
	if (op == 'g' || op == 't' || op == 'u')
		pack(path);
	else if (op == 'p')
		unpack(path);
	else
		stat_path(path);
	return 0;
}
