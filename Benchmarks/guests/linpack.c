// Gaussian elimination with partial pivoting on a random 200 x 200 system.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
enum { n = 200 };
static double a[n][n], b[n];
int main(int argc, char **argv) {
  int rounds = argc > 1 ? atoi(argv[1]) : 20;
  double sum = 0;
  for (int round = 0; round < rounds; round++) {
    unsigned seed = 1 + round;
    for (int i = 0; i < n; i++) {
      for (int j = 0; j < n; j++) { seed = seed * 1664525 + 1013904223; a[i][j] = (seed >> 8) / 16777216.0 - 0.5; }
      b[i] = i;
    }
    for (int k = 0; k < n; k++) {
      int pivot = k;
      for (int i = k + 1; i < n; i++) if (fabs(a[i][k]) > fabs(a[pivot][k])) pivot = i;
      for (int j = 0; j < n; j++) { double t = a[k][j]; a[k][j] = a[pivot][j]; a[pivot][j] = t; }
      double t = b[k]; b[k] = b[pivot]; b[pivot] = t;
      for (int i = k + 1; i < n; i++) {
        double factor = a[i][k] / a[k][k];
        for (int j = k; j < n; j++) a[i][j] -= factor * a[k][j];
        b[i] -= factor * b[k];
      }
    }
    for (int k = n - 1; k >= 0; k--) {
      for (int j = k + 1; j < n; j++) b[k] -= a[k][j] * b[j];
      b[k] /= a[k][k];
    }
    sum += b[0];
  }
  printf("%.9f\n", sum);
}
