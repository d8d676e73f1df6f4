// mbload: request/response load over opaque TCP for the benchmark, one binary with a few modes (see usage()).
//
// A request is SIZE bytes whose first 8 are two little-endian u32: its own length and the length of the answer.
// Requests are strictly serial on a connection; the client closes. Every loop is bounded by time or count.
// Results are one line of JSON on standard output, times in microseconds.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_MESSAGE (1u << 20)
#define HEADER 8u
#define SECOND 1000000000ull

static char zeros[MAX_MESSAGE];

static uint64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (uint64_t)now.tv_sec * SECOND + (uint64_t)now.tv_nsec;
}

_Noreturn static void die(const char *what) {
  perror(what);
  exit(2);
}

// ---- command line: `mode -x value -y value ...`

static int arg_count;
static char **args;

static const char *text_option(const char *name, const char *otherwise) {
  for (int i = 2; i + 1 < arg_count; i += 2)
    if (!strcmp(args[i], name)) return args[i + 1];
  return otherwise;
}

static double seconds_option(const char *name, double otherwise) {
  const char *text = text_option(name, NULL);
  return text ? atof(text) : otherwise;
}

static long number_option(const char *name, long otherwise) {
  const char *text = text_option(name, NULL);
  return text ? atol(text) : otherwise;
}

// ---- samples

typedef struct {
  uint32_t *ns; // saturating: 4.2 s is as bad as worse
  size_t count, capacity;
} samples;

static samples new_samples(size_t capacity) {
  samples s = {.ns = malloc(capacity * sizeof(uint32_t)), .count = 0, .capacity = capacity};
  if (!s.ns) die("malloc");
  return s;
}

static void add_sample(samples *s, uint64_t ns) {
  if (s->count == s->capacity) {
    s->capacity *= 2;
    s->ns = realloc(s->ns, s->capacity * sizeof(uint32_t));
    if (!s->ns) die("realloc");
  }
  s->ns[s->count++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

static int by_value(const void *left, const void *right) {
  uint32_t l = *(const uint32_t *)left, r = *(const uint32_t *)right;
  return l < r ? -1 : l > r;
}

// The samples must be sorted.
static double quantile_us(const samples *s, double q) {
  return s->ns[(size_t)(q * (double)(s->count - 1) + 0.5)] / 1000.0;
}

static void print_samples(samples *s, const char *name) {
  if (!s->count) {
    printf("\"%s\":null", name);
    return;
  }
  qsort(s->ns, s->count, sizeof(uint32_t), by_value);
  double sum = 0;
  for (size_t i = 0; i < s->count; i++) sum += s->ns[i];
  printf("\"%s\":{\"n\":%zu,\"mean\":%.2f,\"min\":%.2f,\"p50\":%.2f,\"p90\":%.2f,\"p99\":%.2f,\"p999\":%.2f,\"max\":%.2f}",
         name, s->count, sum / (double)s->count / 1000.0, quantile_us(s, 0), quantile_us(s, .5), quantile_us(s, .9),
         quantile_us(s, .99), quantile_us(s, .999), quantile_us(s, 1));
}

static double rate(size_t count, uint64_t first, uint64_t last) {
  return last > first ? (double)count / ((double)(last - first) / (double)SECOND) : 0.0;
}

// ---- sockets

static struct sockaddr_in address(const char *ip, long port) {
  struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
  if (inet_pton(AF_INET, ip, &a.sin_addr) != 1) {
    fprintf(stderr, "mbload: %s is not an IPv4 address\n", ip);
    exit(2);
  }
  return a;
}

static void without_delay(int fd) {
  int one = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
}

static int blocking_connect(const char *ip, long port, int patience_s) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  struct timeval patience = {.tv_sec = patience_s};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
  without_delay(fd);
  struct sockaddr_in to = address(ip, port);
  if (connect(fd, (struct sockaddr *)&to, sizeof to)) {
    close(fd);
    return -1;
  }
  return fd;
}

static char *new_request(size_t *size, size_t answer) {
  if (*size < HEADER) *size = HEADER;
  char *request = calloc(1, *size);
  if (!request) die("calloc");
  uint32_t header[2] = {(uint32_t)*size, (uint32_t)answer};
  memcpy(request, header, HEADER);
  return request;
}

// One blocking request and its answer.
static bool round_trip(int fd, const char *request, size_t size, size_t answer) {
  static char buffer[65536];
  for (size_t sent = 0; sent < size;) {
    ssize_t n = send(fd, request + sent, size - sent, MSG_NOSIGNAL);
    if (n <= 0) return false;
    sent += (size_t)n;
  }
  for (size_t got = 0; got < answer;) {
    size_t left = answer - got;
    ssize_t n = recv(fd, buffer, left < sizeof buffer ? left : sizeof buffer, 0);
    if (n <= 0) return false;
    got += (size_t)n;
  }
  return true;
}

// ---- serve: answers on -P ports from -p

typedef struct {
  int fd;
  uint32_t header[2];
  uint32_t have;  // bytes of the current request
  uint64_t owed;  // bytes of answers not yet sent
} served;

static bool send_owed(served *c) {
  while (c->owed) {
    size_t part = c->owed > MAX_MESSAGE ? MAX_MESSAGE : c->owed;
    ssize_t n = send(c->fd, zeros, part, MSG_NOSIGNAL);
    if (n < 0) return errno == EAGAIN;
    c->owed -= (uint64_t)n;
  }
  return true;
}

// Takes bytes of requests in; false when they are none.
static bool take(served *c, const char *bytes, size_t count) {
  for (size_t at = 0; at < count;) {
    size_t left = count - at;
    uint32_t wanted = (c->have < HEADER ? HEADER : c->header[0]) - c->have;
    size_t part = wanted < left ? wanted : left;
    if (c->have < HEADER) memcpy((char *)c->header + c->have, bytes + at, part);
    c->have += (uint32_t)part;
    at += part;
    if (c->have < HEADER) continue;
    if (c->header[0] < HEADER || c->header[0] > MAX_MESSAGE || c->header[1] > MAX_MESSAGE) return false;
    if (c->have == c->header[0]) {
      c->owed += c->header[1];
      c->have = 0;
    }
  }
  return true;
}

// Handles one event of a connection; false when it is over.
static bool serve_connection(served *c, uint32_t events) {
  static char buffer[65536];
  if (!send_owed(c)) return false;
  for (;;) {
    ssize_t n = recv(c->fd, buffer, sizeof buffer, 0);
    if (n == 0) return false;
    if (n < 0) {
      if (errno != EAGAIN) return false;
      break;
    }
    if (!take(c, buffer, (size_t)n) || !send_owed(c)) return false;
    if ((size_t)n < sizeof buffer) break; // edge-triggered: a short read means drained
  }
  if (events & (EPOLLERR | EPOLLHUP)) return false;
  if (events & EPOLLRDHUP) {
    ssize_t n = recv(c->fd, buffer, 1, MSG_PEEK);
    return n > 0 || (n < 0 && errno == EAGAIN);
  }
  return true;
}

static void accept_some(int epoll, int listener) {
  for (int i = 0; i < 64; i++) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    without_delay(fd);
    served *c = calloc(1, sizeof *c);
    if (!c) die("calloc");
    c->fd = fd;
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET | EPOLLRDHUP, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
  }
}

