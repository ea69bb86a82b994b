// Threads, mutexes, condition variables, thread-local storage, atomics, signals to threads.
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;
static long counter;
static atomic_long atomic;
static __thread int local;
static int ready;
static atomic_int signalled;
static void handler(int s) { signalled++; }

static void *work(void *argument) {
  local = (int)(long)argument;
  for (int i = 0; i < 20000; i++) {
    pthread_mutex_lock(&mutex);
    counter++;
    pthread_mutex_unlock(&mutex);
    atomic++;
  }
  return (void *)(long)local;
}
static void *wait_for_it(void *argument) {
  pthread_mutex_lock(&mutex);
  while (!ready) pthread_cond_wait(&condition, &mutex);
  pthread_mutex_unlock(&mutex);
  return argument;
}
static void *sleeper(void *argument) {
  while (!signalled) usleep(1000);
  return 0;
}

int main(void) {
  pthread_t threads[8];
  long sum = 0;
  void *result;
  for (long i = 0; i < 8; i++) pthread_create(&threads[i], 0, work, (void *)i);
  for (int i = 0; i < 8; i++) pthread_join(threads[i], &result), sum += (long)result;
  CHECK(counter == 160000 && atomic == 160000 && sum == 28 && local == 0);
  for (long i = 0; i < 4; i++) pthread_create(&threads[i], 0, wait_for_it, 0);
  // libc asks every thread to do the same, with a signal of its own.
  int identities = 0;
  for (int i = 0; i < 20; i++) identities += setuid(getuid()) == 0 && setgid(getgid()) == 0;
  CHECK(identities == 20);
  usleep(1000);
  pthread_mutex_lock(&mutex);
  ready = 1;
  pthread_cond_broadcast(&condition);
  pthread_mutex_unlock(&mutex);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
  CHECK(ready);
  signal(SIGUSR1, handler);
  pthread_create(&threads[0], 0, sleeper, 0);
  usleep(2000);
  CHECK(pthread_kill(threads[0], SIGUSR1) == 0 && pthread_join(threads[0], 0) == 0 && signalled == 1);
  for (int round = 0; round < 50; round++) {
    pthread_create(&threads[0], 0, wait_for_it, (void *)3);
    pthread_join(threads[0], &result);
  }
  CHECK(result == (void *)3);
  return 0;
}
