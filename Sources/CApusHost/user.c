#define _GNU_SOURCE
#include "user.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <ucontext.h>
#include <unistd.h>

static __thread apus_user_thread *current __attribute__((tls_model("local-exec")));
// A control message that came before the thread was ready.
static __thread uint64_t early_control __attribute__((tls_model("local-exec")));
void apus_user_set_thread(apus_user_thread *thread) {
  current = thread;
  if (thread && early_control) {
    thread->control |= early_control;
    early_control = 0;
    __atomic_or_fetch(&thread->pending, APUS_PENDING_CONTROL, __ATOMIC_SEQ_CST);
    *(volatile uint32_t *)((char *)thread->state + thread->exit_request_offset) = 1;
  }
}
apus_user_thread *apus_user_current(void) { return current; }

// Signals that the emulator itself must always be able to take: faults.
#define FAULTS ((1ull << (SIGSEGV - 1)) | (1ull << (SIGBUS - 1)) | (1ull << (SIGFPE - 1)) | \
                (1ull << (SIGILL - 1)) | (1ull << (SIGTRAP - 1)))

// In the order of gregs: host register number -> index into gregs.
static const uint8_t greg_index[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                       REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

extern char apus_guard_begin[], apus_guard_end[], apus_guard_fail[];
extern char apus_safe_begin[], apus_safe_end[], apus_safe_pending[];

struct kernel_action {
  void (*handler)(int, siginfo_t *, void *);
  unsigned long flags;
  void (*restorer)(void);
  uint64_t mask;
};

void apus_signal_return(void);
__asm__(".text\n.globl apus_signal_return\napus_signal_return:\n  mov $15, %eax\n  syscall\n");

void apus_user_die(int signal) {
  struct kernel_action action;
  memset(&action, 0, sizeof action);
  action.flags = 0x04000000;
  action.restorer = apus_signal_return;
  syscall(SYS_rt_sigaction, signal, &action, (void *)0, 8);
  uint64_t none = 0;
  syscall(SYS_rt_sigprocmask, SIG_SETMASK, &none, (void *)0, 8);
  syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), signal);
  _exit(128 + signal);
}

static __thread apus_trace_record *stopping __attribute__((tls_model("local-exec")));
static int is_trace_record(const void *record) { return record && record == stopping; }

void apus_trace_stop(apus_trace_record *record) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  info.si_signo = SIGTRAP;
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_value.sival_ptr = record;
  record->resume = 0;
  stopping = record;
  apus_syscall(SYS_rt_tgsigqueueinfo, (uint64_t)getpid(), (uint64_t)syscall(SYS_gettid), SIGTRAP, (uint64_t)&info, 0, 0);
  stopping = 0;
}
long apus_trace_control(int process, int thread, uint64_t value) {
  siginfo_t info;
  memset(&info, 0, sizeof info);
  // One of each kind may be pending.
  int number = value & APUS_CONTROL_INTERRUPT ? SIGBUS : value & APUS_CONTROL_STOP ? SIGILL : SIGSEGV;
  info.si_signo = number;
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_value.sival_ptr = (void *)(APUS_CONTROL_MAGIC << 40 | value);
  return apus_syscall(SYS_rt_tgsigqueueinfo, (uint64_t)process, (uint64_t)thread, (uint64_t)number, (uint64_t)&info, 0, 0);
}
long apus_trace_request(long request, int thread, uint64_t address, uint64_t data) {
  return apus_syscall(SYS_ptrace, (uint64_t)request, (uint64_t)thread, address, data, 0, 0);
}
// The number changes with the protocol; that it lies at the same address tells that it is the same program.
static const char identity[] = "apus-user, tracing protocol 1";
int apus_trace_is_ours(int process) {
  char other[sizeof identity];
  return apus_trace_read(process, other, (uint64_t)identity, sizeof identity) == sizeof identity &&
         !memcmp(other, identity, sizeof identity);
}
extern char _start[];
int apus_trace_is_at_start(int thread) {
  struct user_regs_struct registers;
  return !apus_trace_request(PTRACE_GETREGS, thread, 0, (uint64_t)&registers) && registers.rip == (uint64_t)_start;
}
static long transfer(long number, int process, uint64_t here, uint64_t there, size_t count) {
  struct iovec local = {(void *)here, count}, remote = {(void *)there, count};
  return apus_syscall(number, (uint64_t)process, (uint64_t)&local, 1, (uint64_t)&remote, 1, 0);
}
long apus_trace_read(int process, void *to, uint64_t from, size_t count) {
  return transfer(SYS_process_vm_readv, process, (uint64_t)to, from, count);
}
long apus_trace_write(int process, uint64_t to, const void *from, size_t count) {
  return transfer(SYS_process_vm_writev, process, (uint64_t)from, to, count);
}