static int serve(void) {
  long first = number_option("-p", 7000), ports = number_option("-P", 1);
  int epoll = epoll_create1(EPOLL_CLOEXEC);
  for (long i = 0; i < ports; i++) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in a = address("0.0.0.0", first + i);
    if (bind(listener, (struct sockaddr *)&a, sizeof a) || listen(listener, 4096)) die("bind or listen");
    // The low bit tells a listener from a connection's (aligned) pointer.
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uint64_t)listener << 1 | 1};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
  }
  struct epoll_event events[256];
  for (;;) {
    int n = epoll_wait(epoll, events, 256, -1);
    if (n < 0 && errno != EINTR) die("epoll_wait");
    for (int i = 0; i < n; i++) {
      if (events[i].data.u64 & 1) {
        accept_some(epoll, (int)(events[i].data.u64 >> 1));
        continue;
      }
      served *c = events[i].data.ptr;
      if (!serve_connection(c, events[i].events)) {
        close(c->fd);
        free(c);
      }
    }
  }
}

// ---- pp: serial ping-pong on one kept-open connection

static int ping_pong(void) {
  size_t size = (size_t)number_option("-s", 64), answer = size;
  char *request = new_request(&size, answer);
  samples latency = new_samples(1 << 18);
  int fd = blocking_connect(text_option("-a", "127.0.0.1"), number_option("-p", 7000), 10);
  if (fd < 0) die("connect");
  if (!round_trip(fd, request, size, answer)) die("first request");
  uint64_t measured = now_ns() + (uint64_t)(seconds_option("-w", 0.2) * (double)SECOND);
  uint64_t end = measured + (uint64_t)(seconds_option("-t", 2) * (double)SECOND), last = measured;
  unsigned long total = 0;
  bool failed = false;
  for (;;) {
    uint64_t before = now_ns();
    if (before >= end) break;
    failed = !round_trip(fd, request, size, answer);
    if (failed) break;
    total++;
    if (before < measured) continue;
    last = now_ns();
    add_sample(&latency, last - before);
  }
  close(fd);
  printf("{\"mode\":\"pp\",\"size\":%zu,\"errors\":%d,\"total\":%lu,\"rps\":%.1f,", size, failed, total,
         rate(latency.count, measured, last));
  print_samples(&latency, "lat_us");
  printf("}\n");
  return failed;
}

