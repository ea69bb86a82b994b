#define _GNU_SOURCE
#include "CApusHost.h"
#include <malloc.h>
#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

const int apus_FALLOC_FL_KEEP_SIZE = FALLOC_FL_KEEP_SIZE, apus_FALLOC_FL_PUNCH_HOLE = FALLOC_FL_PUNCH_HOLE,
          apus_FALLOC_FL_ZERO_RANGE = FALLOC_FL_ZERO_RANGE, apus_O_DIRECT = O_DIRECT;

void apus_tune_heap(void) {
  mallopt(M_MMAP_THRESHOLD, 1 << 20);
  mallopt(M_TRIM_THRESHOLD, 1 << 20);
}
int apus_memfd_create(const char *name, unsigned flags) { return memfd_create(name, flags); }
int apus_ioctl(int fd, unsigned long request, uint64_t argument) { return ioctl(fd, request, argument); }
int apus_fcntl(int fd, int command, int argument) { return fcntl(fd, command, argument); }
int apus_open(const char *path, int flags, unsigned mode) { return open(path, flags, mode); }
long apus_gettid(void) { return syscall(SYS_gettid); }
int apus_set_thread_name(const char *name) { return prctl(PR_SET_NAME, name); }
int apus_fallocate(int fd, int mode, int64_t offset, int64_t length) { return fallocate(fd, mode, offset, length); }
long apus_copy_file_range(int in, long *in_offset, int out, long *out_offset, size_t length) {
  return copy_file_range(in, in_offset, out, out_offset, length, 0);
}

int64_t apus_block_device_size(int fd) {
  uint64_t size;
  return ioctl(fd, BLKGETSIZE64, &size) == 0 ? (int64_t)size : -1;
}

int apus_block_range(int fd, int operation, uint64_t offset, uint64_t length) {
  uint64_t range[2] = {offset, length};
  return ioctl(fd, operation == 0 ? BLKDISCARD : BLKZEROOUT, range);
}

int apus_set_extent_hint(int fd, uint32_t size) {
  struct fsxattr attributes;
  if (ioctl(fd, FS_IOC_FSGETXATTR, &attributes) != 0) return -1;
  attributes.fsx_xflags = size ? attributes.fsx_xflags | FS_XFLAG_EXTSIZE : attributes.fsx_xflags & ~FS_XFLAG_EXTSIZE;
  attributes.fsx_extsize = size;
  return ioctl(fd, FS_IOC_FSSETXATTR, &attributes);
}

// GnuTLS looks for this: its start, which costs a millisecond, waits until someone needs it.
int _gnutls_global_init_skip(void);
int _gnutls_global_init_skip(void) { return 1; }

int apus_ofd_lock(int fd, int64_t byte, int operation) {
  struct flock lock;
  memset(&lock, 0, sizeof lock);
  lock.l_whence = SEEK_SET;
  lock.l_start = byte;
  lock.l_len = 1;
  lock.l_type = operation == 0 ? F_RDLCK : operation == 2 ? F_UNLCK : F_WRLCK;
  if (operation != 3) return fcntl(fd, F_OFD_SETLK, &lock);
  if (fcntl(fd, F_OFD_GETLK, &lock) != 0) return 0;
  return lock.l_type != F_UNLCK;
}

int apus_accept(int fd) { return accept4(fd, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK); }

int apus_tap_set_header_size(int fd, int size) { return ioctl(fd, TUNSETVNETHDRSZ, &size); }
int apus_tap_set_offload(int fd, unsigned flags) { return ioctl(fd, TUNSETOFFLOAD, (unsigned long)flags); }
int apus_tap_has_header(int fd) {
  struct ifreq request;
  memset(&request, 0, sizeof request);
  if (ioctl(fd, TUNGETIFF, &request) < 0) return 0;
  return (request.ifr_flags & IFF_VNET_HDR) != 0;
}

int apus_tap_open(char *name, size_t name_size, int vnet_hdr) {
  int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return -errno;
  struct ifreq request;
  memset(&request, 0, sizeof request);
  request.ifr_flags = IFF_TAP | IFF_NO_PI | (vnet_hdr ? IFF_VNET_HDR : 0);
  strncpy(request.ifr_name, name, IFNAMSIZ - 1);
  if (ioctl(fd, TUNSETIFF, &request) < 0) {
    int error = errno;
    close(fd);
    return -error;
  }
  strncpy(name, request.ifr_name, name_size - 1);
  return fd;
}

bool apus_compare_exchange128(void *p, uint64_t expected[2], uint64_t lo, uint64_t hi) {
  bool swapped;
  __asm__ __volatile__("lock cmpxchg16b %1"
                       : "=@ccz"(swapped), "+m"(*(char(*)[16])p), "+a"(expected[0]), "+d"(expected[1])
                       : "b"(lo), "c"(hi)
                       : "memory");
  return swapped;
}

static int signal_eventfd[65];

