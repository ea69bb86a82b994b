// Hard use for a given time: soak MODE SECONDS. Prints `ok WORK RSS-EARLY RSS-LATE` (KiB) or what went wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static double start, end;
static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}
static long resident(void) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
  fclose(file);
  return pages * 4;
}
static void fail(const char *what) {
  printf("FAILED: %s (errno %d)\n", what, errno);
  fflush(stdout);
  exit(1);
}

static atomic_long total, finished;
static pthread_mutex_t mutexes[4] = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER, PTHREAD_MUTEX_INITIALIZER,
                                     PTHREAD_MUTEX_INITIALIZER};
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static long guarded[4];
static void *contend(void *argument) {
  long own = 0;
  unsigned seed = (unsigned)(long)argument;
  for (int i = 0; i < 2000; i++) {
    int k = rand_r(&seed) & 3;
    pthread_mutex_lock(&mutexes[k]);
    guarded[k]++;
    if (i % 100 == 0) pthread_cond_broadcast(&condition);
    pthread_mutex_unlock(&mutexes[k]);
    own++;
    char *p = malloc(rand_r(&seed) % 5000 + 1);
    p[0] = 1;
    free(p);
    if (i % 500 == 0) {
      void *m = mmap(0, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      memset(m, 1, 65536);
      munmap(m, 65536);
    }
  }
  total += own;
  finished++;
  return 0;
}

static long threads(void) {
  long rounds = 0;
  pthread_t ids[64];
  for (long i = 0; i < 64; i++)
    if (pthread_create(&ids[i], 0, contend, (void *)(i + rounds))) fail("pthread_create");
  for (int i = 0; i < 64; i++) pthread_join(ids[i], 0);
  if (total != guarded[0] + guarded[1] + guarded[2] + guarded[3]) fail("a count was lost");
  return 64;
}

static long forks(void) {
  pid_t children[16];
  for (int i = 0; i < 16; i++) {
    children[i] = fork();
    if (children[i] < 0) fail("fork");
    if (children[i] == 0) {
      pid_t inner = i % 2 ? fork() : -1;
      if (inner == 0) _exit(3);
      int status = 0;
      if (inner > 0 && (waitpid(inner, &status, 0) != inner || WEXITSTATUS(status) != 3)) _exit(99);
      _exit(i);
    }
  }
  for (int i = 0; i < 16; i++) {
    int status;
    if (waitpid(children[i], &status, 0) != children[i] || !WIFEXITED(status) || WEXITSTATUS(status) != i) fail("a child");
  }
  char *arguments[] = {"soak", "exit", "7", 0};
  for (int i = 0; i < 4; i++) {
    pid_t child;
    int status;
    if (posix_spawn(&child, "/proc/self/exe", 0, 0, arguments, environ)) fail("posix_spawn");
    if (waitpid(child, &status, 0) != child || WEXITSTATUS(status) != 7) fail("a spawned child");
  }
  return 28;
}

static volatile sig_atomic_t ticks, queued;
static void tick(int s) { ticks++; }
static void count(int s) { queued++; }
static long signals(void) {
  struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
  timer_t timer;
  struct itimerspec often = {{0, 100000}, {0, 100000}};
  signal(SIGALRM, tick);
  signal(SIGRTMIN + 2, count);
  if (timer_create(CLOCK_MONOTONIC, &event, &timer)) fail("timer_create");
  timer_settime(timer, 0, &often, 0);
  int before = queued, sent = 0;
  int ends[2];
  char buffer[64];
  pipe(ends);
  for (int i = 0; i < 3000; i++) {
    union sigval value = {.sival_int = i};
    if (sigqueue(getpid(), SIGRTMIN + 2, value) == 0) sent++;
    while (write(ends[1], "0123456789", 10) < 0)
      if (errno != EINTR) fail("write");
    long got = 0;
    while (got < 10) {
      long n = read(ends[0], buffer, 10 - got);
      if (n < 0 && errno != EINTR) fail("read");
      if (n > 0) got += n;
    }
  }
  timer_delete(timer);
  close(ends[0]);
  close(ends[1]);
  if (queued - before != sent) fail("a queued signal was lost");
  return sent;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  if (strcmp(argv[1], "exit") == 0) return atoi(argv[2]);
  long (*mode)(void) = strcmp(argv[1], "threads") == 0 ? threads : strcmp(argv[1], "forks") == 0 ? forks : signals;
  start = now();
  end = start + atof(argv[2]);
  long work = 0, early = 0;
  while (now() < end) {
    work += mode();
    if (!early && now() > start + (end - start) / 4) early = resident();
  }
  printf("ok %ld %ld %ld\n", work, early ? early : resident(), resident());
  return 0;
}