static void handle(int number, siginfo_t *info, void *frame) {
  ucontext_t *context = frame;
  greg_t *registers = context->uc_mcontext.gregs;
  apus_user_thread *thread = current;
  uint64_t rip = (uint64_t)registers[REG_RIP];
  int is_fault = (number == SIGSEGV || number == SIGBUS) && info->si_code > 0;
  if (is_fault && thread) {
    if (rip >= (uint64_t)apus_guard_begin && rip < (uint64_t)apus_guard_end) {
      thread->guard_signal = (uint32_t)number;
      thread->guard_code = info->si_code;
      thread->guard_address = (uint64_t)info->si_addr;
      registers[REG_RIP] = (greg_t)apus_guard_fail;
      return;
    }
    if (rip >= thread->code_begin && rip < thread->code_end) {
      char *state = thread->state;
      for (uint32_t i = 0; i < thread->pinned_count; i++)
        memcpy(state + thread->pinned_offset[i], &registers[greg_index[thread->pinned_register[i]]], 8);
      for (uint32_t i = 0; i < thread->pinned_vector_count; i++)
        memcpy(state + thread->pinned_vector_offset[i], &context->uc_mcontext.fpregs->_xmm[thread->pinned_vector[i]],
               thread->pinned_vector_bytes);
      memcpy(state + thread->guest_mxcsr_offset, &context->uc_mcontext.fpregs->mxcsr, 4);
      memcpy(&context->uc_mcontext.fpregs->mxcsr, state + thread->host_mxcsr_offset, 4);
      thread->fault_signal = (uint32_t)number;
      thread->fault_code = info->si_code;
      thread->fault_rip = rip;
      thread->fault_address = (uint64_t)info->si_addr;
      *(volatile uint32_t *)(state + thread->exit_request_offset) = 1;
      registers[REG_RIP] = (greg_t)thread->leave;
      return;
    }
  }
  // A stop that nobody took: the tracer is gone.
  if (number == SIGTRAP && info->si_code == SI_QUEUE && info->si_pid == getpid() && is_trace_record(info->si_value.sival_ptr))
    return;
  if ((number == SIGSEGV || number == SIGBUS || number == SIGILL) && info->si_code == SI_QUEUE && (uint64_t)info->si_value.sival_ptr >> 40 == APUS_CONTROL_MAGIC) {
    uint64_t value = (uint64_t)info->si_value.sival_ptr & 0xffffffffffull;
    if (!thread) {
      early_control |= value;
      return;
    }
    thread->control |= value;
    __atomic_or_fetch(&thread->pending, APUS_PENDING_CONTROL, __ATOMIC_SEQ_CST);
    *(volatile uint32_t *)((char *)thread->state + thread->exit_request_offset) = 1;
    if (rip >= (uint64_t)apus_safe_begin && rip < (uint64_t)apus_safe_end) registers[REG_RIP] = (greg_t)apus_safe_pending;
    return;
  }
  if ((number == SIGSEGV || number == SIGBUS || number == SIGFPE || number == SIGILL || number == SIGTRAP) &&
      (info->si_code > 0 || !thread)) {
    // The emulator's own fault.
    static const char message[] = "apus: internal error: the emulator itself faulted\n";
    ssize_t written = write(2, message, sizeof message - 1);
    (void)written;
    apus_user_die(number);
  }
  if (!thread) return;
  uint64_t bit = 1ull << (number - 1);
  if (FAULTS & bit && thread->mask & bit) {
    // The guest blocks it: it waits until the guest does not.
    if (!(thread->deferred & bit)) memcpy(thread->deferred_info[number], info, sizeof thread->deferred_info[number]);
    thread->deferred |= bit;
    return;
  }
  memcpy(thread->pending_info, info, sizeof thread->pending_info);
  thread->pending = (thread->pending & APUS_PENDING_CONTROL) | (uint32_t)number;
  *(volatile uint32_t *)((char *)thread->state + thread->exit_request_offset) = 1;
  // No other signal until the guest has taken this one.
  uint64_t all = ~FAULTS;
  memcpy(&context->uc_sigmask, &all, 8);
  if (rip >= (uint64_t)apus_safe_begin && rip < (uint64_t)apus_safe_end) registers[REG_RIP] = (greg_t)apus_safe_pending;
}

