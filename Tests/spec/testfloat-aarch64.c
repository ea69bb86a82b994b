// Runs one floating-point operation of AArch64 on test vectors and compares results and flags bit by bit.
//
// usage: testfloat OPERATION ROUNDING scalar|vector FPCR <VECTORS
//
// VECTORS are lines of hexadecimal numbers: operands, result, flags. OPERATION is one of the names below; ROUNDING is
// near_even, minMag, min, max or near_maxMag; FPCR, a hexadecimal number, is added to the rounding mode. In vector operations
// every lane has the same operands and must have the same result. Ends with 1 if a line differs, and shows the first ten.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
typedef uint8_t v16 __attribute__((vector_size(16)));

static v16 vector(u64 bits, int width) {
  v16 value;
  for (int at = 0; at < 16; at += width / 8) memcpy((char *)&value + at, &bits, width / 8);
  return value;
}
// All lanes must be the same; otherwise something that no result is.
static u64 lanes(v16 value, int width) {
  u64 bits = 0, other = 0;
  memcpy(&bits, &value, width / 8);
  for (int at = 0; at < 16; at += width / 8) {
    memcpy(&other, (char *)&value + at, width / 8);
    if (other != bits) return 0xbadbadbadbad0000 | at;
  }
  return bits;
}
static u64 lowest(v16 value) { u64 bits; memcpy(&bits, &value, 8); return bits; }