// ---- cr: connect, one request, close, in -c slots at once, each after a pause of -g microseconds

typedef struct {
  int fd;
  bool connected;
  size_t got;
  uint64_t started, connected_at;
} slot;

typedef struct {
  int epoll, active, last_error;
  long port, ports, started, done, errors;
  const char *ip;
  char *request;
  size_t size, answer;
} churn;

static void failed_slot(churn *t, int error) {
  t->last_error = error;
  t->errors++;
}

static void start_slot(churn *t, slot *s) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) die("socket");
  without_delay(fd);
  struct sockaddr_in to = address(t->ip, t->port + t->started++ % t->ports);
  *s = (slot){.fd = fd, .started = now_ns()};
  if (connect(fd, (struct sockaddr *)&to, sizeof to) && errno != EINPROGRESS) {
    failed_slot(t, errno);
    close(fd);
    return;
  }
  struct epoll_event event = {.events = EPOLLOUT | EPOLLIN, .data.ptr = s};
  epoll_ctl(t->epoll, EPOLL_CTL_ADD, fd, &event);
  t->active++;
}

enum progress { WAITING, ANSWERED, FAILED };

static enum progress advance_slot(churn *t, slot *s) {
  static char buffer[65536];
  if (!s->connected) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    s->connected_at = now_ns();
    s->connected = true;
    if (!error && send(s->fd, t->request, t->size, MSG_NOSIGNAL) != (ssize_t)t->size) error = errno;
    if (error) {
      failed_slot(t, error);
      return FAILED;
    }
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    epoll_ctl(t->epoll, EPOLL_CTL_MOD, s->fd, &event);
    return WAITING;
  }
  ssize_t n = recv(s->fd, buffer, sizeof buffer, 0);
  if (n < 0 && errno == EAGAIN) return WAITING;
  if (n <= 0) {
    failed_slot(t, n ? errno : 0);
    return FAILED;
  }
  s->got += (size_t)n;
  return s->got >= t->answer ? ANSWERED : WAITING;
}

static int connect_request_close(void) {
  churn t = {.epoll = epoll_create1(0),
             .ip = text_option("-a", "127.0.0.1"),
             .port = number_option("-p", 7000),
             .ports = number_option("-P", 1),
             .size = (size_t)number_option("-s", 64)};
  t.answer = t.size;
  t.request = new_request(&t.size, t.answer);
  long slots = number_option("-c", 1), most = number_option("-n", 100000), pause_us = number_option("-g", 0);
  samples connects = new_samples(1 << 16), totals = new_samples(1 << 16);
  uint64_t measured = now_ns() + (uint64_t)(seconds_option("-w", 0.2) * (double)SECOND);
  uint64_t end = measured + (uint64_t)(seconds_option("-t", 2) * (double)SECOND), last = measured;
  slot *all = calloc((size_t)slots, sizeof *all);
  if (!all) die("calloc");
  for (long i = 0; i < slots; i++) start_slot(&t, &all[i]);
  struct epoll_event events[256];
  while (t.active && t.errors < 1000 && now_ns() < end + 5 * SECOND) {
    int n = epoll_wait(t.epoll, events, 256, 1000);
    for (int i = 0; i < n; i++) {
      slot *s = events[i].data.ptr;
      enum progress progress = advance_slot(&t, s);
      if (progress == WAITING) continue;
      uint64_t now = now_ns();
      close(s->fd);
      t.active--;
      t.done++;
      if (progress == ANSWERED && s->started >= measured) {
        add_sample(&connects, s->connected_at - s->started);
        add_sample(&totals, now - s->started);
        last = now;
      }
      if (now >= end || t.started >= most) continue;
      if (pause_us) usleep((useconds_t)pause_us);
      start_slot(&t, s);
    }
  }
  printf("{\"mode\":\"cr\",\"conc\":%ld,\"errors\":%ld,\"lasterr\":%d,\"total\":%ld,\"unfinished\":%d,\"cps\":%.1f,", slots,
         t.errors, t.last_error, t.done, t.active, rate(totals.count, measured, last));
  print_samples(&connects, "connect_us");
  printf(",");
  print_samples(&totals, "total_us");
  printf("}\n");
  return 0;
}

