/* Preloaded into a process, this cuts its power before the Nth call that changes a folder.
 *
 * CRASH_ROOT  the folder; calls elsewhere do not count.
 * CRASH_AT    which call is the last, from 1; 0: never.
 * CRASH_LOG   a file that gets one line a call: its name and what it is about.
 *
 * A cut is worse than SIGKILL: of every file written since its last fsync, the new end is lost. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FILES 4096
#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static struct dirty { dev_t dev; ino_t ino; off_t safe; int fd; } files[FILES];
static int known, calls, crash_at, out = -1;
static char root[4096];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("CRASH_ROOT"), *at = getenv("CRASH_AT"), *to = getenv("CRASH_LOG");
    if (folder) snprintf(root, sizeof root, "%s", folder);
    crash_at = at ? atoi(at) : 0;
    if (to) out = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    unsetenv("LD_PRELOAD"); /* children are not meant */
}

static int inside(const char *path) { return root[0] && !strncmp(path, root, strlen(root)); }

/* The name, if it counts; SQLite's shared memory is none of the disk's. */
static int name_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, 4095);
    path[length > 0 ? length : 0] = 0;
    return length > 0 && inside(path) && !strstr(path, "-shm");
}

/* The file's entry; made on the first write, when what it holds is taken for safe. */
static struct dirty *entry(int fd, int make) {
    struct stat info;
    if (fstat(fd, &info) || !S_ISREG(info.st_mode)) return 0;
    for (int i = 0; i < known; i++)
        if (files[i].dev == info.st_dev && files[i].ino == info.st_ino) return &files[i];
    if (!make || known == FILES) return 0;
    files[known] = (struct dirty){info.st_dev, info.st_ino, info.st_size,
                                  fcntl(fd, F_DUPFD_CLOEXEC, 512)};
    return &files[known++];
}

static void lose_what_is_not_safe(void) {
    for (int i = 0; i < known; i++) {
        struct stat info;
        if (!fstat(files[i].fd, &info) && info.st_size > files[i].safe)
            syscall(SYS_ftruncate, files[i].fd, files[i].safe);
    }
}

static void count(const char *call, const char *path) {
    pthread_mutex_lock(&lock);
    calls++;
    if (out >= 0) dprintf(out, "%s %s\n", call, path);
    if (calls == crash_at) {
        lose_what_is_not_safe();
        kill(getpid(), SIGKILL);
        for (;;) pause(); /* with the lock: no other thread gets any further */
    }
    pthread_mutex_unlock(&lock);
}

static void wrote(int fd) {
    char path[4096];
    if (!root[0] || !name_of(fd, path)) return;
    pthread_mutex_lock(&lock);
    entry(fd, 1);
    pthread_mutex_unlock(&lock);
}

static void synced(int fd, const char *call) {
    char path[4096];
    int saved = errno;
    if (root[0] && name_of(fd, path)) count(call, path);
    errno = saved;
}

static void is_safe(int fd) {
    struct stat info;
    pthread_mutex_lock(&lock);
    struct dirty *file = entry(fd, 0);
    if (file && !fstat(fd, &info)) file->safe = info.st_size;
    pthread_mutex_unlock(&lock);
}

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    wrote(fd);
    return real(fd, data, size);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    wrote(fd);
    return real(fd, data, size, at);
}

int fsync(int fd) {
    REAL(fsync);
    synced(fd, "fsync");
    int result = real(fd);
    is_safe(fd);
    return result;
}

int fdatasync(int fd) {
    REAL(fdatasync);
    synced(fd, "fdatasync");
    int result = real(fd);
    is_safe(fd);
    return result;
}

int ftruncate64(int fd, off64_t size) {
    REAL(ftruncate64);
    synced(fd, "ftruncate");
    return real(fd, size);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (inside(to)) count("rename", to);
    return real(from, to);
}

int unlink(const char *path) {
    REAL(unlink);
    if (inside(path)) count("unlink", path);
    return real(path);
}

int link(const char *from, const char *to) {
    REAL(link);
    if (inside(to)) count("link", to);
    return real(from, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (inside(path)) count("mkdir", path);
    return real(path, mode);
}
