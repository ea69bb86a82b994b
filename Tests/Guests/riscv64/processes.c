// fork, vfork, execve, wait, environment.
#define _GNU_SOURCE
#include <errno.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
extern char **environ;

int main(int argc, char **argv) {
  if (argc > 1) {
    printf("child %s: %d arguments, first %s\n", argv[0], argc, argv[1]);
    return 5;
  }
  char self[4096];
  ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
  CHECK(n > 0);
  self[n] = 0;
  CHECK(strstr(self, "processes") != 0);
  int value = 1, status;
  pid_t child = fork();
  if (child == 0) {
    value = 2;
    _exit(value + 40);
  }
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 42 && value == 1);
  child = fork();
  if (child == 0) {
    char *args[] = {"name", "x", "y", 0};
    execv(self, args);
    _exit(99);
  }
  CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 5);
  child = vfork();
  if (child == 0) {
    char *args[] = {"vname", "x", 0};
    execv(self, args);
    _exit(99);
  }
  CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 5);
  char *args[] = {"spawned", "x", 0};
  CHECK(posix_spawn(&child, self, 0, 0, args, environ) == 0);
  CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 5);
  char *none[] = {"none", 0};
  CHECK(execv("/nonexistent/program", none) == -1 && errno == ENOENT);
  CHECK(system("exit 3") != -1);
  int total = 0;
  for (int i = 0; i < 20; i++) {
    child = fork();
    if (child == 0) _exit(i);
    waitpid(child, &status, 0);
    total += WEXITSTATUS(status);
  }
  CHECK(total == 190);
  return 0;
}
