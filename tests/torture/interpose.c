/* Preloaded into the program (LD_PRELOAD): counts its system calls and allocations, and at the n-th lets the process
 * die or the call fail. Environment:
 *   TORTURE_CALLS  which are counted, with commas between them: write, fsync, rename, open, close, read, malloc
 *   TORTURE_AT     n, from 1; 0 or none: only counts
 *   TORTURE_DO     kill, short (a write or read of one byte), or the error as a number: the call fails with it
 *   TORTURE_COUNT  a file that gets the number of calls when the process exits
 * Only the program itself is meant, not what it starts, and only from where it has begun: main() first has SIGPIPE
 * ignored. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WRITE = 1, FSYNC = 2, RENAME = 4, OPEN = 8, CLOSE = 16, READ = 32, MALLOC = 64 };
enum { NOTHING, SHORT = -1, KILL = -2 };

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);

static int counted, action;
static long due;
static atomic_long calls;
static atomic_bool armed;

static void read_environment(void) {
  static const char *const names[] = {"write", "fsync", "rename", "open", "close", "read", "malloc"};
  const char *const list = getenv("TORTURE_CALLS"), *const what = getenv("TORTURE_DO"),
                    *const at = getenv("TORTURE_AT");
  for (int i = 0; list && i < 7; i++)
    if (strstr(list, names[i])) counted |= 1 << i;
  due = at ? atol(at) : 0;
  action = !what ? NOTHING : strcmp(what, "kill") == 0 ? KILL : strcmp(what, "short") == 0 ? SHORT : atoi(what);
}

static void write_count(void) {
  char text[32];
  const char *const path = getenv("TORTURE_COUNT");
  const int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, 0666) : -1;
  if (file < 0) return;
  const int length = snprintf(text, sizeof text, "%ld\n", atomic_load(&calls));
  (void)!syscall(SYS_write, file, text, (size_t)length);
  syscall(SYS_close, file);
}

/* What becomes of this call: NOTHING, SHORT, or the errno it fails with. */
static int fate(int kind) {
  if (!atomic_load(&armed) || !(counted & kind)) return NOTHING;
  if (atomic_fetch_add(&calls, 1) + 1 != due) return NOTHING;
  if (action == KILL) syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
  return action;
}

typedef void (*handler)(int);

handler signal(int number, handler wanted) {
  static handler (*real)(int, handler);
  if (!real) *(void **)&real = dlsym(RTLD_NEXT, "signal");
  const handler before = real(number, wanted);
  if (number == SIGPIPE && strcmp(program_invocation_short_name, "espalier") == 0) {
    read_environment();
    atexit(write_count);
    atomic_store(&armed, true);
  }
  return before;
}

static long fail(int error) {
  errno = error;
  return -1;
}

static long call(long number, long a, long b, long c, long d) {
  const long got = syscall(number, a, b, c, d);
  return got;
}

ssize_t write(int file, const void *bytes, size_t size) {
  const int f = file > 2 ? fate(WRITE) : NOTHING;
  if (f > 0) return fail(f);
  return call(SYS_write, file, (long)bytes, (long)(f == SHORT && size > 1 ? 1 : size), 0);
}

ssize_t read(int file, void *bytes, size_t size) {
  const int f = fate(READ);
  if (f > 0) return fail(f);
  return call(SYS_read, file, (long)bytes, (long)(f == SHORT && size > 1 ? 1 : size), 0);
}

ssize_t pread64(int file, void *bytes, size_t size, off64_t at) {
  const int f = fate(READ);
  if (f > 0) return fail(f);
  return call(SYS_pread64, file, (long)bytes, (long)(f == SHORT && size > 1 ? 1 : size), at);
}

ssize_t pread(int file, void *bytes, size_t size, off_t at) { return pread64(file, bytes, size, at); }

int fsync(int file) {
  const int f = fate(FSYNC);
  return f > 0 ? (int)fail(f) : (int)call(SYS_fsync, file, 0, 0, 0);
}

int rename(const char *from, const char *to) {
  const int f = fate(RENAME);
  return f > 0 ? (int)fail(f) : (int)call(SYS_rename, (long)from, (long)to, 0, 0);
}

/* The descriptor is closed also where close() says that it failed, as on Linux. */
int close(int file) {
  const int f = fate(CLOSE), done = (int)call(SYS_close, file, 0, 0, 0);
  return f > 0 ? (int)fail(f) : done;
}

static int open_at(int folder, const char *path, int flags, int mode) {
  const int f = fate(OPEN);
  return f > 0 ? (int)fail(f) : (int)call(SYS_openat, folder, (long)path, flags, mode);
}

#define OPEN_CALL(name)                          \
  int name(const char *path, int flags, ...) {   \
    va_list rest;                                \
    va_start(rest, flags);                       \
    const int mode = va_arg(rest, int);          \
    va_end(rest);                                \
    return open_at(AT_FDCWD, path, flags, mode); \
  }
OPEN_CALL(open)
OPEN_CALL(open64)

void *malloc(size_t size) {
  const int f = fate(MALLOC);
  return f > 0 ? (errno = f, NULL) : __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  const int f = fate(MALLOC);
  return f > 0 ? (errno = f, NULL) : __libc_calloc(count, size);
}

void *realloc(void *block, size_t size) {
  const int f = fate(MALLOC);
  return f > 0 ? (errno = f, NULL) : __libc_realloc(block, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  const int f = fate(MALLOC);
  return f > 0 ? (errno = f, NULL) : __libc_memalign(alignment, size);
}

int posix_memalign(void **block, size_t alignment, size_t size) {
  const int f = fate(MALLOC);
  if (f > 0) return f;
  *block = __libc_memalign(alignment, size);
  return *block ? 0 : ENOMEM;
}
