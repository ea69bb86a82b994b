// A process that traces others: what strace and gdb need of ptrace. Prints "ok", or what was wrong.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <linux/ptrace.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                       \
  do {                                                                         \
    if (!(condition)) {                                                        \
      printf("line %d: %s (errno %d, status %x)\n", __LINE__, #condition, errno, status); \
      fflush(stdout);                                                          \
      _exit(1);                                                                \
    }                                                                          \
  } while (0)

static long trace(long request, pid_t thread, void *address, void *data) {
  return syscall(SYS_ptrace, request, thread, address, data);
}
struct registers {
  unsigned long pc, x[31];
};
static long get(pid_t thread, struct registers *registers) {
  struct iovec vector = {registers, sizeof *registers};
  return trace(PTRACE_GETREGSET, thread, (void *)NT_PRSTATUS, &vector);
}
static long set(pid_t thread, struct registers *registers) {
  struct iovec vector = {registers, sizeof *registers};
  return trace(PTRACE_SETREGSET, thread, (void *)NT_PRSTATUS, &vector);
}
static int wait_for(pid_t thread) {
  int status = 0;
  if (waitpid(thread, &status, __WALL) != thread) return -1;
  return status;
}
#define STOPPED(signal, event) ((signal) << 8 | 0x7f | (event) << 16)

static volatile long value = 5;
__attribute__((noinline)) long target(long x) {
  __asm__ volatile("" : : : "memory");
  return x + value;
}
static volatile int caught;
static void on_signal(int number) { caught = number; }
static void *thread_body(void *argument) { return argument; }

// A child that asks to be traced: signals, system calls, steps, a breakpoint, changed registers and memory.
static void traced_by_request(void) {
  int status = 0;
  pid_t child = fork();
  if (!child) {
    signal(SIGUSR1, on_signal);
    trace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    long first = getppid();       // becomes another call's result
    kill(getpid(), SIGUSR1);      // kept from it
    int second = caught;
    kill(getpid(), SIGUSR1);      // delivered as SIGUSR1
    long third = target(10);      // stopped at, and its argument changed
    _exit(first == 4711 && second == 0 && caught == SIGUSR1 && third == 107 ? 42 : 1);
  }
  status = wait_for(child);
  CHECK(status == STOPPED(SIGSTOP, 0));
  CHECK(trace(PTRACE_SETOPTIONS, child, 0, (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL)) == 0);
  struct registers registers;
  // To getppid's entry and end.
  for (;;) {
    CHECK(trace(PTRACE_SYSCALL, child, 0, 0) == 0);
    status = wait_for(child);
    CHECK(status == STOPPED(SIGTRAP | 0x80, 0));
    struct ptrace_syscall_info info;
    CHECK(trace(PTRACE_GET_SYSCALL_INFO, child, (void *)sizeof info, &info) > 0);
    CHECK(info.arch == 0xc00000f3);
    if (info.op == PTRACE_SYSCALL_INFO_ENTRY && info.entry.nr == SYS_getppid) break;
  }
  CHECK(trace(PTRACE_SYSCALL, child, 0, 0) == 0);
  status = wait_for(child);
  CHECK(status == STOPPED(SIGTRAP | 0x80, 0));
  CHECK(get(child, &registers) == 0);
  CHECK((pid_t)registers.x[9] == getpid());
  registers.x[9] = 4711;
  CHECK(set(child, &registers) == 0);
  // The first SIGUSR1 is kept from it, the second one is not.
  CHECK(trace(PTRACE_CONT, child, 0, 0) == 0);
  status = wait_for(child);
  CHECK(status == STOPPED(SIGUSR1, 0));
  siginfo_t signal_info;
  CHECK(trace(PTRACE_GETSIGINFO, child, 0, &signal_info) == 0);
  CHECK(signal_info.si_signo == SIGUSR1 && signal_info.si_pid == child);
  CHECK(trace(PTRACE_CONT, child, 0, 0) == 0);
  status = wait_for(child);
  CHECK(status == STOPPED(SIGUSR1, 0));
  // Breakpoint.
  long code, breakpoint;
  CHECK(trace(PTRACE_PEEKTEXT, child, (void *)target, &code) == 0);
  breakpoint = (code & ~0xffffffffl) | 0x00100073;
  CHECK(trace(PTRACE_POKETEXT, child, (void *)target, (void *)breakpoint) == 0);
  CHECK(trace(PTRACE_CONT, child, 0, (void *)SIGUSR1) == 0);
  status = wait_for(child);
  CHECK(status == STOPPED(SIGTRAP, 0));
  CHECK(get(child, &registers) == 0);
  CHECK(registers.pc == (unsigned long)target && registers.x[9] == 10);
  CHECK(trace(PTRACE_POKETEXT, child, (void *)target, (void *)code) == 0);
  registers.x[9] = 100;
  CHECK(set(child, &registers) == 0);
  CHECK(trace(PTRACE_POKEDATA, child, (void *)&value, (void *)7l) == 0);
  unsigned long before = registers.pc;
  for (int step = 0; step < 3; step++) {
    CHECK(trace(PTRACE_SINGLESTEP, child, 0, 0) == 0);
    status = wait_for(child);
    CHECK(status == STOPPED(SIGTRAP, 0));
    CHECK(get(child, &registers) == 0);
    CHECK(registers.pc != before && registers.pc - before <= 4);
    before = registers.pc;
  }
  CHECK(trace(PTRACE_CONT, child, 0, 0) == 0);
  status = wait_for(child);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 42);
}

