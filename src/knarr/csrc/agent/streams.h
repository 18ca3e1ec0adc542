/* What comes from children: reports of their start, output; and the input that goes to them. */

static void on_report(struct session *s)
{
	char text[512], box[CMSG_SPACE(sizeof(int))];
	struct iovec iov = { text, sizeof text - 1 };
	struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = box, .msg_controllen = sizeof box };
	ssize_t n = recvmsg(s->report, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	struct cmsghdr *c = n > 0 ? CMSG_FIRSTHDR(&m) : NULL;
	int word[3];
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0 && text[0] == 'P' && n >= 8) {
		memcpy(&s->pid, text + 4, 4);
		send(s->report, "G", 1, MSG_NOSIGNAL);
	} else if (n > 0 && text[0] == 'T' && c) {
		memcpy(&s->master, CMSG_DATA(c), sizeof s->master);
		fcntl(s->master, F_SETFL, O_NONBLOCK);
	} else if (n >= 12 && text[0] == 'E') {
		memcpy(word, text, 12);
		text[n] = 0;
		s->started = -1;
		if (s == &workload) {
			workload_failed(word[1], word[2], text + 12);
		} else {
			send_error(s->id, word[1], word[2], text + 12);
			s->orphan = 1;
			s->exited |= !s->pid;
		}
	} else if (n <= 0) {
		close_fd(&s->report);
		if (s->started >= 0 && s->op == 'x') {
			s->started = 1;
			if (s == &workload && state == BOOTED) {
				state = RUNNING;
				status_line("started");
			}
			if (!s->orphan)
				frame_add(&output, G_STARTED, s->id, 0, NULL, 0);
		}
		session_ended(s);
	}
}

/* Bytes of a session's output: the workload's go to the ports, the others' to the daemon as far as its credit reaches. */
static void on_output(struct session *s, int *fd, int which)
{
	static unsigned char buffer[32768];
	size_t room = sizeof buffer;
	if (s != &workload && !s->orphan && room > s->credit)
		room = s->credit;
	ssize_t n = read(*fd, buffer, room);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n <= 0) { /* a pty answers EIO when its last user is gone */
		close_fd(fd);
		session_ended(s);
		return;
	}
	if (s == &workload) {
		sent[which] += n;
		bytes_add(&stream[which], buffer, n);
	} else if (!s->orphan) {
		s->credit -= n;
		frame_add(&output, G_DATA, s->id, which, buffer, n);
	}
}

static int wants_output(const struct session *s, int which)
{
	if (s == &workload)
		return stream[which].len < WINDOW;
	return s->orphan || (s->credit && output.len < QUEUE_MAX);
}

/* Hand input to the program and give the sender new credit for what it took. */
static void push_input(struct session *s)
{
	int fd = s->master >= 0 ? s->master : s->in;
	size_t before = s->input.len;
	if (fd >= 0 && bytes_flush(&s->input, fd) < 0) {
		bytes_clear(&s->input);
		close_fd(&s->in);
	}
	if (fd < 0 && s->report < 0)
		bytes_clear(&s->input); /* nobody will ever read it */
	if (s != &workload && !s->orphan && before > s->input.len)
		send_number(G_CREDIT, s->id, before - s->input.len);
	if (s->eof_in && !s->input.len)
		close_fd(&s->in);
}
