// Integer and floating-point work with a checksum.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint32_t crc(const uint8_t *p, size_t n) {
  uint32_t c = ~0u;
  while (n--) {
    c ^= *p++;
    for (int k = 0; k < 8; k++) c = c >> 1 ^ (0xedb88320u & -(c & 1));
  }
  return ~c;
}
static int fib(int n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int main(int argc, char **argv) {
  int scale = argc > 1 ? atoi(argv[1]) : 1;
  static uint8_t buffer[1 << 16];
  for (size_t i = 0; i < sizeof buffer; i++) buffer[i] = (uint8_t)(i * 2654435761u >> 13);
  uint32_t c = 0;
  for (int k = 0; k < scale; k++) c ^= crc(buffer, sizeof buffer) + k;
  printf("crc %08x\n", c);
  printf("fib %d\n", fib(20 + scale));
  static int numbers[20000];
  for (int i = 0; i < 20000; i++) numbers[i] = (int)((unsigned)i * 1103515245u + 12345u) >> 4;
  qsort(numbers, 20000, sizeof *numbers, compare);
  printf("sorted %d %d %d\n", numbers[0], numbers[10000], numbers[19999]);
  double x = 0, e[8] = {1, 2, 3, 4, 5, 6, 7, 8};
  for (int i = 1; i < 20000 * scale; i++) {
    x += sin(i) * sqrt(i) / (1 + fabs(cos(i)));
    e[i & 7] = e[(i + 1) & 7] * 0.999 + x * 1e-9;
  }
  printf("double %.17g %.17g\n", x, e[3]);
  float f = 0;
  for (int i = 1; i < 20000; i++) f = f * 0.5f + (float)i / 3.0f;
  printf("float %.9g\n", f);
  printf("%.3Lf %lld %llu\n", (long double)x, (long long)(x * 1000), (unsigned long long)fabs(x));
  return 0;
}
