// Branch targets on the bare machine: pages with GP, at EL1 and EL0. A line an attempt: what was tried, and each exception's
// syndrome, place and SPSR. FIRST says which attempt is made before any guarded page has been fetched.
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
        "caught: sub sp, sp, #256\n"
        "stp x0, x1, [sp]\nstp x2, x3, [sp, #16]\nstp x4, x5, [sp, #32]\nstp x6, x7, [sp, #48]\n"
        "stp x8, x9, [sp, #64]\nstp x10, x11, [sp, #80]\nstp x12, x13, [sp, #96]\nstp x14, x15, [sp, #112]\n"
        "stp x16, x17, [sp, #128]\nstp x18, x30, [sp, #144]\n"
        "bl handle\n"
        "cbnz x0, leave\n"
        "ldp x0, x1, [sp]\nldp x2, x3, [sp, #16]\nldp x4, x5, [sp, #32]\nldp x6, x7, [sp, #48]\n"
        "ldp x8, x9, [sp, #64]\nldp x10, x11, [sp, #80]\nldp x12, x13, [sp, #96]\nldp x14, x15, [sp, #112]\n"
        "ldp x16, x17, [sp, #128]\nldp x18, x30, [sp, #144]\n"
        "add sp, sp, #256\n"
        "eret\n"
        // enter(program, SPSR, target) comes back from `leave`, which finds its stack again.
        "enter: stp x19, x20, [sp, #-96]!\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "adrp x10, kept\nadd x10, x10, :lo12:kept\nmov x11, sp\nstr x11, [x10]\n"
        "msr elr_el1, x0\nmsr spsr_el1, x1\nmov x9, x2\nmov x17, x2\neret\n"
        "leave: adrp x10, kept\nadd x10, x10, :lo12:kept\nldr x11, [x10]\nmov sp, x11\n"
        "ldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp x19, x20, [sp], #96\nret\n");
extern char vectors[];
u64 enter(u64 program, u64 state, u64 target);
u64 kept;

static void end(void) { __asm__ volatile("mov x0, %0; hvc #0" : : "r"(0x84000008ul) : "x0"); }

static u64 level1[512] __attribute__((aligned(4096))), level2[512] __attribute__((aligned(4096)));
static u64 level3[512] __attribute__((aligned(4096)));
// 2 MiB each, the same memory: pages of the first are guarded, those of the second are not.
enum { guarded = 0x47000000, plain = 0x47200000 };
static u64 lost;
static void flush(void) { __asm__ volatile("dsb sy; tlbi vmalle1; dsb sy; isb"); }

// 1 ends the attempt.
u64 handle(void) {
  u64 syndrome = READ("esr_el1"), cause = syndrome >> 26;
  if (cause == 0x15) { text("through\n"); return 1; }
  // What the target itself causes has BTYPE 0 with Apus, which has looked before.
  u64 state = READ("spsr_el1") & ~(15ul << 28);
  show(syndrome); show(READ("elr_el1")); show(cause == 0x3c ? state & ~(3ul << 10) : state);
  if (cause == 0x20 || cause == 0x21) {
    // The page comes, and the branch goes on.
    level3[lost] |= 1;
    flush();
    return 0;
  }
  if (cause == 0x32 || cause == 0x33) {
    WRITE("spsr_el1", READ("spsr_el1") & ~(1ul << 21));
    WRITE("mdscr_el1", 0);
    return 0;
  }
  put('\n');
  return 1;
}

// What may be at the target; svc behind it.
static const unsigned targets[] = {0xd503201f, 0xd503241f, 0xd503245f, 0xd503249f, 0xd50324df, 0xd503233f, 0xd503237f, 0xd4200000};
static const char *names[] = {"nop", "bti", "bti c", "bti j", "bti jc", "paciasp", "pacibsp", "brk"};
// blr x9, br x9, br x17, ret x9, blraaz x9, braaz x9 (keys are off), brk where they end up
static const unsigned branches[] = {0xd63f0120, 0xd61f0120, 0xd61f0220, 0xd65f0120, 0xd63f093f, 0xd61f093f};
static const char *kinds[] = {"blr", "br", "br x17", "ret", "blraaz", "braaz"};
enum { branchOffset = 0x800 };

// bits 0 and 1: SPSR's M and EL
static void attempt(u64 from, u64 to, int branch, int target, u64 state) {
  text(kinds[branch]); put(from == guarded ? 'g' : 'p'); put(' '); text(names[target]); put(to == guarded ? 'g' : 'p'); put(' ');
  show(state);
  enter(from + branchOffset + 4 * branch, state, to + 16 * target);
}

static const u64 states[] = {0x3c5, 0x3c0};

void work(void) {
  WRITE("vbar_el1", vectors);
  WRITE("oslar_el1", 0);
  volatile unsigned *code = (unsigned *)(u64)guarded;
  for (int k = 0; k < 8; k++) { code[4 * k] = targets[k]; code[4 * k + 1] = 0xd4000001; }
  for (int k = 0; k < 6; k++) code[branchOffset / 4 + k] = branches[k];
  text("bt "); show(READ("id_aa64pfr1_el1") & 15); put('\n');
  for (u64 kind = 0; kind < 2; kind++) {
    // Level 1: devices; RAM, by blocks of 2 MiB; all for EL1 alone but for the two ranges, which EL1 gets read-only.
    level1[0] = 0x401 | 1ul << 53 | 1ul << 54;
    level1[1] = (u64)level2 | 3;
    for (u64 k = 0; k < 512; k++) level2[k] = 0x40000000 + (k << 21) + 0x705;
    level2[0x38] = (u64)level3 | 3;
    for (u64 k = 0; k < 512; k++) level3[k] = 0x47000000 + (k << 12) + 0x7c7 + (1ul << 50);
    level2[0x39] = 0x47000000 + 0x7c5;
    WRITE("mair_el1", 0xff00);
    WRITE("tcr_el1", 25 | 25 << 16 | 1ul << 32 | 1 << 23);
    WRITE("ttbr0_el1", level1);
    flush();
    __asm__ volatile("ic iallu; dsb sy; isb");
    WRITE("sctlr_el1", 0x30d00801 | (kind ? 3ul << 35 : 0));
    if (kind == 0) {
      if (FIRST == 1) { text("unmapped "); level3[0] &= ~1ul; lost = 0; flush(); }
      if (FIRST == 2) attempt(plain, guarded, 0, 2, 0x3c5);
      attempt(plain, guarded, 0, 0, 0x3c5);
    }
    for (int level = 0; level < 2; level++) {
      for (int branch = 0; branch < 6; branch++) {
        for (int target = 0; target < 8; target++) {
          attempt(plain, guarded, branch, target, states[level]);
          attempt(guarded, guarded, branch, target, states[level]);
          attempt(guarded, plain, branch, target, states[level]);
          if (level == 1) {
            // Stepped, and to a page that is to come.
            WRITE("mdscr_el1", 1);
            attempt(guarded, guarded, branch, target, states[level] | 1 << 21);
            WRITE("mdscr_el1", 0);
          }
          level3[0] &= ~1ul;
          lost = 0;
          flush();
          attempt(plain, guarded, branch, target, states[level]);
        }
      }
      // BTYPE as SPSR has it.
      for (u64 type = 0; type < 4; type++) {
        for (int target = 0; target < 8; target++) {
          for (u64 to = guarded; to <= plain; to += plain - guarded) {
            text("eret "); show(type); text(names[target]); put(to == guarded ? 'g' : 'p'); put(' ');
            enter(to + 16 * target, states[level] | type << 10, 0);
          }
        }
      }
    }
  }
  text("end\n");
  end();
}
