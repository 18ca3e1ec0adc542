/* The device list of the workload's group: the host compiled it (kernel/devices.py), as for a container on cgroup v2. */

static int bpf_call(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof *attr);
}

static struct record filter_now; /* what is attached */

static int filter_attach(struct record *r)
{
	union bpf_attr load = { .prog_type = BPF_PROG_TYPE_CGROUP_DEVICE, .insn_cnt = r->len / sizeof(struct bpf_insn) };
	load.insns = (unsigned long)r->value;
	load.license = (unsigned long)"Apache-2.0";
	int program = bpf_call(BPF_PROG_LOAD, &load);
	int group = open(CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	union bpf_attr attach = { .attach_type = BPF_CGROUP_DEVICE };
	attach.target_fd = group;
	attach.attach_bpf_fd = program;
	int result = program < 0 || group < 0 ? -1 : bpf_call(BPF_PROG_ATTACH, &attach);
	int saved = errno;
	if (program >= 0)
		close(program);
	if (group >= 0)
		close(group);
	if (result == 0) {
		filter_now.value = malloc(r->len);
		if (!filter_now.value)
			abort();
		filter_now.len = r->len;
		memcpy(filter_now.value, r->value, r->len);
	}
	errno = saved;
	return result;
}

static int filter_detach(void)
{
	int group = open(CGROUP, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	union bpf_attr detach = { .attach_type = BPF_CGROUP_DEVICE };
	detach.target_fd = group;
	int result = group < 0 ? -1 : bpf_call(BPF_PROG_DETACH, &detach);
	int saved = errno;
	if (group >= 0)
		close(group);
	filter_now.len = 0;
	errno = saved;
	return result;
}

/* Without it root inside could read the guest's disks and its agent's port, which the container wall refuses. A template has the
 * one that nearly all have; a start that wants none or another loses it first. */
static int set_device_filter(struct request *q)
{
	int at = 0;
	struct record *r = request_next(q, "device_filter", &at), none = { 0 };
	if (!r)
		r = &none;
	if (r->len == filter_now.len && (!r->len || !memcmp(r->value, filter_now.value, r->len)))
		return 0;
	if (filter_now.len && filter_detach() < 0)
		return -1;
	return r->len ? filter_attach(r) : 0;
}
