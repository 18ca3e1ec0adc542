/* The guest around the workload: modules, ports, disks, network, cgroup, clock and entropy. */

#define DISK "/disk"
#define LOWER "/lower"
#define ROOTFS "/root"
#define CGROUP "/sys/fs/cgroup/workload"

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = write(fd, text, strlen(text));
	int saved = errno;
	close(fd);
	errno = saved;
	return n < 0 ? -1 : 0;
}

/* The first bytes of a small file, NUL-terminated; the length, or -1. */
static ssize_t read_file(const char *path, char *buffer, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	ssize_t n = read(fd, buffer, size - 1);
	close(fd);
	buffer[n < 0 ? 0 : n] = 0;
	return n;
}

static void console(const char *format, ...)
{
	char line[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof line, format, args);
	va_end(args);
	int fd = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	if (fd >= 0) {
		if (write(fd, line, n < (int)sizeof line ? n : (int)sizeof line) < 0)
			(void)0;
		close(fd);
	}
}

/* Load the modules that the file lists, one path a line, in order. */
static void load_modules(const char *list)
{
	char text[8192], *save = NULL;
	if (read_file(list, text, sizeof text) <= 0)
		return;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		int fd = open(line, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST))
			console("<3>knarr: module %s: %s\n", line, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
}

/* Open the virtio-serial port of that name; -1 while there is none. */
static int open_port(const char *want, int flags)
{
	DIR *dir = opendir("/sys/class/virtio-ports");
	struct dirent *entry;
	int fd = -1;
	while (dir && fd < 0 && (entry = readdir(dir))) {
		char path[320], name[64];
		snprintf(path, sizeof path, "/sys/class/virtio-ports/%s/name", entry->d_name);
		if (entry->d_name[0] == '.' || read_file(path, name, sizeof name) <= 0)
			continue;
		name[strcspn(name, "\n")] = 0;
		if (strcmp(name, want))
			continue;
		snprintf(path, sizeof path, "/dev/%s", entry->d_name);
		fd = open(path, flags | O_CLOEXEC);
	}
	if (dir)
		closedir(dir);
	return fd;
}

static int wait_port(const char *name, int flags)
{
	for (int i = 0; i < 20000; i++) {
		int fd = open_port(name, flags);
		if (fd >= 0)
			return fd;
		usleep(i < 200 ? 200 : 1000);
	}
	console("<3>knarr: no port %s\n", name);
	return -1;
}

static void set_clock(long long ns)
{
	struct timespec now = { .tv_sec = ns / 1000000000, .tv_nsec = ns % 1000000000 };
	if (ns > 0)
		clock_settime(CLOCK_REALTIME, &now);
}

static int random_fd = -1;

static int open_random(void)
{
	if (random_fd < 0)
		random_fd = open("/dev/urandom", O_RDWR | O_CLOEXEC);
	return random_fd;
}

static void seed_random(struct record *seed)
{
	struct {
		int bits, size;
		char data[64];
	} pool = { .size = 64, .bits = 512 };
	if (!seed || seed->len != sizeof pool.data)
		return;
	memcpy(pool.data, seed->value, sizeof pool.data);
	int fd = open_random();
	if (fd < 0)
		return;
	ioctl(fd, RNDADDENTROPY, &pool);
	ioctl(fd, RNDRESEEDCRNG);
}

/* A template's disks are empty ones: what was read of them when they appeared must not be taken for the real ones'. */
static void forget_disk(char letter)
{
	char path[16];
	snprintf(path, sizeof path, "/dev/vd%c", letter);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	ioctl(fd, BLKFLSBUF);
	close(fd);
}

/* Where the tree, the pool map and the writable layer become one root: ROOTFS. 0 or -1, *step names what failed. */
static int mount_disks(const char **step)
{
	mkdir(LOWER, 0755);
	mkdir(DISK, 0755);
	mkdir(ROOTFS, 0755);
	for (int i = 0; i < 5000 && access("/dev/vdc", F_OK); i++)
		usleep(500);
	for (char *disk = "abc"; *disk; disk++)
		forget_disk(*disk);
	*step = "mount the image's tree";
	if (mount("/dev/vda", LOWER, "erofs", MS_RDONLY, "device=/dev/vdb") < 0)
		return -1;
	*step = "mount the writable layer";
	if (mount("/dev/vdc", DISK, "ext4", MS_NOATIME, "") < 0)
		return -1;
	if ((mkdir(DISK "/upper", 0755) < 0 && errno != EEXIST) || (mkdir(DISK "/work", 0755) < 0 && errno != EEXIST))
		return -1;
	*step = "mount the root";
	return mount("overlay", ROOTFS, "overlay", 0, "lowerdir=" LOWER ",upperdir=" DISK "/upper,workdir=" DISK "/work");
}

static int set_address(int fd, const char *link, unsigned long request, const char *address)
{
	struct ifreq ifr = { 0 };
	struct sockaddr_in *in = (void *)&ifr.ifr_addr;
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", link);
	in->sin_family = AF_INET;
	if (inet_pton(AF_INET, address, &in->sin_addr) != 1)
		return -1;
	return ioctl(fd, request, &ifr);
}

