// Threads that come and go: churn COUNT AT-ONCE. Prints the least resident memory (KiB) of the first 16 rounds and of the last
// 16: the emulator may still be busy with the end of threads that were joined.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

static long resident(void) {
  long pages = 0;
  FILE *file = fopen("/proc/self/statm", "r");
  if (!file || fscanf(file, "%*d %ld", &pages) != 1) pages = 0;
  if (file) fclose(file);
  return pages * 4;
}
static pthread_barrier_t all_there;
// They are there at the same time, and end in another order than they began in.
static void *work(void *argument) {
  pthread_barrier_wait(&all_there);
  unsigned seed = (unsigned)(long)argument;
  volatile unsigned sum = 0;
  for (int i = rand_r(&seed) % 20000; i > 0; i--) sum += i;
  return argument;
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  long count = atol(argv[1]), at_once = atol(argv[2]), early = 0, late = 0;
  pthread_t *threads = calloc(at_once, sizeof *threads);
  pthread_barrier_init(&all_there, 0, at_once);
  for (long done = 0; done < count;) {
    for (long i = 0; i < at_once; i++)
      if (pthread_create(&threads[i], 0, work, (void *)(done + i))) return 3;
    for (long i = 0; i < at_once; i++) {
      void *result;
      pthread_join(threads[i], &result);
      if (result != (void *)(done + i)) return 4;
    }
    done += at_once;
    long now = resident();
    if (done <= at_once * 16 && (!early || now < early)) early = now;
    if (done > count - at_once * 16 && (!late || now < late)) late = now;
  }
  printf("%ld %ld\n", early, late);
  return 0;
}
