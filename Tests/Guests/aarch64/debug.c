// Single steps, a hardware break point and hardware watch points by ptrace, for a kernel that uses the debug registers.
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>
#include <asm/ptrace.h>
static volatile uint64_t watched[4];
static volatile uint32_t unwatched;
int sequence(void);
__asm__(".globl sequence\n.type sequence, %function\nsequence:\n mov w0, #3\n1: subs w0, w0, #1\n b.ne 1b\n cbz w0, 2f\n nop\n"
        "2: adr x1, 3f\n br x1\n nop\n3: mov x8, #172\n svc #0\n mrs x1, nzcv\n msr nzcv, x1\n dsb ish\n isb\n mov w0, #7\n ret\n");
static pid_t child;
static uint64_t pc_of(void) {
  struct user_pt_regs regs; struct iovec io = {&regs, sizeof regs};
  if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, &io)) { perror("getregset"); exit(1); }
  return regs.pc;
}
static int set(int kind, uint64_t address, uint32_t control) {
  struct user_hwdebug_state state; memset(&state, 0, sizeof state);
  state.dbg_regs[0].addr = address; state.dbg_regs[0].ctrl = control;
  struct iovec io = {&state, offsetof(struct user_hwdebug_state, dbg_regs) + sizeof state.dbg_regs[0]};
  return ptrace(PTRACE_SETREGSET, child, (void *)(long)kind, &io);
}
static int stop(const char *what) {
  int status; if (waitpid(child, &status, 0) != child) { perror("wait"); exit(1); }
  if (WIFEXITED(status)) { printf("%s: exited with %d\n", what, WEXITSTATUS(status)); return -1; }
  siginfo_t info; ptrace(PTRACE_GETSIGINFO, child, 0, &info);
  printf("%s: signal %d code %d", what, WSTOPSIG(status), info.si_code);
  return WSTOPSIG(status);
}
int main(void) {
  setvbuf(stdout, 0, _IONBF, 0);
  child = fork();
  if (!child) {
    ptrace(PTRACE_TRACEME, 0, 0, 0);
    raise(SIGSTOP);
    int result = sequence();
    unwatched = 5;
    watched[1] = 6;
    watched[0] = unwatched;
    uint64_t copy = watched[1];
    result += sequence();
    _exit((int)(result + watched[0] + copy));
  }
  stop("start"); printf("\n");
  if (set(NT_ARM_HW_BREAK, (uint64_t)sequence, 0x1e5)) perror("hardware break");
  ptrace(PTRACE_CONT, child, 0, 0);
  stop("break"); printf(" at sequence%+ld\n", (long)(pc_of() - (uint64_t)sequence));
  set(NT_ARM_HW_BREAK, 0, 0);
  printf("steps:");
  for (int i = 0; i < 22; i++) {
    ptrace(PTRACE_SINGLESTEP, child, 0, 0);
    int status; waitpid(child, &status, 0);
    if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP) { printf(" status %x\n", status); break; }
    long at = (long)(pc_of() - (uint64_t)sequence);
    if (at < 0 || at > 80) { printf(" out\n"); break; }
    printf(" %ld", at);
  }
  if (set(NT_ARM_HW_WATCH, (uint64_t)&watched[0], 0xff << 5 | 2 << 3 | 5)) perror("hardware watch");
  ptrace(PTRACE_CONT, child, 0, 0);
  stop("watch");
  siginfo_t info; ptrace(PTRACE_GETSIGINFO, child, 0, &info);
  printf(" address watched%+ld\n", (long)((uint64_t)info.si_addr - (uint64_t)watched));
  if (set(NT_ARM_HW_WATCH, (uint64_t)&watched[1], 0xff << 5 | 1 << 3 | 5)) perror("hardware watch");
  ptrace(PTRACE_CONT, child, 0, 0);
  stop("read");
  ptrace(PTRACE_GETSIGINFO, child, 0, &info);
  printf(" address watched%+ld\n", (long)((uint64_t)info.si_addr - (uint64_t)watched));
  set(NT_ARM_HW_WATCH, 0, 0);
  ptrace(PTRACE_CONT, child, 0, 0);
  stop("end");
}
