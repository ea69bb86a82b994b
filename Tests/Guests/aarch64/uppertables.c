// Address spaces on the bare machine: a pseudo-random walk over six of them, which have three upper and two lower tables, as a
// kernel has whose exceptions come to tables of their own. Loads, calls and unprivileged loads at EL1, and loads and branches
// at EL0, from pages whose descriptors change with every kind of TLB maintenance. A line a step.
#include "bare.h"

__asm__(".section .text.start\n"
        ".global _start\n"
        "_start: ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "b work\n"
        ".text\n"
        ".balign 2048\n"
        "vectors:\n"
        ".rept 16\n.balign 128\nb leave\n.endr\n"
        // enter(program, x9, x10) comes back from `leave` with EL0's x0.
        "enter: stp x19, x20, [sp, #-96]!\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "msr elr_el1, x0\nmov x11, #0x3c0\nmsr spsr_el1, x11\nmov x9, x1\nmov x10, x2\neret\n"
        "leave: ldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp x19, x20, [sp], #96\nret\n");
extern char vectors[];
u64 enter(u64 program, u64 data, u64 target);

static void end(void) { __asm__ volatile("mov x0, %0; hvc #0" : : "r"(0x84000008ul) : "x0"); }

enum { tables = 3, pages = 8, memory = 0x47000000 };
// First levels of 1 GiB an entry, then second and third ones; the lower half has the program, too.
static u64 upper[tables][3][512] __attribute__((aligned(4096))), lower[2][3][512] __attribute__((aligned(4096)));
static const u64 upperPages = 0xffffff8000000000, lowerPages = 0x80000000;

static u64 seed = 1;
static unsigned choose(unsigned count) {
  seed = seed * 6364136223846793005u + 1442695040888963407u;
  return (seed >> 33) % count;
}

// Each physical page: a number, then code: ldr x0, [x9]; svc; and from 32 on movz x0, number; ret or svc.
static u64 physical(unsigned number) { return memory + number * 4096ul; }
static void fill(unsigned number, int isUser) {
  volatile unsigned *words = (unsigned *)physical(number);
  *(volatile u64 *)words = number;
  words[4] = 0xf9400120, words[5] = 0xd4000001;
  words[6] = 0xd61f0140;  // br x10
  words[8] = 0xd2800000 | number << 5, words[9] = isUser ? 0xd4000001 : 0xd65f03c0;
}
static unsigned current;
static u64 asid(unsigned space) { return space + 1; }
static void select(unsigned space) {
  current = space;
  __asm__ volatile("msr ttbr0_el1, %0; isb; msr ttbr1_el1, %1; isb"
                   : : "r"(lower[space & 1][0]), "r"((u64)upper[space % tables][0] | asid(space) << 48));
}

// A page of a table gets another physical page, and everything hears of it that may know the old one.
static void change(u64 *descriptor, u64 address, unsigned stride, unsigned first, u64 flags) {
  *descriptor = physical(choose(60)) | flags;
  u64 page = address >> 12 & 0xfffffffffff;
  unsigned kind = choose(4);
  put('a' + kind);
  __asm__ volatile("dsb sy");
  if (kind == 0) __asm__ volatile("tlbi vaae1is, %0" : : "r"(page));
  else if (kind == 1) __asm__ volatile("tlbi vmalle1is");
  else
    for (unsigned space = first; space < 6; space += stride) {
      if (kind == 2) __asm__ volatile("tlbi vae1is, %0" : : "r"(page | asid(space) << 48));
      else __asm__ volatile("tlbi aside1is, %0" : : "r"(asid(space) << 48));
    }
  __asm__ volatile("dsb sy; ic iallu; dsb sy; isb");
}

void work(void) {
  const u64 kernel = 0x707 | 1ul << 11 | 1ul << 54, user = 0x747 | 1ul << 11 | 1ul << 53;
  WRITE("vbar_el1", vectors);
  // The second half of the pages has code for EL0.
  for (unsigned k = 0; k < 60; k++) fill(k, k >= 30);
  for (unsigned t = 0; t < tables; t++) {
    upper[t][0][0] = (u64)upper[t][1] | 3;
    upper[t][1][0] = (u64)upper[t][2] | 3;
    for (unsigned k = 0; k < pages; k++) upper[t][2][k] = physical(t * pages + k) | kernel;
  }
  for (unsigned t = 0; t < 2; t++) {
    lower[t][0][0] = 0x401 | 1ul << 53 | 1ul << 54;
    lower[t][0][1] = 0x40000705;
    lower[t][0][2] = (u64)lower[t][1] | 3;
    lower[t][1][0] = (u64)lower[t][2] | 3;
    for (unsigned k = 0; k < pages; k++) lower[t][2][k] = physical(30 + t * pages + k) | user;
  }
  WRITE("mair_el1", 0xff00);
  // 39 bits in both halves; TTBR1 has the identifier.
  WRITE("tcr_el1", 25 | 25 << 16 | 1ul << 32 | 1 << 22 | 2ul << 30 | 0x3500 | 0x35000000);
  select(0);
  __asm__ volatile("tlbi vmalle1; dsb sy; ic iallu; dsb sy; isb");
  WRITE("sctlr_el1", READ("sctlr_el1") | 1);
  for (unsigned step = 0; step < STEPS; step++) {
    unsigned operation = choose(12), page = choose(pages);
    u64 high = upperPages + page * 4096, low = lowerPages + page * 4096;
    put('0' + current); put(' ');
    if (operation < 4) {
      select(operation < 2 ? choose(6) : (current + 3) % 6);
    } else if (operation == 4) {
      put('l'); show(*(volatile u64 *)high);
    } else if (operation < 7) {
      // Code that is EL0's would not come back.
      put('c');
      unsigned number = *(volatile u64 *)high;
      show(number < 30 ? ((u64 (*)(void))(high + 32))() : number);
    } else if (operation == 7) {
      u64 value;
      __asm__ volatile("ldtr %0, [%1]" : "=r"(value) : "r"(low));
      put('u'); show(value);
    } else if (operation == 8) {
      put('e'); show(enter(lowerPages + choose(pages) * 4096 + 16, low, 0));
    } else if (operation == 9) {
      put('b'); show(enter(lowerPages + choose(pages) * 4096 + 24, low, low + 32));
    } else if (operation == 10) {
      put('h');
      unsigned t = choose(tables);
      change(&upper[t][2][page], high, tables, t, kernel);
    } else {
      put('w');
      unsigned t = choose(2);
      change(&lower[t][2][page], low, 2, t, user);
    }
    put('\n');
  }
  text("end\n");
  end();
}