// Children, threads and new programs of a traced process are seen from their start.
static void events(char *self) {
  int status = 0;
  pid_t child = fork();
  if (!child) {
    trace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    pthread_t thread;
    pthread_create(&thread, 0, thread_body, 0);
    pthread_join(thread, 0);
    pid_t grandchild = fork();
    if (!grandchild) _exit(3);
    waitpid(grandchild, 0, 0);
    execl(self, self, "run", (char *)0);
    _exit(1);
  }
  status = wait_for(child);
  CHECK(status == STOPPED(SIGSTOP, 0));
  long options = PTRACE_O_TRACEFORK | PTRACE_O_TRACECLONE | PTRACE_O_TRACEEXEC | PTRACE_O_EXITKILL;
  CHECK(trace(PTRACE_SETOPTIONS, child, 0, (void *)options) == 0);
  CHECK(trace(PTRACE_CONT, child, 0, 0) == 0);
  int clones = 0, forks = 0, executions = 0, exits = 0, starts = 0;
  for (;;) {
    pid_t who = waitpid(-1, &status, __WALL);
    CHECK(who > 0);
    if (WIFEXITED(status)) {
      exits++;
      if (who == child) break;
      continue;
    }
    CHECK(WIFSTOPPED(status));
    int give = 0;
    unsigned long message = 0;
    switch (status >> 16) {
    case PTRACE_EVENT_CLONE: clones++; break;
    case PTRACE_EVENT_FORK: forks++; break;
    case PTRACE_EVENT_EXEC: executions++; break;
    case 0:
      if (WSTOPSIG(status) == SIGSTOP) starts++;
      else give = WSTOPSIG(status);
      break;
    default: CHECK(0);
    }
    if (status >> 16) {
      CHECK(trace(PTRACE_GETEVENTMSG, who, 0, &message) == 0);
      CHECK(message > 0);
    }
    CHECK(trace(PTRACE_CONT, who, 0, (void *)(long)give) == 0);
  }
  CHECK(WEXITSTATUS(status) == 9);
  CHECK(clones == 1 && forks == 1 && executions == 1 && starts == 2 && exits >= 2);
}

// A process that runs, attached to and left again; and one that waits in a system call.
static void attached(void) {
  int status = 0;
  for (int seize = 0; seize < 2; seize++) {
    pid_t child = fork();
    if (!child)
      for (;;) pause();
    usleep(20000);
    if (seize) {
      CHECK(trace(PTRACE_SEIZE, child, 0, (void *)PTRACE_O_TRACESYSGOOD) == 0);
      CHECK(trace(PTRACE_INTERRUPT, child, 0, 0) == 0);
      status = wait_for(child);
      CHECK(status == STOPPED(SIGTRAP, PTRACE_EVENT_STOP));
    } else {
      CHECK(trace(PTRACE_ATTACH, child, 0, 0) == 0);
      status = wait_for(child);
      CHECK(status == STOPPED(SIGSTOP, 0));
    }
    struct registers registers;
    CHECK(get(child, &registers) == 0 && registers.pc != 0);
    CHECK(trace(PTRACE_DETACH, child, 0, 0) == 0);
    CHECK(waitpid(child, &status, WNOHANG) == 0);
    CHECK(kill(child, SIGTERM) == 0);
    status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
  }
  CHECK(trace(PTRACE_ATTACH, getpid(), 0, 0) == -1 && errno == EPERM);
  CHECK(trace(PTRACE_CONT, 1 << 22, 0, 0) == -1 && errno == ESRCH);
}

int main(int count, char **arguments) {
  if (count > 1 && !strcmp(arguments[1], "run")) return 9;
  traced_by_request();
  events(arguments[0]);
  attached();
  puts("ok");
  return 0;
}
