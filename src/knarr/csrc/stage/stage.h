/* What the parts of stage share: reading the plan, failing, descriptors by name, paths beneath a root, mounts. */
#ifndef STAGE_H
#define STAGE_H
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#ifndef SYS_openat2
#define SYS_openat2 437
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef SYS_faccessat2
#define SYS_faccessat2 439
#endif
#ifndef SYS_mount_setattr
#define SYS_mount_setattr 442
#endif
#ifndef SYS_open_tree
#define SYS_open_tree 428
#define SYS_move_mount 429
#define SYS_fsopen 430
#define SYS_fsconfig 431
#define SYS_fsmount 432
#endif
#ifndef SYS_clone3
#define SYS_clone3 435
#endif

enum {
    NO_MAGICLINKS = 0x02,
    NO_SYMLINKS = 0x04,
    AS_ROOT = 0x10,
    IN_ROOT = AS_ROOT | NO_MAGICLINKS,  /* links resolve as if the directory were `/` */
    PLAIN = IN_ROOT | NO_SYMLINKS,
    NAMES = 256,
};

/* ---- the plan (stage.c): numbers are i64, texts u32 length + bytes + NUL, tuples a number of items and the items ---- */

struct reader {
    const char *at, *end;
    int broken;
};

int64_t number(struct reader *r);
int64_t items(struct reader *r);                    /* how many a tuple has */
const char *text(struct reader *r);                 /* lives as long as the process */
const char *bytes(struct reader *r, size_t *size);
const char **texts(struct reader *r, size_t more);  /* a tuple of texts, NULL at the end, with room for `more` */

/* ---- failing: the first failure is what the keeper is told ---- */

int fail(const char *path);                                       /* errno as it is; returns -1 */
int refuse(int code, const char *path, const char *reason);       /* the same with a sentence */

/* ---- descriptors by name ---- */

int named(const char *name);            /* -1: none */
int need(const char *name);             /* the same, failed */
int take(const char *name);             /* need, and the caller closes it */
int name_fd(const char *name, int fd);  /* replaces */

struct identity {
    uid_t uid;
    gid_t gid, *groups;
    size_t group_count;
    const char *home;
};
extern struct identity identity;

int send_up(const char *name, int fd);  /* to the keeper, once every step is done */
void drop(int fd);                      /* close without touching errno */

/* ---- paths (paths.c): O_PATH descriptors beneath a root, close-on-exec ---- */

int open_in(int directory, const char *path, int flags, int resolve);
int root_fd(void);                                       /* the workload's root: kept from the pivot, or opened once */
int make_folders(int root, const char *path);            /* the folder at `path`, made with its parents where missing */
int make_file(int root, const char *path, mode_t mode);  /* what is at `path`, or an empty file */
int plain_folder(const char *path);                      /* of the workload's root, through no link; made when missing */
char *read_small(int root, const char *path, size_t limit, size_t *size);
int is_folder(int fd);                                   /* -1 failed */
int write_file(const char *path, const char *value, size_t size);

/* ---- mounts (mounts.c) ---- */

int mount_at(const char *source, const char *target, const char *kind, unsigned long flags, const char *data);
int open_tree_at(int directory, const char *path, int recursive);
int attach(int tree, int target, const char *path);
int set_attributes(int tree, const char *path, uint64_t add, uint64_t propagation, int recursive);
struct option {
    const char *key, *value; /* no value: a flag */
};
int new_filesystem(const char *kind, const struct option *options, size_t count, unsigned attributes);

/* ---- the end (program.c) ---- */

int run_program(struct reader *plan, int *channel);

#endif
