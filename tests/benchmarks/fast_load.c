/* Closed-loop client of the fast path: one connection, the same request over and over, as load.c;
 * also an example of the protocol in C (docs/decisions, the binary fast path).
 * usage: fast_load SOCKET REQUEST_FILE SECONDS OUTPUT_FILE
 * REQUEST_FILE: five little-endian u32 (bytes of input slot, of output slot, of head, of inline
 * part; timeout in ms), then head, inline part, input slot; see load.frame_request. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { HELLO = 1, WELCOME, SLOT, DROP, DONE, INFER, ANSWER, REFUSED, HOLD };
struct prefix { uint8_t magic, version, kind, flags; uint32_t id, head, inlined; uint64_t time; };
struct offer { uint32_t slot, access; uint64_t size; };

static volatile sig_atomic_t stopped;
static char request[64 << 20], frame[64 << 20], answer[64 << 20];

static void stop(int number) { (void)number; stopped = 1; }

static uint64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int whole(int s, char *data, size_t size) {
  for (size_t got = 0; got < size;) {
    ssize_t n = read(s, data + got, size - got);
    if (n <= 0) return 0;
    got += n;
  }
  return 1;
}

/* Receive one frame; returns its kind, 0 if the connection broke. A small one takes one read. */
static int receive(int s) {
  struct prefix p;
  ssize_t got = read(s, answer, 64 << 10);
  if (got <= 0 || (got < (ssize_t)sizeof p && !whole(s, answer + got, sizeof p - got))) return 0;
  if (got < (ssize_t)sizeof p) got = sizeof p;
  memcpy(&p, answer, sizeof p);
  size_t need = sizeof p + p.head + p.inlined;
  if ((size_t)got < need && !whole(s, answer + got, need - got)) return 0;
  return p.magic == 0xEF ? p.kind : 0;
}

/* Send a frame whose body follows the prefix in `data`, with a descriptor unless fd < 0. */
static int sends(int s, int kind, void *data, size_t body, int fd) {
  char control[CMSG_SPACE(sizeof fd)] = {0};
  struct prefix p = {0xEF, 1, kind, 0, 1, body, 0, 0};
  memcpy(data, &p, sizeof p);
  struct iovec part = {data, sizeof p + body};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
  if (fd >= 0) {
    message.msg_control = control, message.msg_controllen = sizeof control;
    struct cmsghdr *c = CMSG_FIRSTHDR(&message);
    c->cmsg_level = SOL_SOCKET, c->cmsg_type = SCM_RIGHTS, c->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(c), &fd, sizeof fd);
  }
  return sendmsg(s, &message, 0) == (ssize_t)(sizeof p + body);
}

/* Make sealed memory, fill it and offer it. */
static int offer(int s, uint32_t slot, uint32_t access, uint32_t size, const char *data) {
  if (!size) return 1;
  int fd = memfd_create("load", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || posix_fallocate(fd, 0, size)) return 0;
  fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  if (data && pwrite(fd, data, size, 0) != (ssize_t)size) return 0;
  struct { struct prefix p; struct offer o; } sent = {.o = {slot, access, size}};
  int good = sends(s, SLOT, &sent, sizeof sent.o, fd) && receive(s) == DONE;
  close(fd);
  return good;
}

static int dial(const char *path, const uint32_t *sizes, const char *slot) {
  struct sockaddr_un to = {.sun_family = AF_UNIX};
  struct prefix empty;
  strncpy(to.sun_path, path, sizeof to.sun_path - 1);
  int s = socket(AF_UNIX, SOCK_STREAM, 0);
  if (connect(s, (void *)&to, sizeof to) || !sends(s, HELLO, &empty, 0, -1)) return -1;
  if (receive(s) != WELCOME) return -1;
  if (sizes[0] + sizes[1] && (!sends(s, HOLD, &empty, 0, -1) || receive(s) != DONE)) return -1;
  return offer(s, 0, 0, sizes[0], slot) && offer(s, 1, 1, sizes[1], NULL) ? s : -1;
}

int main(int count, char **given) {
  if (count != 5) return 2;
  FILE *in = fopen(given[2], "rb"), *out = fopen(given[4], "wb");
  if (!in || !out || fread(request, 1, sizeof request, in) < 20) return 2;
  uint32_t *sizes = (uint32_t *)request;
  char *head = request + 20, *slot = head + sizes[2] + sizes[3];
  size_t size = sizeof(struct prefix) + sizes[2] + sizes[3];
  struct prefix p = {0xEF, 1, INFER, 0, 0, sizes[2], sizes[3], 1000ull * sizes[4]};
  memcpy(frame + sizeof p, head, sizes[2] + sizes[3]);
  signal(SIGTERM, stop);
  uint64_t end = now() + (uint64_t)(atof(given[3]) * 1e9);
  int s = dial(given[1], sizes, slot);
  while (!stopped) {
    uint64_t begun = now(), row[3];
    if (begun >= end) break;
    p.id++;
    memcpy(frame, &p, sizeof p);
    size_t sent = 0;
    for (ssize_t n = 1; sent < size && n > 0; sent += n > 0 ? n : 0)
      n = write(s, frame + sent, size - sent);
    int kind = sent == size ? receive(s) : 0;
    row[2] = kind == ANSWER ? 200 : kind ? 500 : 0;
    row[0] = now();
    row[1] = row[0] - begun;
    fwrite(row, sizeof row, 1, out);
    if (!row[2]) { /* broken: count it, dial again */
      close(s);
      usleep(1000);
      s = dial(given[1], sizes, slot);
    }
  }
  return fclose(out) != 0;
}
