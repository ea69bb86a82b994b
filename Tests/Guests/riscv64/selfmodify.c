// Code that is written at run time: with fence.i, without, next to data, by system calls, through mprotect.
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(x) printf("%s: %s\n", #x, (x) ? "ok" : "FAILED"), fflush(stdout)
typedef long (*function)(void);
static void make(uint32_t *at, int value) {
  at[0] = (uint32_t)value << 20 | 10 << 7 | 0x13;  // li a0, value
  at[1] = 0x00008067;                              // ret
}

int main(void) {
  uint32_t *code = mmap(0, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  int good = 1;
  for (int i = 0; i < 1000; i++) {
    make(code, i);
    __builtin___clear_cache((char *)code, (char *)(code + 2));
    good &= ((function)code)() == i;
  }
  CHECK(good);
  // Many functions in one page, one rewritten at a time.
  for (int i = 0; i < 100; i++) make(code + 4 * i, i);
  for (int i = 0; i < 100; i++) good &= ((function)(code + 4 * i))() == i;
  for (int round = 0; round < 3; round++)
    for (int i = 0; i < 100; i++) {
      make(code + 4 * i, 1000 + round * 100 + i);
      __asm__ volatile("fence.i");
      for (int k = 0; k < 100; k += 13)
        good &= ((function)(code + 4 * k))() == (k <= i ? 1000 + round * 100 + k : round ? 900 + round * 100 + k : k);
    }
  CHECK(good);
  // Data beside code: a function that counts in its own page.
  uint32_t counting[] = {
      0x00000297,  // auipc t0, 0
      0x0402b503,  // ld a0, 64(t0)
      0x00150513,  // addi a0, a0, 1
      0x04a2b023,  // sd a0, 64(t0)
      0x00008067,  // ret
  };
  memset(code, 0, 8192);
  memcpy(code, counting, sizeof counting);
  __asm__ volatile("fence.i");
  long last = 0;
  for (int i = 0; i < 1000; i++) last = ((function)code)();
  CHECK(last == 1000);
  // A store that overwrites the instruction behind it.
  uint32_t ahead[] = {
      0x00000297,  // auipc t0, 0
      0x0142a303,  // lw t1, 20(t0)
      0x0062a823,  // sw t1, 16(t0)
      0x0000100f,  // fence.i
      0x00100513,  // li a0, 1  (overwritten by li a0, 2)
      0x00200513,  // li a0, 2
      0x00008067,  // ret
  };
  ahead[5] = 0x00200513;
  memcpy(code + 256, ahead, sizeof ahead);
  code[256 + 5] = 0x02a00513;  // li a0, 42, then ret
  __asm__ volatile("fence.i");
  CHECK(((function)(code + 256))() == 42);
  // Locks beside code: load-reserved and store-conditional, which may take turns forever, and an atomic addition.
  uint32_t locking[] = {
      0x00000297,  // auipc t0, 0
      0x08028293,  // addi t0, t0, 128
      0x1002b52f,  // again: lr.d a0, (t0)
      0x00150513,  // addi a0, a0, 1
      0x18a2b32f,  // sc.d t1, a0, (t0)
      0xfe031ae3,  // bnez t1, again
      0x00100313,  // li t1, 1
      0x0062b02f,  // amoadd.d zero, t1, (t0)
      0x00008067,  // ret
  };
  memcpy(code + 1024, locking, sizeof locking);
  *(long *)(code + 1056) = 0;
  __asm__ volatile("fence.i");
  for (int i = 0; i < 1000; i++) last = ((function)(code + 1024))();
  CHECK(*(long *)(code + 1056) == 2000);
  // The kernel writes the code.
  int ends[2];
  uint32_t piece[2];
  pipe(ends);
  good = 1;
  for (int i = 0; i < 100; i++) {
    make(piece, 2000 - i);
    write(ends[1], piece, 8);
    good &= read(ends[0], code + 512, 8) == 8;
    __asm__ volatile("fence.i");
    good &= ((function)(code + 512))() == 2000 - i;
  }
  CHECK(good);
  // Written, then made executable only; unmapped and mapped again.
  for (int i = 0; i < 50; i++) {
    uint32_t *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    make(page, i + 7);
    mprotect(page, 4096, PROT_READ | PROT_EXEC);
    __asm__ volatile("fence.i");
    good &= ((function)page)() == i + 7;
    munmap(page, 4096);
  }
  CHECK(good);
  return 0;
}
