/* The upstream that the gateway bench stands on: OpenAI's chat dialect on loopback, as fast as one
 * thread with epoll can be, so that what is measured is never this.
 *
 * In: a port. Out: answers. The rules that live only here: what is answered depends on the model's
 * name and on nothing else; requests on one connection are answered in turn, however they arrive.
 *
 *     fast        at once, a whole answer of about 450 bytes; streamed: 10 chunks in one go
 *     burst-N     streamed: N chunks in one go (200 when N is not said)
 *     paced-N     streamed: N chunks, 50 a second, each with the time it was sent (100)
 *     slow-N      a whole answer after N milliseconds (20)
 *     large-N     at once, a whole answer of N KB (100)
 *     echo        says how many bytes the request had
 *     fail-N      status N (503)
 *     cut         streamed: three chunks, then the connection is closed
 *     GET /v1/models      the names above
 *     GET /stats          {"requests": how many chats arrived}
 *
 * A time is "@" and CLOCK_MONOTONIC in nanoseconds. The usage event comes when it is asked for.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { FIRST_INPUT = 64 << 10, MAX_INPUT = 2 << 20, EVENTS = 256, MAX_NUMBER = 1000000 };
static const uint64_t PERIOD_NS = 20000000; /* of a paced stream */

typedef struct Bytes {
    char *data;
    size_t size, room;
} Bytes;

typedef struct Connection {
    int fd, is_writing, is_last; /* is_last: close when the answer has left */
    Bytes in, out;
    size_t sent;         /* of out */
    uint64_t due_ns;     /* when the next timed piece leaves; 0: none */
    long left;           /* chunks of a paced stream still to come; -1: a whole answer */
    int with_usage;
    struct Connection *before, *after; /* among those with a due time */
} Connection;

static int poller, timer;
static Connection *timed;
static uint64_t armed_ns, requests, streams;
static Bytes whole; /* the usual answer, head and all */

static const char USAGE[] =
    "\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":12,\"total_tokens\":36}";
static const char ANSWER[] = "Brasilia is the capital of Brazil; the city was founded on 21 April 1960.";
static const char CHUNK[] =
    "data: {\"id\":\"chatcmpl-bench00000000000000000001\",\"object\":\"chat.completion.chunk\","
    "\"created\":1790000000,\"model\":\"%s\",\"choices\":[{\"index\":0,\"delta\":{%s},"
    "\"finish_reason\":%s}]}\n\n";

static void *check(void *memory) {
    if (memory == NULL) {
        perror("out of memory");
        exit(1);
    }
    return memory;
}

static void reserve(Bytes *bytes, size_t more) {
    if (bytes->size + more <= bytes->room) return;
    bytes->room = bytes->room ? bytes->room : 4096;
    while (bytes->size + more > bytes->room) bytes->room *= 2;
    bytes->data = check(realloc(bytes->data, bytes->room));
}

static void append(Bytes *bytes, const char *data, size_t size) {
    reserve(bytes, size);
    memcpy(bytes->data + bytes->size, data, size);
    bytes->size += size;
}

#define append_format(bytes, ...) \
    do { \
        char text_[1024]; \
        append(bytes, text_, (size_t)snprintf(text_, sizeof text_, __VA_ARGS__)); \
    } while (0)

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Answers */

static void append_body(Bytes *out, const char *status, const char *body, size_t size) {
    append_format(out, "HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n",
                  status, size);
    append(out, body, size);
}

static void append_whole(Bytes *out, const char *model, const char *content, size_t size) {
    Bytes body = {0};
    append_format(&body,
                  "{\"id\":\"chatcmpl-bench00000000000000000001\",\"object\":\"chat.completion\","
                  "\"created\":1790000000,\"model\":\"%s\",\"system_fingerprint\":\"fp_bench\","
                  "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"",
                  model);
    append(&body, content, size);
    append_format(&body, "\",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"stop\"}],%s}",
                  USAGE);
    append_body(out, "200 OK", body.data, body.size);
    free(body.data);
}

static void append_chunk(Bytes *out, const char *event, size_t size) {
    append_format(out, "%zx\r\n", size);
    append(out, event, size);
    append(out, "\r\n", 2);
}

static void append_event(Bytes *out, const char *model, const char *delta, const char *finish) {
    char event[1024];
    append_chunk(out, event, (size_t)snprintf(event, sizeof event, CHUNK, model, delta, finish));
}

