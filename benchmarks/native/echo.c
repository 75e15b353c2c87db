/* The ceiling in C: the same echo as ceiling.py, one thread a connection, no HTTP library.
 *
 * The first request of a connection says how long it is; every later one is taken to be as long, so that
 * nothing but recv and send is left. POST /quantize is answered with the body, POST /grad with its second half.
 *
 * usage: echo ADDRESS        (127.0.0.1:8000 or unix:/path)
 */
#include "net.h"

static void *serve(void *argument) {
    int fd = (int)(long)argument;
    char *buffer = malloc(2 * HEAD_ROOM);
    size_t have = 0, head = 0;
    while (!head) {
        ssize_t got = recv(fd, buffer + have, HEAD_ROOM - have, 0);
        if (got <= 0) goto done;
        have += got;
        head = head_length(buffer, have);
        if (!head && have == HEAD_ROOM) goto done;
    }
    long long body = content_length(buffer, head);
    if (body < 0) body = 0;
    size_t total = head + (size_t)body;
    size_t answered = strncmp(buffer, "POST /grad", 10) == 0 ? (size_t)body / 2 : (size_t)body;

    char answer_head[128];
    int answer_head_length =
        snprintf(answer_head, sizeof answer_head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", answered);
    if ((size_t)answer_head_length > head) goto done; /* it is written over the end of what precedes the answer */
    buffer = realloc(buffer, total > 2 * HEAD_ROOM ? total : 2 * HEAD_ROOM);
    char *answer = buffer + total - answered - answer_head_length;

    while (receive_until(fd, buffer, have, total) == 0) {
        memcpy(answer, answer_head, answer_head_length);
        if (send_all(fd, answer, answer_head_length + answered) < 0) break;
        have = 0;
    }
done:
    free(buffer);
    close(fd);
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 2) fail("usage: echo ADDRESS");
    Address address = parse_address(argv[1]);
    int listener = open_socket(&address), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address.storage, address.length) < 0) fail("bind: %s", strerror(errno));
    if (listen(listener, 128) < 0) fail("listen: %s", strerror(errno));
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (fd < 0) continue;
        if (address.storage.ss_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, (void *)(long)fd) != 0)
            close(fd);
        else
            pthread_detach(thread);
    }
}
