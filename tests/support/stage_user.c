/* How a start's program looks users up, as a program of its own for sanitizers: ROOT USER → `uid gid groups…`, or exit 1. */
#define _GNU_SOURCE
#define main stage_main
#include "stage.c"
#undef main
#include "stage/user.c"

int main(int argc, char **argv)
{
	const char *none[] = { NULL };
	int root = argc == 3 ? open(argv[1], O_PATH | O_DIRECTORY) : -1;
	if (root < 0)
		return 99;
	if (resolve(root, argv[2], none))
		return 1;
	printf("%lld %lld", (long long)identity.uid, (long long)identity.gid);
	for (size_t i = 0; i < identity.group_count; i++)
		printf(" %lld", (long long)identity.groups[i]);
	return strlen(identity.home) > 4096 * 1024;
}
