/* Loaded into the keeper: start a program in new namespaces without a copy of the keeper's memory.
 *
 * clone3(CLONE_VM | CLONE_VFORK) shares the memory for the few instructions until the exec, on a stack of its own, with every
 * signal blocked; the caller waits meanwhile. So no page table is copied and no page is written twice.
 * No C library: the interpreter's own knows nothing of this process.
 */
#include <fcntl.h>
#include <linux/sched.h>
#include <stdint.h>
#include <sys/syscall.h>

#ifndef SYS_clone3
#define SYS_clone3 435
#endif

struct request {
	uint64_t flags; /* CLONE_NEW…, CLONE_INTO_CGROUP */
	uint64_t cgroup;
	char **argv;
	int32_t program;
	int32_t kept[3]; /* these stay open in it; -1: none */
	int32_t error;	 /* of the exec */
};

enum { BLOCK_ALL, SETMASK = 2, STACK = 16384, EMPTY_PATH = 0x1000 };

static char stack[STACK] __attribute__((aligned(16)));
static char *no_environment[] = {0};

static long call(long number, long a, long b, long c, long d, long e)
{
	long result;
#if defined(__x86_64__)
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = number, x0 __asm__("x0") = a, x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c, x3 __asm__("x3") = d, x4 __asm__("x4") = e;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	result = x0;
#endif
	return result;
}

static long clone_onto(struct clone_args *arguments, void (*run)(struct request *), struct request *request)
{
	long result;
#if defined(__x86_64__)
	__asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\tmov %[request], %%rdi\n\tcall *%[run]\n\tud2\n1:"
			 : "=a"(result)
			 : "a"(SYS_clone3), "D"(arguments), "S"(sizeof *arguments), [run] "r"(run), [request] "r"(request)
			 : "rcx", "r11", "memory", "cc");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_clone3, x0 __asm__("x0") = (long)arguments;
	register long x1 __asm__("x1") = sizeof *arguments;
	__asm__ volatile("svc 0\n\tcbnz x0, 1f\n\tmov x0, %[request]\n\tblr %[run]\n\tbrk 0\n1:"
			 : "+r"(x0)
			 : "r"(x8), "r"(x1), [run] "r"(run), [request] "r"(request)
			 : "memory", "cc");
	result = x0;
#endif
	return result;
}

static void become(struct request *request)
{
	for (int i = 0; i < 3; i++)
		if (request->kept[i] >= 0)
			call(SYS_fcntl, request->kept[i], F_SETFD, 0, 0, 0);
	request->error = -call(SYS_execveat, request->program, (long)"", (long)request->argv, (long)no_environment, EMPTY_PATH);
	for (;;)
		call(SYS_exit_group, 127, 0, 0, 0, 0);
}

/* The pid, or -errno. `request->error` is not 0 if there was a process for a moment: the caller reaps it. */
long knarr_spawn(struct request *request)
{
	uint64_t all = ~0ULL, before;
	struct clone_args arguments = {
		.flags = request->flags | CLONE_VM | CLONE_VFORK,
		.exit_signal = 17, /* SIGCHLD */
		.stack = (uintptr_t)stack,
		.stack_size = sizeof stack,
		.cgroup = request->cgroup,
	};
	request->error = 0;
	call(SYS_rt_sigprocmask, BLOCK_ALL, (long)&all, (long)&before, sizeof all, 0);
	long pid = clone_onto(&arguments, become, request);
	call(SYS_rt_sigprocmask, SETMASK, (long)&before, 0, sizeof before, 0);
	return pid;
}