static void append_delta(Bytes *out, const char *model, uint64_t stamp_ns) {
    char delta[80];
    if (stamp_ns)
        snprintf(delta, sizeof delta, "\"content\":\"@%llu \"", (unsigned long long)stamp_ns);
    else
        snprintf(delta, sizeof delta, "\"content\":\"Brazil \"");
    append_event(out, model, delta, "null");
}

static void append_stream_head(Bytes *out, const char *model) {
    static const char HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                               "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
    append(out, HEAD, sizeof HEAD - 1);
    append_event(out, model, "\"role\":\"assistant\",\"content\":\"\"", "null");
}

static void append_stream_end(Bytes *out, const char *model, int with_usage) {
    append_event(out, model, "", "\"stop\"");
    if (with_usage) {
        char event[512];
        int size = snprintf(event, sizeof event,
                            "data: {\"id\":\"chatcmpl-bench00000000000000000001\",\"object\":"
                            "\"chat.completion.chunk\",\"created\":1790000000,\"model\":\"%s\","
                            "\"choices\":[],%s}\n\n",
                            model, USAGE);
        append_chunk(out, event, (size_t)size);
    }
    append_chunk(out, "data: [DONE]\n\n", 14);
    append(out, "0\r\n\r\n", 5);
}

static void append_models(Bytes *out) {
    static const char *names[] = {"fast", "burst", "paced", "slow", "large", "echo", "fail", "cut"};
    Bytes body = {0};
    append_format(&body, "{\"object\":\"list\",\"data\":[");
    for (size_t n = 0; n < sizeof names / sizeof *names; n++)
        append_format(&body, "%s{\"id\":\"%s\",\"object\":\"model\",\"created\":1,\"owned_by\":\"bench\"}",
                      n ? "," : "", names[n]);
    append_format(&body, "]}");
    append_body(out, "200 OK", body.data, body.size);
    free(body.data);
}

/* Connections */

static void forget_due(Connection *connection) {
    if (!connection->due_ns) return;
    if (connection->before) connection->before->after = connection->after;
    else timed = connection->after;
    if (connection->after) connection->after->before = connection->before;
    connection->due_ns = 0;
}

static void set_due(Connection *connection, uint64_t due_ns) {
    connection->due_ns = due_ns;
    connection->before = NULL;
    connection->after = timed;
    if (timed) timed->before = connection;
    timed = connection;
}

static void end(Connection *connection) {
    forget_due(connection);
    close(connection->fd);
    free(connection->in.data);
    free(connection->out.data);
    free(connection);
}

/* 0: the connection is gone. */
static int flush(Connection *connection) {
    Bytes *out = &connection->out;
    while (connection->sent < out->size) {
        ssize_t sent = send(connection->fd, out->data + connection->sent,
                            out->size - connection->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno != EAGAIN) {
            end(connection);
            return 0;
        }
        if (sent < 0) break;
        connection->sent += (size_t)sent;
    }
    int is_left = connection->sent < out->size;
    if (!is_left) {
        out->size = connection->sent = 0;
        if (connection->is_last && !connection->due_ns) {
            end(connection);
            return 0;
        }
    }
    if (is_left != connection->is_writing) {
        connection->is_writing = is_left;
        struct epoll_event event = {.events = EPOLLIN | (is_left ? EPOLLOUT : 0)};
        event.data.ptr = connection;
        epoll_ctl(poller, EPOLL_CTL_MOD, connection->fd, &event);
    }
    return 1;
}

/* The value of `"model": "..."` without what an openbr or a proxy puts before it; and its number. */
static void read_model(const char *body, size_t size, char *name, size_t room, long *number) {
    static const char KEY[] = "\"model\"";
    const char *limit = body + size, *at = memmem(body, size, KEY, sizeof KEY - 1);
    *number = -1;
    snprintf(name, room, "fast");
    if (at == NULL) return;
    for (at += sizeof KEY - 1; at < limit && (*at == ':' || *at == ' '); at++) {}
    if (at == limit || *at++ != '"') return;
    const char *close = memchr(at, '"', (size_t)(limit - at));
    if (close == NULL) return;
    for (const char *one = at; one < close; one++)
        if (*one == '/') at = one + 1;
    size_t length = (size_t)(close - at) < room - 1 ? (size_t)(close - at) : room - 1;
    memcpy(name, at, length);
    name[length] = 0;
    char *dash = strchr(name, '-');
    if (dash) {
        *number = strtol(dash + 1, NULL, 10);
        if (*number < 0 || *number > MAX_NUMBER) *number = -1;
        *dash = 0;
    }
}

