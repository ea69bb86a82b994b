// A call or two of each kind: memory, descriptors, IPC, sockets, threads' locks, /proc.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
#define PAGE 4096

static char text[1 << 20];
static const char *contents(const char *path) {
  int file = open(path, O_RDONLY);
  size_t length = 0;
  ssize_t n;
  while (length < sizeof text - 1 && (n = read(file, text + length, sizeof text - 1 - length)) > 0) length += n;
  text[length] = 0;
  close(file);
  return text;
}

static void memory(void) {
  char *p = mmap(0, 8 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(p != MAP_FAILED);
  memset(p, 7, 8 * PAGE);
  CHECK(mmap(p + PAGE, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED &&
        errno == EEXIST);
  CHECK(munmap(p + 4 * PAGE, 4 * PAGE) == 0);
  char *q = mmap(p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  CHECK(q == p + 4 * PAGE && q[0] == 0);
  char *grown = mremap(p, 4 * PAGE, 100 * PAGE, MREMAP_MAYMOVE);
  CHECK(grown != MAP_FAILED && grown[0] == 7 && grown[4 * PAGE - 1] == 7 && grown[50 * PAGE] == 0);
  CHECK(mremap(grown, 100 * PAGE, 2 * PAGE, 0) == grown);
  CHECK(madvise(grown, PAGE, MADV_DONTNEED) == 0 && grown[0] == 0 && grown[PAGE] == 7);
  CHECK(mprotect(grown, PAGE, PROT_NONE) == 0 && mprotect((char *)1, PAGE, PROT_READ) == -1 && errno == EINVAL);
  CHECK(mmap(0, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
  CHECK(mmap(0, PAGE, PROT_READ, MAP_PRIVATE, 999, 0) == MAP_FAILED && errno == EBADF);
  int file = memfd_create("name", MFD_CLOEXEC);
  CHECK(file >= 0 && ftruncate(file, 2 * PAGE) == 0);
  char *a = mmap(0, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  char *b = mmap(0, 2 * PAGE, PROT_READ, MAP_SHARED, file, 0);
  a[PAGE + 5] = 42;
  CHECK(b[PAGE + 5] == 42 && msync(a, 2 * PAGE, MS_SYNC) == 0);
  pid_t child = fork();
  if (child == 0) {
    a[0] = 9;
    _exit(0);
  }
  waitpid(child, 0, 0);
  CHECK(b[0] == 9);
  void *end = sbrk(0);
  CHECK(sbrk(3 * PAGE + 100) == end && sbrk(0) == (char *)end + 3 * PAGE + 100);
  memset(end, 1, 3 * PAGE + 100);
  CHECK(sbrk(-(3 * PAGE + 100)) != (void *)-1 && sbrk(0) == end);
}

static void descriptors(void) {
  int epoll = epoll_create1(EPOLL_CLOEXEC), counter = eventfd(0, EFD_NONBLOCK);
  struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0x123456789abcdef0}, seen[4];
  CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, counter, &event) == 0);
  CHECK(epoll_wait(epoll, seen, 4, 0) == 0);
  CHECK(eventfd_write(counter, 5) == 0);
  CHECK(epoll_wait(epoll, seen, 4, -1) == 1 && seen[0].data.u64 == 0x123456789abcdef0 && seen[0].events == EPOLLIN);
  uint64_t value;
  CHECK(read(counter, &value, 8) == 8 && value == 5);
  int timer = timerfd_create(CLOCK_MONOTONIC, 0);
  struct itimerspec soon = {{0, 0}, {0, 1000000}};
  CHECK(timerfd_settime(timer, 0, &soon, 0) == 0 && read(timer, &value, 8) == 8 && value == 1);
  char name[] = "/tmp/apus-interfaces-XXXXXX";
  CHECK(mkdtemp(name) != 0);
  int notify = inotify_init1(IN_CLOEXEC);
  CHECK(inotify_add_watch(notify, name, IN_CREATE) >= 0);
  char path[64];
  sprintf(path, "%s/file", name);
  int file = open(path, O_CREAT | O_RDWR | O_CLOEXEC, 0640);
  char buffer[512];
  struct inotify_event *what = (void *)buffer;
  CHECK(read(notify, buffer, sizeof buffer) > 0 && what->mask == IN_CREATE && strcmp(what->name, "file") == 0);
  struct stat status;
  struct statx extended;
  CHECK(fstat(file, &status) == 0 && S_ISREG(status.st_mode) && (status.st_mode & 0777) == 0640 && status.st_nlink == 1);
  CHECK(statx(AT_FDCWD, path, 0, STATX_ALL, &extended) == 0 && extended.stx_ino == status.st_ino);
  CHECK(fcntl(file, F_GETFD) == FD_CLOEXEC && fcntl(file, F_DUPFD, 50) == 50 && fcntl(50, F_GETFD) == 0);
  struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
  CHECK(fcntl(file, F_SETLK, &lock) == 0 && fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_UNLCK);
  struct iovec parts[2] = {{"abc", 3}, {"defg", 4}};
  CHECK(writev(file, parts, 2) == 7 && pread(file, buffer, 4, 3) == 4 && memcmp(buffer, "defg", 4) == 0);
  CHECK(close_range(50, 50, 0) == 0 && fcntl(50, F_GETFD) == -1);
  unlink(path);
  rmdir(name);
  CHECK(open("/nonexistent", O_RDONLY) == -1 && errno == ENOENT && open((char *)8, O_RDONLY) == -1 && errno == EFAULT);
}

static void ipc(void) {
  int id = shmget(IPC_PRIVATE, 3 * PAGE, 0600);
  int *shared = shmat(id, 0, 0);
  struct shmid_ds status;
  CHECK(shared != (void *)-1 && shmctl(id, IPC_STAT, &status) == 0 && status.shm_nattch == 1 &&
        status.shm_segsz == 3 * PAGE);
  int semaphores = semget(IPC_PRIVATE, 2, 0600);
  struct semid_ds sem_status;
  union { int value; struct semid_ds *status; } argument = {.value = 0};
  CHECK(semctl(semaphores, 0, SETVAL, argument) == 0);
  argument.status = &sem_status;
  CHECK(semctl(semaphores, 0, IPC_STAT, argument) == 0 && sem_status.sem_nsems == 2 && sem_status.sem_otime == 0 &&
        sem_status.sem_perm.uid == geteuid());
  pid_t child = fork();
  if (child == 0) {
    struct sembuf up = {0, 1, 0};
    shared[5] = 77;
    semop(semaphores, &up, 1);
    _exit(0);
  }
  struct sembuf down = {0, -1, 0};
  CHECK(semop(semaphores, &down, 1) == 0 && shared[5] == 77);
  waitpid(child, 0, 0);
  CHECK(shmdt(shared) == 0 && shmdt(shared) == -1);
  CHECK(shmctl(id, IPC_RMID, 0) == 0 && semctl(semaphores, 0, IPC_RMID) == 0);
  int queue = msgget(IPC_PRIVATE, 0600);
  struct { long type; char body[16]; } message = {3, "hello"}, got;
  CHECK(msgsnd(queue, &message, 6, 0) == 0 && msgrcv(queue, &got, 16, 3, 0) == 6 && strcmp(got.body, "hello") == 0);
  struct msqid_ds queue_status;
  CHECK(msgctl(queue, IPC_STAT, &queue_status) == 0 && queue_status.msg_qnum == 0 && msgctl(queue, IPC_RMID, 0) == 0);
}

static void sockets(void) {
  int pair[2], pipes[2];
  CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 && pipe2(pipes, O_CLOEXEC) == 0);
  union { char bytes[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
  struct iovec part = {"x", 1};
  struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes,
                           .msg_controllen = sizeof control.bytes};
  struct cmsghdr *header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &pipes[1], sizeof(int));
  CHECK(sendmsg(pair[0], &message, 0) == 1);
  char byte;
  struct iovec into = {&byte, 1};
  struct msghdr received = {.msg_iov = &into, .msg_iovlen = 1, .msg_control = control.bytes,
                            .msg_controllen = sizeof control.bytes};
  memset(control.bytes, 0, sizeof control.bytes);
  CHECK(recvmsg(pair[1], &received, 0) == 1 && byte == 'x');
  int passed;
  memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&received)), sizeof(int));
  CHECK(write(passed, "y", 1) == 1 && read(pipes[0], &byte, 1) == 1 && byte == 'y');
  struct timeval limit = {0, 20000};
  CHECK(setsockopt(pair[1], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
  CHECK(recv(pair[1], &byte, 1, 0) == -1 && errno == EAGAIN);
  int netlink = socket(AF_NETLINK, SOCK_RAW, 0);
  CHECK(netlink >= 0);
}

static pthread_mutex_t robust, inheriting;
static void *die_with_lock(void *unused) {
  pthread_mutex_lock(&robust);
  return 0;
}
static int add_one(void *argument) {
  ++*(int *)argument;
  return 0;
}
static volatile int turn;
static void *locker(void *unused) {
  for (int i = 0; i < 5000; i++) {
    pthread_mutex_lock(&inheriting);
    turn++;
    pthread_mutex_unlock(&inheriting);
  }
  return 0;
}

static void threads(void) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
  pthread_mutex_init(&robust, &attributes);
  pthread_t thread, second;
  pthread_create(&thread, 0, die_with_lock, 0);
  pthread_join(thread, 0);
  CHECK(pthread_mutex_lock(&robust) == EOWNERDEAD && pthread_mutex_consistent(&robust) == 0);
  CHECK(pthread_mutex_unlock(&robust) == 0);
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
  CHECK(pthread_mutex_init(&inheriting, &attributes) == 0);
  pthread_create(&thread, 0, locker, 0);
  pthread_create(&second, 0, locker, 0);
  pthread_join(thread, 0);
  pthread_join(second, 0);
  CHECK(turn == 10000);
  // clone3: a child process with a pidfd.
  int descriptor = -1;
  struct clone_args arguments = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&descriptor, .exit_signal = SIGCHLD};
  pid_t child = syscall(SYS_clone3, &arguments, sizeof arguments);
  if (child == 0) _exit(12);
  siginfo_t info;
  CHECK(child > 0 && descriptor >= 0 && waitid(P_PIDFD, descriptor, &info, WEXITED) == 0 && info.si_status == 12);
  CHECK(syscall(SYS_clone3, &arguments, 8) == -1 && errno == EINVAL);
  // Shared memory without a wait: a parent that vforks by hand.
  static char stack[65536] __attribute__((aligned(16)));
  int value = 5, status;
  child = clone(add_one, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &value);
  CHECK(child > 0 && waitpid(child, &status, 0) == child && value == 6);
  int word = 0;
  struct timespec short_time = {0, 1000000};
  CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 0, &short_time, 0, 0) == -1 && errno == ETIMEDOUT);
  CHECK(syscall(SYS_futex, &word, FUTEX_WAIT, 1, 0, 0, 0) == -1 && errno == EAGAIN);
  cpu_set_t cpus;
  CHECK(sched_getaffinity(0, sizeof cpus, &cpus) == 0 && CPU_COUNT(&cpus) >= 1);
  char name[16];
  CHECK(prctl(PR_SET_NAME, "renamed") == 0 && prctl(PR_GET_NAME, name) == 0 && strcmp(name, "renamed") == 0);
}

