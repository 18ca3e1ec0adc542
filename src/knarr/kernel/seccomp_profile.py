"""Which system calls a workload may make: Docker's default profile (its rules of 2026-06), in our own form.

Everything not named here is refused with EPERM; what is newer than our tables with ENOSYS, so that programs
take their fallback. `compile_filter` in `seccomp` makes the program. Out of scope: other profiles.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

from knarr.kernel import namespaces

_ALLOWED = """
_llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod
chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range creat
dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait
epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64
fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl
fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs
fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake
futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid getegid32 geteuid
geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getppid
getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init
inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64
io_setup io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listmount listxattr listxattrat
llistxattr lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create
memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr
mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink
mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep
newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read
readahead readlink readlinkat readv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
removexattr removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction
rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
rt_sigtimedwait_time64 rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity
sched_getattr sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
semget semop semtimedop semtimedop_time64 sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid
setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat shmat
shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall socketpair
splice stat stat64 statfs statfs64 statmount statx symlink symlinkat sync sync_file_range syncfs sysinfo
tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime
timer_settime64 timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times
tkill truncate truncate64 ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat
utimensat_time64 utimes vfork vmsplice wait4 waitid waitpid write writev
"""

# what only one architecture knows
_BY_ARCHITECTURE = {
    "x86_64": "arch_prctl modify_ldt",
    "i386": "modify_ldt",
    "aarch64": "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls",
}

# what a capability makes useful, and so is let through with it
_BY_CAPABILITY = {
    "DAC_READ_SEARCH": "open_by_handle_at",
    "SYS_ADMIN": "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie "
    "lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree "
    "perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module init_module finit_module",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "SYS_RAWIO": "iopl ioperm",
    "SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "SYS_TTY_CONFIG": "vhangup",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYSLOG": "syslog",
    "BPF": "bpf",
    "PERFMON": "perf_event_open",
}

_NEW_NAMESPACES = (
    namespaces.CLONE_NEWNS
    | namespaces.CLONE_NEWCGROUP
    | namespaces.CLONE_NEWUTS
    | namespaces.CLONE_NEWIPC
    | namespaces.CLONE_NEWUSER
    | namespaces.CLONE_NEWPID
    | namespaces.CLONE_NEWNET
)
_AF_ALG = 38
_AF_VSOCK = 40
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)


@dataclass(frozen=True, slots=True)
class Allow:
    """Let it through."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail with this errno."""

    code: int


@dataclass(frozen=True, slots=True)
class AllowValues:
    """Let it through when the argument's low 32 bits are (or, with `unless`, are not) one of these.

    Low 32 bits: these arguments are C ints, so the kernel cuts the rest off, and a filter that looked at all
    64 could be walked around.
    """

    argument: int
    values: tuple[int, ...]
    unless: bool = False


@dataclass(frozen=True, slots=True)
class AllowUnlessBits:
    """Let it through when none of these bits is in the argument."""

    argument: int
    bits: int


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of all 64 bits of an argument; `MASKED_EQ`: `value` is the mask."""

    argument: int
    operator: str
    value: int
    second: int = 0


@dataclass(frozen=True, slots=True)
class Chain:
    """The first rule whose conditions all hold; values are what the filter returns."""

    rules: tuple[tuple[tuple[Condition, ...], int], ...]
    otherwise: int


Action = Allow | Refuse | AllowValues | AllowUnlessBits | Chain
DENIED = Refuse(errno.EPERM)
UNKNOWN = Refuse(errno.ENOSYS)


def rules(architecture: str, capabilities: frozenset[str]) -> dict[str, Action]:
    """name → action for one architecture; names that it doesn't have are the caller's to skip."""
    table: dict[str, Action] = dict.fromkeys(_ALLOWED.split(), Allow())
    table |= dict.fromkeys(_BY_ARCHITECTURE.get(architecture, "").split(), Allow())
    table["socket"] = AllowValues(0, (_AF_ALG, _AF_VSOCK), unless=True)
    table["personality"] = AllowValues(0, _PERSONALITIES)
    table["clone"] = AllowUnlessBits(0, _NEW_NAMESPACES)
    # its flags lie in memory, where a filter can't look: programs fall back to clone
    table["clone3"] = Refuse(errno.ENOSYS)
    for name in sorted(capabilities):
        table |= dict.fromkeys(_BY_CAPABILITY.get(name, "").split(), Allow())
    return table
