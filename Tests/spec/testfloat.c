// Runs one floating-point operation of RISC-V on test vectors and compares results and flags bit by bit.
//
// usage: testfloat OPERATION ROUNDING static|dynamic <VECTORS
//
// VECTORS are lines of hexadecimal numbers: operands, result, flags. OPERATION is one of the names below; ROUNDING is
// near_even, minMag, min, max or near_maxMag: in the instruction (static) or in frm (dynamic). Ends with 1 if a line
// differs, and shows the first ten.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef uint64_t u64;
static inline double d(u64 bits) { double value; memcpy(&value, &bits, 8); return value; }
static inline u64 b(double value) { u64 bits; memcpy(&bits, &value, 8); return bits; }

// Registers hold narrower formats boxed in ones.
static u64 box(u64 bits, int width) { return width == 64 ? bits : bits | ~0ull << width; }

enum { NONE = 5 };
typedef u64 operation(u64 a, u64 b, u64 c);

#define FLOAT3(name, instruction, rounding)                                                      \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    double r; asm volatile(instruction " %0,%1,%2,%3" rounding : "=f"(r) : "f"(d(a)), "f"(d(x)), "f"(d(c))); return b(r); }
#define FLOAT2(name, instruction, rounding)                                                      \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    double r; asm volatile(instruction " %0,%1,%2" rounding : "=f"(r) : "f"(d(a)), "f"(d(x))); return b(r); }
#define FLOAT1(name, instruction, rounding)                                                      \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    double r; asm volatile(instruction " %0,%1" rounding : "=f"(r) : "f"(d(a))); return b(r); }
#define COMPARE(name, instruction, rounding)                                                     \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    u64 r; asm volatile(instruction " %0,%1,%2" : "=r"(r) : "f"(d(a)), "f"(d(x))); return r; }
#define TO_INTEGER(name, instruction, rounding)                                                  \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    u64 r; asm volatile(instruction " %0,%1" rounding : "=r"(r) : "f"(d(a))); return r; }
#define FROM_INTEGER(name, instruction, rounding)                                                \
  static u64 name(u64 a, u64 x, u64 c) {                                                          \
    double r; asm volatile(instruction " %0,%1" rounding : "=f"(r) : "r"(a)); return b(r); }