typedef u64 operation(u64 a, u64 b, u64 c);
#define A vector(a, WIDTH)
#define B vector(b, WIDTH)
#define C vector(c, WIDTH)
#define S1(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A)); return lowest(r); }
#define S2(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A), "w"(B)); return lowest(r); }
#define S3(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A), "w"(B), "w"(C)); return lowest(r); }
#define V1(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A)); return lanes(r, WIDTH); }
#define V2(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A), "w"(B)); return lanes(r, WIDTH); }
#define VA(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r = C; asm volatile(text : "+w"(r) : "w"(A), "w"(B)); return lanes(r, WIDTH); }
#define VC(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "w"(A), "w"(B)); return lanes(r, WIDTH) & 1; }
#define CM(name, text, condition) static u64 name(u64 a, u64 b, u64 c) { u64 r; asm volatile(text "; cset %0, " condition : "=r"(r) : "w"(A), "w"(B) : "cc"); return r; }
#define TI(name, text) static u64 name(u64 a, u64 b, u64 c) { u64 r; asm volatile(text : "=r"(r) : "w"(A)); return r; }
#define FI(name, text) static u64 name(u64 a, u64 b, u64 c) { v16 r; asm volatile(text : "=w"(r) : "r"(a)); return lowest(r); }
#define INTEGERS(f, s, way)                                                                                          \
  TI(f##_to_i32_##way, "fcvt" #way "s %w0,%" s "1") TI(f##_to_ui32_##way, "fcvt" #way "u %w0,%" s "1")               \
  TI(f##_to_i64_##way, "fcvt" #way "s %x0,%" s "1") TI(f##_to_ui64_##way, "fcvt" #way "u %x0,%" s "1")
#define FORMAT(f, s, t)                                                                                              \
  S2(f##_add, "fadd %" s "0,%" s "1,%" s "2") S2(f##_sub, "fsub %" s "0,%" s "1,%" s "2")                            \
  S2(f##_mul, "fmul %" s "0,%" s "1,%" s "2") S2(f##_div, "fdiv %" s "0,%" s "1,%" s "2")                            \
  S1(f##_sqrt, "fsqrt %" s "0,%" s "1") S3(f##_mulAdd, "fmadd %" s "0,%" s "1,%" s "2,%" s "3")                      \
  S1(f##_roundToInt, "frintx %" s "0,%" s "1")                                                                       \
  CM(f##_eq, "fcmp %" s "1,%" s "2", "eq") CM(f##_lt_quiet, "fcmp %" s "1,%" s "2", "mi")                            \
  CM(f##_le_quiet, "fcmp %" s "1,%" s "2", "ls") CM(f##_eq_signaling, "fcmpe %" s "1,%" s "2", "eq")                 \
  CM(f##_lt, "fcmpe %" s "1,%" s "2", "mi") CM(f##_le, "fcmpe %" s "1,%" s "2", "ls")                                \
  INTEGERS(f, s, n) INTEGERS(f, s, z) INTEGERS(f, s, m) INTEGERS(f, s, p) INTEGERS(f, s, a)                          \
  FI(i32_to_##f, "scvtf %" s "0,%w1") FI(ui32_to_##f, "ucvtf %" s "0,%w1")                                           \
  FI(i64_to_##f, "scvtf %" s "0,%x1") FI(ui64_to_##f, "ucvtf %" s "0,%x1")                                           \
  V2(f##_add_v, "fadd %0." t ",%1." t ",%2." t) V2(f##_sub_v, "fsub %0." t ",%1." t ",%2." t)                        \
  V2(f##_mul_v, "fmul %0." t ",%1." t ",%2." t) V2(f##_div_v, "fdiv %0." t ",%1." t ",%2." t)                        \
  V1(f##_sqrt_v, "fsqrt %0." t ",%1." t) VA(f##_mulAdd_v, "fmla %0." t ",%1." t ",%2." t)                            \
  V1(f##_roundToInt_v, "frintx %0." t ",%1." t)                                                                      \
  VC(f##_eq_v, "fcmeq %0." t ",%1." t ",%2." t) VC(f##_lt_v, "fcmgt %0." t ",%2." t ",%1." t)                        \
  VC(f##_le_v, "fcmge %0." t ",%2." t ",%1." t)
#define WIDTH 16
FORMAT(f16, "h", "8h") S1(f16_to_f32, "fcvt %s0,%h1") S1(f16_to_f64, "fcvt %d0,%h1")
#undef WIDTH
#define WIDTH 32
FORMAT(f32, "s", "4s") S1(f32_to_f16, "fcvt %h0,%s1") S1(f32_to_f64, "fcvt %d0,%s1")
#undef WIDTH
#define WIDTH 64
FORMAT(f64, "d", "2d") S1(f64_to_f16, "fcvt %h0,%d1") S1(f64_to_f32, "fcvt %s0,%d1")

// The operation, how many operands; by rounding where the instruction names it.
struct entry { const char *name; int count; operation *scalar[5], *vector; };
#define E(n, count) {#n, count, {n, n, n, n, n}, 0}
#define EV(n, count) {#n, count, {n, n, n, n, n}, n##_v}
#define EI(n) {#n, 1, {n##_n, n##_z, n##_m, n##_p, n##_a}, 0}
#define ENTRIES(f)                                                                                                   \
  EV(f##_add, 2), EV(f##_sub, 2), EV(f##_mul, 2), EV(f##_div, 2), EV(f##_sqrt, 1), EV(f##_mulAdd, 3), EV(f##_eq, 2),   \
  EV(f##_lt, 2), EV(f##_le, 2), E(f##_lt_quiet, 2), E(f##_le_quiet, 2), E(f##_eq_signaling, 2), EV(f##_roundToInt, 1), \
  EI(f##_to_i32), EI(f##_to_ui32), EI(f##_to_i64), EI(f##_to_ui64), E(i32_to_##f, 1), E(ui32_to_##f, 1),             \
  E(i64_to_##f, 1), E(ui64_to_##f, 1)
static const struct entry entries[] = {
  ENTRIES(f16), ENTRIES(f32), ENTRIES(f64), E(f16_to_f32, 1), E(f16_to_f64, 1), E(f32_to_f16, 1), E(f32_to_f64, 1),
  E(f64_to_f16, 1), E(f64_to_f32, 1),
};

static u64 infinity(const char *format) {
  return format[1] == '1' ? 0x7c00 : format[1] == '3' ? 0x7f800000 : 0x7ff0000000000000;
}
static int isNaN(u64 x, const char *format) {
  u64 exponent = infinity(format);
  return (x & exponent) == exponent && x & (exponent & -exponent) - 1;
}
static u64 negativeDefault(const char *format) {
  u64 exponent = infinity(format);
  return exponent | exponent << 1 | (exponent & -exponent) >> 1;
}

int main(int argc, char **argv) {
  static const char *roundings[] = {"near_even", "minMag", "min", "max", "near_maxMag"};
  // FPCR's RMode.
  static const u64 modes[] = {0, 3, 2, 1, 0};
  const struct entry *entry = 0;
  int rounding = -1;
  if (argc != 5) return fprintf(stderr, "usage: testfloat OPERATION ROUNDING scalar|vector FPCR <VECTORS\n"), 2;
  for (unsigned i = 0; i < sizeof entries / sizeof *entries; i++)
    if (!strcmp(entries[i].name, argv[1])) entry = entries + i;
  for (int i = 0; i < 5; i++) if (!strcmp(roundings[i], argv[2])) rounding = i;
  operation *run = !entry || rounding < 0 ? 0 : !strcmp(argv[3], "vector") ? entry->vector : entry->scalar[rounding];
  if (!run) return fprintf(stderr, "testfloat: no %s operation %s with rounding %s\n", argv[3], argv[1], argv[2]), 2;
  u64 fpcr = strtoull(argv[4], 0, 16) | modes[rounding] << 22;
  u64 lines = 0, wrong = 0;
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    u64 field[5] = {0};
    char *at = line;
    for (int i = 0; i < entry->count + 2; i++) field[i] = strtoull(at, &at, 16);
    // With FPCR.AH, infinity times zero leaves a NaN that is added; SoftFloat makes the default one.
    if (fpcr & 2 && entry->count == 3 && isNaN(field[2], entry->name) && !isNaN(field[0], entry->name) &&
        !isNaN(field[1], entry->name) && field[3] == negativeDefault(entry->name))
      continue;
    u64 flags;
    asm volatile("msr fpcr, %0; msr fpsr, xzr" : : "r"(fpcr));
    u64 result = run(field[0], field[1], field[2]);
    asm volatile("mrs %0, fpsr; msr fpcr, xzr" : "=r"(flags));
    // TestFloat's flags run the other way.
    u64 found = (flags >> 4 & 1) | (flags >> 3 & 1) << 1 | (flags >> 2 & 1) << 2 | (flags >> 1 & 1) << 3 | (flags & 1) << 4;
    lines++;
    if (result == field[entry->count] && found == field[entry->count + 1]) continue;
    if (wrong++ < 10)
      printf("%s %s %s %s: %.60s: got %016llx flags %02llx\n", argv[1], argv[2], argv[3], argv[4], strtok(line, "\n"),
             (unsigned long long)result, (unsigned long long)found);
  }
  printf("%s %s %s %s: %llu vectors, %llu wrong\n", argv[1], argv[2], argv[3], argv[4], (unsigned long long)lines,
         (unsigned long long)wrong);
  return wrong != 0 || lines == 0;
}