// PROCMAP_QUERY, which the C library's headers do not know yet.
struct map_query {
  uint64_t size, flags, address, start, end, permissions, page, offset, inode;
  uint32_t major, minor, name_size, build_size;
  uint64_t name, build;
};
static void map_query(void) {
  int file = open("/proc/self/maps", O_RDONLY), other = open("/proc/self/cmdline", O_RDONLY);
  const unsigned long request = _IOWR('f', 17, struct map_query);
  char name[256];
  struct map_query query = {.size = sizeof query, .address = (uintptr_t)map_query, .name = (uintptr_t)name, .name_size = sizeof name};
  CHECK(ioctl(file, request, &query) == 0 && query.start <= query.address && query.address < query.end);
  CHECK(query.permissions == 5 && query.page == PAGE && query.inode != 0 && strstr(name, "/interfaces"));
  CHECK(query.name_size == strlen(name) + 1);
  query.flags = 2, query.name = query.name_size = 0;
  CHECK(ioctl(file, request, &query) == -1 && errno == ENOENT);  // code cannot be written to
  query.flags = 0x12;
  CHECK(ioctl(file, request, &query) == 0 && query.start > (uintptr_t)map_query && query.permissions & 2);
  query.flags = 0, query.address = (uintptr_t)&query;
  CHECK(ioctl(file, request, &query) == 0 && query.permissions == 3 && query.inode == 0);
  query.flags = 0x10, query.address = -PAGE;
  CHECK(ioctl(file, request, &query) == -1 && errno == ENOENT);
  query.flags = 0x40;
  CHECK(ioctl(file, request, &query) == -1 && errno == EINVAL);
  query.flags = 0, query.name_size = 5;
  CHECK(ioctl(file, request, &query) == -1 && errno == EINVAL);
  query.size = 8;
  CHECK(ioctl(file, request, &query) == -1 && errno == EINVAL);
  CHECK(ioctl(other, request, &query) == -1 && errno == ENOTTY);
  close(file);
  close(other);
}