static void forward_signal(int signal) {
  int saved = errno;
  uint64_t value = (uint64_t)signal;
  ssize_t written = write(signal_eventfd[signal], &value, sizeof value);
  (void)written;
  errno = saved;
}

int apus_watch_signal(int signal, int eventfd) {
  if (signal < 1 || signal > 64) return -1;
  signal_eventfd[signal] = eventfd;
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = forward_signal;
  action.sa_flags = SA_RESTART;
  return sigaction(signal, &action, 0);
}

// Bits of CPUID's leaf 1, extended leaf 1 and leaf 7.
enum { SSE3 = 1 << 0, SSSE3 = 1 << 9, CMPXCHG16B = 1 << 13, SSE4_1 = 1 << 19, SSE4_2 = 1 << 20, POPCNT = 1 << 23 };
enum { LAHF = 1 << 0, LZCNT = 1 << 5 };
enum { SHA = 1 << 29 };

int apus_host_level(void) {
  unsigned a, b, leaf1 = 0, extended = 0, d;
  __get_cpuid(1, &a, &b, &leaf1, &d);
  __get_cpuid(0x80000001, &a, &b, &extended, &d);
  const unsigned v2 = SSE3 | SSSE3 | CMPXCHG16B | SSE4_1 | SSE4_2 | POPCNT;
  if ((leaf1 & v2) != v2 || !(extended & LAHF)) return 0;
  // The compiler's run time asks whether the system keeps AVX's registers, too.
  if (!__builtin_cpu_supports("avx")) return 1;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
      !__builtin_cpu_supports("bmi2") || !(extended & LZCNT))
    return 2;
  // Here it asks for masks and registers of 512 bits.
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd")
             ? 4
             : 3;
}

bool apus_cpu_supports(int feature) {
  unsigned a, b = 0, c, d;
  switch (feature) {
  case 0: return __builtin_cpu_supports("pclmul");
  case 1: return __builtin_cpu_supports("aes");
  // The compiler's run time does not know it.
  case 2: return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & SHA;
  case 3: return __builtin_cpu_supports("avx512bitalg");
  default: return false;
  }
}
static struct termios saved_terminal;
static volatile sig_atomic_t terminal_is_raw;
static int terminal_descriptor;

void apus_terminal_restore(void) {
  if (!terminal_is_raw) return;
  terminal_is_raw = 0;
  tcsetattr(terminal_descriptor, TCSANOW, &saved_terminal);
}

static struct sigaction previous_action[65];

// tcsetattr is async-signal-safe. The signal then goes to whoever had it before (Swift's backtracer, or the default
// action with its core dump): a fault happens again when this returns, a sent signal is raised again.
static void restore_and_pass_on(int number, siginfo_t *info, void *context) {
  (void)context;
  apus_terminal_restore();
  sigaction(number, &previous_action[number], 0);
  if (info->si_code <= 0) raise(number);
}

int apus_terminal_raw(int fd, int keep_signals) {
  static int installed;
  struct termios raw;
  if (tcgetattr(fd, &raw) < 0) return -errno;
  if (!terminal_is_raw) saved_terminal = raw;
  terminal_descriptor = fd;
  raw.c_iflag &= ~(tcflag_t)(IGNBRK | BRKINT | PARMRK | ISTRIP | INLCR | IGNCR | ICRNL | IXON);
  raw.c_lflag &= ~(tcflag_t)(ECHO | ECHONL | ICANON | IEXTEN | (keep_signals ? 0 : ISIG));
  raw.c_cflag = (raw.c_cflag & ~(tcflag_t)(CSIZE | PARENB)) | CS8;
  raw.c_cc[VMIN] = 1;
  raw.c_cc[VTIME] = 0;
  terminal_is_raw = 1;
  if (!installed) {
    installed = 1;
    atexit(apus_terminal_restore);
    static const int fatal[] = {SIGABRT, SIGILL, SIGTRAP, SIGFPE, SIGBUS, SIGSEGV, SIGQUIT};
    for (unsigned i = 0; i < sizeof fatal / sizeof *fatal; i++) {
      struct sigaction action;
      memset(&action, 0, sizeof action);
      action.sa_sigaction = restore_and_pass_on;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK;
      sigaction(fatal[i], &action, &previous_action[fatal[i]]);
    }
  }
  return tcsetattr(fd, TCSANOW, &raw) < 0 ? -errno : 0;
}

int apus_open_pty(char *slave_path, size_t size) {
  int master = posix_openpt(O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK);
  if (master < 0) return -errno;
  struct termios raw;
  if (grantpt(master) < 0 || unlockpt(master) < 0 || ptsname_r(master, slave_path, size) != 0) {
    int error = errno;
    close(master);
    return -error;
  }
  if (tcgetattr(master, &raw) == 0) {
    cfmakeraw(&raw);
    tcsetattr(master, TCSANOW, &raw);
  }
  return master;
}

int apus_fork(void) { return fork(); }

static __thread int vcpu_index = -1;
int apus_vcpu_index(void) { return vcpu_index; }
void apus_set_vcpu_index(int index) { vcpu_index = index; }
