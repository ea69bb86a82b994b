// Break points that compare contexts, and what is linked to them, at EL1 on the bare machine: a line for each that hits.
#include "bare.h"

__asm__(".section .text.start\n"
        ".global _start\n"
        "_start: ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "b work\n"
        ".text\n"
        ".balign 2048\n"
        "vectors:\n"
        ".rept 16\n.balign 128\nb caught\n.endr\n"
        "caught: stp x0, x30, [sp, #-16]!\n"
        "mrs x0, esr_el1\nadrp x30, syndrome\nstr x0, [x30, :lo12:syndrome]\n"
        "mrs x0, elr_el1\nadrp x30, place\nstr x0, [x30, :lo12:place]\n"
        "msr mdscr_el1, xzr\nisb\nldp x0, x30, [sp], #16\neret\n"
        // try(address): an instruction that may be hit, and a store.
        "try: msr daifclr, #8\n"
        "target: nop\n"
        "store: str xzr, [x0]\n"
        "msr daifset, #8\nret\n");
extern char vectors[], target[], store[];
void try(u64 *address);
volatile u64 syndrome, place;
static u64 data[8];

static void end(void) { __asm__ volatile("mov x0, %0; hvc #0" : : "r"(0x84000008ul) : "x0"); }

enum { ENABLED = 1, EL1 = 1 << 1, ALL = 0xf << 5, CONTEXT = 0x1234 };

static void attempt(const char *what, u64 type, u64 link, int isOther) {
  syndrome = place = 0;
  // The debug enable comes last; try() lets the exceptions through.
  WRITE("mdscr_el1", 0xa000);
  try(data);
  WRITE("mdscr_el1", 0);
  if (!syndrome) return;
  text(what); text(" "); show(type); show(link); show(isOther); show(syndrome); text(place == (u64)target ? "target\n" : place == (u64)store ? "store\n" : "elsewhere\n");
}

void work(void) {
  WRITE("vbar_el1", vectors);
  WRITE("oslar_el1", 0);
  __asm__ volatile("msr daifset, #8");
  WRITE("contextidr_el1", CONTEXT);
  text("compare "); show(READ("id_aa64dfr0_el1") >> 28 & 15); text("\n");
  for (int isOther = 0; isOther < 2; isOther++) {
    u64 value = isOther ? CONTEXT + 1 : CONTEXT;
    for (u64 type = 0; type < 16; type++) {
      WRITE("dbgbvr5_el1", type < 2 ? (u64)target : value);
      WRITE("dbgbvr4_el1", type < 2 ? (u64)target : value);
#ifndef LINKED
      WRITE("dbgbcr5_el1", ENABLED | EL1 | ALL | type << 20);
      attempt("alone", type, 0, isOther);
      WRITE("dbgbcr5_el1", 0);
#endif
      // Which number an address or a watch point names; the named one's own levels do not count.
      for (u64 link = 3; link < 7; link++) {
        WRITE("dbgbcr5_el1", ENABLED | ALL | type << 20);
        WRITE("dbgbcr4_el1", ENABLED | ALL | type << 20);
        WRITE("dbgbvr0_el1", target);
        WRITE("dbgbcr0_el1", ENABLED | EL1 | ALL | 1 << 20 | link << 16);
        attempt("address", type, link, isOther);
        WRITE("dbgbcr0_el1", 0);
        WRITE("dbgwvr0_el1", data);
        WRITE("dbgwcr0_el1", ENABLED | EL1 | 3 << 3 | 0xff << 5 | 1 << 20 | link << 16);
        attempt("store", type, link, isOther);
        WRITE("dbgwcr0_el1", 0);
        WRITE("dbgbcr4_el1", 0);
        WRITE("dbgbcr5_el1", 0);
      }
    }
  }
  text("end\n");
  end();
}