static void own_files(char **argv) {
  CHECK(strcmp(contents("/proc/self/cmdline"), argv[0]) == 0);
  CHECK(strstr(contents("/proc/self/maps"), "[stack]") && strstr(text, "/interfaces") && strstr(text, "[heap]") &&
        !strstr(text, "apus-user\n"));
  char line[64];
  sprintf(line, "/proc/%d/maps", getpid());
  CHECK(strstr(contents(line), "[stack]") != 0);
  CHECK(strstr(contents("/proc/cpuinfo"), "rv64imafdc") != 0);
  uint64_t *vector = (uint64_t *)contents("/proc/self/auxv");
  int isThere = 0;
  for (int i = 0; vector[i]; i += 2)
    if (vector[i] == AT_PAGESZ && vector[i + 1] == PAGE) isThere = 1;
  CHECK(isThere);
  unsigned long stack = 0;
  char *after = strrchr(contents("/proc/self/stat"), ')') + 1;
  for (int field = 3; field < 28; field++) after = strchr(after + 1, ' ');
  stack = strtoul(after, 0, 10);
  CHECK((unsigned long)argv > stack && (unsigned long)argv - stack < 4096);
  CHECK(strstr(contents("/proc/self/smaps"), "Rss:") != 0);
  struct timespec now, later;
  CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0 && clock_gettime(CLOCK_MONOTONIC, &later) == 0);
  CHECK(later.tv_sec > now.tv_sec || (later.tv_sec == now.tv_sec && later.tv_nsec >= now.tv_nsec));
  CHECK(clock_gettime(99, &now) == -1 && errno == EINVAL);
  struct rlimit limit = {1 << 30, 1 << 30}, read_back;
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0 && getrlimit(RLIMIT_AS, &read_back) == 0 && read_back.rlim_cur == 1 << 30);
}

int main(int argc, char **argv) {
  memory();
  descriptors();
  ipc();
  sockets();
  threads();
  own_files(argv);
  map_query();
  return 0;
}