static int is_true(const char *body, size_t size, const char *key) {
    const char *limit = body + size, *at = memmem(body, size, key, strlen(key));
    if (at == NULL) return 0;
    for (at += strlen(key); at < limit && (*at == ':' || *at == ' '); at++) {}
    return limit - at >= 4 && memcmp(at, "true", 4) == 0;
}

static void answer_stream(Connection *connection, const char *model, long number) {
    Bytes *out = &connection->out;
    append_stream_head(out, model);
    if (strcmp(model, "paced") == 0) {
        connection->left = number < 0 ? 100 : number;
        /* Streams that begin together must not tick together. */
        double share = (double)streams++ * 0.6180339887;
        share -= (double)(uint64_t)share;
        set_due(connection, now_ns() + (uint64_t)((double)PERIOD_NS * share));
    } else if (strcmp(model, "cut") == 0) {
        for (int n = 0; n < 3; n++) append_delta(out, model, 0);
        connection->is_last = 1;
    } else {
        if (number < 0) number = strcmp(model, "burst") == 0 ? 200 : 10;
        while (number-- > 0) append_delta(out, model, 0);
        append_stream_end(out, model, connection->with_usage);
    }
}

static void answer_chat(Connection *connection, const char *body, size_t size) {
    char model[64], content[64];
    long number;
    Bytes *out = &connection->out;
    requests++;
    read_model(body, size, model, sizeof model, &number);
    connection->with_usage = is_true(body, size, "\"include_usage\"");
    if (strcmp(model, "fail") == 0) {
        static const char BODY[] = "{\"error\":{\"message\":\"as asked\",\"type\":\"server_error\","
                                   "\"param\":null,\"code\":null}}";
        snprintf(content, sizeof content, "%ld As Asked", number < 0 ? 503 : number);
        append_body(out, content, BODY, sizeof BODY - 1);
    } else if (is_true(body, size, "\"stream\"")) {
        answer_stream(connection, model, number);
    } else if (strcmp(model, "slow") == 0) {
        connection->left = -1;
        set_due(connection, now_ns() + (uint64_t)(number < 0 ? 20 : number) * 1000000u);
    } else if (strcmp(model, "large") == 0) {
        size_t length = (size_t)(number < 0 ? 100 : number) << 10;
        char *text = check(malloc(length));
        memset(text, 'b', length);
        append_whole(out, model, text, length);
        free(text);
    } else if (strcmp(model, "echo") == 0) {
        int length = snprintf(content, sizeof content, "%zu bytes", size);
        append_whole(out, model, content, (size_t)length);
    } else {
        append(out, whole.data, whole.size);
    }
}

/* Whatever is due on this connection: one chunk of a stream, its end, or the late answer. */
static void answer_due(Connection *connection, uint64_t now) {
    uint64_t due = connection->due_ns;
    if (connection->left > 0) {
        append_delta(&connection->out, "paced", now);
        if (--connection->left > 0) {
            /* The clock of the stream does not drift with the delays of this process. */
            forget_due(connection);
            set_due(connection, due + PERIOD_NS);
            return;
        }
        append_stream_end(&connection->out, "paced", connection->with_usage);
    } else if (connection->left == 0) {
        append_stream_end(&connection->out, "paced", connection->with_usage);
    } else {
        append(&connection->out, whole.data, whole.size);
    }
    forget_due(connection);
}

/* The size of the request at `data`, or 0 while it is not whole; -1 when it cannot be read. */
static long read_request(const char *data, size_t size, size_t *head_size, int *is_last) {
    const char *head_end = memmem(data, size, "\r\n\r\n", 4);
    if (head_end == NULL) return size > 65536 ? -1 : 0;
    *head_size = (size_t)(head_end - data) + 4;
    size_t length = 0;
    const char *line = memchr(data, '\n', size);
    *is_last = line - data >= 9 && memcmp(line - 9, "HTTP/1.0", 8) == 0;
    while (line && line < head_end) {
        line++;
        if (strncasecmp(line, "content-length:", 15) == 0) length = strtoul(line + 15, NULL, 10);
        if (strncasecmp(line, "transfer-encoding:", 18) == 0) return -1;
        if (strncasecmp(line, "connection: close", 17) == 0) *is_last = 1;
        line = memchr(line, '\n', (size_t)(head_end + 2 - line));
    }
    if (*head_size + length > MAX_INPUT) return -1;
    return size >= *head_size + length ? (long)(*head_size + length) : 0;
}