// ---- cold: for each address of -A a first connection with one request, then a second one

static int cold(void) {
  char *list = strdup(text_option("-A", "127.0.0.1")), *rest = NULL;
  size_t size = (size_t)number_option("-s", 64), answer = size;
  char *request = new_request(&size, answer);
  samples times[2] = {new_samples(256), new_samples(256)};
  long errors = 0;
  double first_us = -1;
  for (char *ip = strtok_r(list, ",", &rest); ip; ip = strtok_r(NULL, ",", &rest)) {
    for (int again = 0; again < 2; again++) {
      uint64_t before = now_ns();
      int fd = blocking_connect(ip, number_option("-p", 7000), 5);
      bool answered = fd >= 0 && round_trip(fd, request, size, answer);
      uint64_t after = now_ns();
      if (fd >= 0) close(fd);
      if (!answered) {
        errors++;
        continue;
      }
      if (!again && !times[0].count) first_us = (double)(after - before) / 1000.0;
      add_sample(&times[again], after - before);
      usleep(2000);
    }
  }
  printf("{\"mode\":\"cold\",\"errors\":%ld,\"first_us\":%.1f,", errors, first_us);
  print_samples(&times[0], "cold_total_us");
  printf(",");
  print_samples(&times[1], "warm_total_us");
  printf("}\n");
  return errors != 0;
}

// ---- idle: opens -n connections, says so, waits for a line on standard input, then tries each once more

static int idle(void) {
  const char *ip = text_option("-a", "127.0.0.1");
  long port = number_option("-p", 7000), ports = number_option("-P", 1), wanted = number_option("-n", 1000);
  size_t size = 64;
  char *request = new_request(&size, size);
  int *fds = malloc((size_t)wanted * sizeof(int));
  if (!fds) die("malloc");
  long opened = 0, errors = 0, alive = 0;
  for (long i = 0; i < wanted; i++) {
    fds[i] = errors < 100 ? blocking_connect(ip, port + i % ports, 10) : -1;
    if (fds[i] >= 0 && round_trip(fds[i], request, size, size)) {
      opened++;
      continue;
    }
    errors++;
    if (fds[i] >= 0) close(fds[i]);
    fds[i] = -1;
  }
  printf("{\"mode\":\"idle\",\"opened\":%ld,\"errors\":%ld}\n", opened, errors);
  fflush(stdout);
  char line[16];
  if (!fgets(line, sizeof line, stdin)) return 1;
  for (long i = 0; i < wanted; i++) alive += fds[i] >= 0 && round_trip(fds[i], request, size, size);
  printf("{\"mode\":\"idle_end\",\"alive\":%ld}\n", alive);
  return 0;
}

// ---- spin: keeps CPU -c from halting at SCHED_IDLE priority; any ordinary task preempts it at once, or when it yields:
// EEVDF may prefer a spinner whose share is overdue to a task that has just been woken, until the next tick

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause(); // leaves the core's resources to an SMT sibling
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static int spin(void) {
  cpu_set_t cpus;
  CPU_ZERO(&cpus);
  CPU_SET((size_t)number_option("-c", 0), &cpus);
  sched_setaffinity(0, sizeof cpus, &cpus);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  // Its time counts as `nice`, which the harness leaves out.
  errno = 0;
  if (nice(19) == -1 && errno) die("nice");
  struct sched_param idle_priority = {0};
  if (sched_setscheduler(0, SCHED_IDLE, &idle_priority)) die("SCHED_IDLE");
  uint64_t end = now_ns() + (uint64_t)(seconds_option("-t", 600) * (double)SECOND);
  while (now_ns() < end) {
    for (int i = 0; i < 50; i++) relax();
    sched_yield();
  }
  return 0;
}

static int usage(void) {
  fprintf(stderr, "usage: mbload serve|pp|cr|cold|idle|spin [-a ip] [-A ip,ip,...] [-p port] [-P ports] "
                  "[-c slots or cpu] [-g pause in us] [-s size] [-n most] [-t seconds] [-w warm-up seconds]\n");
  return 2;
}

int main(int argc, char **argv) {
  static const struct {
    const char *name;
    int (*run)(void);
  } modes[] = {{"serve", serve}, {"pp", ping_pong}, {"cr", connect_request_close}, {"cold", cold}, {"idle", idle}, {"spin", spin}};
  arg_count = argc;
  args = argv;
  signal(SIGPIPE, SIG_IGN);
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  for (size_t i = 0; argc > 1 && i < sizeof modes / sizeof *modes; i++)
    if (!strcmp(argv[1], modes[i].name)) return modes[i].run();
  return usage();
}
