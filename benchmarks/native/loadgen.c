/* The load generator: blocking sockets, one thread a connection, request bytes prepared beforehand.
 *
 * Each connection sends the request, receives the answer, and starts again until the time is up; what is in
 * flight then is finished and counted, and the clock stops at the last answer. Every answer must say 200 and
 * carry a Content-Length; the last one of each connection must equal the expected body byte for byte.
 * One warm-up request on each connection comes before the clock starts.
 *
 * usage: loadgen --address ADDRESS --request FILE [--expect FILE] --connections N --seconds S [--pause-ms MS]
 * prints one JSON object; the same as loadgen.py.
 */
#include "net.h"

#include <fcntl.h>
#include <getopt.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>

#define ANSWER_TIMEOUT_S 60

typedef struct {
    const char *data;
    size_t size;
} Bytes;

typedef struct {
    double *values;
    size_t count, capacity;
} Samples;

typedef struct {
    pthread_t thread;
    Samples latency_us;
    double finished_s;
} Worker;

static Address address;
static Bytes request, expected;
static double seconds = 1.0, pause_s = 0.0, started_s;
static pthread_barrier_t ready, go, done;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double cpu_s(void) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    return usage.ru_utime.tv_sec + usage.ru_stime.tv_sec + (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1e-6;
}

static Bytes map_file(const char *path) {
    struct stat status;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0) fail("%s: %s", path, strerror(errno));
    if (status.st_size == 0) return (Bytes){"", 0};
    void *data = mmap(NULL, status.st_size, PROT_READ, MAP_PRIVATE | MAP_POPULATE, fd, 0);
    if (data == MAP_FAILED) fail("%s: %s", path, strerror(errno));
    close(fd);
    return (Bytes){data, status.st_size};
}

static void append(Samples *samples, double value) {
    if (samples->count == samples->capacity) {
        samples->capacity = samples->capacity ? 2 * samples->capacity : 4096;
        samples->values = realloc(samples->values, samples->capacity * sizeof *samples->values);
        if (!samples->values) fail("out of memory");
    }
    samples->values[samples->count++] = value;
}

static int connect_to_server(void) {
    int fd = open_socket(&address);
    struct timeval timeout = {.tv_sec = ANSWER_TIMEOUT_S};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout);
    if (connect(fd, (struct sockaddr *)&address.storage, address.length) < 0) fail("connect: %s", strerror(errno));
    return fd;
}

/* One request and its answer; the body lies at the returned place in the buffer. */
static Bytes exchange(int fd, char *buffer, size_t capacity) {
    bool sent = send_all(fd, request.data, request.size) == 0; /* a refusal may come before all is sent */
    size_t have = 0, head = 0;
    while (!head) {
        ssize_t got = recv(fd, buffer + have, capacity - have, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) fail("no answer: %s", got ? strerror(errno) : "the server closed the connection");
        have += got;
        head = head_length(buffer, have);
        if (!head && have >= HEAD_ROOM) fail("the head of the answer is longer than %d bytes", HEAD_ROOM);
    }
    if (strncmp(buffer, "HTTP/1.1 200", 12) != 0) {
        char *line_end = memchr(buffer, '\r', have);
        fail("the answer is not 200: %.*s", (int)(line_end ? line_end - buffer : 40), buffer);
    }
    if (!sent) fail("the server answered before the request was sent");
    long long body = content_length(buffer, head);
    if (body < 0) fail("the answer has no Content-Length");
    size_t total = head + (size_t)body;
    if (total > capacity || have > total) fail("the answer has an unexpected length: %lld", body);
    if (receive_until(fd, buffer, have, total) < 0) fail("the answer was cut off: %s", strerror(errno));
    return (Bytes){buffer + head, (size_t)body};
}

static void check(Bytes body) {
    if (expected.data && (body.size != expected.size || memcmp(body.data, expected.data, body.size) != 0))
        fail("the body of an answer is not the expected one");
}

