// Handlers, masks, alternate stacks, synchronous faults with precise state, restarted calls.
#define _GNU_SOURCE
#include <errno.h>
#include <fenv.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)

static volatile int count, last;
static void plain(int s) { count++; last = s; }

static sigjmp_buf env;
static volatile void *fault_address;
static volatile int fault_code, fault_signal;
static volatile unsigned long fault_registers[32];
static void fault(int s, siginfo_t *info, void *u) {
  ucontext_t *context = u;
  fault_signal = s;
  fault_address = info->si_addr;
  fault_code = info->si_code;
  for (int i = 0; i < 32; i++) fault_registers[i] = context->uc_mcontext.__gregs[i];
  siglongjmp(env, 1);
}

static volatile int stepped;
static void skip(int s, siginfo_t *info, void *u) {
  ucontext_t *context = u;
  context->uc_mcontext.__gregs[0] += 4;
  context->uc_mcontext.__gregs[10] = 77;
  stepped++;
}

// What a register held at an access that faults, although it is overwritten before and after.
static volatile unsigned long at_fault, at_fault_float;
static void look(int s, siginfo_t *info, void *u) {
  ucontext_t *context = u;
  at_fault = context->uc_mcontext.__gregs[29];  // t4
  memcpy((void *)&at_fault_float, &context->uc_mcontext.__fpregs.__d.__f[31], 8);
  context->uc_mcontext.__gregs[0] += 4;
}
static void overwritten(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = look;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, 0);
  unsigned long after, stored, nowhere = 8;
  __asm__ volatile(
      "li t4, 1\n li t4, 2\n fmv.d.x f31, t4\n addi t4, t4, 3\n"
      ".option push\n .option norvc\n lw t3, 0(%2)\n .option pop\n"
      "addi t4, t4, 4\n mv %1, t4\n li t4, 7\n li t4, 8\n mv %0, t4\n"
      : "=&r"(after), "=&r"(stored) : "r"(nowhere) : "t3", "t4", "f31");
  CHECK(at_fault == 5 && at_fault_float == 2 && stored == 9 && after == 8);
  signal(SIGSEGV, SIG_DFL);
}

static char *stack_memory;
static volatile int on_stack;
static void stack_handler(int s) {
  char c;
  on_stack = &c >= stack_memory && &c < stack_memory + 65536;
}

static volatile long ticks;
static void tick(int s) { ticks++; }

