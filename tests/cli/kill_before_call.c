// LD_PRELOAD: ends the process with SIGKILL in front of its n-th call that changes the disk below
// T2R_KILL_FOLDER, n being T2R_KILL_AT (0 or none: never). With T2R_KILL_LOG each such call is a
// line of that file.
//
// Wrapped: what t2r and libstdc++ call to write, sync, rename, make and remove files. glibc's own
// internal calls are not seen; t2r opens what it writes with open().
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static atomic_long num_calls;

static int is_below(const char* path) {
  const char* folder = getenv("T2R_KILL_FOLDER");
  return folder != NULL && path != NULL && strncmp(path, folder, strlen(folder)) == 0;
}

static void note(const char* call, const char* path) {
  const char* at = getenv("T2R_KILL_AT");
  const char* log = getenv("T2R_KILL_LOG");
  const long number = atomic_fetch_add(&num_calls, 1) + 1;
  if (log != NULL) {
    char line[PATH_MAX + 64];
    const int size = snprintf(line, sizeof(line), "%ld %s %s\n", number, call, path);
    static int descriptor = -1;
    int (*real_open)(const char*, int, ...) =
        (int (*)(const char*, int, ...))dlsym(RTLD_NEXT, "open");
    ssize_t (*real_write)(int, const void*, size_t) =
        (ssize_t(*)(int, const void*, size_t))dlsym(RTLD_NEXT, "write");
    if (descriptor < 0)
      descriptor = real_open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (real_write(descriptor, line, (size_t)size) < 0) abort();
  }
  if (at != NULL && atol(at) == number) kill(getpid(), SIGKILL);
}

static void note_path(const char* call, const char* path) {
  if (is_below(path)) note(call, path);
}

static void note_descriptor(const char* call, int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof(link), "/proc/self/fd/%d", descriptor);
  const ssize_t size = readlink(link, path, sizeof(path) - 1);
  if (size < 0) return;
  path[size] = '\0';
  note_path(call, path);
}

static void note_at(const char* call, int folder, const char* path) {
  if (path[0] == '/' || folder == AT_FDCWD) {
    note_path(call, path);
  } else {
    note_descriptor(call, folder);
  }
}

#define REAL(name, ...) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))(__VA_ARGS__)

static int open_mode(int flags, va_list list) {
  return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(list, int) : 0;
}

#define WRAP_OPEN(name)                                                                  \
  int name(const char* path, int flags, ...) {                                           \
    va_list list;                                                                        \
    va_start(list, flags);                                                               \
    const int mode = open_mode(flags, list);                                             \
    va_end(list);                                                                        \
    if ((flags & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC)) != 0) note_path("open", path); \
    return REAL(name, path, flags, mode);                                                \
  }
WRAP_OPEN(open)
WRAP_OPEN(open64)

ssize_t write(int descriptor, const void* bytes, size_t size) {
  note_descriptor("write", descriptor);
  return REAL(write, descriptor, bytes, size);
}
ssize_t pwrite(int descriptor, const void* bytes, size_t size, off_t offset) {
  note_descriptor("pwrite", descriptor);
  return REAL(pwrite, descriptor, bytes, size, offset);
}
ssize_t writev(int descriptor, const struct iovec* parts, int count) {
  note_descriptor("writev", descriptor);
  return REAL(writev, descriptor, parts, count);
}
int ftruncate(int descriptor, off_t size) {
  note_descriptor("ftruncate", descriptor);
  return REAL(ftruncate, descriptor, size);
}
int fsync(int descriptor) {
  note_descriptor("fsync", descriptor);
  return REAL(fsync, descriptor);
}
int rename(const char* from, const char* to) {
  note_path("rename", to);
  return REAL(rename, from, to);
}
int mkdir(const char* path, mode_t mode) {
  note_path("mkdir", path);
  return REAL(mkdir, path, mode);
}
int symlink(const char* target, const char* path) {
  note_path("symlink", path);
  return REAL(symlink, target, path);
}
int unlink(const char* path) {
  note_path("unlink", path);
  return REAL(unlink, path);
}
int rmdir(const char* path) {
  note_path("rmdir", path);
  return REAL(rmdir, path);
}
int remove(const char* path) {
  note_path("remove", path);
  return REAL(remove, path);
}
int unlinkat(int folder, const char* path, int flags) {
  note_at("unlinkat", folder, path);
  return REAL(unlinkat, folder, path, flags);
}
