// vfork shares memory until execve: what glibc's posix_spawn and shells rely on.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
extern char **environ;

static volatile int shared, handled;
static void handler(int s) { handled++; }
static void other(int s) { handled += 100; }

static int status_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child && WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static volatile int stop, turns;
static void *busy(void *unused) {
  while (!stop) {
    char *p = malloc(100 + turns % 1000);
    p[0] = 1;
    free(p);
    turns++;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc > 1) return atoi(argv[1]);
  shared = 1;
  pid_t child = vfork();
  if (child == 0) {
    shared = 2;
    _exit(7);
  }
  CHECK(shared == 2);
  CHECK(status_of(child) == 7);

  // An error of execve reaches the parent through memory.
  char *none[] = {"none", 0};
  CHECK(posix_spawn(&child, "/nonexistent/program", 0, 0, none, environ) == ENOENT);
  CHECK(posix_spawn(&child, "/etc", 0, 0, none, environ) == EACCES);

  // The child's handlers and mask are its own.
  signal(SIGUSR1, handler);
  sigset_t set, now;
  sigemptyset(&set);
  child = vfork();
  if (child == 0) {
    signal(SIGUSR1, other);
    sigaddset(&set, SIGUSR2);
    sigprocmask(SIG_BLOCK, &set, 0);
    raise(SIGUSR1);
    _exit(handled == 100 ? 3 : 4);
  }
  CHECK(status_of(child) == 3);
  raise(SIGUSR1);
  CHECK(handled == 101);
  sigprocmask(SIG_SETMASK, 0, &now);
  CHECK(!sigismember(&now, SIGUSR2));

  // A child of a child.
  child = vfork();
  if (child == 0) {
    pid_t inner = vfork();
    if (inner == 0) {
      shared = 40;
      _exit(1);
    }
    shared += 2;
    _exit(shared);
  }
  CHECK(status_of(child) == 42);
  while (waitpid(-1, 0, WNOHANG) > 0) {}

  // fork in a vfork child, and a child that a signal ends.
  child = vfork();
  if (child == 0) {
    pid_t inner = fork();
    if (inner == 0) {
      shared = 1000;
      _exit(9);
    }
    int status;
    waitpid(inner, &status, 0);
    _exit(WEXITSTATUS(status) + 1);
  }
  CHECK(status_of(child) == 10 && shared == 42);
  child = vfork();
  if (child == 0) {
    signal(SIGTERM, SIG_DFL);
    kill(getpid(), SIGTERM);
    _exit(1);
  }
  int status;
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);

  // Programs, with another thread at work all the while.
  pthread_t thread;
  pthread_create(&thread, 0, busy, 0);
  int sum = 0, errors = 0;
  for (int i = 0; i < 30; i++) {
    char number[12];
    sprintf(number, "%d", i);
    char *args[] = {"spawned", number, 0};
    if (posix_spawn(&child, "/proc/self/exe", 0, 0, args, environ) != 0) errors++;
    else sum += status_of(child);
  }
  CHECK(errors == 0 && sum == 435);
  stop = 1;
  pthread_join(thread, 0);
  CHECK(turns > 0);

  // posix_spawn's file actions.
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
  char *args[] = {"spawned", "5", 0};
  CHECK(posix_spawn(&child, "/proc/self/exe", &actions, 0, args, environ) == 0 && status_of(child) == 5);
  CHECK(write(1, "", 0) == 0);
  return 0;
}
