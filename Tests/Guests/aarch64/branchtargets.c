// Indirect branches into guarded pages (PROT_BTI): which ones come through, and where SIGILL says the others ended.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#ifndef PROT_BTI
#define PROT_BTI 0x10
#endif

static sigjmp_buf back;
static unsigned char *code;

static void caught(int number, siginfo_t *info, void *context) {
  (void)context;
  printf("signal %d code %d at %ld\n", number, info->si_code, (long)((unsigned char *)info->si_addr - code));
  siglongjmp(back, 1);
}

// Targets of eight bytes each: a first instruction, and ret.
static const unsigned targets[] = {0xd503201f, 0xd503241f, 0xd503245f, 0xd503249f, 0xd50324df, 0xd4200000};
static const char *names[] = {"nop", "bti", "bti c", "bti j", "bti jc", "brk"};
// In the guarded page, too: br x9 and br x17.
static const unsigned jumps[] = {0xd61f0120, 0xd61f0220};

#define CLOBBERS "x9", "x10", "x17", "x30", "memory"
static void call(void *target) { __asm__ volatile("blr %0" ::"r"(target) : CLOBBERS); }
// The way back is in x30.
static void jump(void *target) { __asm__ volatile("mov x9, %0\nadr x30, 1f\nbr x9\n1:" ::"r"(target) : CLOBBERS); }
static void linkage(void *target) { __asm__ volatile("mov x17, %0\nadr x30, 1f\nbr x17\n1:" ::"r"(target) : CLOBBERS); }
static void ret(void *target) { __asm__ volatile("mov x10, %0\nadr x30, 1f\nret x10\n1:" ::"r"(target) : CLOBBERS); }
// ret, which nothing checks, to a jump in the page.
static void inner(void *target) {
  __asm__ volatile("mov x9, %0\nmov x10, %1\nadr x30, 1f\nret x10\n1:" ::"r"(target), "r"(code + 256) : CLOBBERS);
}
static void inner_linkage(void *target) {
  __asm__ volatile("mov x17, %0\nmov x10, %1\nadr x30, 1f\nret x10\n1:" ::"r"(target), "r"(code + 260) : CLOBBERS);
}

static void attempt(const char *kind, void (*go)(void *)) {
  for (int index = 0; index < 6; index++) {
    printf("%s to %s: ", kind, names[index]);
    fflush(stdout);
    if (sigsetjmp(back, 1) == 0) {
      go(code + 8 * index);
      printf("through\n");
    }
  }
}

int main(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = caught;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, 0);
  sigaction(SIGTRAP, &action, 0);
  printf("hwcap2 %lu\n", getauxval(AT_HWCAP2) >> 17 & 1);
  code = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (int index = 0; index < 6; index++) {
    unsigned pair[] = {targets[index], 0xd65f03c0};
    memcpy(code + 8 * index, pair, 8);
  }
  memcpy(code + 256, jumps, sizeof jumps);
  __builtin___clear_cache((char *)code, (char *)code + 4096);
  for (int guarded = 1; guarded >= 0; guarded--) {
    mprotect(code, 4096, PROT_READ | PROT_EXEC | (guarded ? PROT_BTI : 0));
    printf("guarded %d\n", guarded);
    attempt("blr", call);
    attempt("br", jump);
    attempt("br x17", linkage);
    attempt("ret", ret);
    attempt("br in the page", inner);
    attempt("br x17 in the page", inner_linkage);
  }
  // mmap with the bit, behind which mprotect takes it away.
  unsigned char *other = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC | PROT_BTI, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memcpy(other, targets, 4);
  unsigned end = 0xd65f03c0;
  memcpy(other + 4, &end, 4);
  __builtin___clear_cache((char *)other, (char *)other + 8);
  code = other;
  for (int turn = 0; turn < 2; turn++) {
    printf("mapped: ");
    fflush(stdout);
    if (sigsetjmp(back, 1) == 0) {
      call(other);
      printf("through\n");
    }
    mprotect(other, 4096, PROT_READ | PROT_EXEC);
  }
  return 0;
}
