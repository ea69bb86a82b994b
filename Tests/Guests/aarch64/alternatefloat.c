// FPCR's AH, NEP and FIZ [FEAT_AFP, FEAT_RPRES]: results and FPSR that the Arm ARM's pseudocode gives. Prints what is otherwise.
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <ucontext.h>
#include <unistd.h>
#include <sys/syscall.h>

enum { FIZ = 1, AH = 2, NEP = 4, FZ16 = 1 << 19, UP = 1 << 22, FZ = 1 << 24, DN = 1 << 25 };
enum { IOC = 1, DZC = 2, OFC = 4, UFC = 8, IXC = 16, IDC = 128 };
enum { ONE = 0x3f800000, TWO = 0x40000000, INF = 0x7f800000, MIN = 0x00800000, DENORMAL = 1, SIGN = 0x80000000u };
// Quiet NaNs, the second one negative, and a signalling one, which quieted is QUIETED.
enum { Q1 = 0x7fc00001, Q2 = 0xffc00002u, S3 = 0x7f800003, QUIETED = 0x7fc00003, DEFAULT = 0x7fc00000 };

typedef struct { uint64_t low, high; } vector;
// v0 is written; v1 to v3 are operands.
static vector v[4];
static uint64_t control, status;
static int count, wrong;

#define OPERATION(name, text)                                                                                          \
  static void name(void) {                                                                                             \
    __asm__ volatile("ldp q0, q1, [%1]\n\tldp q2, q3, [%1, #32]\n\tmsr fpcr, %2\n\tmsr fpsr, xzr\n\t" text             \
                     "\n\tmrs %0, fpsr\n\tmsr fpcr, xzr\n\tstr q0, [%1]"                                               \
                     : "=&r"(status) : "r"(v), "r"(control) : "v0", "v1", "v2", "v3", "x16", "cc", "memory");          \
  }
OPERATION(fadd, "fadd s0, s1, s2") OPERATION(fsub, "fsub s0, s1, s2") OPERATION(fmul, "fmul s0, s1, s2")
OPERATION(fdiv, "fdiv s0, s1, s2") OPERATION(fmin, "fmin s0, s1, s2") OPERATION(fmax, "fmax s0, s1, s2")
OPERATION(fmaxnm, "fmaxnm s0, s1, s2") OPERATION(fminnm, "fminnm s0, s1, s2") OPERATION(fnmul, "fnmul s0, s1, s2")
OPERATION(fmadd, "fmadd s0, s1, s2, s3") OPERATION(fmsub, "fmsub s0, s1, s2, s3") OPERATION(fnmadd, "fnmadd s0, s1, s2, s3")
OPERATION(fneg, "fneg s0, s1") OPERATION(fabs_, "fabs s0, s1") OPERATION(fsqrt, "fsqrt s0, s1") OPERATION(fmov, "fmov s0, s1")
OPERATION(fabd, "fabd s0, s1, s2") OPERATION(fmulx, "fmulx s0, s1, s2") OPERATION(frintx, "frintx s0, s1")
OPERATION(frint32x, "frint32x s0, s1") OPERATION(scvtf, "mov w16, #1\n\tscvtf s0, w16") OPERATION(fcvtzs, "fcvtzs s0, s1")
OPERATION(fcsel, "cmp xzr, xzr\n\tfcsel s0, s1, s2, eq") OPERATION(fcmeq, "fcmeq s0, s1, s2") OPERATION(facge, "facge s0, s1, s2")
OPERATION(fcmeq0, "fcmeq s0, s1, #0.0") OPERATION(faddp, "faddp s0, v1.2s") OPERATION(fmla, "fmla s0, s1, v2.s[0]")
OPERATION(fmuli, "fmul s0, s1, v2.s[0]") OPERATION(frecpe, "frecpe s0, s1") OPERATION(frsqrte, "frsqrte s0, s1")
OPERATION(frecps, "frecps s0, s1, s2") OPERATION(frecpx, "frecpx s0, s1") OPERATION(fcvtd, "fcvt d0, s1")
OPERATION(fcvth, "fcvt h0, s1") OPERATION(fcvtxn, "fcvtxn s0, d1") OPERATION(bfcvt, "bfcvt h0, s1")
OPERATION(fadd16, "fadd h0, h1, h2") OPERATION(vfneg, "fneg v0.4s, v1.4s") OPERATION(vfabs, "fabs v0.4s, v1.4s")
OPERATION(vfmls, "fmls v0.4s, v1.4s, v2.4s") OPERATION(vfmax, "fmax v0.4s, v1.4s, v2.4s") OPERATION(fmaxv, "fmaxv s0, v1.4s")
OPERATION(vfadd, "fadd v0.4s, v1.4s, v2.4s") OPERATION(fcadd, "fcadd v0.2s, v1.2s, v2.2s, #90")
OPERATION(bfdot, "bfdot v0.2s, v1.4h, v2.4h") OPERATION(fcmp, "fcmp s1, s2") OPERATION(fmlal, "fmlal v0.2s, v1.2h, v2.2h")

