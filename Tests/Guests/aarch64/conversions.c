// Conversions between floats and integers, by every rounding and with fractions, and frinta: a digest of results and FPSR for each
// rounding mode and default NaN of FPCR. Operands lie around halves and the integers' limits, and anywhere.
#include <stdint.h>
#include <stdio.h>
#include <string.h>
typedef uint64_t pair __attribute__((vector_size(16)));
typedef float quad __attribute__((vector_size(16)));

static uint64_t digest = 1469598103934665603u;
static void add(uint64_t value) { digest = (digest ^ value) * 1099511628211u; }
static void add_flags(void) {
  uint64_t flags;
  __asm__ volatile("mrs %0, fpsr\n msr fpsr, xzr" : "=r"(flags));
  add(flags);
}
#define FROM(text, type, value) { uint64_t r; __asm__ volatile(text : "=r"(r) : type(value)); add(r); add_flags(); }
#define TO(text, type, value) { pair r; __asm__ volatile(text : "=w"(r) : type(value)); add(r[0]); add(r[1]); add_flags(); }
#define EACH(name) \
  FROM(name " %0, %d1", "w", d) FROM(name " %w0, %d1", "w", d) FROM(name " %0, %s1", "w", f) FROM(name " %w0, %s1", "w", f)
#define FIXED(name, wide, narrow) \
  FROM(name " %0, %d1, #" wide, "w", d) FROM(name " %w0, %d1, #" narrow, "w", d) \
  FROM(name " %0, %s1, #" wide, "w", f) FROM(name " %w0, %s1, #" narrow, "w", f)
#define VECTORS(v) \
  TO("fcvtns %0.4s, %1.4s", "w", v) TO("fcvtms %0.4s, %1.4s", "w", v) TO("fcvtps %0.4s, %1.4s", "w", v) \
  TO("fcvtns %0.2s, %1.2s", "w", v) TO("fcvtms %s0, %s1", "w", v) TO("fcvtzs %0.4s, %1.4s, #31", "w", v) \
  TO("fcvtzs %0.2s, %1.2s, #5", "w", v) TO("fcvtzs %s0, %s1, #32", "w", v) TO("scvtf %0.4s, %1.4s, #8", "w", v) \
  TO("ucvtf %0.4s, %1.4s, #32", "w", v)

static uint64_t state = 88172645463325252u;
static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  return state ^= state << 17;
}
static uint64_t bits(double value) {
  uint64_t result;
  memcpy(&result, &value, 8);
  return result;
}

int main(void) {
  for (uint64_t mode = 0; mode < 8; mode++) {
    __asm__ volatile("msr fpcr, %0" ::"r"((mode & 3) << 22 | (mode >> 2) << 25));
    for (int i = 0; i < 3000; i++) {
      uint64_t s = next(), sign = s & 1ull << 63, b = s;
      switch (i % 8) {
      case 0: break;
      case 1: b = bits((double)((int64_t)s >> (s & 31) >> 20) + 0.5) + (s >> 40) % 3 - 1; break;
      case 2: b = bits(2147483648.0 + ((int)(s % 9) - 4) * 0.25) | sign; break;
      case 3: b = bits(4294967296.0 + ((int)(s % 9) - 4) * 0.25) | sign; break;
      case 4: b = (s & 0x800fffffffffffff) | (1023 + (s >> 52) % 70) << 52; break;
      case 5: b = (s & 0x8000000000000fff) | ((s >> 13) % 2048) << 52; break;
      case 6: b = (bits(9223372036854775808.0) + (s >> 30) % 5 - 2) | sign; break;
      case 7: b = (s & 0x800fffffffffffff) | (1018 + (s >> 52) % 8) << 52; break;
      }
      double d;
      memcpy(&d, &b, 8);
      float f = d;
      if (i % 16 == 1) memcpy(&f, &s, 4);
      __asm__ volatile("msr fpsr, xzr");
      EACH("fcvtas") EACH("fcvtms") EACH("fcvtns") EACH("fcvtps") EACH("fcvtzs") EACH("fcvtzu")
      FIXED("fcvtzs", "1", "1") FIXED("fcvtzs", "64", "32") FIXED("fcvtzu", "7", "3") FIXED("fcvtzu", "64", "31")
      TO("frinta %d0, %d1", "w", d) TO("frinta %s0, %s1", "w", f)
      TO("scvtf %d0, %1, #13", "r", b) TO("ucvtf %d0, %1, #64", "r", b) TO("scvtf %s0, %1, #50", "r", b)
      TO("ucvtf %s0, %w1, #32", "r", b)
      quad floats = {f, -f, f * 0.5f, (float)(int)s / 65536};
      pair any = {b, s}, same;
      memcpy(&same, &floats, 16);
      __asm__ volatile("msr fpsr, xzr");
      VECTORS(same) VECTORS(any)
    }
    printf("%lx %016lx\n", mode, digest);
  }
  return 0;
}
