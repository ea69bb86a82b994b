// Signals are neither lost nor late: queues, masks, sleeping calls, other threads.
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)

static volatile int count, sum, depth, deepest, in_order = 1, previous = -1;
static void counting(int s) { count++; }
static void queued(int s, siginfo_t *info, void *u) {
  count++;
  sum += info->si_value.sival_int;
  if (info->si_value.sival_int <= previous || info->si_code != SI_QUEUE || info->si_pid != getpid()) in_order = 0;
  previous = info->si_value.sival_int;
}
static void nested(int s) {
  depth++;
  if (depth > deepest) deepest = depth;
  if (s < SIGRTMIN + 5) raise(s + 1);
  depth--;
}
static void install(int s, void (*f)(int), int flags) {
  struct sigaction action = {.sa_handler = f, .sa_flags = flags};
  sigaction(s, &action, 0);
}

static sigset_t one(int s) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, s);
  return set;
}

// Two processes hand a turn back and forth with SIGUSR1 and sigsuspend: a lost signal hangs.
static void ping_pong(int turns) {
  sigset_t set = one(SIGUSR1), none;
  sigemptyset(&none);
  install(SIGUSR1, counting, 0);
  sigprocmask(SIG_BLOCK, &set, 0);
  count = 0;
  pid_t parent = getpid(), child = fork();
  int seen = 0;
  for (int i = 0; i < turns; i++) {
    if (child == 0) {
      while (count <= seen) sigsuspend(&none);
      seen = count;
      kill(parent, SIGUSR1);
    } else {
      kill(child, SIGUSR1);
      while (count <= seen) sigsuspend(&none);
      seen = count;
    }
  }
  if (child == 0) _exit(count == turns ? 0 : 1);
  int status;
  CHECK(waitpid(child, &status, 0) == child && status == 0);
  CHECK(count == turns);
  sigprocmask(SIG_UNBLOCK, &set, 0);
}

static volatile int thread_count[2];
static __thread int number;
static void thread_handler(int s) { thread_count[number]++; }
static pthread_barrier_t barrier;
static volatile int finish;
static void *receiver(void *argument) {
  number = (int)(long)argument;
  pthread_barrier_wait(&barrier);
  volatile unsigned long x = 0;
  while (!finish) {
    x = x * 3 + 1;
    if ((x & 0xffff) == 1) getppid();
  }
  return 0;
}

