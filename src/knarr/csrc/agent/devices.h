/* The device list of the workload's group: the host compiled it (kernel/devices.py), as for a container on cgroup v2. */

static int bpf_call(int command, union bpf_attr *attr)
{
	return syscall(SYS_bpf, command, attr, sizeof *attr);
}

/* Without it root inside could read the guest's disks and its agent's port, which the container wall refuses. */
static int set_device_filter(struct request *q)
{
	int at = 0;
	struct record *r = request_next(q, "device_filter", &at);
	if (!r || !r->len)
		return 0;
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
	errno = saved;
	return result;
}
