// Vector floating point on operands at the edges (subnormals, NaNs, infinities, integers' limits), results and FPSR.
// The argument is FPCR, shifted right by 22: rounding mode, and 8 for the default NaN.
#include <arm_neon.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint64_t flags(void) { uint64_t v; __asm__ volatile("mrs %0, fpsr" : "=r"(v)); return v; }
static void clear(void) { __asm__ volatile("msr fpsr, %0" ::"r"(0ul)); }
static void show(const char *name, const void *value) {
  uint32_t lanes[4];
  uint64_t raised = flags();
  memcpy(lanes, value, 16);
  printf("%s %08x %08x %08x %08x %lx\n", name, lanes[0], lanes[1], lanes[2], lanes[3], raised);
  clear();
}
#define SHOW(name, expression) { __typeof__(expression) result = expression; __asm__ volatile("" ::"w"(result)); show(name, &result); }
int main(int argc, char **argv) {
  static const uint32_t values[] = {
    0x00800000, 0x00800001, 0x00ffffff, 0x01000000, 0x80800000, 0x3f800000, 0x7f800000, 0x7fc00001, 0x7f800001, 0,
    0x80000000, 1, 0x4f000000, 0xcf000000, 0x4effffff, 0xbf000000, 0x3f7fffff, 0x4f800000, 0x33800000};
  enum { N = sizeof values / sizeof *values };
  __asm__ volatile("msr fpcr, %0" ::"r"(strtoul(argv[1], 0, 0) << 22));
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      uint32_t x[4] = {values[i], values[(i + 1) % N], values[j], 0x3f800000};
      uint32_t y[4] = {values[j], 0x3f7fffff, 0x3f7fffff, values[i]};
      float32x4_t a, b;
      memcpy(&a, x, 16);
      memcpy(&b, y, 16);
      clear();
      __asm__ volatile("" : "+w"(a), "+w"(b));
      SHOW("mul", vmulq_f32(a, b)) SHOW("div", vdivq_f32(a, b)) SHOW("fma", vfmaq_f32(a, a, b)) SHOW("fms", vfmsq_f32(b, a, b))
      SHOW("add", vaddq_f32(a, b)) SHOW("sub", vsubq_f32(a, b)) SHOW("max", vmaxq_f32(a, b)) SHOW("min", vminq_f32(a, b))
      SHOW("maxnm", vmaxnmq_f32(a, b)) SHOW("abd", vabdq_f32(a, b)) SHOW("padd", vpaddq_f32(a, b)) SHOW("sqrt", vsqrtq_f32(a))
      SHOW("rndx", vrndxq_f32(a)) SHOW("rndm", vrndmq_f32(a)) SHOW("cvts", vcvtq_s32_f32(a)) SHOW("cvtu", vcvtq_u32_f32(a))
      SHOW("ge", vcgeq_f32(a, b)) SHOW("eq", vceqq_f32(a, b)) SHOW("cagt", vcagtq_f32(a, b))
      SHOW("lane", vmulq_laneq_f32(a, b, 2)) SHOW("fmalane", vfmaq_laneq_f32(a, a, b, 0))
      float64x2_t low = vcvt_f64_f32(vget_low_f32(a)), high = vcvt_high_f64_f32(a);
      SHOW("widen", low) SHOW("widen2", high)
      low = vmulq_n_f64(low, 0.99999999999);
      float32x2_t narrow = vcvt_f32_f64(low);
      SHOW("narrow", vcombine_f32(narrow, narrow)) SHOW("narrow2", vcvt_high_f32_f64(narrow, high))
      SHOW("pair", vdupq_n_f64(vpaddd_f64(low)))
      uint32x4_t u;
      int32x4_t s;
      memcpy(&u, x, 16);
      memcpy(&s, y, 16);
      SHOW("ucvtf", vcvtq_f32_u32(u)) SHOW("scvtf", vcvtq_f32_s32(s))
    }
  return 0;
}
