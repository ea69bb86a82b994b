// What Swift cannot express: inline atomics on raw memory, variadic or _GNU_SOURCE-only libc calls, the entry into
// generated code, and fields of the signal frame. Everything else is Swift.
#ifndef CAPUSHOST_H
#define CAPUSHOST_H

#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
// Not in the Glibc module map.
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/auxv.h>
#include <sys/random.h>
#include "user.h"

// Atomics on raw memory. The suffix is the width in bits; order as named (seq_cst where none is).
#define APUS_ATOMICS(T, N)                                                                        \
  static inline T apus_load_relaxed##N(const void *p) { return __atomic_load_n((const T *)p, __ATOMIC_RELAXED); } \
  static inline T apus_load_acquire##N(const void *p) { return __atomic_load_n((const T *)p, __ATOMIC_ACQUIRE); } \
  static inline void apus_store_relaxed##N(void *p, T v) { __atomic_store_n((T *)p, v, __ATOMIC_RELAXED); } \
  static inline void apus_store_release##N(void *p, T v) { __atomic_store_n((T *)p, v, __ATOMIC_RELEASE); } \
  static inline T apus_exchange##N(void *p, T v) { return __atomic_exchange_n((T *)p, v, __ATOMIC_SEQ_CST); } \
  static inline T apus_fetch_add##N(void *p, T v) { return __atomic_fetch_add((T *)p, v, __ATOMIC_SEQ_CST); } \
  static inline T apus_fetch_and##N(void *p, T v) { return __atomic_fetch_and((T *)p, v, __ATOMIC_SEQ_CST); } \
  static inline T apus_fetch_or##N(void *p, T v) { return __atomic_fetch_or((T *)p, v, __ATOMIC_SEQ_CST); } \
  static inline T apus_fetch_xor##N(void *p, T v) { return __atomic_fetch_xor((T *)p, v, __ATOMIC_SEQ_CST); } \
  static inline bool apus_compare_exchange##N(void *p, T *expected, T desired) {                  \
    return __atomic_compare_exchange_n((T *)p, expected, desired, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST); }
APUS_ATOMICS(uint8_t, 8)
APUS_ATOMICS(uint16_t, 16)
APUS_ATOMICS(uint32_t, 32)
APUS_ATOMICS(uint64_t, 64)

// 128-bit compare-exchange; `expected` receives the old value. Returns whether it was swapped. 16-byte aligned.
bool apus_compare_exchange128(void *p, uint64_t expected[2], uint64_t lo, uint64_t hi);

static inline void apus_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void apus_pause(void) { __builtin_ia32_pause(); }
static inline uint64_t apus_rdtsc(void) { return __builtin_ia32_rdtsc(); }

/* Gives large freed blocks back at once; glibc would keep as much as the largest one so far. */
void apus_tune_heap(void);
int apus_memfd_create(const char *name, unsigned flags);
int apus_ioctl(int fd, unsigned long request, uint64_t argument);
int apus_fcntl(int fd, int command, int argument);
int apus_open(const char *path, int flags, unsigned mode);
long apus_gettid(void);
// The vCPU that the calling thread runs; -1: none.
int apus_vcpu_index(void);
void apus_set_vcpu_index(int index);
// At most 15 bytes count.
int apus_set_thread_name(const char *name);
int apus_fallocate(int fd, int mode, int64_t offset, int64_t length);
long apus_copy_file_range(int in, long *in_offset, int out, long *out_offset, size_t length);
// open("/dev/net/tun") + TUNSETIFF; vnet_hdr 0/1. Returns the descriptor or -errno.
int apus_tap_open(char *name, size_t name_size, int vnet_hdr);
// Constants of libc that Swift does not import, by their C names.
extern const int apus_FALLOC_FL_KEEP_SIZE, apus_FALLOC_FL_PUNCH_HOLE, apus_FALLOC_FL_ZERO_RANGE, apus_O_DIRECT;
int64_t apus_block_device_size(int fd);
// BLKDISCARD (operation 0) or BLKZEROOUT (1) on a block device.
int apus_block_range(int fd, int operation, uint64_t offset, uint64_t length);
// Tells the file system how large extents of a file should be, in bytes. -1: it has no such hint.
int apus_set_extent_hint(int fd, uint32_t size);
// Open file description lock on one byte: operation 0 shared, 1 exclusive, 2 unlock; 3: 1 if an exclusive lock would
// meet someone else's lock, else 0. Returns -1 with errno when a lock is refused.
int apus_ofd_lock(int fd, int64_t byte, int operation);
// accept4 with SOCK_CLOEXEC and SOCK_NONBLOCK.
int apus_accept(int fd);
// TUNSETVNETHDRSZ and TUNSETOFFLOAD on a tap descriptor.
int apus_tap_set_header_size(int fd, int size);
int apus_tap_set_offload(int fd, unsigned flags);
// Whether the descriptor is a tap with IFF_VNET_HDR.
int apus_tap_has_header(int fd);

// What the CPU and its system have: 1 x86-64-v2, 2 AVX besides, 3 AVX2, FMA, BMI1, BMI2 and lzcnt besides; 0 less.
int apus_host_level(void);
// Whether the CPU has: 0 pclmulqdq, 1 AES-NI, 2 SHA's instructions, 3 AVX-512's BITALG.
bool apus_cpu_supports(int feature);

// Enters generated code at `code` with the state pointer in RBP; returns what the code leaves in RAX.
// `entry` is the prologue that the back end generated.
static inline uint64_t apus_enter_code(const void *entry, void *state, const void *code) {
  return ((uint64_t(*)(void *, const void *))entry)(state, code);
}

// Hands a termination signal to an eventfd: the handler writes the signal's number to it. Async-signal-safe.
int apus_watch_signal(int signal, int eventfd);

// Raw mode of a terminal, undone by apus_terminal_restore, at exit and on fatal signals. 0 or -errno. An engine that
// handles SIGSEGV itself installs its handler after this, and passes on what is not its own.
int apus_terminal_raw(int fd, int keep_signals);
void apus_terminal_restore(void);
// A pseudo-terminal's master (non-blocking, raw), or -errno.
int apus_open_pty(char *slave_path, size_t size);
// Swift hides fork. Only before any thread is started.
int apus_fork(void);

#endif
