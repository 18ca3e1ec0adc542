/* The other direction of tar.h: entries of an untrusted archive into a folder. */

struct entry {
	char type, *name, *link;
	unsigned long long size;
	struct stat st;
	struct request xattrs;
};

static unsigned long long number(const char *field, size_t size)
{
	unsigned long long value = 0;
	if (field[0] & 0x80) { /* GNU's base 256 */
		for (size_t i = 1; i < size; i++)
			value = value << 8 | (unsigned char)field[i];
		return value;
	}
	for (size_t i = 0; i < size && field[i]; i++)
		if (field[i] >= '0' && field[i] <= '7')
			value = value << 3 | (field[i] - '0');
	return value;
}

static void set_text(char **to, const char *value, size_t len)
{
	free(*to);
	*to = strndup(value, len);
	if (!*to)
		abort();
}

static char *body_of(unsigned long long size)
{
	if (size > PAX_MAX)
		archive_fail(EINVAL, "a header of the archive is too long");
	size_t room = (size + BLOCK - 1) / BLOCK * BLOCK;
	char *body = malloc(room + 1);
	if (!body || read_all(0, body, room) != room)
		archive_fail(EINVAL, "the archive ends early");
	body[size] = 0;
	return body;
}

static void keep_xattr(struct request *to, const char *name, const char *value, size_t len)
{
	to->r = realloc(to->r, (to->n + 1) * sizeof *to->r);
	if (!to->r)
		abort();
	char *copy = malloc(len + 1), *called = strdup(name);
	if (!copy || !called)
		abort();
	memcpy(copy, value, len);
	to->r[to->n++] = (struct record){ called, copy, len };
}

static void pax_field(struct entry *e, const char *key, const char *value, size_t len)
{
	if (!strcmp(key, "path"))
		set_text(&e->name, value, len);
	else if (!strcmp(key, "linkpath"))
		set_text(&e->link, value, len);
	else if (!strcmp(key, "size"))
		e->size = strtoull(value, NULL, 10);
	else if (!strcmp(key, "uid"))
		e->st.st_uid = strtoul(value, NULL, 10);
	else if (!strcmp(key, "gid"))
		e->st.st_gid = strtoul(value, NULL, 10);
	else if (!strncmp(key, "SCHILY.xattr.", 13))
		keep_xattr(&e->xattrs, key + 13, value, len);
	else if (!strcmp(key, "mtime")) {
		char *dot;
		long unit = 100000000;
		e->st.st_mtim.tv_sec = strtoll(value, &dot, 10);
		e->st.st_mtim.tv_nsec = 0;
		for (dot += *dot == '.'; *dot >= '0' && *dot <= '9' && unit; dot++, unit /= 10)
			e->st.st_mtim.tv_nsec += (*dot - '0') * unit;
	}
}

