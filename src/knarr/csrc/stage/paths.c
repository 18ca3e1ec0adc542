/* Paths beneath a directory descriptor that an untrusted tree can't lead astray, by openat2(2).
 *
 * Symbolic links resolve as if the directory were `/`; magic links (/proc/PID/fd, exe, cwd, root) never. */
#define _GNU_SOURCE
#include <linux/openat2.h>
#include <stdlib.h>

#include "stage.h"

enum { RETRIES = 64 };

/* A rename racing with a `..` gives EAGAIN: tried again, boundedly. */
int open_in(int directory, const char *path, int flags, int resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve};
    for (int left = RETRIES;; left--) {
        int fd = syscall(SYS_openat2, directory, *path ? path : ".", &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN || !left) return fd;
    }
}

int root_fd(void) {
    int fd = named("root");
    if (fd >= 0) return fd;
    fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || name_fd("root", fd) ? fail("/") : fd;
}

/* `/a/b` of any way to write it, without a look at the tree. */
static char *normal(const char *path) {
    char *made = malloc(strlen(path) + 2), *end = made;
    while (made && *path) {
        size_t size = strcspn(path, "/");
        if (size == 2 && !memcmp(path, "..", 2)) {
            while (end > made && *--end != '/') {}
        } else if (size && !(size == 1 && *path == '.')) {
            *end++ = '/';
            memcpy(end, path, size);
            end += size;
        }
        path += size;
        path += *path == '/';
    }
    if (made) *end = 0;
    return made;
}

/* `path` is normal; it is cut on the way down and whole again afterwards. */
static int folders_at(int root, char *path) {
    int fd = open_in(root, path, O_PATH | O_DIRECTORY, IN_ROOT);
    if (fd >= 0 || errno != ENOENT || !*path) return fd;
    char *slash = strrchr(path, '/');
    *slash = 0;
    int above = folders_at(root, path);
    *slash = '/';
    if (above < 0) return -1;
    fd = mkdirat(above, slash + 1, 0755) && errno != EEXIST
             ? -1
             : open_in(above, slash + 1, O_PATH | O_DIRECTORY | O_NOFOLLOW, NO_MAGICLINKS);
    drop(above);
    return fd;
}

int make_folders(int root, const char *path) {
    int fd = open_in(root, path, O_PATH | O_DIRECTORY, IN_ROOT);
    if (fd >= 0) return fd;
    if (errno != ENOENT) return fail(path);
    char *plain = normal(path);
    fd = plain ? folders_at(root, plain) : -1;
    if (fd < 0) fail(path);
    free(plain);
    return fd;
}

static int file_at(int above, const char *name, mode_t mode) {
    int fd = openat(above, name, O_RDONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, mode);
    if (fd < 0 && errno != EEXIST) return -1;
    drop(fd);
    return open_in(above, name, O_PATH | O_NOFOLLOW, NO_MAGICLINKS);
}

int make_file(int root, const char *path, mode_t mode) {
    int fd = open_in(root, path, O_PATH, IN_ROOT);
    if (fd >= 0) return fd;
    if (errno != ENOENT) return fail(path);
    char *plain = normal(path), *slash = plain ? strrchr(plain, '/') : NULL;
    if (slash) {
        *slash = 0;
        int above = folders_at(root, plain);
        fd = above < 0 ? -1 : file_at(above, slash + 1, mode);
        drop(above);
    }
    if (fd < 0) fail(path);
    free(plain);
    return fd;
}

int plain_folder(const char *path) {
    int root = root_fd();
    if (root < 0) return -1;
    int fd = open_in(root, path, O_PATH | O_DIRECTORY | O_NOFOLLOW, PLAIN);
    if (fd < 0 && errno == ENOENT) fd = make_folders(root, path);
    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return refuse(errno, path, "the image's own entry there is not a plain folder");
    if (fd < 0) return fail(path);
    close(fd);
    return 0;
}

int is_folder(int fd) {
    struct stat status;
    return fstat(fd, &status) ? -1 : S_ISDIR(status.st_mode);
}

/* NULL with errno: EINVAL for what is no regular file, EFBIG beyond the limit. */
char *read_small(int root, const char *path, size_t limit, size_t *size) {
    struct stat status;
    char *data = NULL;
    ssize_t got = -1;
    *size = 0;
    /* O_NONBLOCK: a FIFO planted at the path must not hang the caller */
    int fd = open_in(root, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, IN_ROOT);
    if (fd < 0) return NULL;
    if (!fstat(fd, &status)) {
        errno = !S_ISREG(status.st_mode) ? EINVAL : (size_t)status.st_size > limit ? EFBIG : 0;
        /* what it has now: one that grows meanwhile is read to that length */
        if (!errno) data = malloc(status.st_size + 1);
        while (data && *size < (size_t)status.st_size && (got = read(fd, data + *size, status.st_size - *size)) > 0) *size += got;
        if (data && got < 0 && status.st_size) free(data), data = NULL;
    }
    drop(fd);
    if (data) data[*size] = 0;
    return data;
}

int write_file(const char *path, const char *value, size_t size) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return fail(path);
    ssize_t done = write(fd, value, size);
    drop(fd);
    return done < 0 ? fail(path) : 0;
}
