// Radix-2 complex FFT of 4096 points, forwards and back.
#include <complex.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
enum { n = 4096 };
static double re[n], im[n], wr[n / 2], wi[n / 2];
static void transform(int sign) {
  for (int i = 1, j = 0; i < n; i++) {
    int bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { double t = re[i]; re[i] = re[j]; re[j] = t; t = im[i]; im[i] = im[j]; im[j] = t; }
  }
  for (int length = 2; length <= n; length <<= 1)
    for (int i = 0; i < n; i += length)
      for (int k = 0; k < length / 2; k++) {
        double c = wr[k * (n / length)], s = sign * wi[k * (n / length)];
        int p = i + k, q = p + length / 2;
        double x = re[q] * c - im[q] * s, y = re[q] * s + im[q] * c;
        re[q] = re[p] - x; im[q] = im[p] - y; re[p] += x; im[p] += y;
      }
}
int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 100;
  for (int k = 0; k < n / 2; k++) { wr[k] = cos(2 * M_PI * k / n); wi[k] = sin(2 * M_PI * k / n); }
  for (int i = 0; i < n; i++) re[i] = i % 17 - 8;
  for (int round = 0; round < rounds; round++) {
    transform(1);
    transform(-1);
    for (int i = 0; i < n; i++) { re[i] /= n; im[i] /= n; }
  }
  printf("%.9f %.9f\n", re[1], im[n - 1]);
}
