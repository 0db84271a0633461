/* A server of the Open Inference Protocol v2 with binary tensors, static, for an image FROM scratch.
 *
 * The model: x FP32 [n, w] -> y FP32 [n, 2], each element SCALE * sum(row), as tests/models.linear.
 * Listens on the Unix socket EDGEFLEET_OIP_SOCKET or on TCP PORT. A first element of -1001 crashes
 * it, -1002 eats memory until it is killed, -1003 hangs, -1004 exits well, -1005 sleeps 300 ms.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define LIMIT (16 << 20)
static const char *model;
static float scale;

static const char *env(const char *name, const char *otherwise) {
  const char *value = getenv(name);
  return value && *value ? value : otherwise;
}

static int send_all(int fd, const void *data, size_t size) {
  const char *at = data;
  while (size) {
    ssize_t sent = send(fd, at, size, MSG_NOSIGNAL);
    if (sent <= 0) return -1;
    at += sent, size -= sent;
  }
  return 0;
}

static int answer(int fd, int status, const char *extra, const void *body, size_t size) {
  char head[512];
  int length = snprintf(head, sizeof head, "HTTP/1.1 %d Said\r\nContent-Length: %zu\r\n%s\r\n", status, size, extra);
  return send_all(fd, head, length) || send_all(fd, body, size) ? -1 : 0;
}

static int tell(int fd, int status, const char *text) {
  char body[256];
  int length = snprintf(body, sizeof body, "{\"error\":\"%s\"}", text);
  return answer(fd, status, "Content-Type: application/json\r\n", body, length);
}

/* What this process may do, for the test to read. */
static int facts(int fd) {
  static const char *files[] = {"/proc/self/status", "/model/labels.txt", "/proc/net/dev", NULL};
  char *body = malloc(LIMIT);
  size_t size = sprintf(body, "uid %d gid %d root %d tmp %d labels %d\n", getuid(), getgid(),
                        open("/made", O_CREAT | O_WRONLY, 0600) < 0 ? errno : 0,
                        open("/tmp/made", O_CREAT | O_WRONLY, 0600) < 0 ? errno : 0,
                        open("/model/labels.txt", O_WRONLY) < 0 ? errno : 0);
  for (int i = 0; files[i]; i++) {
    FILE *file = fopen(files[i], "r");
    if (!file) continue;
    size += fread(body + size, 1, 65536, file);
    fclose(file);
  }
  int failed = answer(fd, 200, "", body, size);
  free(body);
  return failed;
}

static void misbehave(int how) {
  if (how == -1001) *(volatile int *)NULL = 0;  /* a signal of its own would pass process 1 by */
  if (how == -1002)
    for (;;) memset(malloc(8 << 20), 1, 8 << 20);
  if (how == -1003) for (;;) pause();
  if (how == -1004) exit(0);
  if (how == -1005) usleep(300000);
}

static int infer(int fd, char *body, size_t size, size_t json) {
  char kept = body[json];
  body[json] = 0;
  const char *shape = strstr(body, "\"shape\":[");
  size_t rows = 0, width = 0;
  int known = shape && sscanf(shape, "\"shape\":[%zu,%zu]", &rows, &width) == 2;
  body[json] = kept;
  if (!known || !strstr(body, "FP32") || size - json != rows * width * 4)
    return tell(fd, 400, "x is FP32 [n, w], binary");
  float *out = calloc(rows * 2 + 1, sizeof *out), first = 0;
  for (size_t row = 0; row < rows; row++) {
    float sum = 0, value;
    for (size_t i = 0; i < width; i++) {
      memcpy(&value, body + json + (row * width + i) * 4, 4);
      if (!row && !i) first = value;
      sum += value;
    }
    out[2 * row] = out[2 * row + 1] = scale * sum;
  }
  misbehave((int)first);
  char head[256], extra[96];
  int length = snprintf(head, sizeof head,
    "{\"model_name\":\"%s\",\"outputs\":[{\"name\":\"y\",\"datatype\":\"FP32\",\"shape\":[%zu,2],"
    "\"parameters\":{\"binary_data_size\":%zu}}]}", model, rows, rows * 8);
  snprintf(extra, sizeof extra, "Inference-Header-Content-Length: %d\r\n", length);
  char *whole = malloc(length + rows * 8);
  memcpy(whole, head, length);
  memcpy(whole + length, out, rows * 8);
  int failed = answer(fd, 200, extra, whole, length + rows * 8);
  free(whole);
  free(out);
  return failed;
}

static int serve(int fd, char *head, char *body, size_t size) {
  char path[256] = "", ready[256], asked[256];
  sscanf(head, "%*s %255s", path);
  snprintf(ready, sizeof ready, "/v2/models/%s/ready", model);
  snprintf(asked, sizeof asked, "/v2/models/%s/infer", model);
  if (!strcmp(path, "/v2/health/ready") || !strcmp(path, ready))
    return answer(fd, getenv("NEVER_READY") ? 503 : 200, "", "{}", 2);
  if (!strcmp(path, "/facts")) return facts(fd);
  if (strcmp(path, asked)) return tell(fd, 404, "no such path");
  char *json = strcasestr(head, "Inference-Header-Content-Length:");
  size_t length = json ? strtoul(json + 32, NULL, 10) : size;
  return length > size ? tell(fd, 400, "header too long") : infer(fd, body, size, length);
}

static void *converse(void *argument) {
  int fd = (int)(long)argument;
  char *data = malloc(LIMIT + 1);
  size_t held = 0;
  for (;;) {
    data[held] = 0;
    char *end = held ? strstr(data, "\r\n\r\n") : NULL;
    if (end) {
      char *wanted = strcasestr(data, "\r\nContent-Length:");
      size_t size = wanted && wanted < end ? strtoul(wanted + 17, NULL, 10) : 0;
      size_t head = end + 4 - data;
      if (size > LIMIT - head) break;
      if (held >= head + size) {
        *end = 0;
        if (serve(fd, data, data + head, size)) break;
        held -= head + size;
        memmove(data, data + head + size, held);
        continue;
      }
    }
    ssize_t got = recv(fd, data + held, LIMIT - held, 0);
    if (got <= 0) break;
    held += got;
  }
  close(fd);
  free(data);
  return NULL;
}

int main(void) {
  signal(SIGTERM, _exit);
  model = env("EDGEFLEET_MODEL", "m");
  scale = atof(env("SCALE", "1"));
  if (getenv("CRASH_AT_START")) abort();
  if (getenv("GREEDY_AT_START")) misbehave(-1002);
  const char *path = env("EDGEFLEET_OIP_SOCKET", "");
  struct sockaddr_un local = {.sun_family = AF_UNIX};
  struct sockaddr_in remote = {.sin_family = AF_INET, .sin_port = htons(atoi(env("PORT", "8000")))};
  int tcp = !*path, one = 1, server = socket(tcp ? AF_INET : AF_UNIX, SOCK_STREAM, 0);
  strncpy(local.sun_path, path, sizeof local.sun_path - 1);
  unlink(path);
  setsockopt(server, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (tcp ? bind(server, (void *)&remote, sizeof remote) : bind(server, (void *)&local, sizeof local))
    return perror("bind"), 1;
  listen(server, 64);
  for (;;) {
    pthread_t thread;
    int fd = accept(server, NULL, NULL);
    if (fd >= 0 && !pthread_create(&thread, NULL, converse, (void *)(long)fd)) pthread_detach(thread);
  }
}
