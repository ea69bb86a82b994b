// Limits of memory, sealed mappings, what execve hands on and refuses.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
#define MIB (1ul << 20)
#define PAGE 4096ul
#define ANONYMOUS (MAP_PRIVATE | MAP_ANONYMOUS)

static void *map(unsigned long size, int protection) { return mmap(0, size, protection, ANONYMOUS, -1, 0); }
static void limit(int resource, unsigned long soft) {
  struct rlimit value;
  getrlimit(resource, &value);
  value.rlim_cur = soft;
  CHECK(setrlimit(resource, &value) == 0);
}
static int run(char *program, char *word) {
  char *words[] = {program, word, 0};
  int status;
  pid_t child = fork();
  if (child == 0) {
    execv(program, words);
    _exit(100 + errno);
  }
  waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

static void sealing(void) {
  char *p = map(4 * PAGE, 3);
  p[PAGE] = 1;
  CHECK(syscall(462, p + 1, PAGE, 0) == -1 && errno == EINVAL);
  CHECK(syscall(462, p, PAGE, 1) == -1 && errno == EINVAL);
  CHECK(munmap(p + 3 * PAGE, PAGE) == 0);
  CHECK(syscall(462, p + 2 * PAGE, 2 * PAGE, 0) == -1 && errno == ENOMEM);
  CHECK(syscall(462, p + PAGE, PAGE, 0) == 0 && syscall(462, p + PAGE, PAGE, 0) == 0);
  CHECK(mprotect(p + PAGE, PAGE, PROT_READ) == -1 && errno == EPERM);
  CHECK(mprotect(p, 3 * PAGE, PROT_READ) == -1 && errno == EPERM);
  CHECK(munmap(p, 3 * PAGE) == -1 && errno == EPERM);
  CHECK(mmap(p + PAGE, PAGE, 3, ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EPERM);
  CHECK(mremap(p + PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EPERM);
  CHECK(madvise(p + PAGE, PAGE, MADV_DONTNEED) == 0);  // it could be written to as well
  p[PAGE] = 2;
  CHECK(munmap(p, PAGE) == 0 && munmap(p + 2 * PAGE, PAGE) == 0 && p[PAGE] == 2);
  char *fixed = map(PAGE, PROT_READ);
  CHECK(syscall(462, fixed, PAGE, 0) == 0);
  CHECK(madvise(fixed, PAGE, MADV_DONTNEED) == -1 && errno == EPERM);
}

static void memory_limits(char *self) {
  // The size of everything.
  limit(RLIMIT_AS, 256 * MIB);
  CHECK(map(300 * MIB, 3) == MAP_FAILED && errno == ENOMEM);
  char *p = map(100 * MIB, 3);
  CHECK(p != MAP_FAILED);
  CHECK(map(160 * MIB, 0) == MAP_FAILED && errno == ENOMEM);
  CHECK(mremap(p, 100 * MIB, 300 * MIB, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
  CHECK(mmap(p, 100 * MIB, 3, ANONYMOUS | MAP_FIXED, -1, 0) == p);  // nothing added
  CHECK(munmap(p, 100 * MIB) == 0);
  p = map(160 * MIB, 0);
  CHECK(p != MAP_FAILED && munmap(p, 160 * MIB) == 0);
  CHECK(malloc(300 * MIB) == 0 && errno == ENOMEM);
  CHECK(run(self, "size") == 0);
  limit(RLIMIT_AS, RLIM_INFINITY);
  p = map(300 * MIB, 0);
  CHECK(p != MAP_FAILED && munmap(p, 300 * MIB) == 0);
  // What may be written to and is nobody else's.
  limit(RLIMIT_DATA, 64 * MIB);
  CHECK(map(100 * MIB, 3) == MAP_FAILED && errno == ENOMEM);
  p = map(100 * MIB, PROT_READ);
  CHECK(p != MAP_FAILED);
  CHECK(mprotect(p, 100 * MIB, 3) == -1 && errno == ENOMEM);
  CHECK(mprotect(p, 10 * MIB, 3) == 0);
  CHECK(mmap(0, 100 * MIB, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
  char *end = sbrk(0);
  CHECK(sbrk(100 * MIB) == (void *)-1 && errno == ENOMEM && sbrk(0) == end);
  CHECK(run(self, "data") == 0);
  CHECK(munmap(p, 100 * MIB) == 0);
  limit(RLIMIT_DATA, RLIM_INFINITY);
  // A small stack is the next program's.
  limit(RLIMIT_STACK, 256 << 10);
  CHECK(run(self, "stack") == 0);
}

// What the next program sees of them.
static int inherited(const char *word) {
  struct rlimit value;
  if (!strcmp(word, "size"))
    return getrlimit(RLIMIT_AS, &value) || value.rlim_cur != 256 * MIB || map(300 * MIB, 3) != MAP_FAILED;
  if (!strcmp(word, "data"))
    return getrlimit(RLIMIT_DATA, &value) || value.rlim_cur != 64 * MIB || map(100 * MIB, 3) != MAP_FAILED;
  if (getrlimit(RLIMIT_STACK, &value) || value.rlim_cur != 256 << 10) return 1;
  char line[256];
  unsigned long low = 0, high = 0;
  FILE *maps = fopen("/proc/self/maps", "r");
  while (fgets(line, sizeof line, maps))
    if (strstr(line, "[stack]")) sscanf(line, "%lx-%lx", &low, &high);
  return !(high > low && high - low <= 320 << 10);
}

static void files(char *self) {
  char name[] = "/tmp/apus-limits-XXXXXX", buffer[65536];
  int to = mkstemp(name), from = open(self, O_RDONLY);
  for (ssize_t count; (count = read(from, buffer, sizeof buffer)) > 0;) write(to, buffer, count);
  fchmod(to, 0755);
  // Open for writing.
  CHECK(run(name, "size") == 100 + ETXTBSY);
  close(to);
  chmod(name, 0644);
  CHECK(run(name, "size") == 100 + EACCES);
  unlink(name);
}

int main(int argc, char **argv) {
  if (argc > 1) return inherited(argv[1]);
  sealing();
  memory_limits(argv[0]);
  files(argv[0]);
  return 0;
}
