// clone with CLONE_VM alone: processes that share memory and run beside each other.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
#define STACK 65536

static char stacks[8][STACK] __attribute__((aligned(16)));
static volatile int ready, go, number, handled;
static volatile long counter;
static char *self;

static void handler(int s) { handled++; }
static int status_of(pid_t child) {
  int status;
  return waitpid(child, &status, 0) == child ? status : -1;
}
static pid_t start(int (*body)(void *), int stack, int flags, void *argument) {
  return clone(body, stacks[stack] + STACK, CLONE_VM | flags, argument);
}

// Children use no libc that keeps state in thread-local storage: it is the parent's.
static int beside(void *argument) {
  number = getpid();
  ready = 1;
  while (!go) sched_yield();
  for (int i = 0; i < 100000; i++) __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
  return 7;
}
static int set_handler(void *argument) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  return sigaction(SIGUSR1, &action, 0) ? 1 : 0;
}
static int raise_it(void *argument) {
  kill(getpid(), SIGUSR1);
  return handled;
}
static int crash(void *argument) {
  *(volatile int *)16 = 1;
  return 0;
}
static int execute(void *argument) {
  char *none[] = {"none", 0}, *words[] = {self, "5", 0};
  if (execv("/nonexistent", none) != -1) return 1;
  counter++;
  execv(self, words);
  return 2;
}
static int wait_for_end(void *argument) { return 0; }
static int fork_inside(void *argument) {
  long result = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
  if (result == 0) {
    counter = -1;  // in a memory of its own
    syscall(SYS_exit_group, 9);
  }
  int status = 0;
  syscall(SYS_wait4, result, &status, 0, 0);
  return WEXITSTATUS(status);
}
static int map_code(void *argument) {
  // li a0, 42; ret: a page that both processes run.
  unsigned *page = mmap(0, 4096, 7, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  page[0] = 0x02a00513;
  page[1] = 0x00008067;
  __builtin___clear_cache((char *)page, (char *)page + 8);
  *(unsigned **)argument = page;
  return ((int (*)(void))page)();
}

int main(int argc, char **argv) {
  if (argc > 1) return atoi(argv[1]);
  self = argv[0];
  pid_t child = start(beside, 0, SIGCHLD, 0);
  CHECK(child > 0 && child != getpid());
  while (!ready) sched_yield();
  CHECK(number == child);
  go = 1;
  for (int i = 0; i < 100000; i++) __atomic_fetch_add(&counter, 1, __ATOMIC_SEQ_CST);
  CHECK(WEXITSTATUS(status_of(child)) == 7);
  CHECK(counter == 200000);

  // Handlers are shared only with CLONE_SIGHAND, which goes with CLONE_VM only.
  CHECK(WEXITSTATUS(status_of(start(set_handler, 0, SIGCHLD, 0))) == 0);
  struct sigaction action;
  CHECK(sigaction(SIGUSR1, 0, &action) == 0 && action.sa_handler == SIG_DFL);
  CHECK(WEXITSTATUS(status_of(start(set_handler, 0, CLONE_SIGHAND | SIGCHLD, 0))) == 0);
  CHECK(sigaction(SIGUSR1, 0, &action) == 0 && action.sa_handler == handler);
  CHECK(WEXITSTATUS(status_of(start(raise_it, 0, SIGCHLD, 0))) == 1);
  raise(SIGUSR1);
  CHECK(handled == 2);
  CHECK(syscall(SYS_clone, CLONE_SIGHAND | SIGCHLD, 0, 0, 0, 0) == -1 && errno == EINVAL);

  // Its end by a signal, and another program, are the child's alone.
  int status = status_of(start(crash, 0, SIGCHLD, 0));
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  counter = 0;
  CHECK(WEXITSTATUS(status_of(start(execute, 0, SIGCHLD, 0))) == 5 && counter == 1);

  // Whoever waits for the child's memory sees its end.
  static int word = 1;
  child = clone(wait_for_end, stacks[0] + STACK, CLONE_VM | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD, 0, 0, 0, &word);
  while (word) syscall(SYS_futex, &word, FUTEX_WAIT, child, 0, 0, 0);
  CHECK(WEXITSTATUS(status_of(child)) == 0);

  // Several at once, and many one after the other.
  pid_t children[8];
  counter = 0;
  for (int i = 0; i < 8; i++) children[i] = start(beside, i, SIGCHLD, 0);
  int right = 0;
  for (int i = 0; i < 8; i++) right += WEXITSTATUS(status_of(children[i])) == 7;
  CHECK(right == 8 && counter == 800000);
  right = 0;
  for (int i = 0; i < 60; i++) right += WEXITSTATUS(status_of(start(wait_for_end, 0, SIGCHLD, 0))) == 0;
  CHECK(right == 60);
  CHECK(WEXITSTATUS(status_of(start(fork_inside, 0, SIGCHLD, 0))) == 9 && counter == 800000);

  // Code that one writes is the other's, and changes reach both.
  unsigned *page = 0;
  CHECK(WEXITSTATUS(status_of(start(map_code, 0, SIGCHLD, &page))) == 42);
  CHECK(((int (*)(void))page)() == 42);
  page[0] = 0x02b00513;
  __builtin___clear_cache((char *)page, (char *)page + 8);
  CHECK(((int (*)(void))page)() == 43);
  return 0;
}
