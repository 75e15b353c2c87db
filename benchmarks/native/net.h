/* What the echo and the load generator share: addresses, blocking sockets, the head of an HTTP message. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HEAD_ROOM 8192 /* longest head either side may send, in bytes */

typedef struct {
    struct sockaddr_storage storage;
    socklen_t length;
} Address;

static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    _exit(1);
}

/* "127.0.0.1:8000" or "unix:/path" */
static Address parse_address(const char *text) {
    Address address = {0};
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un *unix_address = (struct sockaddr_un *)&address.storage;
        unix_address->sun_family = AF_UNIX;
        if (strlen(text + 5) >= sizeof unix_address->sun_path) fail("path too long: %s", text + 5);
        strcpy(unix_address->sun_path, text + 5);
        address.length = sizeof *unix_address;
        return address;
    }
    const char *colon = strrchr(text, ':');
    char host[64] = {0};
    struct sockaddr_in *tcp_address = (struct sockaddr_in *)&address.storage;
    if (!colon || (size_t)(colon - text) >= sizeof host) fail("not an address: %s", text);
    memcpy(host, text, colon - text);
    tcp_address->sin_family = AF_INET;
    tcp_address->sin_port = htons((unsigned short)atoi(colon + 1));
    if (inet_pton(AF_INET, host, &tcp_address->sin_addr) != 1) fail("not an IPv4 address: %s", host);
    address.length = sizeof *tcp_address;
    return address;
}

static int open_socket(const Address *address) {
    int fd = socket(address->storage.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    if (fd < 0) fail("socket: %s", strerror(errno));
    if (address->storage.ss_family == AF_INET) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

/* 0, or -1 with errno set */
static int send_all(int fd, const char *data, size_t size) {
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0) return -1;
        data += sent;
        size -= sent;
    }
    return 0;
}

/* Receives until the buffer holds `wanted` bytes; `have` are there already. 0, or -1 (errno 0: the peer closed). */
static int receive_until(int fd, char *buffer, size_t have, size_t wanted) {
    while (have < wanted) {
        ssize_t got = recv(fd, buffer + have, wanted - have, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) errno = 0;
        if (got <= 0) return -1;
        have += got;
    }
    return 0;
}

/* Length of the head, its blank line included, or 0 while it is incomplete. */
static size_t head_length(const char *data, size_t size) {
    const char *end = memmem(data, size < HEAD_ROOM ? size : HEAD_ROOM, "\r\n\r\n", 4);
    return end ? (size_t)(end - data) + 4 : 0;
}

/* The value of Content-Length in a complete head, or -1. */
static long long content_length(const char *head, size_t size) {
    const char *line = head, *end = head + size;
    while ((line = memchr(line, '\n', end - line)) != NULL && ++line < end)
        if (end - line > 15 && strncasecmp(line, "content-length:", 15) == 0) return atoll(line + 15);
    return -1;
}
