/* The agent's wire: frames between host and guest, records inside messages, a growable byte queue.
 *
 * frame   u16 payload length, u8 type, u8 flags, u32 session (little endian), then the payload: at most 4096 bytes
 *         in all, so that the host sends each with one send(2) and a killed daemon never leaves half a frame.
 *         flags: 1 = the message goes on in the next frame; bits 4-7 of DATA = the stream (1 out, 2 err)
 * message the payloads of its frames; START, EXEC, ASK, RESULT, ENDED and ERROR hold records:
 *         u32 length of what follows, then the name, a NUL and the value. A list is a repeated name.
 *
 *  host → guest                              guest → host
 *  HELLO 1   nonce (16 bytes)                a marker "KNSYNC\r\n" + nonce, then HELLO 33 {version, state}
 *  START 2   the workload                    STARTED 34, ENDED 35 {code, oom, out, err}
 *  SIGNAL 3  session, u8                     EXIT 38 session, u32 code
 *  RESIZE 4  session, u16 columns, u16 rows
 *  EXEC 5    session, records                STARTED 34 session | ERROR 40 session {errno, code, text}
 *  DATA 6    session, bytes                  DATA 36 session, bytes
 *  EOF 7     session: end of its stdin
 *  CREDIT 8  session, u32                    CREDIT 37 session, u32
 *  CLOSE 9   session: nobody reads any more
 *  ASK 10    session, {op, …}                RESULT 39 session, records | ERROR 40
 *  OFF 11    power off now: the host has all output
 *
 * Both sides begin with 64 KiB of credit for each session and direction. A new daemon's HELLO ends every session
 * of the one before it; what the guest had queued for that one is dropped, the marker says where the new life begins.
 */
#define FRAME_MAX 4096
#define HEADER 8
#define PAYLOAD_MAX (FRAME_MAX - HEADER)
#define MESSAGE_MAX (8u << 20)
#define WINDOW 65536

enum { H_HELLO = 1, H_START, H_SIGNAL, H_RESIZE, H_EXEC, H_DATA, H_EOF, H_CREDIT, H_CLOSE, H_ASK, H_OFF };
enum { G_HELLO = 33, G_STARTED, G_ENDED, G_DATA, G_CREDIT, G_EXIT, G_RESULT, G_ERROR };

struct bytes {
	unsigned char *data;
	size_t start, len, cap;
};

static void bytes_reserve(struct bytes *b, size_t more)
{
	if (b->start && b->start + b->len + more > b->cap) {
		memmove(b->data, b->data + b->start, b->len);
		b->start = 0;
	}
	if (b->len + more > b->cap) {
		b->cap = (b->len + more) * 2;
		b->data = realloc(b->data, b->cap);
		if (!b->data)
			abort();
	}
}

static void bytes_add(struct bytes *b, const void *data, size_t len)
{
	if (!len)
		return; /* there may be no data at all then */
	bytes_reserve(b, len);
	memcpy(b->data + b->start + b->len, data, len);
	b->len += len;
}

static void bytes_skip(struct bytes *b, size_t len)
{
	b->start += len;
	b->len -= len;
	if (!b->len)
		b->start = 0;
}

static void bytes_clear(struct bytes *b)
{
	b->start = b->len = 0;
}

/* Write what the descriptor takes now. 0, or -1 when nothing can ever be written again. */
static int bytes_flush(struct bytes *b, int fd)
{
	while (b->len) {
		ssize_t n = write(fd, b->data + b->start, b->len > 32768 ? 32768 : b->len);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n <= 0)
			return -1;
		bytes_skip(b, n);
	}
	return 0;
}

static void put16(unsigned char *p, unsigned v)
{
	p[0] = v;
	p[1] = v >> 8;
}

static void put32(unsigned char *p, unsigned v)
{
	put16(p, v);
	put16(p + 2, v >> 16);
}

static unsigned get16(const unsigned char *p)
{
	return p[0] | p[1] << 8;
}

static unsigned get32(const unsigned char *p)
{
	return get16(p) | (unsigned)get16(p + 2) << 16;
}

static void frame_add(struct bytes *q, int type, unsigned session, int stream, const void *data, size_t len)
{
	const unsigned char *p = data;
	do {
		unsigned char h[HEADER];
		size_t n = len > PAYLOAD_MAX ? PAYLOAD_MAX : len;
		put16(h, n);
		h[2] = type;
		h[3] = (len > n ? 1 : 0) | stream << 4;
		put32(h + 4, session);
		bytes_add(q, h, HEADER);
		bytes_add(q, p, n);
		p += n;
		len -= n;
	} while (len);
}

static void record_add(struct bytes *b, const char *name, const void *value, size_t len)
{
	unsigned char h[4];
	put32(h, strlen(name) + 1 + len);
	bytes_add(b, h, 4);
	bytes_add(b, name, strlen(name) + 1);
	bytes_add(b, value, len);
	/* a NUL after each record would not be seen by the peer, so strings end where their length says */
}

static void record_number(struct bytes *b, const char *name, long long value)
{
	char text[32];
	record_add(b, name, text, snprintf(text, sizeof text, "%lld", value));
}

static void record_text(struct bytes *b, const char *name, const char *value)
{
	record_add(b, name, value, strlen(value));
}

/* A parsed message: every value is a NUL-terminated copy of its own. */
struct record {
	char *name, *value;
	size_t len;
};

struct request {
	struct record *r;
	int n;
};

static struct request *request_parse(const unsigned char *p, size_t len)
{
	struct request *q = calloc(1, sizeof *q);
	int cap = 0;
	while (q && len >= 4) {
		size_t size = get32(p);
		const unsigned char *body = p + 4;
		if (size > len - 4 || !memchr(body, 0, size))
			break;
		if (q->n == cap) {
			cap = cap ? cap * 2 : 64;
			q->r = realloc(q->r, cap * sizeof *q->r);
			if (!q->r)
				abort();
		}
		char *copy = malloc(size + 1);
		if (!copy)
			abort();
		memcpy(copy, body, size);
		copy[size] = 0;
		struct record *r = &q->r[q->n++];
		r->name = copy;
		r->value = copy + strlen(copy) + 1;
		r->len = size - (r->value - copy);
		p += 4 + size;
		len -= 4 + size;
	}
	return q;
}

static void request_free(struct request *q)
{
	for (int i = 0; q && i < q->n; i++)
		free(q->r[i].name);
	if (q)
		free(q->r);
	free(q);
}

/* The next record of that name at or after *at; *at moves behind it. */
static struct record *request_next(struct request *q, const char *name, int *at)
{
	while (*at < q->n) {
		struct record *r = &q->r[(*at)++];
		if (!strcmp(r->name, name))
			return r;
	}
	return NULL;
}

static const char *request_text(struct request *q, const char *name)
{
	int at = 0;
	struct record *r = request_next(q, name, &at);
	return r ? r->value : NULL;
}

static long long request_number(struct request *q, const char *name, long long absent)
{
	const char *text = request_text(q, name);
	return text ? strtoll(text, NULL, 10) : absent;
}

/* All values of a name as an argv-like array. */
static char **request_list(struct request *q, const char *name)
{
	char **list = calloc(q->n + 1, sizeof *list);
	struct record *r;
	int at = 0, n = 0;
	if (!list)
		abort();
	while ((r = request_next(q, name, &at)))
		list[n++] = r->value;
	return list;
}
