// Integer kernels, one a run: sieve, crc32, matrix, sort, fib (calls), dispatch (indirect calls), bytecode
// (an interpreter loop), string, hash.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint32_t seed = 1;
static uint32_t next(void) { return seed = seed * 1664525 + 1013904223; }
static uint64_t sieve(void) {
  static char composite[1 << 20];
  uint64_t count = 0;
  memset(composite, 0, sizeof composite);
  for (int i = 2; i < 1 << 20; i++)
    if (!composite[i]) { count++; for (int j = 2 * i; j < 1 << 20; j += i) composite[j] = 1; }
  return count;
}
static uint64_t crc32(void) {
  static uint8_t data[1 << 16];
  for (int i = 0; i < 1 << 16; i++) data[i] = next() >> 24;
  uint32_t crc = ~0u;
  for (int i = 0; i < 1 << 16; i++) {
    crc ^= data[i];
    for (int k = 0; k < 8; k++) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320 : 0);
  }
  return ~crc;
}
static uint64_t matrix(void) {
  static int32_t a[96][96], b[96][96], c[96][96];
  for (int i = 0; i < 96; i++) for (int j = 0; j < 96; j++) { a[i][j] = next() >> 20; b[i][j] = next() >> 20; }
  for (int i = 0; i < 96; i++) for (int j = 0; j < 96; j++) {
    int32_t sum = 0;
    for (int k = 0; k < 96; k++) sum += a[i][k] * b[k][j];
    c[i][j] = sum;
  }
  return c[95][95] ^ c[1][7];
}
static int compare(const void *x, const void *y) { uint32_t a = *(uint32_t *)x, b = *(uint32_t *)y; return a < b ? -1 : a > b; }
static uint64_t sort(void) {
  static uint32_t data[1 << 15];
  for (int i = 0; i < 1 << 15; i++) data[i] = next();
  qsort(data, 1 << 15, 4, compare);
  return data[100];
}
static __attribute__((noinline)) uint64_t fibonacci(int n) { return n < 2 ? n : fibonacci(n - 1) + fibonacci(n - 2); }
static uint64_t fib(void) { return fibonacci(25); }
static uint64_t f0(uint64_t x) { return x + 1; } static uint64_t f1(uint64_t x) { return x * 3; }
static uint64_t f2(uint64_t x) { return x ^ 0x55; } static uint64_t f3(uint64_t x) { return x >> 1; }
static uint64_t (*volatile table[4])(uint64_t) = {f0, f1, f2, f3};
static uint64_t dispatch(void) { uint64_t x = 7; for (int i = 0; i < 500000; i++) x = table[x & 3](x); return x; }
static uint64_t bytecode(void) {
  static const uint8_t program[] = {0, 3, 1, 2, 0, 1, 3, 2, 4, 0, 2, 1, 5};
  uint64_t a = 1, b = 2; int pc = 0;
  for (int i = 0; i < 700000; i++) {
    switch (program[pc++]) {
    case 0: a += b; break; case 1: b ^= a; break; case 2: a = a << 1 | a >> 63; break;
    case 3: b -= 3; break; case 4: a &= ~1ull; break; default: pc = 0;
    }
  }
  return a ^ b;
}
static uint64_t string(void) {
  static char buffer[4096]; uint64_t sum = 0;
  for (int i = 0; i < 4095; i++) buffer[i] = 'a' + next() % 26;
  for (int i = 0; i < 300; i++) { sum += strlen(buffer + i); char *p = strstr(buffer + i, "zq"); sum += p ? p - buffer : 0; char copy[4096]; memcpy(copy, buffer, 4096); sum += copy[i]; }
  return sum;
}
static uint64_t hash(void) {
  static uint64_t keys[1 << 14]; uint64_t sum = 0;
  memset(keys, 0, sizeof keys);
  for (int i = 0; i < 12000; i++) {
    uint64_t key = next() * 0x9e3779b97f4a7c15ull, slot = key >> 50;
    while (keys[slot] && keys[slot] != key) slot = (slot + 1) & ((1 << 14) - 1);
    keys[slot] = key; sum += slot;
  }
  return sum;
}
int main(int argc, char **argv) {
  static const struct { const char *name; uint64_t (*run)(void); int rounds; } kernels[] = {
    {"sieve", sieve, 30}, {"crc32", crc32, 120}, {"matrix", matrix, 150}, {"sort", sort, 30}, {"fib", fib, 120},
    {"dispatch", dispatch, 80}, {"bytecode", bytecode, 60}, {"string", string, 30}, {"hash", hash, 500}};
  uint64_t sum = 0;
  for (unsigned i = 0; i < sizeof kernels / sizeof *kernels; i++)
    if (argc > 1 && !strcmp(argv[1], kernels[i].name))
      for (int round = 0; round < kernels[i].rounds; round++) sum = sum * 31 + kernels[i].run();
  printf("%llx\n", (unsigned long long)sum);
}
