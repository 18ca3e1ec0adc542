/*
 * The first process of a workload started with --init: starts the program, passes signals on to it, reaps whoever is
 * left to it, and ends as the program ended. It runs from a sealed memfd (kernel/process.py), so nothing in the
 * workload's tree can replace it.
 *
 *   knarr-init PATH ARGV0 [ARG...]     PATH was found already (execvp's search is the keeper's)
 *
 * Out of scope: restarting anything, understanding signals.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void start(char **argv, const sigset_t *before)
{
    /* a group of its own, in the foreground if there is a terminal: ^C is for the program */
    setpgid(0, 0);
    int terminal = open("/dev/tty", O_RDWR | O_CLOEXEC);
    if (terminal >= 0) {
        signal(SIGTTOU, SIG_IGN);
        pid_t group = getpgrp();
        ioctl(terminal, TIOCSPGRP, &group);
        signal(SIGTTOU, SIG_DFL);
        close(terminal);
    }
    sigprocmask(SIG_SETMASK, before, NULL);
    execve(argv[1], argv + 2, environ);
    _exit(errno == ENOENT ? 127 : 126);
}

/* Reap all that ended; the program's wait status in *status and true once it is among them. */
static int reap(pid_t program, int *status)
{
    int found = 0, current;
    pid_t pid;
    while ((pid = waitpid(-1, &current, WNOHANG)) > 0)
        if (pid == program) {
            *status = current;
            found = 1;
        }
    return found;
}

int main(int argc, char **argv)
{
    sigset_t all, before;
    int status = 0;
    if (argc < 3)
        return 126;
    prctl(PR_SET_NAME, "knarr-init");
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, &before);
    pid_t program = fork();
    if (program < 0)
        return 126;
    if (program == 0)
        start(argv, &before);
    for (;;) {
        int number = sigwaitinfo(&all, NULL);
        if (number == SIGCHLD) {
            if (reap(program, &status))
                break;
        } else if (number > 0 && number != SIGTTIN && number != SIGTTOU) {
            kill(program, number);
        }
    }
    return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}