int main(void) {
  struct sigaction action = {.sa_sigaction = queued, .sa_flags = SA_SIGINFO};
  sigaction(SIGRTMIN + 1, &action, 0);
  sigset_t set = one(SIGRTMIN + 1), old;
  sigprocmask(SIG_BLOCK, &set, 0);
  for (int i = 0; i < 500; i++) {
    union sigval value = {.sival_int = i};
    sigqueue(getpid(), SIGRTMIN + 1, value);
  }
  CHECK(count == 0);
  sigprocmask(SIG_UNBLOCK, &set, 0);
  CHECK(count == 500 && sum == 124750 && in_order);

  for (int s = SIGRTMIN; s <= SIGRTMIN + 5; s++) install(s, nested, 0);
  raise(SIGRTMIN);
  CHECK(deepest == 6 && depth == 0);

  // Unblocking many at once, each handler opening the next.
  count = 0;
  for (int s = SIGRTMIN + 6; s <= SIGRTMIN + 20; s++) install(s, counting, SA_NODEFER);
  sigfillset(&set);
  sigprocmask(SIG_BLOCK, &set, &old);
  for (int s = SIGRTMIN + 6; s <= SIGRTMIN + 20; s++) raise(s);
  sigprocmask(SIG_SETMASK, &old, 0);
  CHECK(count == 15);

  // A timer fires at will while the mask goes up and down: every signal of the kernel's is a handler's.
  install(SIGALRM, counting, SA_RESTART);
  struct itimerval often = {{0, 200}, {0, 200}}, off = {{0, 0}, {0, 0}};
  count = 0;
  set = one(SIGALRM);
  setitimer(ITIMER_REAL, &often, 0);
  int blocked_calls = 0;
  for (int i = 0; i < 20000; i++) {
    sigprocmask(SIG_BLOCK, &set, 0);
    int before = count;
    for (volatile int k = 0; k < 20; k++) {}
    if (count != before) blocked_calls++;
    sigprocmask(SIG_UNBLOCK, &set, 0);
  }
  setitimer(ITIMER_REAL, &off, 0);
  CHECK(blocked_calls == 0 && count > 0);

  ping_pong(2000);

  // ppoll and epoll_pwait open the mask while they sleep, and only then.
  set = one(SIGUSR2);
  install(SIGUSR2, counting, SA_RESTART);
  sigprocmask(SIG_BLOCK, &set, 0);
  count = 0;
  raise(SIGUSR2);
  CHECK(count == 0);
  sigset_t none;
  sigemptyset(&none);
  CHECK(ppoll(0, 0, 0, &none) == -1 && errno == EINTR && count == 1);
  raise(SIGUSR2);
  struct epoll_event event;
  int epoll = epoll_create1(0);
  CHECK(epoll_pwait(epoll, &event, 1, -1, &none) == -1 && errno == EINTR && count == 2);
  sigset_t now;
  sigprocmask(SIG_SETMASK, 0, &now);
  CHECK(sigismember(&now, SIGUSR2));
  // A signal that is taken by other means has no handler.
  raise(SIGUSR2);
  int descriptor = signalfd(-1, &set, 0);
  struct signalfd_siginfo information;
  CHECK(read(descriptor, &information, sizeof information) == sizeof information);
  CHECK(information.ssi_signo == SIGUSR2 && count == 2);
  raise(SIGUSR2);
  siginfo_t info;
  CHECK(sigwaitinfo(&set, &info) == SIGUSR2 && count == 2);
  sigprocmask(SIG_UNBLOCK, &set, 0);

  // SA_RESTART: read goes on; without it, it ends. nanosleep always ends.
  int ends[2];
  pipe(ends);
  pid_t child = fork();
  if (child == 0) {
    for (int i = 0; i < 3; i++) {
      usleep(50000);
      kill(getppid(), SIGUSR2);
    }
    usleep(50000);
    write(ends[1], "x", 1);
    _exit(0);
  }
  char byte;
  CHECK(read(ends[0], &byte, 1) == 1 && byte == 'x' && count >= 3);
  waitpid(child, 0, 0);
  install(SIGUSR2, counting, 0);
  child = fork();
  if (child == 0) {
    for (int i = 0; i < 1000; i++) {
      usleep(5000);
      kill(getppid(), SIGUSR2);
    }
    _exit(0);
  }
  CHECK(read(ends[0], &byte, 1) == -1 && errno == EINTR);
  struct timespec second = {100, 0}, left = {0, 0};
  CHECK(nanosleep(&second, &left) == -1 && errno == EINTR && left.tv_sec > 0);
  kill(child, SIGKILL);
  waitpid(child, 0, 0);

  // Aimed at threads that compute.
  pthread_t threads[2];
  pthread_barrier_init(&barrier, 0, 3);
  install(SIGRTMIN + 7, thread_handler, 0);
  for (long i = 0; i < 2; i++) pthread_create(&threads[i], 0, receiver, (void *)i);
  pthread_barrier_wait(&barrier);
  for (int i = 0; i < 300; i++)
    for (int k = 0; k < 2; k++) pthread_kill(threads[k], SIGRTMIN + 7);
  while (thread_count[0] < 300 || thread_count[1] < 300) sched_yield();
  finish = 1;
  for (int k = 0; k < 2; k++) pthread_join(threads[k], 0);
  CHECK(thread_count[0] == 300 && thread_count[1] == 300);
  return 0;
}
