/* What the host says: frames of the control port and of the stdin port. */

static void on_hello(const unsigned char *nonce, size_t len)
{
	unsigned char body[2] = { VERSION, state };
	for (struct session *s = sessions; s; s = s->next)
		if (s != &workload) {
			s->orphan = 1;
			s->eof_in = 1;
			bytes_clear(&s->input);
			push_input(s);
		}
	bytes_clear(&output);
	bytes_add(&output, "KNSYNC\r\n", 8);
	bytes_add(&output, nonce, len);
	frame_add(&output, G_HELLO, 0, 0, body, sizeof body);
	if (state == RUNNING)
		frame_add(&output, G_STARTED, 0, 0, NULL, 0);
}

static void start_failed(const char *step)
{
	char text[300];
	int error = errno;
	snprintf(text, sizeof text, "%s: %s", step, strerror(error));
	workload_failed(error, 125, text);
}

/* Mounts that are made in the agent's own tree, such as folders of the host of which only one file is wanted. */
static int mount_outside(struct request *q)
{
	struct record *r;
	int at = 0;
	while ((r = request_next(q, "mount", &at))) {
		struct mount_fields m = mount_parse(r);
		if (strcmp(m.place, "out"))
			continue;
		make_target(m.target, 0);
		if (mount(m.source, m.target, m.type, m.flags, m.data) < 0)
			return -1;
	}
	return 0;
}

/* All that a start needs and that is the same for every one of its class, before the machine is saved as a template. */
static int prepare(struct request *q)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), failed = 0;
	struct request none = { 0 };
	if (fd < 0)
		return -1;
	set_up_loopback(fd);
	if (request_number(q, "network", 0)) {
		load_modules("/boot/modules.net");
		failed = card_up(fd);
	}
	close(fd);
	open_random();
	open_streams();
	return failed || set_up_cgroup(&none) < 0 ? -1 : set_device_filter(q);
}

static void on_start(struct request *q)
{
	const char *step = "";
	int at = 0;
	if (workload.q) {
		request_free(q);
		return;
	}
	workload.q = q;
	workload.op = 'x';
	set_clock(request_number(q, "time", 0));
	seed_random(request_next(q, "seed", &at));
	if (request_number(q, "folders", 0))
		load_modules("/boot/modules.folders");
	if (!ready_done && mount_disks(&step) < 0)
		return start_failed(step);
	if (request_number(q, "idle", 0)) {
		state = RUNNING; /* only archives are wanted of it */
		frame_add(&output, G_STARTED, 0, 0, NULL, 0);
		return;
	}
	if (!ready_done && join_network(q) < 0)
		return start_failed("set up the network");
	if (set_up_cgroup(q) < 0)
		return start_failed("set up the cgroup");
	if (set_device_filter(q) < 0)
		return start_failed("set the list of devices");
	if (write_etc(q) < 0 || mount_outside(q) < 0)
		return start_failed("prepare the mounts");
	open_streams();
	stdin_port = request_number(q, "stdin", 0) ? stdin_ready : -1;
	if (session_start(&workload) < 0)
		return start_failed("start the workload");
}

static void on_session(unsigned id, struct request *q, int op)
{
	struct session *s = session_find(id);
	if (s || !id || state != RUNNING) {
		send_error(id, s ? EEXIST : ESRCH, 125, "the workload does not run");
		request_free(q);
		return;
	}
	s = calloc(1, sizeof *s);
	if (!s)
		abort();
	s->id = id;
	s->op = op;
	s->q = q;
	s->report = s->in = s->out[0] = s->out[1] = s->master = -1;
	s->credit = WINDOW;
	s->next = sessions;
	sessions = s;
	if (session_start(s) < 0) {
		send_error(id, errno, 125, "start the process");
		session_drop(s);
	}
}

static void counters(unsigned id)
{
	struct bytes b = { 0 };
	char text[4096];
	record_number(&b, "cpu_ns", cgroup_counter("cpu.stat", "usage_usec") * 1000);
	record_number(&b, "memory", cgroup_counter("memory.current", "") - cgroup_counter("memory.stat", "inactive_file"));
	record_number(&b, "pids", cgroup_counter("pids.current", ""));
	if (read_file(CGROUP "/io.stat", text, sizeof text) > 0)
		record_text(&b, "io", text);
	if (read_file("/proc/net/dev", text, sizeof text) > 0)
		record_text(&b, "net", text);
	send_records(G_RESULT, id, &b);
}

static void answer(unsigned id, int failed, const char *what)
{
	struct bytes b = { 0 };
	if (failed)
		send_error(id, errno, 125, what);
	else
		send_records(G_RESULT, id, &b);
}