static void answer(Connection *connection, const char *data, size_t head, size_t size) {
    Bytes *out = &connection->out;
    char text[64];
    if (strncmp(data, "POST ", 5) == 0)
        answer_chat(connection, data + head, size - head);
    else if (strncmp(data, "GET /v1/models", 14) == 0)
        append_models(out);
    else if (strncmp(data, "GET /stats", 10) == 0)
        append_body(out, "200 OK", text,
                    (size_t)snprintf(text, sizeof text, "{\"requests\":%llu}",
                                     (unsigned long long)requests));
    else
        append_body(out, "404 Not Found", "{}", 2);
}

/* Answer what has arrived whole, in turn, up to one that takes time. 0: the connection is gone. */
static int advance(Connection *connection) {
    Bytes *in = &connection->in;
    size_t used = 0, head = 0;
    while (used < in->size && !connection->due_ns && !connection->is_last) {
        int is_last = 0;
        long size = read_request(in->data + used, in->size - used, &head, &is_last);
        if (size == 0) break;
        if (size < 0) {
            append_body(&connection->out, "400 Bad Request", "{}", 2);
            connection->is_last = 1;
            break;
        }
        connection->is_last = is_last;
        answer(connection, in->data + used, head, (size_t)size);
        used += (size_t)size;
    }
    in->size -= used;
    if (used && in->size) memmove(in->data, in->data + used, in->size);
    return flush(connection);
}

static void receive(Connection *connection) {
    Bytes *in = &connection->in;
    if (in->room == in->size) {
        if (in->room >= 2 * MAX_INPUT) {
            end(connection);
            return;
        }
        reserve(in, in->room);
    }
    ssize_t got = recv(connection->fd, in->data + in->size, in->room - in->size, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        end(connection);
        return;
    }
    in->size += (size_t)got;
    advance(connection);
}

static void accept_all(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Connection *connection = check(calloc(1, sizeof *connection));
        connection->fd = fd;
        reserve(&connection->in, FIRST_INPUT);
        struct epoll_event event = {.events = EPOLLIN};
        event.data.ptr = connection;
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Send all that is due; an ended connection leaves the list, so begin again behind each. */
static void answer_timed(void) {
    uint64_t now = now_ns();
    for (Connection *one = timed, *after; one; one = after) {
        after = one->after;
        if (one->due_ns > now) continue;
        answer_due(one, now);
        if (one->due_ns) flush(one);
        else advance(one);
    }
}

static void arm(void) {
    uint64_t least = 0;
    for (Connection *one = timed; one; one = one->after)
        if (!least || one->due_ns < least) least = one->due_ns;
    if (least == armed_ns) return;
    armed_ns = least;
    struct itimerspec at = {.it_value = {.tv_sec = (time_t)(least / 1000000000u),
                                         .tv_nsec = (long)(least % 1000000000u)}};
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, NULL);
}

static int listen_on(int port) {
    int on = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("listen");
        exit(1);
    }
    return listener;
}

int main(int count, char **words) {
    struct epoll_event events[EVENTS], event = {.events = EPOLLIN};
    if (count != 2) return fprintf(stderr, "usage: %s PORT\n", words[0]), 2;
    signal(SIGPIPE, SIG_IGN);
    append_whole(&whole, "fast", ANSWER, sizeof ANSWER - 1);
    int listener = listen_on(atoi(words[1]));
    poller = epoll_create1(EPOLL_CLOEXEC);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    event.data.ptr = &listener;
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    event.data.ptr = &timer;
    epoll_ctl(poller, EPOLL_CTL_ADD, timer, &event);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1), is_due = 0;
        for (int n = 0; n < ready; n++) {
            void *source = events[n].data.ptr;
            if (source == &listener) accept_all(listener);
            else if (source == &timer) is_due = 1;
            /* EPOLLHUP and EPOLLERR are seen by recv. */
            else if ((events[n].events & EPOLLOUT) && !(events[n].events & EPOLLIN)) flush(source);
            else receive(source);
        }
        if (is_due) {
            uint64_t times;
            if (read(timer, &times, sizeof times) > 0) armed_ns = 0;
            answer_timed();
        }
        arm();
    }
}
