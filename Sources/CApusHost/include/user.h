// What user-mode emulation needs of C: raw system calls, guarded accesses to guest memory, and the signal handler,
// which must not run Swift code. See docs in ApusUser.
#ifndef APUS_USER_H
#define APUS_USER_H

#include <stdint.h>
#include <stddef.h>

// Signals that faults cause are never blocked on the host; all have smaller numbers than this.
#define APUS_FAULT_LIMIT 12

// One guest thread as the signal handler sees it. Filled by its own thread before it runs guest code.
typedef struct apus_user_thread {
  // Layout of generated code: where it lies, where to leave it, and which host register holds which state slot.
  void *state;
  uint64_t code_begin, code_end, leave;
  uint32_t pinned_count, pinned_vector_count, pinned_vector_bytes;
  uint8_t pinned_register[16], pinned_vector[16];
  uint16_t pinned_offset[16], pinned_vector_offset[16];
  uint32_t guest_mxcsr_offset, host_mxcsr_offset, exit_request_offset;
  // A signal for the guest that came in asynchronously. One at a time: all others are blocked until it is taken. And
  // APUS_PENDING_CONTROL while `control` has something.
  volatile uint32_t pending;
  uint8_t pending_info[128];
  // The guest's mask, and what it blocks of the signals that are never blocked on the host: their siginfo, and a bit each.
  volatile uint64_t mask, deferred;
  uint8_t deferred_info[APUS_FAULT_LIMIT][128];
  // A fault of generated code: the host instruction, and what the kernel said.
  volatile uint32_t fault_signal;
  volatile int32_t fault_code;
  volatile uint64_t fault_rip, fault_address;
  // The last fault of a guarded access.
  volatile uint32_t guard_signal;
  volatile int32_t guard_code;
  volatile uint64_t guard_address;
  // What a tracer asked for: the value of the last control message, APUS_CONTROL_* bits of all.
  volatile uint64_t control;
} apus_user_thread;

#define APUS_PENDING_CONTROL 0x80000000u
// Control messages are queued signals that are never blocked and always caught when they may come: SIGSEGV to attach, SIGBUS to
// interrupt, SIGILL to stop. The value: 24 bits of magic, 24 bits of PTRACE_O_*, 16 bits of what is asked for.
#define APUS_CONTROL_MAGIC 0xa9054cull
#define APUS_CONTROL_ATTACH 1  // the sender traces this thread now, as PTRACE_ATTACH has it: it stops with SIGSTOP
#define APUS_CONTROL_SEIZE 2   // the same, as PTRACE_SEIZE has it
#define APUS_CONTROL_INTERRUPT 4
#define APUS_CONTROL_STOP 8    // a SIGSTOP came for it

typedef struct apus_trace_set {
  uint32_t kind, byte_count;
  uint8_t bytes[1088];
} apus_trace_set;
// What a tracer sees of a guest thread that has stopped for it; it reads and writes this with process_vm_readv.
typedef struct apus_trace_record {
  uint64_t magic;
  int32_t status;        // the wait status, shifted right by 8
  uint32_t options;      // PTRACE_O_*
  uint32_t is_seized;
  // The tracer's answer; `resume` is 0 when there is no tracer any more.
  uint32_t resume;
  int32_t signal;        // to be delivered
  uint32_t dirty;        // APUS_TRACE_*
  uint64_t message;
  uint64_t mask;
  uint8_t info[128];
  uint32_t call_stop;    // as PTRACE_GET_SYSCALL_INFO's op: 0 none, 1 entry, 2 exit, 3 seccomp
  uint32_t architecture; // AUDIT_ARCH
  uint64_t pc, stack_pointer, call, arguments[6], result, filter_data;
  uint32_t set_count;
  apus_trace_set sets[4];
} apus_trace_record;

#define APUS_TRACE_MAGIC 0x617075732d747263ull
#define APUS_RESUME_CONTINUE 1
#define APUS_RESUME_CALL 2
#define APUS_RESUME_STEP 3
#define APUS_RESUME_DETACH 4
#define APUS_TRACE_MEMORY 1
#define APUS_TRACE_INFO 2
#define APUS_TRACE_MASK 4
#define APUS_TRACE_SET 16      // shifted left by the set's index

