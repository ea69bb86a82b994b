// Files, directories, pipes, time, memory calls.
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/stat.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED")

int main(int argc, char **argv) {
  char path[] = "/tmp/apus-files-XXXXXX", buffer[4096];
  int fd = mkstemp(path);
  CHECK(fd >= 0);
  CHECK(write(fd, "hello, file\n", 12) == 12);
  struct iovec vector[2] = {{"one ", 4}, {"two\n", 4}};
  CHECK(writev(fd, vector, 2) == 8);
  struct stat st;
  CHECK(fstat(fd, &st) == 0 && st.st_size == 20 && S_ISREG(st.st_mode) && st.st_nlink == 1);
  CHECK(stat(path, &st) == 0 && st.st_size == 20 && (st.st_mode & 0777) == 0600 && st.st_blksize > 0);
  struct statx sx;
  CHECK(statx(AT_FDCWD, path, 0, STATX_ALL, &sx) == 0 && sx.stx_size == 20);
  CHECK(lseek(fd, 7, SEEK_SET) == 7);
  memset(buffer, 0, sizeof buffer);
  CHECK(read(fd, buffer, 6) == 6 && memcmp(buffer, "file\no", 6) == 0);
  CHECK(pread(fd, buffer, 5, 0) == 5 && memcmp(buffer, "hello", 5) == 0);
  CHECK(ftruncate(fd, 5) == 0 && fstat(fd, &st) == 0 && st.st_size == 5);
  char *map = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  CHECK(map != MAP_FAILED && memcmp(map, "hello", 5) == 0);
  map[0] = 'J';
  CHECK(munmap(map, 4096) == 0 && pread(fd, buffer, 5, 0) == 5 && memcmp(buffer, "Jello", 5) == 0);
  CHECK(close(fd) == 0 && access(path, R_OK) == 0);
  char link[64];
  snprintf(link, sizeof link, "%s.link", path);
  CHECK(symlink(path, link) == 0);
  ssize_t n = readlink(link, buffer, sizeof buffer);
  CHECK(n == (ssize_t)strlen(path) && memcmp(buffer, path, n) == 0);
  CHECK(unlink(link) == 0 && unlink(path) == 0 && access(path, R_OK) == -1 && errno == ENOENT);

  snprintf(path, sizeof path, "/tmp/apus-files-XXXXXX");
  CHECK(mkdtemp(path) != 0 && chdir(path) == 0 && getcwd(buffer, sizeof buffer) && strcmp(buffer, path) == 0);
  for (int i = 0; i < 100; i++) {
    snprintf(buffer, 32, "f%d", i);
    close(open(buffer, O_CREAT | O_WRONLY, 0644));
  }
  DIR *directory = opendir(".");
  int count = 0;
  while (readdir(directory)) count++;
  closedir(directory);
  CHECK(count == 102);
  for (int i = 0; i < 100; i++) {
    snprintf(buffer, 32, "f%d", i);
    unlink(buffer);
  }
  CHECK(chdir("/") == 0 && rmdir(path) == 0);

  int ends[2];
  CHECK(pipe2(ends, O_CLOEXEC) == 0 && write(ends[1], "x", 1) == 1);
  struct pollfd pf = {ends[0], POLLIN, 0};
  CHECK(poll(&pf, 1, 0) == 1 && pf.revents == POLLIN);
  fd_set set;
  FD_ZERO(&set);
  FD_SET(ends[0], &set);
  struct timeval zero = {0, 0};
  CHECK(select(ends[0] + 1, &set, 0, 0, &zero) == 1);
  int e = epoll_create1(0);
  struct epoll_event event = {EPOLLIN, {.u64 = 0x123456789abcdef}}, got[4];
  CHECK(epoll_ctl(e, EPOLL_CTL_ADD, ends[0], &event) == 0);
  CHECK(epoll_wait(e, got, 4, 0) == 1 && got[0].data.u64 == 0x123456789abcdef && got[0].events == EPOLLIN);
  int copy = dup(ends[0]);
  CHECK(copy > 0 && dup3(copy, 100, 0) == 100 && fcntl(100, F_GETFL) == O_RDONLY && read(100, buffer, 1) == 1);

  struct utsname name;
  CHECK(uname(&name) == 0 && strcmp(name.machine, "riscv64") == 0 && strcmp(name.sysname, "Linux") == 0);
  struct timespec a, b;
  clock_gettime(CLOCK_MONOTONIC, &a);
  struct timespec pause = {0, 5000000};
  nanosleep(&pause, 0);
  clock_gettime(CLOCK_MONOTONIC, &b);
  CHECK((b.tv_sec - a.tv_sec) * 1000000000 + b.tv_nsec - a.tv_nsec >= 5000000);
  struct rlimit limit;
  CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > 0);
  struct rusage usage;
  struct tms tms;
  struct sysinfo info;
  CHECK(getrusage(RUSAGE_SELF, &usage) == 0 && times(&tms) != -1 && sysinfo(&info) == 0 && info.totalram > 0);

  char *big = mmap(0, 1 << 24, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  big[0] = 1;
  big[(1 << 24) - 1] = 2;
  char *moved = mremap(big, 1 << 24, 1 << 25, MREMAP_MAYMOVE);
  CHECK(moved != MAP_FAILED && moved[0] == 1 && moved[(1 << 24) - 1] == 2 && moved[(1 << 25) - 1] == 0);
  CHECK(munmap(moved, 1 << 25) == 0);
  CHECK(mprotect((void *)0x1000, 4096, PROT_READ) == -1 && errno == ENOMEM);
  CHECK(write(-1, "", 0) == -1 && errno == EBADF);
  CHECK(read(0, (void *)8, 100) <= 0);
  char *many[1000];
  for (int i = 0; i < 1000; i++) many[i] = malloc(i * 37 + 1), memset(many[i], i, i * 37 + 1);
  int good = 1;
  for (int i = 0; i < 1000; i++) good &= many[i][i * 37] == (char)i, free(many[i]);
  CHECK(good);
  void *begin = sbrk(0);
  CHECK(sbrk(1 << 20) == begin && sbrk(-(1 << 20)) == (char *)begin + (1 << 20) && sbrk(0) == begin);
  CHECK(isatty(1) == 0 && errno == ENOTTY);
  printf("%d arguments, %s\n", argc, getenv("APUS_TEST") ? getenv("APUS_TEST") : "unset");
  return 0;
}
