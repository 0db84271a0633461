/* Closed-loop HTTP client: one connection, the same request over and over, until SIGTERM or the
 * time is up. Writes (answer's time, latency, status) as three little-endian u64 an answer, times
 * in nanoseconds of CLOCK_MONOTONIC.
 * usage: load ADDRESS REQUEST_FILE SECONDS OUTPUT_FILE; ADDRESS = a Unix socket's path or a port */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stopped;
static char request[16 << 20], answer[16 << 20];

static void stop(int number) { (void)number; stopped = 1; }

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int dial(const char *address) {
  int s, one = 1;
  if (address[0] == '/') {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, address, sizeof to.sun_path - 1);
    s = socket(AF_UNIX, SOCK_STREAM, 0);
    return connect(s, (void *)&to, sizeof to) ? -1 : s;
  }
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(address))};
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  s = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  return connect(s, (void *)&to, sizeof to) ? -1 : s;
}

/* Read one answer whole; returns its status, 0 if the connection broke. */
static int receive(int s) {
  ssize_t got = 0, need = -1;
  while (need < 0 || got < need) {
    ssize_t n = read(s, answer + got, sizeof answer - 1 - got);
    if (n <= 0) return 0;
    got += n;
    answer[got] = 0;
    char *end = need < 0 ? memmem(answer, got, "\r\n\r\n", 4) : NULL;
    if (end) {
      char *length = strcasestr(answer, "content-length:");
      need = end - answer + 4 + (length ? atol(length + 15) : 0);
    }
  }
  return atoi(answer + 9);
}

int main(int count, char **given) {
  if (count != 5) return 2;
  FILE *in = fopen(given[2], "rb"), *out = fopen(given[4], "wb");
  if (!in || !out) return 2;
  ssize_t size = fread(request, 1, sizeof request, in);
  signal(SIGTERM, stop);
  uint64_t end = now() + (uint64_t)(atof(given[3]) * 1e9);
  int s = dial(given[1]);
  while (!stopped) {
    uint64_t begun = now(), row[3];
    if (begun >= end) break;
    ssize_t sent = 0, n = 1;
    while (sent < size && n > 0) sent += n = write(s, request + sent, size - sent);
    row[2] = n > 0 ? receive(s) : 0;
    row[0] = now();
    row[1] = row[0] - begun;
    fwrite(row, sizeof row, 1, out);
    if (!row[2]) { /* broken: count it, dial again */
      close(s);
      usleep(1000);
      s = dial(given[1]);
    }
  }
  return fclose(out) != 0;
}
