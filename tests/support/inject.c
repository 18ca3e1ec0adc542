// Makes one system call of a running process, or of a child it starts, fail: or kills the process there.
//
//     inject PID NTH ERRNO     the NTH call (from 1) of a kind that can fail fails with ERRNO
//     inject PID NTH kill      PID gets SIGKILL as the NTH call (of any kind) begins
//
// It says `ready`, then traces until SIGTERM and says `hit CALL main|child` or `miss COUNT`. Children are followed
// until they execute a program that is not one of the engine's own. Calls that are left alone: those that wait, those
// that give something back (nothing sensible can be done about their failures), and writes to other than files.
// Interfaces: ptrace(2), PTRACE_SEIZE and PTRACE_GET_SYSCALL_INFO.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/ptrace.h>

enum { PLAIN = 1, FILES = 2, MOST_CALLS = 512, MOST_TASKS = 1024 };
#define PLAIN_CALL(name) [SYS_##name] = {#name, PLAIN}
#define FILE_CALL(name) [SYS_##name] = {#name, FILES}

static const struct {
  const char *name;
  int kind;
} calls[MOST_CALLS] = {
    PLAIN_CALL(open), PLAIN_CALL(openat), PLAIN_CALL(openat2), PLAIN_CALL(mkdir), PLAIN_CALL(mkdirat),
    PLAIN_CALL(rename), PLAIN_CALL(renameat), PLAIN_CALL(renameat2), PLAIN_CALL(link), PLAIN_CALL(linkat),
    PLAIN_CALL(symlink), PLAIN_CALL(symlinkat), PLAIN_CALL(mknod), PLAIN_CALL(mknodat), PLAIN_CALL(chmod),
    PLAIN_CALL(fchmod), PLAIN_CALL(fchmodat), PLAIN_CALL(chown), PLAIN_CALL(fchown), PLAIN_CALL(fchownat),
    PLAIN_CALL(lchown), PLAIN_CALL(ftruncate), PLAIN_CALL(fallocate), PLAIN_CALL(fsync), PLAIN_CALL(fdatasync),
    PLAIN_CALL(mount), PLAIN_CALL(open_tree), PLAIN_CALL(move_mount), PLAIN_CALL(fsopen), PLAIN_CALL(fsconfig),
    PLAIN_CALL(fsmount), PLAIN_CALL(mount_setattr), PLAIN_CALL(pivot_root), PLAIN_CALL(unshare), PLAIN_CALL(setns),
    PLAIN_CALL(clone), PLAIN_CALL(clone3), PLAIN_CALL(fork), PLAIN_CALL(vfork), PLAIN_CALL(execve),
    PLAIN_CALL(execveat), PLAIN_CALL(pipe2), PLAIN_CALL(socket), PLAIN_CALL(socketpair), PLAIN_CALL(bind),
    PLAIN_CALL(listen), PLAIN_CALL(connect), PLAIN_CALL(sendmsg), PLAIN_CALL(sendto), PLAIN_CALL(dup3),
    PLAIN_CALL(memfd_create), PLAIN_CALL(prctl), PLAIN_CALL(capset), PLAIN_CALL(setresuid), PLAIN_CALL(setresgid),
    PLAIN_CALL(setuid), PLAIN_CALL(setgid), PLAIN_CALL(setgroups), PLAIN_CALL(seccomp), PLAIN_CALL(sethostname),
    PLAIN_CALL(setdomainname), PLAIN_CALL(prlimit64), PLAIN_CALL(setrlimit), PLAIN_CALL(keyctl), PLAIN_CALL(setsid),
    PLAIN_CALL(pidfd_open), PLAIN_CALL(utimensat), PLAIN_CALL(setxattr), PLAIN_CALL(fsetxattr), PLAIN_CALL(chdir),
    PLAIN_CALL(fchdir), PLAIN_CALL(chroot), PLAIN_CALL(bpf), PLAIN_CALL(sendfile), PLAIN_CALL(copy_file_range),
    FILE_CALL(write), FILE_CALL(pwrite64), FILE_CALL(writev), FILE_CALL(pwritev), FILE_CALL(pwritev2),
    FILE_CALL(splice), FILE_CALL(flock),
};

static pid_t target;
static long wanted, seen;
static int number; // errno, 0 = kill
static int struck;
static char what[64];
static volatile sig_atomic_t over;
static struct {
  pid_t task;
  int failing; // its call was replaced: the result is still to be set
} tasks[MOST_TASKS];

static void end(int signal_number) {
  (void)signal_number;
  over = 1;
}

static int *failing(pid_t task) {
  int space = -1;
  for (int i = 0; i < MOST_TASKS; i++) {
    if (tasks[i].task == task) return &tasks[i].failing;
    if (tasks[i].task == 0 && space < 0) space = i;
  }
  if (space < 0) exit(2);
  tasks[space].task = task;
  tasks[space].failing = 0;
  return &tasks[space].failing;
}

static void forget(pid_t task) {
  for (int i = 0; i < MOST_TASKS; i++)
    if (tasks[i].task == task) tasks[i].task = 0;
}

