/* Loaded into a QEMU that resumes a template: the template's memory is opened for reading only.
 *
 * QEMU 7.2 opens its memory file for writing even when it maps it privately, so whoever broke out of one guest could
 * write into the template of all others. Read-only mount and this together keep the template whole; the mount is the
 * wall, this only keeps QEMU from asking for more than it needs.
 * No C library: the program's own is used for errno, everything else is a system call.
 */
#include <fcntl.h>
#include <stdarg.h>
#include <sys/syscall.h>

#define TEMPLATE "/mem"

extern int *__errno_location(void);

static long call_openat(const char *path, long flags, long mode)
{
	long result;
#if defined(__x86_64__)
	register long r10 __asm__("r10") = mode;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(SYS_openat), "D"((long)AT_FDCWD), "S"(path), "d"(flags), "r"(r10)
			 : "rcx", "r11", "memory");
#elif defined(__aarch64__)
	register long x8 __asm__("x8") = SYS_openat, x0 __asm__("x0") = AT_FDCWD, x1 __asm__("x1") = (long)path;
	register long x2 __asm__("x2") = flags, x3 __asm__("x3") = mode;
	__asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3) : "memory");
	result = x0;
#endif
	return result;
}

static int is_template(const char *path)
{
	const char *want = TEMPLATE;
	while (*want && *want == *path) {
		want++;
		path++;
	}
	return *want == *path;
}

static int open_path(const char *path, int flags, int mode)
{
	if (is_template(path))
		flags = (flags & ~O_ACCMODE) | O_RDONLY;
	long result = call_openat(path, flags, mode);
	if (result < 0) {
		*__errno_location() = -result;
		return -1;
	}
	return result;
}

int open64(const char *path, int flags, ...)
{
	va_list args;
	va_start(args, flags);
	int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(args, int) : 0;
	va_end(args);
	return open_path(path, flags, mode);
}

/* what a checked build calls when it passes no mode */
int __open64_2(const char *path, int flags)
{
	return open_path(path, flags, 0);
}