static void report(const char *name, uint64_t fpcr, vector expected, uint64_t flags) {
  count++;
  if (v[0].low == expected.low && v[0].high == expected.high && status == flags) return;
  wrong++;
  printf("%s, FPCR %lx: %016lx %016lx %lx, not %016lx %016lx %lx\n", name, fpcr, v[0].high, v[0].low, status, expected.high,
         expected.low, flags);
}

// A scalar operation; `d` is what the destination's lane holds before.
static void scalar(const char *name, void (*run)(void), uint64_t fpcr, uint64_t d, uint64_t a, uint64_t b, uint64_t c, uint64_t result,
                   uint64_t flags) {
  v[0] = (vector){d, 0}, v[1] = (vector){a, 0}, v[2] = (vector){b, 0}, v[3] = (vector){c, 0};
  control = fpcr;
  run();
  report(name, fpcr, (vector){result, 0}, flags);
}
#define S(run, fpcr, a, b, result, flags) scalar(#run, run, fpcr, 0, (uint32_t)(a), (uint32_t)(b), 0, (uint32_t)(result), flags)
#define S3_(run, fpcr, a, b, c, result, flags) \
  scalar(#run, run, fpcr, 0, (uint32_t)(a), (uint32_t)(b), (uint32_t)(c), (uint32_t)(result), flags)

// All four lanes alike.
static void lanes(const char *name, void (*run)(void), uint64_t fpcr, uint32_t d, uint32_t a, uint32_t b, uint32_t result, uint64_t flags) {
  uint32_t values[4] = {d, a, b, 0};
  for (int i = 0; i < 4; i++) v[i].low = v[i].high = values[i] | (uint64_t)values[i] << 32;
  control = fpcr;
  run();
  report(name, fpcr, (vector){result | (uint64_t)result << 32, result | (uint64_t)result << 32}, flags);
}
#define V(run, fpcr, d, a, b, result, flags) lanes(#run, run, fpcr, d, a, b, result, flags)

// Where a scalar result's other lanes come from: register 0 to 3, or nowhere.
static void merge(const char *name, void (*run)(void), int source, int width) {
  for (int nep = 0; nep < 2; nep++) {
    for (int i = 0; i < 4; i++) {
      v[i].low = 0x3c003c0000000000 | 0x3f800000 | (uint64_t)i << 56;
      if (width == 64 && i == 1) v[i].low = 0x3ff0000000000000;
      v[i].high = 0x1111111111111111 * (i + 1);
    }
    vector rest = source < 0 || !nep ? (vector){0, 0} : v[source];
    control = nep ? NEP : 0;
    run();
    uint64_t mask = width == 64 ? ~0ul : (1ul << width) - 1;
    uint64_t got = v[0].low & mask;
    report(name, control, (vector){rest.low & ~mask | got, rest.high}, status);
  }
}
#define N(run, source, width) merge(#run, run, source, width)

static volatile uint64_t framed = 1;
static void handle(int number, siginfo_t *info, void *context) {
  struct fpsimd_context *floats = (void *)((ucontext_t *)context)->uc_mcontext.__reserved;
  framed = floats->fpcr;
  floats->fpcr = AH | FIZ;
}

int main(void) {
  uint64_t features, estimates, before, after;
  __asm__("mrs %0, s3_0_c0_c7_1" : "=r"(features));
  __asm__("mrs %0, s3_0_c0_c6_2" : "=r"(estimates));
  __asm__ volatile("msr fpcr, %1\n\tmrs %0, fpcr\n\tmsr fpcr, xzr" : "=r"(before) : "r"(0x0000ul | AH | NEP | FIZ | DN));
  uint64_t capabilities = getauxval(AT_HWCAP2);
  char text[4096] = "";
  FILE *file = fopen("/proc/cpuinfo", "r");
  fread(text, 1, sizeof text - 1, file);
  printf("hwcap2 %lu %lu, cpuinfo %d, registers %lx %lx, fpcr %lx\n", capabilities >> 20 & 1, capabilities >> 21 & 1,
         strstr(text, " afp rpres") != 0, features >> 44 & 15, estimates >> 4 & 15, before);
  if (!(features >> 44 & 15)) return 0;

  // The default NaN's sign, with and without an operand that is a NaN.
  S(fsub, 0, INF, INF, DEFAULT, IOC); S(fsub, AH, INF, INF, SIGN | DEFAULT, IOC); S(fadd, AH | DN, Q1, ONE, SIGN | DEFAULT, 0);
  S(fsqrt, AH, SIGN | ONE, 0, SIGN | DEFAULT, IOC); S(fmulx, AH, INF, 0, TWO, 0);
  // Which NaN.
  S(fadd, 0, Q1, S3, QUIETED, IOC); S(fadd, AH, Q1, S3, Q1, IOC); S(fadd, AH, S3, Q1, QUIETED, IOC); S(fadd, AH, ONE, S3, QUIETED, IOC);
  S3_(fmadd, 0, Q2, S3, Q1, QUIETED, IOC); S3_(fmadd, AH, Q2, S3, Q1, Q2, IOC); S3_(fmadd, 0, ONE, Q2, Q1, Q1, 0);
  S3_(fmadd, AH, ONE, Q2, Q1, Q2, 0); S3_(fmadd, 0, INF, 0, Q1, DEFAULT, IOC); S3_(fmadd, AH, INF, 0, Q1, Q1, 0);
  S3_(fmadd, AH, INF, 0, ONE, SIGN | DEFAULT, IOC); V(vfadd, AH, 0, Q2, S3, Q2, IOC);
  // Minimum and maximum: the second operand for NaNs and zeros; the numeric ones as before, but for two NaNs.
  S(fmax, 0, 0, SIGN, 0, 0); S(fmax, AH, 0, SIGN, SIGN, 0); S(fmin, AH, SIGN, 0, 0, 0); S(fmin, AH, Q1, ONE, ONE, IOC);
  S(fmin, AH | DN, ONE, S3, S3, IOC); S(fmax, AH, Q1, Q2, Q2, IOC); S(fmax, AH | FIZ, Q1, DENORMAL, 0, IOC);
  S(fmax, AH | FZ, DENORMAL, SIGN, DENORMAL, IDC); S(fmaxnm, AH, Q1, ONE, ONE, 0); S(fmaxnm, AH, Q1, S3, Q1, IOC);
  S(fmaxnm, AH, 0, SIGN, 0, 0); S(fminnm, AH | FZ, DENORMAL, ONE, 0, IDC | UFC | IXC); S(fminnm, AH, Q1, DENORMAL, DENORMAL, IDC);
  V(vfmax, AH, 0, Q1, Q2, Q2, IOC); v[3].low = 0; scalar("fmaxv", fmaxv, AH, 0, (uint64_t)Q1 << 32 | ONE, 0, 0, 0, IOC);
  // Negation of NaNs.
  S(fneg, 0, Q1, 0, SIGN | Q1, 0); S(fneg, AH, Q1, 0, Q1, 0); S(fneg, AH, S3, 0, S3, 0); S(fneg, AH, ONE, 0, SIGN | ONE, 0);
  S(fabs_, 0, Q2, 0, Q2 & ~SIGN, 0); S(fabs_, AH, Q2, 0, Q2, 0); S(fabs_, AH, SIGN | ONE, 0, ONE, 0);
  S(fnmul, 0, Q1, ONE, SIGN | Q1, 0); S(fnmul, AH, Q1, ONE, Q1, 0); S3_(fmsub, 0, Q1, ONE, ONE, SIGN | Q1, 0);
  S3_(fmsub, AH, Q1, ONE, ONE, Q1, 0); S3_(fnmadd, 0, ONE, ONE, Q1, SIGN | Q1, 0); S3_(fnmadd, AH, ONE, ONE, Q1, Q1, 0);
  S(fabd, 0, Q2, ONE, Q2 & ~SIGN, 0); S(fabd, AH, Q2, ONE, Q2, 0); S(fabd, AH, INF, INF, SIGN | DEFAULT, IOC);
  V(vfneg, 0, 0, Q1, 0, SIGN | Q1, 0); V(vfneg, AH, 0, Q1, 0, Q1, 0); V(vfabs, AH, 0, Q2, 0, Q2, 0);
  V(vfmls, 0, ONE, Q1, ONE, SIGN | Q1, 0); V(vfmls, AH, ONE, Q1, ONE, Q1, 0);
  scalar("fcadd", fcadd, 0, 0, (uint64_t)ONE << 32 | ONE, (uint64_t)Q1 << 32 | ONE, 0, (uint64_t)TWO << 32 | SIGN | Q1, 0);
  scalar("fcadd", fcadd, AH, 0, (uint64_t)ONE << 32 | ONE, (uint64_t)Q1 << 32 | ONE, 0, (uint64_t)TWO << 32 | Q1, 0);
  // Tiny before rounding (MIN less a little), and after it.
  S3_(fmadd, 0, 0x0d800000, 0xa2000000u, MIN, MIN, UFC | IXC); S3_(fmadd, FZ, 0x0d800000, 0xa2000000u, MIN, 0, UFC);
  S3_(fmadd, AH, 0x0d800000, 0xa2000000u, MIN, MIN, IXC); S3_(fmadd, AH | FZ, 0x0d800000, 0xa2000000u, MIN, MIN, IXC);
  S(fmul, 0, MIN, 0x3f000000, 0x00400000, 0); S(fmul, FZ, MIN, 0x3f000000, 0, UFC); S(fmul, AH, MIN, 0x3f000000, 0x00400000, 0);
  S(fmul, AH | FZ, MIN, 0xbf000000u, SIGN, UFC | IXC);
  // Denormal operands.
  S(fadd, 0, DENORMAL, 0, DENORMAL, 0); S(fadd, FZ, DENORMAL, 0, 0, IDC); S(fadd, AH, DENORMAL, 0, DENORMAL, IDC);
  S(fadd, AH | FZ, DENORMAL, ONE, ONE, IDC | IXC); S(fadd, FIZ, DENORMAL, 0, 0, 0); S(fadd, AH | FIZ, DENORMAL, ONE, ONE, 0);
  S(fadd, FIZ | FZ, DENORMAL, 0, 0, IDC); S(fadd, AH, DENORMAL, Q1, Q1, 0); S(fdiv, AH, DENORMAL, 0, INF, DZC);
  S(fdiv, AH, 0, DENORMAL, 0, IDC); S(fcmeq, AH, DENORMAL, ONE, 0, IDC); S(fcmeq, AH | FIZ, DENORMAL, 0, -1, 0);
  S(fcmp, AH, DENORMAL, 0, 0, IDC); S(frintx, AH, DENORMAL, 0, 0, IXC); S(frintx, FIZ, DENORMAL, 0, 0, 0);
  S(fcvtzs, AH, DENORMAL, 0, 0, IXC); S(fsqrt, AH | FIZ, SIGN | DENORMAL, 0, SIGN, 0); S(fcvth, AH, DENORMAL, 0, 0, IDC | UFC | IXC);
  S(fcvth, AH | FZ16, 0x38000000, 0, 0x200, 0); S(fadd16, AH, 1, 0, 1, 0); S(fadd16, AH | FZ16, 0x400, 0x83ff, 0x400, 0);
  S(fadd16, AH | FZ16, 0x401, 0x8400, 0, UFC | IXC);
  S(fadd16, AH | FIZ, 1, 0, 1, 0); scalar("fcvtd", fcvtd, AH, 0, DENORMAL, 0, 0, 0x36a0000000000000, IDC);
  scalar("fcvtxn", fcvtxn, FZ, 0, 0x3800000000000000, 0, 0, 0, UFC); scalar("fcvtxn", fcvtxn, AH | FZ, 0, 0x3800000000000001, 0, 0, 0, UFC | IXC);
  // Estimates and bfloat16: 12 bits, nearest, flushed, no exceptions.
  S(frecpe, 0, 0x40400000, 0, 0x3eaa8000, 0); S(frecpe, AH, 0x40400000, 0, 0x3eaaa000, 0); S(frecpe, 0, 0, 0, INF, DZC);
  S(frecpe, AH, 0, 0, INF, 0); S(frecpe, AH, DENORMAL, 0, INF, 0); S(frecpe, AH, S3, 0, QUIETED, 0); S(frecpe, AH, 0x7f000000, 0, 0, 0);
  S(frsqrte, 0, 0x40400000, 0, 0x3f138000, 0); S(frsqrte, AH, 0x40400000, 0, 0x3f13c800, 0); S(frsqrte, AH, SIGN | ONE, 0, SIGN | DEFAULT, 0);
  S(frecps, UP, ONE, 0x33000000, TWO, IXC); S(frecps, AH | UP, ONE, 0x33000000, TWO, 0); S(frecps, AH, Q1, ONE, Q1, 0);
  S(frecpx, AH, S3, 0, QUIETED, 0); S(bfcvt, UP, 0x3f800001, 0, 0x3f81, IXC); S(bfcvt, AH | UP, 0x3f800001, 0, 0x3f80, 0);
  S(bfcvt, AH, 0x00400000, 0, 0, 0); scalar("bfdot", bfdot, AH, 0, 0x7f80, 0, 0, SIGN | DEFAULT, 0);
  scalar("fmlal", fmlal, AH, 0, 0x7e01, 0x7c01, 0, 0x7fc02000, IOC);
  // The other lanes of scalar results.
  N(fadd, 1, 32); N(fsub, 1, 32); N(fmul, 1, 32); N(fdiv, 1, 32); N(fmin, 1, 32); N(fmaxnm, 1, 32); N(fnmul, 1, 32); N(fmadd, 3, 32);
  N(fmsub, 3, 32); N(fneg, 0, 32); N(fabs_, 0, 32); N(fsqrt, 0, 32); N(fmov, -1, 32); N(fcsel, -1, 32); N(fabd, 1, 32); N(fmulx, 1, 32);
  N(frintx, 0, 32); N(frint32x, 0, 32); N(scvtf, 0, 32); N(fcvtzs, 0, 32); N(fcmeq, 2, 32); N(facge, 2, 32); N(fcmeq0, -1, 32);
  N(faddp, -1, 32); N(fmla, 0, 32); N(fmuli, 1, 32); N(frecpe, 0, 32); N(frsqrte, 0, 32); N(frecps, 1, 32); N(frecpx, 0, 32);
  N(fcvtd, 0, 64); N(fcvth, 0, 16); N(fcvtxn, 0, 32); N(bfcvt, 0, 16); N(fadd16, 1, 16);

  // A signal's frame has the bits, and what the handler leaves there counts.
  struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &action, 0);
  long self = getpid();
  register long x8 __asm__("x8") = SYS_kill, x0 __asm__("x0") = self, x1 __asm__("x1") = SIGUSR1;
  __asm__ volatile("msr fpcr, %2\n\tsvc #0\n\tmrs %0, fpcr\n\tmsr fpcr, xzr"
                   : "=&r"(after), "+r"(x0) : "r"((uint64_t)(AH | NEP)), "r"(x1), "r"(x8) : "memory");
  printf("frame %lx, then %lx\n%d checks, %d wrong\n", framed, after, count, wrong);
  return wrong != 0;
}
