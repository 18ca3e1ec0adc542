/* Steps about who the program is; users come from the workload's own files.
 *
 * Those files are untrusted: opened beneath the root, regular files only, read to a limit, never through a C library's name
 * service, which would load the image's libraries. */
#define _GNU_SOURCE
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/sysmacros.h>

#include "stage.h"

enum { FILE_LIMIT = 4 << 20, FIELDS = 8, MOST_GROUPS = 65536 };
#define ID_LIMIT 2147483647LL

struct row {
    char *field[FIELDS];
    int count;
};

/* Plain ASCII digits only: not `+1`, `0x0`, ` 1`, which would be names. -1: none; beyond the limit: ID_LIMIT + 1. */
static int64_t decimal(const char *word) {
    size_t size = strspn(word, "0123456789");
    if (!size || word[size]) return -1;
    int64_t value = size > 10 ? ID_LIMIT + 1 : strtoll(word, NULL, 10);
    return value > ID_LIMIT ? ID_LIMIT + 1 : value;
}

/* An entry of a file that is no id is skipped, not an error: the file is the image's. */
static int is_id(const char *word) {
    int64_t value = decimal(word);
    return value >= 0 && value <= ID_LIMIT;
}

static int is_space(char c) {
    return isspace((unsigned char)c) || (c >= 0x1c && c <= 0x1f);
}

/* The next row of `*at`, whose lines are cut apart; 0 at the end. */
static int next_row(char **at, const char *end, struct row *row) {
    while (*at < end) {
        char *line = *at, *stop = memchr(line, '\n', end - line);
        if (!stop) stop = (char *)end;
        *at = stop + 1;
        *stop = 0;
        if (*line == '#') continue;
        while (line < stop && is_space(*line)) line++;
        while (stop > line && is_space(stop[-1])) *--stop = 0;
        if (line == stop) continue;
        for (row->count = 0; line && row->count < FIELDS; row->count++) {
            row->field[row->count] = line;
            line = strchr(line, ':');
            if (line) *line++ = 0;
        }
        return 1;
    }
    return 0;
}

struct file {
    char *data;
    size_t size;
};

static int load(int root, const char *path, struct file *file) {
    file->data = read_small(root, path, FILE_LIMIT, &file->size);
    if (file->data || errno == ENOENT || errno == ENOTDIR) return 0;
    if (errno == EINVAL) return refuse(EINVAL, path, "not a regular file");
    return fail(path);
}

/* A row's fields are cut in place, so each walk has a copy of its own. */
static char *walk(const struct file *file, char **end) {
    char *copy = malloc(file->size + 1);
    if (!copy) return NULL;
    memcpy(copy, file->data ? file->data : "", file->size);
    copy[file->size] = 0;
    *end = copy + file->size;
    return copy;
}

static int add_group(int64_t gid) {
    for (size_t i = 0; i < identity.group_count; i++)
        if (identity.groups[i] == (gid_t)gid) return 0;
    if (identity.group_count == MOST_GROUPS) return refuse(EINVAL, "", "too many groups");
    if (identity.group_count % 64 == 0) {
        gid_t *more = realloc(identity.groups, (identity.group_count + 64) * sizeof *more);
        if (!more) return fail("");
        identity.groups = more;
    }
    identity.groups[identity.group_count++] = gid;
    return 0;
}

static int no_such(const char *kind, const char *name) {
    static char sentence[400];
    snprintf(sentence, sizeof sentence, "unable to find %s %.256s: no matching entries in %s file", kind, name,
             *kind == 'u' ? "passwd" : "group");
    return refuse(ENOENT, "", sentence);
}

static int out_of_range(const char *word) {
    static char sentence[120];
    snprintf(sentence, sizeof sentence, "uids and gids must be in range 0-%lld: %.32s", ID_LIMIT, word);
    return refuse(EINVAL, "", sentence);
}

/* A group by number or name; -1 failed. */
static int64_t group_id(const struct file *groups, const char *wanted) {
    struct row row;
    int64_t found = decimal(wanted);
    if (found > ID_LIMIT) return out_of_range(wanted);
    if (found >= 0) return found;
    char *end, *at = walk(groups, &end);
    if (!at) return fail("");
    while (found < 0 && next_row(&at, end, &row))
        if (!strcmp(row.field[0], wanted) && row.count > 2 && is_id(row.field[2])) found = decimal(row.field[2]);
    return found < 0 ? no_such("group", wanted) : found;
}

