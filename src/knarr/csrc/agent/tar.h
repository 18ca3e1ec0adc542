/* Archives of the workload's tree, as `cp` and `diff` want them: one process per request, already inside the workload's
 * mounts and root, so that no path can lead out of it. tar comes in on 0 and goes out on 1; an error is one line on 2 and
 * its errno the exit code. pax headers carry what ustar can't: long names, nanoseconds, big numbers, xattrs.
 */
#define BLOCK 512
#define XATTR_MAX 65536
#define PAX_MAX (1u << 20)

static void archive_fail(int error, const char *path)
{
	dprintf(2, "%s: %s", path, strerror(error));
	_exit(error > 0 && error < 125 ? error : 125);
}

static void write_all(const void *data, size_t len)
{
	const char *p = data;
	while (len) {
		ssize_t n = write(1, p, len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(EPIPE);
		p += n;
		len -= n;
	}
}

/* Up to len bytes; short only at the end. */
static size_t read_all(int fd, void *data, size_t len)
{
	size_t have = 0;
	while (have < len) {
		ssize_t n = read(fd, (char *)data + have, len - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += n;
	}
	return have;
}

struct header {
	char name[100], mode[8], uid[8], gid[8], size[12], mtime[12], sum[8], type, link[100], magic[8], uname[32], gname[32];
	char major[8], minor[8], prefix[155], pad[12];
};

struct inode {
	dev_t dev;
	ino_t ino;
	char *name;
};

static struct inode *hard_links;
static size_t n_hard_links;

static int octal(char *field, size_t size, unsigned long long value)
{
	char text[32];
	int n = snprintf(text, sizeof text, "%0*llo", (int)size - 1, value);
	if (n >= (int)size)
		return memset(field, '7', size - 1), -1;
	memcpy(field, text, n);
	return 0;
}

/* One pax record, "LENGTH key=value\n", where LENGTH counts itself. */
static void pax_add(struct bytes *b, const char *key, const void *value, size_t len)
{
	size_t body = strlen(key) + len + 3, total = body;
	char text[32];
	do
		total = body + snprintf(text, sizeof text, "%zu", total);
	while (total != body + snprintf(text, sizeof text, "%zu", total));
	bytes_add(b, text, strlen(text));
	bytes_add(b, " ", 1);
	bytes_add(b, key, strlen(key));
	bytes_add(b, "=", 1);
	bytes_add(b, value, len);
	bytes_add(b, "\n", 1);
}

static void pax_number(struct bytes *b, const char *key, unsigned long long value)
{
	char text[32];
	pax_add(b, key, text, snprintf(text, sizeof text, "%llu", value));
}

static void finish_header(struct header *h)
{
	unsigned sum = 0;
	memcpy(h->magic, "ustar\00000", 8);
	memset(h->sum, ' ', 8);
	for (unsigned i = 0; i < BLOCK; i++)
		sum += ((unsigned char *)h)[i];
	snprintf(h->sum, 8, "%06o", sum);
	write_all(h, BLOCK);
}

static void pad(unsigned long long size)
{
	static const char zeros[BLOCK];
	if (size % BLOCK)
		write_all(zeros, BLOCK - size % BLOCK);
}

static void pax_xattrs(struct bytes *b, const char *path)
{
	static char names[XATTR_MAX], value[XATTR_MAX];
	ssize_t n = llistxattr(path, names, sizeof names);
	for (char *name = names; n > 0 && name < names + n; name += strlen(name) + 1) {
		char key[300];
		ssize_t len = lgetxattr(path, name, value, sizeof value);
		snprintf(key, sizeof key, "SCHILY.xattr.%.255s", name);
		if (len >= 0)
			pax_add(b, key, value, len);
	}
}

static void put_name(struct bytes *pax, char *field, const char *key, const char *value)
{
	size_t len = strlen(value);
	memcpy(field, value, len > 100 ? 100 : len);
	if (len > 100)
		pax_add(pax, key, value, len);
}

static void fill_header(struct header *h, struct bytes *pax, const struct stat *st, const char *name, const char *link)
{
	put_name(pax, h->name, "path", name);
	if (link)
		put_name(pax, h->link, "linkpath", link);
	octal(h->mode, 8, st->st_mode & 07777);
	if (octal(h->uid, 8, st->st_uid))
		pax_number(pax, "uid", st->st_uid);
	if (octal(h->gid, 8, st->st_gid))
		pax_number(pax, "gid", st->st_gid);
	if (octal(h->size, 12, h->type == '0' ? st->st_size : 0))
		pax_number(pax, "size", st->st_size);
	octal(h->mtime, 12, st->st_mtim.tv_sec < 0 ? 0 : st->st_mtim.tv_sec);
	if (st->st_mtim.tv_nsec || st->st_mtim.tv_sec < 0) {
		char text[48];
		int n = snprintf(text, sizeof text, "%lld.%09ld", (long long)st->st_mtim.tv_sec, st->st_mtim.tv_nsec);
		pax_add(pax, "mtime", text, n);
	}
	octal(h->major, 8, major(st->st_rdev));
	octal(h->minor, 8, minor(st->st_rdev));
}

static void write_pax(struct bytes *pax)
{
	struct header h = { .type = 'x' };
	if (!pax->len)
		return;
	memcpy(h.name, "pax", 3);
	octal(h.mode, 8, 0644);
	octal(h.size, 12, pax->len);
	finish_header(&h);
	write_all(pax->data + pax->start, pax->len);
	pad(pax->len);
}

static void write_content(const char *path, unsigned long long size)
{
	static char buffer[65536];
	int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
	if (fd < 0)
		archive_fail(errno, path);
	for (unsigned long long left = size; left;) {
		size_t want = left > sizeof buffer ? sizeof buffer : left, have = read_all(fd, buffer, want);
		/* the header has promised the size; a file that shrank meanwhile is filled up with zeros */
		memset(buffer + have, 0, want - have);
		write_all(buffer, want);
		left -= want;
	}
	close(fd);
	pad(size);
}

/* The name under which this inode went out before, or NULL after remembering it. */
static const char *seen_before(const struct stat *st, const char *name)
{
	if (st->st_nlink < 2 || S_ISDIR(st->st_mode))
		return NULL;
	for (size_t i = 0; i < n_hard_links; i++)
		if (hard_links[i].ino == st->st_ino && hard_links[i].dev == st->st_dev)
			return hard_links[i].name;
	if (n_hard_links % 256 == 0)
		hard_links = realloc(hard_links, (n_hard_links + 256) * sizeof *hard_links);
	if (!hard_links)
		abort();
	hard_links[n_hard_links++] = (struct inode){ st->st_dev, st->st_ino, strdup(name) };
	return NULL;
}

static char type_of(mode_t mode)
{
	switch (mode & S_IFMT) {
	case S_IFDIR: return '5';
	case S_IFLNK: return '2';
	case S_IFCHR: return '3';
	case S_IFBLK: return '4';
	case S_IFIFO: return '6';
	case S_IFREG: return '0';
	}
	return 0; /* sockets have no form in a tar */
}

static void pack_entry(const char *path, const char *name);

static void pack_children(const char *path, const char *name)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	if (!dir)
		archive_fail(errno, path);
	while ((entry = readdir(dir))) {
		char *below, *called;
		if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
			continue;
		if (asprintf(&below, "%s/%s", path, entry->d_name) < 0 || asprintf(&called, "%s/%s", name, entry->d_name) < 0)
			abort();
		pack_entry(below, called);
		free(below);
		free(called);
	}
	closedir(dir);
}

static void pack_entry(const char *path, const char *name)
{
	struct header h = { 0 };
	struct bytes pax = { 0 };
	struct stat st;
	char link[4096] = "", shown[4400];
	const char *target = NULL;
	if (lstat(path, &st) < 0) {
		if (errno == ENOENT)
			return; /* went away while we walked */
		archive_fail(errno, path);
	}
	h.type = type_of(st.st_mode);
	if (!h.type)
		return;
	if (h.type == '2' && readlink(path, link, sizeof link - 1) >= 0)
		target = link;
	const char *first = seen_before(&st, name);
	if (first) {
		h.type = '1';
		target = first;
	}
	snprintf(shown, sizeof shown, "%s%s", name, h.type == '5' ? "/" : "");
	fill_header(&h, &pax, &st, shown, target);
	if (!first)
		pax_xattrs(&pax, path);
	write_pax(&pax);
	free(pax.data);
	finish_header(&h);
	if (h.type == '0')
		write_content(path, st.st_size);
	if (h.type == '5')
		pack_children(path, name);
}

/* Split off the last component; "/" and "…/." stand for the folder itself and its entries are named "./…". */
static const char *base_name(char *path)
{
	size_t n = strlen(path);
	while (n > 1 && path[n - 1] == '/')
		path[--n] = 0;
	if (!strcmp(path, "/") || (n >= 2 && !strcmp(path + n - 2, "/.")))
		return ".";
	char *slash = strrchr(path, '/');
	return slash ? slash + 1 : path;
}

static void pack(const char *asked)
{
	static const char end[2 * BLOCK];
	char path[4096];
	struct stat st;
	snprintf(path, sizeof path, "%s", asked);
	const char *base = base_name(path);
	if (lstat(path, &st) < 0)
		archive_fail(errno, asked);
	pack_entry(path, base);
	write_all(end, sizeof end);
}

static void stat_path(const char *asked)
{
	char path[4096], link[4096] = "";
	struct stat st;
	snprintf(path, sizeof path, "%s", asked);
	const char *base = base_name(path);
	if (lstat(path, &st) < 0)
		archive_fail(errno, asked);
	if (S_ISLNK(st.st_mode) && readlink(path, link, sizeof link - 1) < 0)
		archive_fail(errno, asked);
	dprintf(1, "%lld %u %lld", (long long)st.st_size, st.st_mode,
		st.st_mtim.tv_sec * 1000000000LL + st.st_mtim.tv_nsec);
	write_all("", 1);
	write_all(strcmp(base, ".") ? base : "/", strlen(strcmp(base, ".") ? base : "/") + 1);
	write_all(link, strlen(link) + 1);
}