/* Overrides are applied after the ustar fields, so a pax block is kept until its entry has been read. */
static void pax_apply(struct entry *e, char *pax, size_t len)
{
	for (char *p = pax, *end = pax + len; p < end;) {
		char *space;
		unsigned long n = strtoul(p, &space, 10);
		char *equals = n && n <= (size_t)(end - p) ? memchr(p, '=', n) : NULL;
		if (!equals || *space != ' ' || equals <= space || p[n - 1] != '\n')
			archive_fail(EINVAL, "a pax header of the archive is broken");
		*equals = 0;
		p[n - 1] = 0;
		pax_field(e, space + 1, equals + 1, p + n - 1 - (equals + 1));
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
	int ustar = !memcmp(h->magic, "ustar", 5) && h->prefix[0] && memcmp(h->magic, "ustar ", 6);
	snprintf(full, sizeof full, "%.155s%s%.100s", ustar ? h->prefix : "", ustar ? "/" : "", h->name);
	if (!e->name)
		set_text(&e->name, full, strlen(full));
	if (!e->link)
		set_text(&e->link, h->link, strnlen(h->link, 100));
	e->type = h->type ? h->type : '0';
	e->size = number(h->size, 12);
	e->st.st_mode = number(h->mode, 8) & 07777;
	e->st.st_uid = number(h->uid, 8);
	e->st.st_gid = number(h->gid, 8);
	e->st.st_mtim.tv_sec = number(h->mtime, 12);
	e->st.st_rdev = makedev(number(h->major, 8), number(h->minor, 8));
}

/* The next entry with all its overrides; 0 at the end. */
static int entry_read(struct entry *e)
{
	struct header h;
	char *pax = NULL;
	size_t pax_len = 0;
	for (;;) {
		size_t n = read_all(0, &h, BLOCK);
		if (n == 0 || (n == BLOCK && !h.name[0] && !h.sum[0]))
			return free(pax), 0;
		if (n < BLOCK)
			archive_fail(EINVAL, "the archive ends early");
		unsigned sum = 8 * ' ';
		for (unsigned i = 0; i < BLOCK; i++)
			sum += i >= 148 && i < 156 ? 0 : ((unsigned char *)&h)[i];
		if (sum != number(h.sum, 8))
			archive_fail(EINVAL, "not a tar archive (wrong checksum)");
		unsigned long long size = number(h.size, 12);
		if (h.type == 'L' || h.type == 'K') {
			char *text = body_of(size);
			set_text(h.type == 'L' ? &e->name : &e->link, text, strlen(text));
			free(text);
		} else if (h.type == 'x' || h.type == 'g') {
			char *body = body_of(size);
			if (h.type == 'x') {
				free(pax);
				pax = body;
				pax_len = size;
			} else {
				free(body);
			}
		} else {
			break;
		}
	}
	entry_fields(e, &h);
	if (pax)
		pax_apply(e, pax, pax_len);
	free(pax);
	return 1;
}

static void skip_content(unsigned long long size)
{
	static char waste[65536];
	for (unsigned long long left = (size + BLOCK - 1) / BLOCK * BLOCK; left;) {
		size_t want = left > sizeof waste ? sizeof waste : left;
		if (read_all(0, waste, want) != want)
			archive_fail(EINVAL, "the archive ends early");
		left -= want;
	}
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
			archive_fail(EINVAL, "the archive ends early");
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
		archive_fail(EINVAL, "the archive ends early");
}

/* Names are taken relative to the target folder; "…/.." is refused rather than guessed at. */
static const char *safe_name(const char *name)
{
	while (*name == '/' || (name[0] == '.' && name[1] == '/'))
		name++;
	for (const char *p = name; *p; p += strcspn(p, "/"), p += *p == '/')
		if (!strncmp(p, "..", 2) && (p[2] == '/' || !p[2]))
			archive_fail(EINVAL, name);
	return *name ? name : ".";
}

static void make_parents(const char *path)
{
	char copy[4096];
	snprintf(copy, sizeof copy, "%s", path);
	for (char *p = strchr(copy, '/'); p; p = strchr(p + 1, '/')) {
		*p = 0;
		mkdir(copy, 0755);
		*p = '/';
	}
}

static void apply_metadata(const char *path, struct entry *e)
{
	struct timespec times[2] = { e->st.st_mtim, e->st.st_mtim };
	if (fchownat(AT_FDCWD, path, e->st.st_uid, e->st.st_gid, AT_SYMLINK_NOFOLLOW) < 0)
		archive_fail(errno, path);
	if (e->type != '2' && fchmodat(AT_FDCWD, path, e->st.st_mode, 0) < 0)
		archive_fail(errno, path);
	for (int i = 0; i < e->xattrs.n; i++) {
		struct record *x = &e->xattrs.r[i];
		if (lsetxattr(path, x->name, x->value, x->len, 0) < 0 && errno != ENOTSUP && errno != EPERM)
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

static void unpack_entry(struct entry *e)
{
	static const int types[] = { ['3'] = S_IFCHR, ['4'] = S_IFBLK, ['6'] = S_IFIFO };
	const char *path = safe_name(e->name);
	char trimmed[4096];
	int bad = 0;
	if (snprintf(trimmed, sizeof trimmed, "%s", path) >= (int)sizeof trimmed)
		archive_fail(ENAMETOOLONG, path);
	for (size_t n = strlen(trimmed); n > 1 && trimmed[n - 1] == '/'; n--)
		trimmed[n - 1] = 0;
	path = trimmed;
	make_parents(path);
	make_room(path, e);
	switch (e->type) {
	case '0': case '7': read_content(path, e->size); break;
	case '1': bad = link(safe_name(e->link), path); break;
	case '2': bad = symlink(e->link, path); break;
	case '3': case '4': case '6': bad = mknod(path, types[(int)e->type] | 0600, e->st.st_rdev); break;
	case '5': bad = mkdir(path, 0700) && errno != EEXIST; break;
	default: skip_content(e->size); return;
	}
	if (bad)
		archive_fail(errno, path);
	if (e->type == '1')
		return;
	if (strcmp(path, "."))
		apply_metadata(path, e);
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
