/* The agent's unpacking of archives as a program of its own, for sanitizers: ROOT is entered, stdin goes to ROOT/t. */
#define _GNU_SOURCE
#include <grp.h>
#define main agent_main
#include "agent.c"
#undef main

int main(int argc, char **argv)
{
	if (argc != 2 || chroot(argv[1]) < 0 || chdir("/") < 0)
		return 99;
	unpack("/t");
	return 0;
}