static void *drive(void *argument) {
    Worker *worker = argument;
    size_t capacity = HEAD_ROOM + (expected.data ? expected.size : 65536);
    char *buffer = malloc(capacity);
    if (!buffer) fail("out of memory");
    memset(buffer, 0, capacity); /* page faults belong to nobody's measurement */
    int fd = connect_to_server();
    check(exchange(fd, buffer, capacity));
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&go);

    Bytes body;
    double begin_s = started_s, deadline_s = started_s + seconds;
    do {
        body = exchange(fd, buffer, capacity);
        worker->finished_s = now_s();
        append(&worker->latency_us, (worker->finished_s - begin_s) * 1e6);
        if (pause_s > 0) usleep((useconds_t)(pause_s * 1e6));
        begin_s = pause_s > 0 ? now_s() : worker->finished_s;
    } while (begin_s < deadline_s);
    pthread_barrier_wait(&done);
    check(body); /* off the clock, for all connections */
    close(fd);
    free(buffer);
    return NULL;
}

static int ascending(const void *left, const void *right) {
    double difference = *(const double *)left - *(const double *)right;
    return (difference > 0) - (difference < 0);
}

/* Nearest rank. */
static double percentile(const Samples *sorted, double share) {
    size_t rank = (size_t)(share * sorted->count + 0.999999);
    return sorted->values[rank ? rank - 1 : 0];
}

int main(int argc, char **argv) {
    int connections = 1, option;
    const struct option options[] = {{"address", 1, 0, 'a'},     {"request", 1, 0, 'r'}, {"expect", 1, 0, 'e'},
                                     {"connections", 1, 0, 'c'}, {"seconds", 1, 0, 's'}, {"pause-ms", 1, 0, 'p'},
                                     {0}};
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) switch (option) {
        case 'a': address = parse_address(optarg); break;
        case 'r': request = map_file(optarg); break;
        case 'e': expected = map_file(optarg); break;
        case 'c': connections = atoi(optarg); break;
        case 's': seconds = atof(optarg); break;
        case 'p': pause_s = atof(optarg) * 1e-3; break;
        default: return 2;
        }
    if (!address.length || !request.data || connections < 1) fail("--address, --request and --connections are needed");

    Worker *workers = calloc(connections, sizeof *workers);
    pthread_barrier_init(&ready, NULL, connections + 1);
    pthread_barrier_init(&go, NULL, connections + 1);
    pthread_barrier_init(&done, NULL, connections + 1);
    for (int i = 0; i < connections; i++)
        if (pthread_create(&workers[i].thread, NULL, drive, &workers[i]) != 0) fail("cannot start a thread");
    pthread_barrier_wait(&ready);
    double cpu_before_s = cpu_s();
    started_s = now_s();
    pthread_barrier_wait(&go);

    pthread_barrier_wait(&done);
    double cpu_used_s = cpu_s() - cpu_before_s;
    for (int i = 0; i < connections; i++) pthread_join(workers[i].thread, NULL);

    Samples all = {0};
    double finished_s = started_s, sum_us = 0;
    for (int i = 0; i < connections; i++) {
        if (workers[i].finished_s > finished_s) finished_s = workers[i].finished_s;
        for (size_t j = 0; j < workers[i].latency_us.count; j++) {
            append(&all, workers[i].latency_us.values[j]);
            sum_us += workers[i].latency_us.values[j];
        }
    }
    qsort(all.values, all.count, sizeof *all.values, ascending);
    printf("{\"requests\": %zu, \"elapsed_s\": %.6f, \"cpu_s\": %.6f, \"latency_us\": "
           "{\"mean\": %.1f, \"p50\": %.1f, \"p90\": %.1f, \"p99\": %.1f, \"max\": %.1f}}\n",
           all.count, finished_s - started_s, cpu_used_s, sum_us / all.count, percentile(&all, 0.50),
           percentile(&all, 0.90), percentile(&all, 0.99), percentile(&all, 1.0));
    return 0;
}