#define CHILD_FLAGS (SA_NOCLDSTOP | SA_NOCLDWAIT)

long apus_user_catch(int signal, uint64_t flags) {
  struct kernel_action action;
  action.handler = handle;
  action.flags = SA_SIGINFO | SA_ONSTACK | 0x04000000 | (flags & CHILD_FLAGS);  // SA_RESTORER
  action.restorer = apus_signal_return;
  action.mask = ~FAULTS;
  return apus_syscall(SYS_rt_sigaction, (uint64_t)signal, (uint64_t)&action, 0, 8, 0, 0);
}

long apus_user_set_disposition(int signal, int ignored, uint64_t flags) {
  struct kernel_action action;
  memset(&action, 0, sizeof action);
  action.handler = ignored ? (void (*)(int, siginfo_t *, void *))1 : 0;
  action.flags = 0x04000000 | (flags & CHILD_FLAGS);
  action.restorer = apus_signal_return;
  return apus_syscall(SYS_rt_sigaction, (uint64_t)signal, (uint64_t)&action, 0, 8, 0, 0);
}

int apus_user_is_ignored(int signal) {
  struct kernel_action action;
  memset(&action, 0, sizeof action);
  apus_syscall(SYS_rt_sigaction, (uint64_t)signal, 0, (uint64_t)&action, 8, 0, 0);
  return (uint64_t)action.handler == 1;
}

long apus_user_set_mask(int how, const uint64_t *set, uint64_t *old) {
  uint64_t wanted = set ? *set & ~FAULTS : 0;
  return apus_syscall(SYS_rt_sigprocmask, (uint64_t)how, set ? (uint64_t)&wanted : 0, (uint64_t)old, 8, 0, 0);
}

long apus_user_set_mask_unless(volatile uint32_t *pending, uint64_t mask) {
  uint64_t wanted = mask & ~FAULTS;
  return apus_syscall_interruptible(pending, SYS_rt_sigprocmask, SIG_SETMASK, (uint64_t)&wanted, 0, 8, 0, 0);
}

extern char _end[];
long apus_user_describe(const uint64_t addresses[6], const void *auxiliary, size_t byte_count) {
  // struct prctl_mm_map. The heap stays the emulator's own.
  struct {
    uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start, env_end;
    const void *auxv;
    uint32_t auxv_size, exe_fd;
  } map = {addresses[0], addresses[1], (uint64_t)_end, (uint64_t)_end, (uint64_t)_end, (uint64_t)sbrk(0), addresses[2],
           addresses[3], addresses[4], addresses[4], addresses[5], auxiliary, (uint32_t)byte_count, (uint32_t)-1};
  return apus_syscall(SYS_prctl, 35, 14, (uint64_t)&map, sizeof map, 0, 0);  // PR_SET_MM, PR_SET_MM_MAP
}

