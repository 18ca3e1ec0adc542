/* A terminal of the workload's own devpts; its master travels up, its slave becomes the three streams. */
#define _GNU_SOURCE
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <termios.h>

#include "stage.h"

#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

static int open_master(int root) {
    struct stat status;
    int unlocked = 0, master = open_in(root, "dev/pts/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK, PLAIN);
    if (master < 0) return fail("dev/pts/ptmx");
    if (fstat(master, &status) || !S_ISCHR(status.st_mode) || status.st_rdev != makedev(5, 2))
        return refuse(ENODEV, "/dev/pts/ptmx", "not a terminal multiplexer");
    fcntl(master, F_SETFL, fcntl(master, F_GETFL) & ~O_NONBLOCK);
    return ioctl(master, TIOCSPTLCK, &unlocked) ? fail("/dev/pts/ptmx") : master;
}

static int bind_console(int root, int slave) {
    int tree = open_tree_at(slave, "", 0), target = tree < 0 ? -1 : make_file(root, "/dev/console", 0600);
    int result = target < 0 ? -1 : attach(tree, target, "/dev/console");
    drop(target);
    drop(tree);
    return result;
}

int step_pty(struct reader *r) {
    static const char *streams[] = {"stdin", "stdout", "stderr"};
    struct winsize size = {.ws_col = number(r)};
    size.ws_row = number(r);
    int console = number(r), root = root_fd(), master = root < 0 ? -1 : open_master(root);
    if (master < 0) return -1;
    /* by the master, not by a path: whatever lies at /dev/pts/N */
    int slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (slave < 0) return fail("/dev/pts");
    if (size.ws_col && size.ws_row && ioctl(slave, TIOCSWINSZ, &size)) return fail("/dev/pts");
    if (console && bind_console(root, slave)) return -1;
    if (ioctl(slave, TIOCSCTTY, 0)) return fail("/dev/pts");
    for (int i = 0; i < 3; i++)
        if (name_fd(streams[i], slave)) return -1;
    return send_up("tty", master);
}
