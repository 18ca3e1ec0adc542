/* The agent's main loop on a socket (its descriptor) as nobody, so that what a frame asks of the kernel is refused. */
#define _GNU_SOURCE
#include <grp.h>
#define main agent_main
#include "agent.c"
#undef main

int main(int argc, char **argv)
{
	sigset_t set;
	if (argc != 3 || chroot(argv[1]) < 0 || chdir("/") < 0 || setgroups(0, NULL) < 0)
		return 99;
	if (setresgid(65534, 65534, 65534) < 0 || setresuid(65534, 65534, 65534) < 0)
		return 99;
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	control = atoi(argv[2]);
	fcntl(control, F_SETFL, O_NONBLOCK);
	status_port = open("/status", O_WRONLY);
	state = RUNNING;
	loop(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}