static void on_ask(unsigned id, struct request *q)
{
	const char *op = request_text(q, "op");
	if (op && (!strcmp(op, "get") || !strcmp(op, "put") || !strcmp(op, "lstat") || !strcmp(op, "diff") ||
		   !strcmp(op, "tree") || !strcmp(op, "upper"))) {
		on_session(id, q, op[0] == 'l' ? 's' : op[0]);
		return;
	}
	if (op && !strcmp(op, "stats")) {
		counters(id);
	} else if (op && !strcmp(op, "top")) {
		struct bytes b = { 0 };
		processes(&b);
		send_records(G_RESULT, id, &b);
	} else if (op && !strcmp(op, "prepare")) {
		answer(id, state == BOOTED ? prepare(q) : (errno = EBUSY, -1), "prepare");
	} else if (op && !strcmp(op, "ready")) {
		const char *step = "ready";
		answer(id, state == BOOTED && !ready_done ? make_ready(q, &step) : (errno = EBUSY, -1), step);
	} else if (op && !strcmp(op, "update")) {
		answer(id, set_limits(q), "set the limits");
	} else if (op && (!strcmp(op, "freeze") || !strcmp(op, "thaw"))) {
		answer(id, freeze(op[0] == 'f'), "freeze the workload");
	} else {
		send_error(id, EINVAL, 125, "unknown question");
	}
	request_free(q);
}

static void on_signal(unsigned id, int signum)
{
	struct session *s = session_find(id);
	if (s && s->pid > 0 && !s->exited)
		kill(s->pid, signum);
	else if (s == &workload && state == RUNNING && !s->pid) {
		state = ENDED; /* an agent without workload ends by any signal */
		power_off_at = now_ms();
	}
}

static void on_resize(unsigned id, unsigned columns, unsigned rows)
{
	struct session *s = session_find(id);
	struct winsize size = { .ws_col = columns, .ws_row = rows };
	if (s && s->master >= 0)
		ioctl(s->master, TIOCSWINSZ, &size);
}

static void on_data(unsigned id, const unsigned char *p, size_t len)
{
	struct session *s = session_find(id);
	if (!s || s == &workload || s->orphan || s->input.len + len > 2 * WINDOW)
		return;
	bytes_add(&s->input, p, len);
	push_input(s);
}

static void on_small(int type, unsigned id, const unsigned char *p, size_t len)
{
	struct session *s = session_find(id);
	if (type == H_HELLO && len == 16)
		on_hello(p, len);
	else if (type == H_SIGNAL && len == 1)
		on_signal(id, p[0]);
	else if (type == H_RESIZE && len == 4)
		on_resize(id, get16(p), get16(p + 2));
	else if (type == H_DATA)
		on_data(id, p, len);
	else if (type == H_CREDIT && len == 4 && s)
		s->credit += get32(p);
	else if (type == H_OFF && state == ENDED)
		power_off_at = now_ms();
	else if ((type == H_EOF || type == H_CLOSE) && s && s != &workload) {
		s->eof_in = 1;
		s->orphan |= type == H_CLOSE;
		push_input(s);
	}
}

static void on_frame(const unsigned char *h, const unsigned char *p, size_t len)
{
	int type = h[2], more = h[3] & 1;
	unsigned id = get32(h + 4);
	if (type == H_HELLO) /* a new daemon: what the old one began to say is void */
		bytes_clear(&message);
	if (type != H_START && type != H_EXEC && type != H_ASK) {
		on_small(type, id, p, len);
		return;
	}
	if (message.len && (message_type != type || message_session != id))
		bytes_clear(&message);
	message_type = type;
	message_session = id;
	if (message.len + len > MESSAGE_MAX) {
		bytes_clear(&message);
		return;
	}
	bytes_add(&message, p, len);
	if (more)
		return;
	struct request *q = request_parse(message.data + message.start, message.len);
	bytes_clear(&message);
	if (type == H_START)
		on_start(q);
	else if (type == H_EXEC)
		on_session(id, q, 'x');
	else
		on_ask(id, q);
}

static void on_control(void)
{
	unsigned char buffer[16384];
	ssize_t n = read(control, buffer, sizeof buffer);
	if (n <= 0)
		return;
	bytes_add(&input, buffer, n);
	while (input.len >= HEADER) {
		unsigned char *h = input.data + input.start;
		size_t len = get16(h);
		if (len > PAYLOAD_MAX) { /* can't come from our host: frames are sent whole */
			bytes_clear(&input);
			return;
		}
		if (input.len < HEADER + len)
			return;
		on_frame(h, h + HEADER, len);
		bytes_skip(&input, HEADER + len);
	}
}

/* stdin: u16 length and bytes; length 0 is the end. Read only while the workload takes it, so that the sender waits. */
static void on_stdin(void)
{
	unsigned char buffer[16384];
	ssize_t n = read(stdin_port, buffer, sizeof buffer);
	if (n <= 0)
		return;
	bytes_add(&stdin_bytes, buffer, n);
	while (stdin_bytes.len >= 2) {
		unsigned char *p = stdin_bytes.data + stdin_bytes.start;
		size_t len = get16(p);
		if (stdin_bytes.len < 2 + len)
			break;
		if (!len)
			workload.eof_in = 1;
		else if (!workload.eof_in)
			bytes_add(&workload.input, p + 2, len);
		bytes_skip(&stdin_bytes, 2 + len);
	}
	push_input(&workload);
}
