/* Preloaded into a process, this makes its disk full at the Nth call that needs room in a folder.
 *
 * FULL_ROOT   the folder; calls elsewhere do not count.
 * FULL_ARM    nothing counts before this file exists.
 * FULL_AT     which call is the first to fail, from 1; 0: never.
 * FULL_FREE   once this file exists, the disk has room again.
 * FULL_LOG    a file that gets one line a call that needs room. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static int calls, full_at, out = -1;
static char root[4096], arm[4096], room[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void keep(char *to, const char *name) {
    const char *value = getenv(name);
    if (value) snprintf(to, 4096, "%s", value);
}

__attribute__((constructor)) static void begin(void) {
    const char *at = getenv("FULL_AT"), *to = getenv("FULL_LOG");
    keep(root, "FULL_ROOT");
    keep(arm, "FULL_ARM");
    keep(room, "FULL_FREE");
    full_at = at ? atoi(at) : 0;
    if (to) out = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    unsetenv("LD_PRELOAD"); /* children are not meant */
}

static int refused(const char *call, const char *path) {
    if (!root[0] || strncmp(path, root, strlen(root)) || strstr(path, "-shm")) return 0;
    if (access(arm, F_OK)) return 0;
    pthread_mutex_lock(&lock);
    calls++;
    int no = full_at && calls >= full_at && access(room, F_OK);
    if (out >= 0) dprintf(out, "%s %s%s\n", call, path, no ? " FULL" : "");
    pthread_mutex_unlock(&lock);
    if (no) errno = ENOSPC;
    return no;
}

static int refused_fd(const char *call, int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (length <= 0) return 0;
    path[length] = 0;
    return refused(call, path);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return refused_fd("write", fd) ? -1 : real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    return refused_fd("pwrite", fd) ? -1 : real(fd, data, size, at);
}

int fsync(int fd) { /* where room is only looked for when it must be there */
    REAL(fsync);
    return refused_fd("fsync", fd) ? -1 : real(fd);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return refused("rename", to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return refused("mkdir", path) ? -1 : real(path, mode);
}

int open64(const char *path, int flags, ...) {
    REAL(open64);
    mode_t mode = 0;
    if (flags & (O_CREAT | O_TMPFILE)) {
        va_list rest;
        va_start(rest, flags);
        mode = va_arg(rest, mode_t);
        va_end(rest);
    }
    if ((flags & O_CREAT) && access(path, F_OK) && refused("create", path)) return -1;
    return real(path, flags, mode);
}
