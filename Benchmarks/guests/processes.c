// What a kernel does for processes: forks with an exit and a wait, the same with execve, and two processes that wake each other.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
  if (argc < 3) return argc == 2 && !strcmp(argv[1], "end") ? 0 : 2;
  int count = atoi(argv[2]), sum = 0;
  if (!strcmp(argv[1], "fork") || !strcmp(argv[1], "exec")) {
    for (int i = 0; i < count; i++) {
      int status, child = fork();
      if (child == 0) {
        if (argv[1][0] == 'e') execl(argv[0], argv[0], "end", (char *)0);
        _exit(i & 7);
      }
      waitpid(child, &status, 0);
      sum += WEXITSTATUS(status);
    }
  } else {
    int there[2], back[2];
    char byte = 0;
    if (pipe(there) || pipe(back)) return 1;
    int child = fork();
    if (child == 0) {
      while (read(there[0], &byte, 1) == 1 && byte != 'q') byte++, write(back[1], &byte, 1);
      _exit(0);
    }
    for (int i = 0; i < count; i++) {
      byte = i & 63;
      if (write(there[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1) return 1;
      sum += byte;
    }
    if (write(there[1], "q", 1) != 1) return 1;
    wait(0);
  }
  printf("%s %d\n", argv[1], sum);
}