#define ROUNDED(kind, name, instruction)                                                         \
  kind(name##_rne, instruction, ",rne") kind(name##_rtz, instruction, ",rtz") kind(name##_rdn, instruction, ",rdn") \
  kind(name##_rup, instruction, ",rup") kind(name##_rmm, instruction, ",rmm") kind(name##_dyn, instruction, ",dyn")
#define PLAIN(kind, name, instruction) kind(name, instruction, "")

#define FORMAT(f, s)                                                                             \
  ROUNDED(FLOAT2, f##_add, "fadd." s) ROUNDED(FLOAT2, f##_sub, "fsub." s) ROUNDED(FLOAT2, f##_mul, "fmul." s) \
  ROUNDED(FLOAT2, f##_div, "fdiv." s) ROUNDED(FLOAT1, f##_sqrt, "fsqrt." s) ROUNDED(FLOAT3, f##_mulAdd, "fmadd." s) \
  ROUNDED(FLOAT3, f##_mulSub, "fmsub." s) ROUNDED(FLOAT3, f##_negMulAdd, "fnmadd." s)            \
  ROUNDED(FLOAT3, f##_negMulSub, "fnmsub." s)                                                    \
  PLAIN(COMPARE, f##_eq, "feq." s) PLAIN(COMPARE, f##_lt, "flt." s) PLAIN(COMPARE, f##_le, "fle." s) \
  ROUNDED(TO_INTEGER, f##_to_i32, "fcvt.w." s) ROUNDED(TO_INTEGER, f##_to_ui32, "fcvt.wu." s)    \
  ROUNDED(TO_INTEGER, f##_to_i64, "fcvt.l." s) ROUNDED(TO_INTEGER, f##_to_ui64, "fcvt.lu." s)    \
  ROUNDED(FROM_INTEGER, i64_to_##f, "fcvt." s ".l") ROUNDED(FROM_INTEGER, ui64_to_##f, "fcvt." s ".lu")
FORMAT(f32, "s")
FORMAT(f64, "d")
ROUNDED(FROM_INTEGER, i32_to_f32, "fcvt.s.w")
ROUNDED(FROM_INTEGER, ui32_to_f32, "fcvt.s.wu")
PLAIN(FROM_INTEGER, i32_to_f64, "fcvt.d.w")
PLAIN(FROM_INTEGER, ui32_to_f64, "fcvt.d.wu")
#ifdef __riscv_zfh
FORMAT(f16, "h")
ROUNDED(FROM_INTEGER, i32_to_f16, "fcvt.h.w")
ROUNDED(FROM_INTEGER, ui32_to_f16, "fcvt.h.wu")
ROUNDED(FLOAT1, f32_to_f16, "fcvt.h.s")
ROUNDED(FLOAT1, f64_to_f16, "fcvt.h.d")
PLAIN(FLOAT1, f16_to_f32, "fcvt.s.h")
PLAIN(FLOAT1, f16_to_f64, "fcvt.d.h")
#endif
ROUNDED(FLOAT1, f64_to_f32, "fcvt.s.d")
PLAIN(FLOAT1, f32_to_f64, "fcvt.d.s")

// Operands: how many, and how wide; 0 for an integer. The signs of product and addend that make it a mulAdd.
struct entry { const char *name; int count, width, result; operation *run[6]; };
#define R(n, count, width, result) {#n, count, width, result, {n##_rne, n##_rtz, n##_rdn, n##_rup, n##_rmm, n##_dyn}}
#define P(n, count, width, result) {#n, count, width, result, {n, n, n, n, n, n}}
#define ENTRIES(f, w)                                                                            \
  R(f##_add, 2, w, w), R(f##_sub, 2, w, w), R(f##_mul, 2, w, w), R(f##_div, 2, w, w), R(f##_sqrt, 1, w, w),       \
  R(f##_mulAdd, 3, w, w), R(f##_mulSub, 3, w, w), R(f##_negMulAdd, 3, w, w), R(f##_negMulSub, 3, w, w),           \
  P(f##_eq, 2, w, 1), P(f##_lt, 2, w, 1), P(f##_le, 2, w, 1), R(f##_to_i32, 1, w, 32), R(f##_to_ui32, 1, w, 32),  \
  R(f##_to_i64, 1, w, 1), R(f##_to_ui64, 1, w, 1),                                   \
  R(i64_to_##f, 1, 0, w), R(ui64_to_##f, 1, 0, w)
static const struct entry entries[] = {
  ENTRIES(f32, 32), ENTRIES(f64, 64), R(f64_to_f32, 1, 64, 32), P(f32_to_f64, 1, 32, 64),
  R(i32_to_f32, 1, 0, 32), R(ui32_to_f32, 1, 0, 32), P(i32_to_f64, 1, 0, 64), P(ui32_to_f64, 1, 0, 64),
#ifdef __riscv_zfh
  ENTRIES(f16, 16), R(f32_to_f16, 1, 32, 16), R(f64_to_f16, 1, 64, 16), P(f16_to_f32, 1, 16, 32), P(f16_to_f64, 1, 16, 64),
  R(i32_to_f16, 1, 0, 16), R(ui32_to_f16, 1, 0, 16),
#endif
};

int main(int argc, char **argv) {
  static const char *roundings[] = {"near_even", "minMag", "min", "max", "near_maxMag"};
  const struct entry *entry = 0;
  int rounding = -1;
  if (argc != 4) return fprintf(stderr, "usage: testfloat OPERATION ROUNDING static|dynamic <VECTORS\n"), 2;
  for (unsigned i = 0; i < sizeof entries / sizeof *entries; i++)
    if (!strcmp(entries[i].name, argv[1])) entry = entries + i;
  for (int i = 0; i < 5; i++) if (!strcmp(roundings[i], argv[2])) rounding = i;
  if (!entry || rounding < 0) return fprintf(stderr, "testfloat: no operation %s with rounding %s\n", argv[1], argv[2]), 2;
  int dynamic = !strcmp(argv[3], "dynamic");
  operation *run = entry->run[dynamic ? 5 : rounding];
  asm volatile("fsrm %0" : : "r"((u64)(dynamic ? rounding : 0)));
  u64 lines = 0, wrong = 0;
  char line[256];
  while (fgets(line, sizeof line, stdin)) {
    u64 field[5] = {0}, operand[3] = {0};
    char *at = line;
    for (int i = 0; i < entry->count + 2; i++) field[i] = strtoull(at, &at, 16);
    for (int i = 0; i < entry->count; i++) operand[i] = entry->width ? box(field[i], entry->width) : field[i];
    // The four fused instructions on the vectors of one: -(a * b) + c is (-a) * b + c, and so on.
    u64 sign = entry->width ? 1ull << (entry->width - 1) : 0;
    if (strstr(entry->name, "_mulSub") || strstr(entry->name, "_negMulAdd")) operand[2] ^= sign;
    if (strstr(entry->name, "_neg")) operand[0] ^= sign;
    asm volatile("fsflags zero");
    u64 result = run(operand[0], operand[1], operand[2]);
    u64 flags;
    asm volatile("frflags %0" : "=r"(flags));
    u64 expected = field[entry->count], expected_flags = field[entry->count + 1];
    if (entry->result == 32 && strstr(entry->name, "_to_") && strstr(entry->name, "i32") > strstr(entry->name, "_to_"))
      expected = (u64)(int64_t)(int32_t)expected;
    else if (entry->result > 1) expected = box(expected, entry->result);
    lines++;
    if (result == expected && flags == expected_flags) continue;
    if (wrong++ < 10)
      printf("%s %s %s: %.60s: got %016llx flags %02llx\n", argv[1], argv[2], argv[3], strtok(line, "\n"),
             (unsigned long long)result, (unsigned long long)flags);
  }
  printf("%s %s %s: %llu vectors, %llu wrong\n", argv[1], argv[2], argv[3], (unsigned long long)lines, (unsigned long long)wrong);
  return wrong != 0 || lines == 0;
}