static int linked(const char *form, pid_t task, unsigned long long fd, char *into, size_t size) {
  char path[64];
  snprintf(path, sizeof path, form, task, fd);
  ssize_t length = readlink(path, into, size - 1);
  into[length < 0 ? 0 : length] = 0;
  return length > 0;
}

static int on_file(pid_t task, unsigned long long fd) {
  char name[256];
  return linked("/proc/%d/fd/%llu", task, fd, name, sizeof name) && name[0] == '/' && strncmp(name, "/dev/", 5) != 0 &&
         strstr(name, "daemon.log") == NULL;
}

static int counts(pid_t task, const struct __ptrace_syscall_info *info) {
  if (number == 0) return 1;
  if (info->entry.nr >= MOST_CALLS) return 0;
  int kind = calls[info->entry.nr].kind;
  // splice writes to its third argument's file
  unsigned long long fd = info->entry.args[info->entry.nr == SYS_splice ? 2 : 0];
  return kind == PLAIN || (kind == FILES && on_file(task, fd));
}

static int is_main(pid_t task) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task/%d", target, task);
  return access(path, F_OK) == 0;
}

static void strike(pid_t task, const struct __ptrace_syscall_info *info) {
  const char *name = info->entry.nr < MOST_CALLS ? calls[info->entry.nr].name : NULL;
  struck = 1;
  if (name != NULL)
    snprintf(what, sizeof what, "%s %s", name, is_main(task) ? "main" : "child");
  else
    snprintf(what, sizeof what, "%llu %s", (unsigned long long)info->entry.nr, is_main(task) ? "main" : "child");
  if (number == 0) {
    kill(target, SIGKILL);
    return;
  }
  struct user_regs_struct registers;
  ptrace(PTRACE_GETREGS, task, 0, &registers);
  registers.orig_rax = -1ULL;
  ptrace(PTRACE_SETREGS, task, 0, &registers);
  *failing(task) = 1;
}

static void on_call(pid_t task) {
  struct __ptrace_syscall_info info;
  memset(&info, 0, sizeof info);
  if (ptrace(PTRACE_GET_SYSCALL_INFO, task, sizeof info, &info) <= 0) return;
  if (info.op == PTRACE_SYSCALL_INFO_ENTRY) {
    if (!struck && counts(task, &info) && ++seen == wanted) strike(task, &info);
  } else if (info.op == PTRACE_SYSCALL_INFO_EXIT && *failing(task)) {
    struct user_regs_struct registers;
    ptrace(PTRACE_GETREGS, task, 0, &registers);
    registers.rax = -(unsigned long long)number;
    ptrace(PTRACE_SETREGS, task, 0, &registers);
    *failing(task) = 0;
  }
}

// A child that has become somebody else's program is of no interest any more.
static int foreign(pid_t task) {
  char name[512];
  if (is_main(task)) return 0;
  return !linked("/proc/%d/exe", task, 0, name, sizeof name) || strstr(name, "/native-bin/stage") == NULL;
}

static void stopped(pid_t task, int status) {
  int signal_number = WSTOPSIG(status), event = status >> 16, pass = 0, how = PTRACE_SYSCALL;
  if (signal_number == (SIGTRAP | 0x80)) {
    on_call(task);
  } else if (event == PTRACE_EVENT_STOP) {
    if (signal_number != SIGTRAP) how = PTRACE_LISTEN;
  } else if (event == PTRACE_EVENT_EXEC) {
    if (foreign(task)) {
      forget(task);
      how = PTRACE_DETACH;
    }
  } else if (event == 0) {
    pass = signal_number;
  }
  ptrace(how, task, 0, pass);
}

static int seize(void) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/task", target);
  DIR *folder = opendir(path);
  if (folder == NULL) return -1;
  int options = PTRACE_O_TRACESYSGOOD | PTRACE_O_TRACEFORK | PTRACE_O_TRACEVFORK | PTRACE_O_TRACECLONE |
                PTRACE_O_TRACEEXEC;
  for (struct dirent *entry; (entry = readdir(folder)) != NULL;) {
    pid_t task = atoi(entry->d_name);
    if (task <= 0) continue;
    if (ptrace(PTRACE_SEIZE, task, 0, options) < 0 || ptrace(PTRACE_INTERRUPT, task, 0, 0) < 0) {
      closedir(folder);
      return -1;
    }
  }
  closedir(folder);
  return 0;
}

int main(int count, char **words) {
  if (count != 4) return 2;
  target = atoi(words[1]);
  wanted = atol(words[2]);
  number = strcmp(words[3], "kill") == 0 ? 0 : atoi(words[3]);
  struct sigaction action = {.sa_handler = end};
  sigaction(SIGTERM, &action, NULL);
  if (seize() < 0) {
    printf("gone\n");
    return 1;
  }
  printf("ready\n");
  fflush(stdout);
  while (!over) {
    int status;
    pid_t task = waitpid(-1, &status, __WALL);
    if (task < 0 && errno == ECHILD) break;
    if (task < 0) continue;
    if (WIFSTOPPED(status))
      stopped(task, status);
    else
      forget(task);
  }
  if (struck)
    printf("hit %s\n", what);
  else
    printf("miss %ld\n", seen);
  return 0;
}