// Stops the calling thread for its tracer until that lets it go on; returns at once if there is none.
void apus_trace_stop(apus_trace_record *record);
// Sends a control message to a thread. 0 or -errno.
long apus_trace_control(int process, int thread, uint64_t value);
// The kernel's ptrace.
long apus_trace_request(long request, int thread, uint64_t address, uint64_t data);
// Whether a process is this very emulator, so that it understands control messages.
int apus_trace_is_ours(int process);
// Whether a traced process is at its very first instruction, after an execve.
int apus_trace_is_at_start(int thread);
// Copies between this process and another one. Count, or -errno.
long apus_trace_read(int process, void *to, uint64_t from, size_t count);
long apus_trace_write(int process, uint64_t to, const void *from, size_t count);

// The calling thread's record (thread-local).
void apus_user_set_thread(apus_user_thread *thread);
apus_user_thread *apus_user_current(void);
// Installs the handler for a signal (raw system call: libc keeps 32 and 33 to itself). `flags`: SA_NOCLDSTOP and
// SA_NOCLDWAIT go to the kernel. Returns 0 or -errno.
long apus_user_catch(int signal, uint64_t flags);
// Sets a signal's disposition to default (0) or ignored (1).
long apus_user_set_disposition(int signal, int ignored, uint64_t flags);
// Whether a signal's disposition is to be ignored.
int apus_user_is_ignored(int signal);
// The calling thread's signal mask, raw. `how` as the kernel's.
long apus_user_set_mask(int how, const uint64_t *set, uint64_t *old);
// Sets the calling thread's mask unless *pending is nonzero by then.
long apus_user_set_mask_unless(volatile uint32_t *pending, uint64_t mask);
// Restores the default action of a signal and raises it.
_Noreturn void apus_user_die(int signal);

// A system call, errno as a negative result.
long apus_syscall(long number, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f);
// The same, not entered if *pending is nonzero by the time it would be: gives -512 (ERESTARTSYS) then.
long apus_syscall_interruptible(volatile uint32_t *pending, long number, uint64_t a, uint64_t b, uint64_t c,
                                uint64_t d, uint64_t e, uint64_t f);
// The clone system call for a child that shares memory while the caller sleeps: the child runs `body(argument)` on the
// stack that ends at `stack`, and must not return from it. Gives what clone gives the parent. `thread_pointer` is for CLONE_SETTLS.
long apus_user_clone_on(uint64_t flags, void *stack, void *parent_id, void *child_id, void (*body)(void *),
                        void *argument, void *thread_pointer);
// Starts a detached host thread with all signals blocked that runs `body(argument)`. Returns 0 or an error number.
int apus_user_start_thread(void (*body)(void *), void *argument);
// Starts a process that shares this one's memory and runs `body(argument)` on a stack and with thread-local storage of its own,
// all signals blocked. `flags` as clone's, with CLONE_VM; `parent_id` and `child_id` as clone's. Returns its id or -errno. One
// caller at a time, of all that share the memory.
long apus_user_start_process(uint64_t flags, void *parent_id, void *child_id, void (*body)(void *), void *argument);
// Tells the kernel where the guest's code, stack, arguments, environment and auxiliary vector are, for /proc/PID.
// `addresses`: code start and end, stack, arguments' start and end, environment's end. 0 or -errno: not all kernels do.
long apus_user_describe(const uint64_t addresses[6], const void *auxiliary, size_t byte_count);
// Installs a seccomp filter that allows everything. 0 or -errno.
long apus_user_allow_all(uint64_t flags);
// The program's arguments as the kernel gave them.
char **apus_arguments(void);

// Accesses that may fault: 0, or 1 with guard_* set.
int apus_guard_copy(void *to, const void *from, size_t count);
int apus_guard_load8(const void *from, uint64_t *value);
int apus_guard_load16(const void *from, uint64_t *value);
int apus_guard_load32(const void *from, uint64_t *value);
int apus_guard_load64(const void *from, uint64_t *value);
int apus_guard_store8(void *to, uint64_t value);
int apus_guard_store16(void *to, uint64_t value);
int apus_guard_store32(void *to, uint64_t value);
int apus_guard_store64(void *to, uint64_t value);
// Whether a byte can be stored to (it keeps its value).
int apus_guard_probe(void *at);

#endif
