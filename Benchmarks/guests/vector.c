// Loops that compilers vectorise, one a run: saxpy, multiply (matrices), polynomial, blur, normalise in single precision, daxpy
// in double; blend (bytes), sums (16 bits), distances (32 bits).
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define COUNT 4096
static uint32_t seed = 1;
static uint32_t next(void) { return seed = seed * 1664525 + 1013904223; }
static float x[COUNT + 4], y[COUNT + 4], z[COUNT + 4];
static double u[COUNT], v[COUNT];
static uint8_t p[COUNT], q[COUNT], r[COUNT];
static int16_t s[COUNT], t[COUNT];
static uint64_t checksum(const void *data, size_t count) {
  uint64_t sum = 0;
  for (size_t i = 0; i < count; i++) sum = sum * 31 + ((const uint8_t *)data)[i];
  return sum;
}
static void fill(void) {
  for (int i = 0; i < COUNT; i++) {
    x[i] = (next() >> 8) * 0x1p-24f; y[i] = (next() >> 8) * 0x1p-23f - 1; u[i] = x[i]; v[i] = y[i];
    p[i] = next() >> 24; q[i] = next() >> 24; s[i] = next() >> 20; t[i] = next() >> 20;
  }
}
static void saxpy(void) { for (int i = 0; i < COUNT; i++) y[i] += 0.9f * x[i]; for (int i = 0; i < COUNT; i++) y[i] *= 0.5f; }
static void daxpy(void) { for (int i = 0; i < COUNT; i++) v[i] += 0.9 * u[i]; for (int i = 0; i < COUNT; i++) v[i] *= 0.5; }
static void multiply(void) {
  float (*a)[64] = (void *)x, (*b)[64] = (void *)y, (*c)[64] = (void *)z;
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < 64; j++) c[i][j] = 0;
    for (int k = 0; k < 64; k++) for (int j = 0; j < 64; j++) c[i][j] += a[i][k] * b[k][j];
  }
}
static void polynomial(void) {
  for (int i = 0; i < COUNT; i++) { float w = x[i]; z[i] = (((w * 0.1f - 0.3f) * w + 0.7f) * w - 0.2f) * w + 1; }
}
static void blur(void) { for (int i = 1; i < COUNT - 1; i++) z[i] = (x[i - 1] + 2 * x[i] + x[i + 1]) * 0.25f; }
static void normalise(void) { for (int i = 0; i < COUNT; i++) z[i] = x[i] / sqrtf(x[i] * x[i] + y[i] * y[i] + 0.01f); }
static void blend(void) { for (int i = 0; i < COUNT; i++) r[i] = p[i] > q[i] ? p[i] - (q[i] >> 1) : q[i] + (p[i] >> 2); }
static void sums(void) { for (int i = 0; i < COUNT; i++) s[i] = s[i] * 3 + (t[i] > s[i] ? t[i] : s[i]); }
static uint32_t total;
static void distances(void) { uint32_t sum = 0; for (int i = 0; i < COUNT; i++) sum += abs(p[i] - q[i]); total += sum; }
int main(int argc, char **argv) {
  const struct { const char *name; void (*run)(void); int count; } kernels[] = {
    {"saxpy", saxpy, 20000}, {"daxpy", daxpy, 15000}, {"multiply", multiply, 4000}, {"polynomial", polynomial, 20000},
    {"blur", blur, 20000}, {"normalise", normalise, 20000}, {"blend", blend, 100000}, {"sums", sums, 100000},
    {"distances", distances, 100000}};
  for (unsigned i = 0; argc > 1 && i < sizeof kernels / sizeof *kernels; i++)
    if (!strcmp(argv[1], kernels[i].name)) {
      fill();
      for (int n = 0; n < kernels[i].count; n++) kernels[i].run();
      printf("%s %016llx\n", argv[1], (unsigned long long)(checksum(y, sizeof y) ^ checksum(z, sizeof z) ^ checksum(v, sizeof v) ^
             checksum(r, sizeof r) ^ checksum(s, sizeof s) ^ total));
      return 0;
    }
  return 2;
}