static int is_member(char *members, const char *login) {
    for (char *next; members; members = next) {
        next = strchr(members, ',');
        if (next) *next++ = 0;
        if (!strcmp(members, login)) return 1;
    }
    return 0;
}

static int add_memberships(const struct file *groups, const char *login) {
    struct row row;
    char *end, *at = walk(groups, &end);
    if (!at) return fail("");
    while (next_row(&at, end, &row))
        if (row.count > 3 && is_id(row.field[2]) && is_member(row.field[3], login) && add_group(decimal(row.field[2]))) return -1;
    return 0;
}

/* The entry of `name`, which is an id if it is a number; the login's name in *login. */
static int find_user(const struct file *users, const char *name, const char **login) {
    struct row row;
    int64_t wanted = *name ? decimal(name) : 0;
    if (wanted > ID_LIMIT) return out_of_range(name);
    char *end, *at = walk(users, &end);
    if (!at) return fail("");
    *login = NULL;
    while (!*login && next_row(&at, end, &row)) {
        if (row.count < 4 || !is_id(row.field[2]) || !is_id(row.field[3])) continue;
        if (wanted >= 0 ? decimal(row.field[2]) != wanted : strcmp(row.field[0], name) != 0) continue;
        *login = row.field[0];
        identity.uid = decimal(row.field[2]);
        identity.gid = decimal(row.field[3]);
        if (row.count > 5 && *row.field[5]) identity.home = row.field[5];
    }
    if (*login) return 0;
    if (wanted < 0) return no_such("user", name);
    identity.uid = wanted;
    return 0;
}

/* docker's rules: `name|uid[:group|gid]`, and further groups by name or number. */
static int resolve(int root, const char *user, const char **more) {
    struct file users, groups;
    const char *login;
    char *name = strdup(user), *group = name ? strchr(name, ':') : NULL;
    int64_t gid;
    if (!name) return fail("");
    if (group) *group++ = 0;
    identity = (struct identity){.home = "/"};
    if (load(root, "etc/passwd", &users) || load(root, "etc/group", &groups)) return -1;
    if (find_user(&users, name, &login)) return -1;
    if (group && *group) {
        if ((gid = group_id(&groups, group)) < 0) return -1;
        identity.gid = gid;
    } else if (login && *login && add_memberships(&groups, login)) {
        return -1;
    }
    for (; *more; more++)
        if ((gid = group_id(&groups, *more)) < 0 || add_group(gid)) return -1;
    return 0;
}

int step_resolve_user(struct reader *r) {
    const char *user = text(r), **more = texts(r, 0);
    int root = root_fd();
    return root < 0 || !more ? -1 : resolve(root, user, more);
}

/* Ids by number, without a look into any file (a jailed helper's). */
int step_fixed_user(struct reader *r) {
    uid_t uid = number(r);
    gid_t gid = number(r);
    identity = (struct identity){.uid = uid, .gid = gid, .home = "/"};
    for (int64_t count = items(r); count > 0; count--)
        if (add_group(number(r))) return -1;
    return 0;
}

/* The streams become the user's own, so that /dev/stdout can be opened again. */
static int give(const char *name) {
    struct stat status;
    int fd = named(name);
    if (fd < 0) return 0;
    if (fstat(fd, &status)) return fail(name);
    /* /dev/null and its like belong to everybody; a terminal or pipe is this workload's alone */
    if (S_ISCHR(status.st_mode) && major(status.st_rdev) == 1) return 0;
    if (!fchown(fd, identity.uid, -1) || errno == EPERM || errno == EROFS || errno == EINVAL) return 0;
    return fail(name);
}

int step_set_ids(struct reader *r) {
    (void)r;
    if (identity.uid && (give("stdin") || give("stdout") || give("stderr"))) return -1;
    if (syscall(SYS_setgroups, identity.group_count, identity.groups)) return fail("");
    if (syscall(SYS_setresgid, identity.gid, identity.gid, identity.gid)) return fail("");
    return syscall(SYS_setresuid, identity.uid, identity.uid, identity.uid) ? fail("") : 0;
}