/* A card of a resumed machine still has its template's. */
static int set_mac(int fd, const char *link, const char *mac)
{
	struct ifreq ifr = { 0 };
	unsigned char *b = (void *)ifr.ifr_hwaddr.sa_data;
	if (!mac || sscanf(mac, "%hhx:%hhx:%hhx:%hhx:%hhx:%hhx", b, b + 1, b + 2, b + 3, b + 4, b + 5) != 6)
		return 0;
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", link);
	ifr.ifr_hwaddr.sa_family = 1; /* ARPHRD_ETHER */
	return ioctl(fd, SIOCSIFHWADDR, &ifr);
}

static int link_up(int fd, const char *link)
{
	struct ifreq ifr = { 0 };
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "%s", link);
	if (ioctl(fd, SIOCGIFFLAGS, &ifr) < 0)
		return -1;
	ifr.ifr_flags |= IFF_UP;
	return ioctl(fd, SIOCSIFFLAGS, &ifr);
}

static int default_route(int fd, const char *gateway)
{
	struct rtentry route = { .rt_flags = RTF_UP | RTF_GATEWAY };
	struct sockaddr_in *to = (void *)&route.rt_gateway;
	to->sin_family = AF_INET;
	((struct sockaddr_in *)&route.rt_dst)->sin_family = AF_INET;
	((struct sockaddr_in *)&route.rt_genmask)->sin_family = AF_INET;
	if (inet_pton(AF_INET, gateway, &to->sin_addr) != 1)
		return -1;
	return ioctl(fd, SIOCADDRT, &route);
}

static void wait_card(void)
{
	for (int i = 0; i < 2000 && access("/sys/class/net/eth0", F_OK); i++)
		usleep(500);
}

/* No IPv6: a template's card is up before it has a MAC of its own, and a port sends IPv4 only, whatever the wall. */
static int card_up(int fd)
{
	static int done;
	if (done)
		return 0;
	wait_card();
	write_file("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1");
	done = link_up(fd, "eth0") == 0;
	return done - 1;
}

static int set_up_eth0(int fd, struct request *q)
{
	struct ifreq ifr = { 0 };
	const char *gateway = request_text(q, "gateway");
	wait_card();
	snprintf(ifr.ifr_name, sizeof ifr.ifr_name, "eth0");
	if (set_mac(fd, "eth0", request_text(q, "mac")) < 0)
		return -1;
	ifr.ifr_mtu = request_number(q, "mtu", 1500);
	if (ifr.ifr_mtu != 1500 && ioctl(fd, SIOCSIFMTU, &ifr) < 0)
		return -1;
	if (set_address(fd, "eth0", SIOCSIFADDR, request_text(q, "address")) < 0 ||
	    set_address(fd, "eth0", SIOCSIFNETMASK, request_text(q, "netmask")) < 0 || card_up(fd) < 0)
		return -1;
	return gateway && *gateway ? default_route(fd, gateway) : 0;
}

/* What every start does to the network whatever its address; the sysctls are those that docker gives its containers. */
static void set_up_loopback(int fd)
{
	static int done;
	if (done)
		return;
	done = 1;
	write_file("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
	write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
	link_up(fd, "lo");
}

/* Static addresses from the start request. */
static int set_up_network(struct request *q)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), result = 0;
	if (fd < 0)
		return -1;
	set_up_loopback(fd);
	if (request_text(q, "address"))
		result = set_up_eth0(fd, q);
	int saved = errno;
	close(fd);
	errno = saved;
	return result;
}

static int set_limits(struct request *q)
{
	static const char *const files[][2] = { { "memory", "memory.max" }, { "swap", "memory.swap.max" },
		{ "cpu", "cpu.max" }, { "pids", "pids.max" }, { "low", "memory.low" } };
	enum { CPU_LIMIT = 2 };
	for (unsigned i = 0; i < sizeof files / sizeof *files; i++) {
		const char *value = request_text(q, files[i][0]);
		char path[128];
		snprintf(path, sizeof path, CGROUP "/%s", files[i][1]);
		if (value && i == CPU_LIMIT)
			write_file("/sys/fs/cgroup/cgroup.subtree_control", "+cpu");
		if (value && write_file(path, value) < 0 && errno != ENOENT)
			return -1;
	}
	return 0;
}

static int set_up_cgroup(struct request *q)
{
	if (mount("cgroup2", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "") < 0 && errno != EBUSY)
		return -1;
	/* one write, for each costs a grace period; +cpu comes with its first limit */
	if (write_file("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids +io") < 0)
		return -1;
	if (mkdir(CGROUP, 0755) < 0 && errno != EEXIST)
		return -1;
	return set_limits(q);
}

/* A counter such as `oom_kill` of a flat-keyed cgroup file; 0 when absent. */
static long long cgroup_counter(const char *file, const char *key)
{
	char path[128], text[4096];
	size_t length = strlen(key);
	snprintf(path, sizeof path, CGROUP "/%s", file);
	if (read_file(path, text, sizeof text) <= 0)
		return 0;
	if (!length)
		return atoll(text);
	for (char *line = text; line; line = strchr(line, '\n'), line += line != NULL)
		if (!strncmp(line, key, length) && line[length] == ' ')
			return atoll(line + length + 1);
	return 0;
}
