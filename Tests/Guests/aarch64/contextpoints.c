// Break points that compare contexts, and what is linked to them, at EL1 on the bare machine: a line for each that hits. It may
// start at EL2, and then compares VMIDs and EL2's contexts, too.
#include "bare.h"

__asm__(".section .text.start\n"
        ".global _start\n"
        "_start: ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "mrs x1, currentel\n"
        "tbz x1, #3, 1f\n"
        // HCR_EL2.RW; 16 bits of VMID where there are so many; CONTEXTIDR_EL2 where that is there.
        "mov x0, #0x80000000\nmsr hcr_el2, x0\nmov x0, #6\nmsr mdcr_el2, x0\n"
        "mov x0, #0x80080000\nmsr vtcr_el2, x0\nmov x0, #0x0156000000000000\nmsr vttbr_el2, x0\n"
        "mrs x0, id_aa64mmfr1_el1\ntst x0, #0xf00\nb.eq 2f\nmov x0, #0x4321\nmsr s3_4_c13_c0_1, x0\n"
        "2: mov x0, sp\nmsr sp_el1, x0\nldr x0, =0x30d00800\nmsr sctlr_el1, x0\n"
        "mov x0, #0x3c5\nmsr spsr_el2, x0\nadr x0, 1f\nmsr elr_el2, x0\neret\n"
        "1: mov x0, x1\nb work\n"
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

// PSCI is called by smc where the guest has EL2.
static void end(int isGuest) {
  if (isGuest) __asm__ volatile("mov x0, %0; smc #0" : : "r"(0x84000008ul) : "x0");
  __asm__ volatile("mov x0, %0; hvc #0" : : "r"(0x84000008ul) : "x0");
}

enum { ENABLED = 1, EL1 = 1 << 1, ALL = 0xf << 5 };
static const u64 context = 0x1234, contextEL2 = 0x4321, machine = 0x156;

static void attempt(const char *what, u64 type, u64 link, int other) {
  syndrome = place = 0;
  // The debug enable comes last; try() lets the exceptions through.
  WRITE("mdscr_el1", 0xa000);
  try(data);
  WRITE("mdscr_el1", 0);
  if (!syndrome) return;
  text(what); text(" "); show(type); show(link); show(other); show(syndrome);
  text(place == (u64)target ? "target\n" : place == (u64)store ? "store\n" : "elsewhere\n");
}

void work(u64 level) {
  int isGuest = level >> 3 & 1;
  WRITE("vbar_el1", vectors);
  WRITE("oslar_el1", 0);
  __asm__ volatile("msr daifset, #8");
  WRITE("contextidr_el1", context);
  text("compare "); show(READ("id_aa64dfr0_el1") >> 28 & 15); text("\n");
  // What is compared is there, or its lower half is another one, or its upper half.
  for (int other = 0; other < (isGuest ? 3 : 2); other++) {
    for (u64 type = 0; type < 16; type++) {
      u64 upper = !isGuest ? 0 : type >= 12 ? contextEL2 : machine;
      u64 value = context + (other == 1) | upper + (other == 2) << 32;
      WRITE("dbgbvr5_el1", type < 2 ? (u64)target : value);
      WRITE("dbgbvr4_el1", type < 2 ? (u64)target : value);
      WRITE("dbgbcr5_el1", ENABLED | EL1 | ALL | type << 20);
      attempt("alone", type, 0, other);
      WRITE("dbgbcr5_el1", 0);
      // Which number an address or a watch point names; the named one's own levels do not count.
      for (u64 link = 3; link < 7; link++) {
        WRITE("dbgbcr5_el1", ENABLED | ALL | type << 20);
        WRITE("dbgbcr4_el1", ENABLED | ALL | type << 20);
        WRITE("dbgbvr0_el1", target);
        WRITE("dbgbcr0_el1", ENABLED | EL1 | ALL | 1 << 20 | link << 16);
        attempt("address", type, link, other);
        WRITE("dbgbcr0_el1", 0);
        WRITE("dbgwvr0_el1", data);
        WRITE("dbgwcr0_el1", ENABLED | EL1 | 3 << 3 | 0xff << 5 | 1 << 20 | link << 16);
        attempt("store", type, link, other);
        WRITE("dbgwcr0_el1", 0);
        WRITE("dbgbcr4_el1", 0);
        WRITE("dbgbcr5_el1", 0);
      }
    }
  }
  text("end\n");
  end(isGuest);
}
