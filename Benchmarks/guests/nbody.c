// Five bodies under gravity, leapfrog steps: scalar double multiply-add, division and square root.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
enum { bodies = 5 };
static double position[bodies][3] = {{0, 0, 0}, {4.8, -1.1, -0.1}, {8.3, 4.1, -0.4}, {12.8, -15.1, -0.2}, {15.3, -25.9, 0.1}};
static double velocity[bodies][3] = {{0, 0, 0}, {0.6, 2.8, -0.02}, {-1.0, 1.8, 0.008}, {1.0, 0.8, -0.01}, {0.9, 0.5, -0.03}};
static const double mass[bodies] = {39.4, 0.037, 0.011, 0.0017, 0.002};
int main(int argc, char **argv) {
  int steps = argc > 1 ? atoi(argv[1]) : 500000;
  for (int step = 0; step < steps; step++) {
    for (int i = 0; i < bodies; i++)
      for (int j = i + 1; j < bodies; j++) {
        double d[3], r2 = 0;
        for (int k = 0; k < 3; k++) { d[k] = position[i][k] - position[j][k]; r2 += d[k] * d[k]; }
        double magnitude = 0.001 / (r2 * sqrt(r2));
        for (int k = 0; k < 3; k++) {
          velocity[i][k] -= d[k] * mass[j] * magnitude;
          velocity[j][k] += d[k] * mass[i] * magnitude;
        }
      }
    for (int i = 0; i < bodies; i++)
      for (int k = 0; k < 3; k++) position[i][k] += 0.001 * velocity[i][k];
  }
  printf("%.12f %.12f\n", position[0][0], position[4][1]);
}
