// N threads that compute and now and then take a lock: scaling N [TIMES]. Prints a checksum that does not depend on N's order.
// What they compute waits for itself, and not for the core's units: host cores that are hyperthreads may have a neighbour, which
// would be measured instead.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static uint64_t total;
static long rounds;

static void *work(void *argument) {
  uint64_t state = (uint64_t)(uintptr_t)argument + 1, sum = 0;
  for (long round = 0; round < rounds; round++) {
    for (int i = 0; i < 2500; i++) {
#pragma GCC unroll 8
      for (int k = 0; k < 8; k++) state = state * 6364136223846793005u + 1442695040888963407u;
      sum += state >> 33;
    }
    pthread_mutex_lock(&mutex);
    total += sum & 0xff;
    pthread_mutex_unlock(&mutex);
  }
  return 0;
}

int main(int count, char **arguments) {
  int threads = count > 1 ? atoi(arguments[1]) : 1;
  rounds = 16000L * (count > 2 ? atoi(arguments[2]) : 1) / threads;
  pthread_t ids[64];
  for (long k = 0; k < threads; k++) pthread_create(&ids[k], 0, work, (void *)k);
  for (int k = 0; k < threads; k++) pthread_join(ids[k], 0);
  printf("%llu\n", (unsigned long long)total);
  return 0;
}