int main(void) {
  struct sigaction action = {0}, old;
  action.sa_handler = plain;
  CHECK(sigaction(SIGUSR1, &action, &old) == 0 && old.sa_handler == SIG_DFL);
  CHECK(raise(SIGUSR1) == 0 && count == 1 && last == SIGUSR1);
  CHECK(kill(getpid(), SIGUSR1) == 0 && count == 2);
  sigset_t set, before, pending;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  CHECK(sigprocmask(SIG_BLOCK, &set, &before) == 0 && !sigismember(&before, SIGUSR1));
  raise(SIGUSR1);
  CHECK(count == 2 && sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1));
  CHECK(sigsuspend(&before) == -1 && errno == EINTR && count == 3);
  CHECK(sigprocmask(SIG_SETMASK, &before, 0) == 0 && count == 3);

  action.sa_sigaction = fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, 0);
  sigaction(SIGBUS, &action, 0);
  sigaction(SIGILL, &action, 0);
  sigaction(SIGTRAP, &action, 0);
  if (!sigsetjmp(env, 1)) *(volatile int *)0x3450 = 1;
  CHECK(fault_signal == SIGSEGV && fault_address == (void *)0x3450 && fault_code == SEGV_MAPERR);
  if (!sigsetjmp(env, 1)) (void)*(volatile int *)0x7fff123456789000;
  CHECK(fault_signal == SIGSEGV && fault_code == SEGV_MAPERR);
  char *readonly = mmap(0, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (!sigsetjmp(env, 1)) readonly[5] = 1;
  CHECK(fault_signal == SIGSEGV && fault_address == readonly + 5 && fault_code == SEGV_ACCERR);
  if (!sigsetjmp(env, 1)) ((void (*)(void))readonly)();
  CHECK(fault_signal == SIGSEGV && fault_address == readonly && fault_code == SEGV_ACCERR);
  if (!sigsetjmp(env, 1)) ((void (*)(void))0x4320)();
  CHECK(fault_signal == SIGSEGV && fault_address == (void *)0x4320 && fault_registers[0] == 0x4320);
  if (!sigsetjmp(env, 1)) __asm__ volatile(".4byte 0x0000007f");
  CHECK(fault_signal == SIGILL && fault_code == ILL_ILLOPC);
  if (!sigsetjmp(env, 1)) __asm__ volatile("ebreak");
  CHECK(fault_signal == SIGTRAP && fault_code == TRAP_BRKPT);
  if (!sigsetjmp(env, 1))
    __asm__ volatile(
        "li a0, 1\n li a1, 2\n li a2, 3\n li a3, 4\n li a4, 5\n li a5, 6\n li t0, 7\n li t6, 8\n"
        "add a0, a0, a1\n sw a0, (zero)\n li a0, 99\n" ::: "a0", "a1", "a2", "a3", "a4", "a5", "t0", "t6");
  CHECK(fault_signal == SIGSEGV && fault_address == 0 && fault_registers[10] == 3 && fault_registers[11] == 2 &&
        fault_registers[12] == 3 && fault_registers[13] == 4 && fault_registers[14] == 5 && fault_registers[15] == 6 &&
        fault_registers[5] == 7 && fault_registers[31] == 8);
  action.sa_sigaction = skip;
  sigaction(SIGSEGV, &action, 0);
  register long a0 __asm__("a0") = 5;
  feraiseexcept(FE_INEXACT);
  double d = 1.5;
  __asm__ volatile(".option push\n.option norvc\n fadd.d %1, %1, %1\n ld a0, (zero)\n.option pop\n" : "+r"(a0), "+f"(d));
  long result = a0;
  CHECK(result == 77 && stepped == 1 && d == 3.0 && fetestexcept(FE_INEXACT));

  stack_memory = malloc(65536);
  stack_t ss = {stack_memory, 0, 65536}, current;
  CHECK(sigaltstack(&ss, 0) == 0);
  action.sa_handler = stack_handler;
  action.sa_flags = SA_ONSTACK;
  sigaction(SIGUSR2, &action, 0);
  raise(SIGUSR2);
  CHECK(on_stack && sigaltstack(0, &current) == 0 && current.ss_sp == stack_memory && current.ss_flags == 0);

  // A handler during a tight loop, and during a call that is restarted or not.
  action.sa_handler = tick;
  action.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &action, 0);
  struct itimerval timer = {{0, 2000}, {0, 2000}};
  setitimer(ITIMER_REAL, &timer, 0);
  volatile long spin = 0;
  while (ticks < 20) spin++;
  CHECK(ticks >= 20);
  int ends[2];
  pipe(ends);
  pid_t child = fork();
  if (child == 0) {
    usleep(30000);
    write(ends[1], "z", 1);
    _exit(0);
  }
  char c = 0;
  long t0 = ticks;
  ssize_t got = read(ends[0], &c, 1);
  CHECK(got == 1 && c == 'z' && ticks > t0);
  int status;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
  action.sa_flags = 0;
  sigaction(SIGALRM, &action, 0);
  got = read(ends[0], &c, 1);
  CHECK(got == -1 && errno == EINTR);
  struct itimerval off = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &off, 0);

  overwritten();
  child = fork();
  if (child == 0) {
    signal(SIGSEGV, SIG_DFL);
    *(volatile int *)8 = 0;
  }
  CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
  child = fork();
  if (child == 0) for (;;) pause();
  CHECK(kill(child, SIGTERM) == 0 && waitpid(child, &status, 0) == child && WTERMSIG(status) == SIGTERM);
  return 0;
}