long apus_user_allow_all(uint64_t flags) {
  struct {
    uint16_t code;
    uint8_t jt, jf;
    uint32_t k;
  } allow = {6, 0, 0, 0x7fff0000};
  struct {
    unsigned short count;
    void *filter;
  } program = {1, &allow};
  return apus_syscall(SYS_seccomp, 1, flags, (uint64_t)&program, 0, 0, 0);
}

static char **kept_arguments;
__attribute__((constructor)) static void keep_arguments(int count, char **arguments) {
  (void)count;
  kept_arguments = arguments;
}
char **apus_arguments(void) { return kept_arguments; }

// Swift's runtime looks for its backtrace program at every start and ends the process where it cannot find itself, as in
// a chroot without /proc. A static program has none; the linker replaces the function (--wrap).
char *__wrap_swift_copyAuxiliaryExecutablePath(const char *name) {
  (void)name;
  return 0;
}

struct thread_start {
  void (*body)(void *);
  void *argument;
};
static void *start(void *raw) {
  struct thread_start copy = *(struct thread_start *)raw;
  free(raw);
  copy.body(copy.argument);
  return 0;
}
int apus_user_start_thread(void (*body)(void *), void *argument) {
  struct thread_start *copy = malloc(sizeof *copy);
  if (!copy) return EAGAIN;
  *copy = (struct thread_start){body, argument};
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 512 << 10);
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_t thread;
  int result = pthread_create(&thread, &attributes, start, copy);
  pthread_attr_destroy(&attributes);
  if (result) free(copy);
  return result;
}

// What a process that shares memory runs on: a thread's stack and thread-local storage, made by libc for a thread that has
// ended without libc's knowledge. libc gets it back when the process is gone.
struct shared_process {
  struct shared_process *next;
  pthread_t thread;
  volatile int lives;  // the thread's id until the kernel is done with it
  volatile int *id;    // where libc keeps it
  void *stack;
  long process;
  void (*body)(void *);
  void *argument;
};
static struct shared_process *shared_processes;

static void *lend(void *raw) {
  struct shared_process *self = raw;
  int id = (int)syscall(SYS_gettid);
  // libc's record of a thread begins at its handle and keeps the id within the first kilobyte.
  volatile int *record = (volatile int *)pthread_self();
  for (int i = 0; i < 256 && !self->id; i++)
    if (record[i] == id) self->id = record + i;
  self->stack = (void *)((uint64_t)__builtin_frame_address(0) - 1024 & ~15ull);
  self->lives = id;
  syscall(SYS_set_tid_address, &self->lives);
  syscall(SYS_exit, 0);
  return 0;
}
static void run_shared(void *raw) {
  struct shared_process *self = raw;
  if (self->id) *self->id = (int)syscall(SYS_gettid);
  self->body(self->argument);
  _exit(0);
}
static void reclaim(void) {
  for (struct shared_process **link = &shared_processes; *link;) {
    struct shared_process *one = *link;
    if (one->process > 0 && syscall(SYS_kill, one->process, 0) && errno == ESRCH) {
      *link = one->next;
      if (one->id) {
        *one->id = 0;
        pthread_join(one->thread, 0);
      }
      free(one);
    } else {
      link = &one->next;
    }
  }
}
long apus_user_start_process(uint64_t flags, void *parent_id, void *child_id, void (*body)(void *), void *argument) {
  struct shared_process *one = calloc(1, sizeof *one);
  if (!one) return -ENOMEM;
  one->lives = -1;
  one->body = body;
  one->argument = argument;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, 512 << 10);
  reclaim();
  int error = pthread_create(&one->thread, &attributes, lend, one);
  pthread_attr_destroy(&attributes);
  if (error) {
    free(one);
    return -EAGAIN;
  }
  for (int value; (value = one->lives) != 0;) {
    if (value == -1) {
      sched_yield();
      continue;
    }
    syscall(SYS_futex, &one->lives, 0, value, (void *)0, (void *)0, 0);
  }
  const uint64_t set_thread_pointer = 0x80000;
  long child = apus_user_clone_on(flags | set_thread_pointer, one->stack, parent_id, child_id, run_shared, one, (void *)one->thread);
  // A failed one is given back at once: no process has this number.
  one->process = child > 0 ? child : 0x7fffffff;
  one->next = shared_processes;
  shared_processes = one;
  if (child < 0) reclaim();
  return child;
}

