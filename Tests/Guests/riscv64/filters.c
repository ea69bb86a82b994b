// seccomp: filters on the guest's system calls, over threads, forks and execve. Prints "ok", or what was wrong.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(condition)                                                \
  do {                                                                  \
    if (!(condition)) {                                                 \
      printf("line %d: %s (errno %d)\n", __LINE__, #condition, errno);  \
      fflush(stdout);                                                   \
      _exit(1);                                                         \
    }                                                                   \
  } while (0)

// `action` for one call, all others are allowed; other architectures end the process.
static long filter(int number, unsigned action, unsigned flags) {
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_RISCV64, 1, 0),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, action),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof *code, code};
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

static siginfo_t trapped;
static void on_trap(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  trapped = *info;
}
static volatile int go;
static void *other(void *result) {
  while (!go) usleep(1000);
  *(long *)result = syscall(SYS_getpgid, 0) == -1 ? errno : 0;
  return 0;
}
static int ends_with(void (*body)(void)) {
  pid_t child = fork();
  if (!child) {
    body();
    _exit(77);
  }
  int status;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}
static void killed(void) {
  filter(SYS_getppid, SECCOMP_RET_KILL_PROCESS, 0);
  syscall(SYS_getppid);
}
static void strict(void) {
  prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
  if (write(1, "", 0) == 0) syscall(SYS_getpid);
}

int main(int count, char **arguments) {
  if (count > 1) return syscall(SYS_getpgid, 0) == -1 && errno == 77 && syscall(SYS_getppid) > 0 ? 5 : 6;
  CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  unsigned available[] = {SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_TRAP, SECCOMP_RET_TRACE, 0x12340000};
  for (int i = 0; i < 5; i++)
    CHECK((syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &available[i]) == 0) == (i < 4));
  struct sock_filter endless[] = {BPF_STMT(BPF_LD | BPF_IMM, 1)};
  struct sock_fprog bad = {1, endless};
  CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &bad) == -1 && errno == EINVAL);
  CHECK(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, 16l) == -1 && errno == EFAULT);
  CHECK(ends_with(killed) == SIGSYS);
  CHECK(ends_with(strict) == SIGKILL);
  CHECK(syscall(SYS_getppid) > 0);

  long seen = -1;
  pthread_t thread;
  pthread_create(&thread, 0, other, &seen);
  CHECK(filter(SYS_getpgid, SECCOMP_RET_ERRNO | 77, SECCOMP_FILTER_FLAG_TSYNC) == 0);
  CHECK(prctl(PR_GET_SECCOMP) == 2);
  go = 1;
  pthread_join(thread, 0);
  CHECK(seen == 77);
  CHECK(syscall(SYS_getpgid, 0) == -1 && errno == 77);

  struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
  sigaction(SIGSYS, &action, 0);
  pid_t child = fork();
  if (!child) {
    CHECK(filter(SYS_getsid, SECCOMP_RET_TRAP | 12, 0) == 0);
    syscall(SYS_getsid, 0);
    _exit(trapped.si_signo == SIGSYS && trapped.si_code == 1 && trapped.si_errno == 12 && trapped.si_syscall == SYS_getsid &&
                  trapped.si_arch == AUDIT_ARCH_RISCV64 ? 0 : 1);
  }
  int status;
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);

  child = vfork();
  if (!child) {
    execl(arguments[0], arguments[0], "again", (char *)0);
    _exit(1);
  }
  waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 5);
  puts("ok");
  return 0;
}