__asm__(
    ".text\n"
    ".globl apus_user_clone_on\n"
    "apus_user_clone_on:\n"
    "  sub $16, %rsi\n  mov %r8, (%rsi)\n  mov %r9, 8(%rsi)\n  mov %rcx, %r10\n  mov 8(%rsp), %r8\n"
    "  mov $56, %eax\n"
    "  syscall\n"
    "  test %rax, %rax\n"
    "  jz 1f\n"
    "  ret\n"
    "1:\n  xor %ebp, %ebp\n  pop %rax\n  pop %rdi\n  call *%rax\n  hlt\n"
    ".globl apus_syscall\n"
    "apus_syscall:\n"
    "  mov %rdi, %rax\n  mov %rsi, %rdi\n  mov %rdx, %rsi\n  mov %rcx, %rdx\n  mov %r8, %r10\n  mov %r9, %r8\n"
    "  mov 8(%rsp), %r9\n"
    "  syscall\n"
    "  ret\n"
    ".globl apus_syscall_interruptible, apus_safe_begin, apus_safe_end, apus_safe_pending\n"
    "apus_syscall_interruptible:\n"
    "  mov %rdi, %r11\n  mov %rsi, %rax\n  mov %rdx, %rdi\n  mov %rcx, %rsi\n  mov %r8, %rdx\n  mov %r9, %r10\n"
    "  mov 8(%rsp), %r8\n  mov 16(%rsp), %r9\n"
    "apus_safe_begin:\n"
    "  cmpl $0, (%r11)\n"
    "  jne apus_safe_pending\n"
    "  syscall\n"
    "apus_safe_end:\n"
    "  ret\n"
    "apus_safe_pending:\n"
    "  mov $-512, %rax\n"
    "  ret\n"
    ".globl apus_guard_begin, apus_guard_end, apus_guard_fail\n"
    "apus_guard_begin:\n"
    ".globl apus_guard_copy\napus_guard_copy:\n  mov %rdx, %rcx\n  rep movsb\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_load8\napus_guard_load8:\n  movzbl (%rdi), %eax\n  jmp 1f\n"
    ".globl apus_guard_load16\napus_guard_load16:\n  movzwl (%rdi), %eax\n  jmp 1f\n"
    ".globl apus_guard_load32\napus_guard_load32:\n  mov (%rdi), %eax\n  jmp 1f\n"
    ".globl apus_guard_load64\napus_guard_load64:\n  mov (%rdi), %rax\n"
    "1:\n  mov %rax, (%rsi)\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_store8\napus_guard_store8:\n  mov %sil, (%rdi)\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_store16\napus_guard_store16:\n  mov %si, (%rdi)\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_store32\napus_guard_store32:\n  mov %esi, (%rdi)\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_store64\napus_guard_store64:\n  mov %rsi, (%rdi)\n  xor %eax, %eax\n  ret\n"
    ".globl apus_guard_probe\napus_guard_probe:\n  lock orb $0, (%rdi)\n  xor %eax, %eax\n  ret\n"
    "apus_guard_end:\n"
    "apus_guard_fail:\n  mov $1, %eax\n  ret\n");
