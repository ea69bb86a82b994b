// EL3 on the bare machine (secure=on, this as its firmware): what it keeps from the levels below and in which state, secure
// memory, exception returns, the interrupt controller's two sides, the secure timer.
// A line an event: what was run, and where its exception went, with syndrome and addresses.
#include "bare.h"
typedef unsigned u32;

__asm__(".section .text.unlikely.start\n"
        ".global _start\n"
        "_start:\n"
        "ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "b work\n"
        ".text\n"
        ".macro entry kind\n"
        ".balign 128\n"
        "sub sp, sp, #256\nstp x0, x1, [sp]\nmov x0, #\\kind\nb common\n"
        ".endm\n"
        ".balign 2048\n"
        "vectors3:\n"
        ".rept 4\n.balign 128\nb unexpected\n.endr\n"
        "entry 0\nentry 1\nentry 2\nentry 3\nentry 4\nentry 5\nentry 6\nentry 7\n"
        ".rept 4\n.balign 128\nb unexpected\n.endr\n"
        "common: stp x2, x3, [sp, #16]\nstp x4, x5, [sp, #32]\nstp x6, x7, [sp, #48]\nstp x8, x9, [sp, #64]\n"
        "stp x10, x11, [sp, #80]\nstp x12, x13, [sp, #96]\nstp x14, x15, [sp, #112]\nstp x16, x17, [sp, #128]\n"
        "stp x18, x30, [sp, #144]\n"
        "mov x1, sp\n"
        "bl handle\n"
        "cbnz x0, leave\n"
        "ldp x2, x3, [sp, #16]\nldp x4, x5, [sp, #32]\nldp x6, x7, [sp, #48]\nldp x8, x9, [sp, #64]\n"
        "ldp x10, x11, [sp, #80]\nldp x12, x13, [sp, #96]\nldp x14, x15, [sp, #112]\nldp x16, x17, [sp, #128]\n"
        "ldp x18, x30, [sp, #144]\nldp x0, x1, [sp], #256\n"
        "eret\n"
        // enter(program, SPSR, x9, x10) comes back from `leave`.
        "enter: stp x19, x20, [sp, #-96]!\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "msr elr_el3, x0\nmsr spsr_el3, x1\nmov x9, x2\nmov x10, x3\nldr x0, =0x47000000\nmsr sp_el0, x0\nmsr sp_el1, x0\n"
        "msr sp_el2, x0\nisb\neret\n"
        "leave: add sp, sp, #256\nldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp x19, x20, [sp], #96\nret\n"
        // EL1 and EL2: every exception goes on to EL3.
        ".macro forward sync irq fiq error\n"
        ".rept 4\n.balign 128\nsmc #\\sync\neret\n.balign 128\nsmc #\\irq\neret\n.balign 128\nsmc #\\fiq\neret\n"
        ".balign 128\nsmc #\\error\neret\n.endr\n"
        ".endm\n"
        ".balign 2048\nvectors1: forward 1 3 4 5\n"
        ".balign 2048\nvectors2: forward 2 6 7 8\n");
extern char vectors1[], vectors2[], vectors3[];
u64 enter(void *program, u64 state, u64 first, u64 second);

#define COUNT(list) (sizeof list / sizeof *list)
#define SCR_RES1 0x430ul  // with RW
#define SCR "scr_el3"

static void line(const char *name, u64 value) { text(name); put(' '); show(value); put('\n'); }
static void end(void) {
  // The secure pins: the first one switches the machine off.
  *(volatile u32 *)0x90b0400 = 1;
  *(volatile u32 *)0x90b0004 = 1;
  for (;;) __asm__ volatile("wfi");
}
void unexpected(void) {
  text("unexpected ");
  show(READ("esr_el3")); show(READ("elr_el3")); show(READ("far_el3"));
  put('\n');
  end();
}

static u64 result;                      // x0 at a program's end
static int hasGICv3, hasEL2;
static u64 (*acknowledge)(void);        // of an interrupt that came to EL3

// Syndromes of aborts without what they say about the instruction.
static u64 short_(u64 syndrome) {
  u64 cause = syndrome >> 26;
  return cause == 0x24 || cause == 0x25 ? syndrome & ~0x1ff8000ul & ~0x200ul : syndrome;
}
static int abort_(u64 cause) { return cause >= 0x20 && cause <= 0x25; }

// 1 ends the program that runs.
u64 handle(u64 kind, u64 *registers) {
  u64 syndrome = READ("esr_el3"), cause = syndrome >> 26, call = syndrome & 0xffff;
  if (kind == 0) {
    text("same "); show(short_(syndrome));
    if (abort_(cause)) show(READ("far_el3"));
    registers[0] = 0xbad;
    if (cause != 0x16 && cause != 0x17) WRITE("elr_el3", READ("elr_el3") + 4);
    // An illegal return leaves its mark.
    if (cause == 0x0e) WRITE("spsr_el3", READ("spsr_el3") & ~(1ul << 20));
    return 0;
  }
  if (kind != 4) {
    text(kind == 1 || kind == 5 ? "irq " : kind == 2 || kind == 6 ? "fiq " : "error ");
    show(READ("spsr_el3") & 0x3cf);
    show(acknowledge ? acknowledge() : 0);
    if (kind < 4) { WRITE("spsr_el3", READ("spsr_el3") | 0x3c0); return 0; }
    return 1;
  }
  if (cause == 0x17 && call == 0xff) { result = registers[0]; return 1; }
  if (cause == 0x17 && call >= 1 && call <= 8) {
    if (call == 3 || call == 4 || call == 6 || call == 7) {
      text(call == 3 ? "el1-irq " : call == 4 ? "el1-fiq " : call == 6 ? "el2-irq " : "el2-fiq ");
      show(acknowledge ? acknowledge() : 0);
      return 1;
    }
    int is2 = call == 2;
    u64 below = is2 ? READ("esr_el2") : READ("esr_el1"), why = below >> 26;
    if (why >= 0x15 && why <= 0x17 && (below & 0xffff) == 0xff) { result = registers[0]; return 1; }
    text(is2 ? "el2 " : "el1 ");
    show(short_(below));
    if (abort_(why)) show(is2 ? READ("far_el2") : READ("far_el1"));
    registers[0] = 0xbad;
    if (why >> 1 == 0x10) return 1;
    u64 step = why == 0x15 || why == 0x16 ? 0 : 4;
    if (is2) WRITE("elr_el2", READ("elr_el2") + step);
    else WRITE("elr_el1", READ("elr_el1") + step);
    if (why == 0x0e) { if (is2) WRITE("spsr_el2", READ("spsr_el2") & ~(1ul << 20)); else WRITE("spsr_el1", READ("spsr_el1") & ~(1ul << 20)); }
    return 0;
  }
  text("el3 "); show(short_(syndrome));
  if (abort_(cause)) show(READ("far_el3"));
  registers[0] = 0xbad;
  if (cause >> 1 == 0x10) return 1;
  if (cause != 0x17) WRITE("elr_el3", READ("elr_el3") + 4);
  return 0;
}

// MARK: What EL3 keeps from the levels below

// The programs, and the vectors of EL1 and EL2, are copied to memory that both states have.
static void *moved(void *code) { return (char *)code + 0x44000000; }

struct program { const char *name; void *code; };
#define PROGRAM(name, body) \
  __asm__(".balign 16\n" #name ": " body "\nsmc #0xff\nsvc #0xff\n1: b 1b\n"); extern char name[];
#define LIST(name) {#name, name}
PROGRAM(nothing, "nop") PROGRAM(smc7, "smc #7") PROGRAM(hvc5, "hvc #5") PROGRAM(svc3, "svc #3") PROGRAM(undefined0, ".word 0")
PROGRAM(brk2, "brk #2") PROGRAM(wfi0, "wfi") PROGRAM(cpacr, "mrs x0, cpacr_el1") PROGRAM(cptr2, "mrs x0, cptr_el2")
PROGRAM(fmov, "fmov d0, #1.0") PROGRAM(mdscr, "mrs x0, mdscr_el1") PROGRAM(oslsr, "mrs x0, oslsr_el1")
PROGRAM(pmcr, "mrs x0, pmcr_el0") PROGRAM(cntps, "mrs x0, cntps_ctl_el1") PROGRAM(wrcntps, "msr cntps_cval_el1, x9")
PROGRAM(scr, "mrs x0, scr_el3") PROGRAM(wrscr, "msr scr_el3, x9") PROGRAM(sctlr3, "mrs x0, sctlr_el3") PROGRAM(hcr, "mrs x0, hcr_el2")
PROGRAM(spel2, "mrs x0, sp_el2") PROGRAM(tlbi3, "tlbi alle3") PROGRAM(tlbi1, "tlbi alle1") PROGRAM(tlbivm, "tlbi vmalle1")
PROGRAM(at3, "at s1e3r, x9") PROGRAM(at12, "at s12e1r, x9") PROGRAM(sre3, "mrs x0, s3_6_c12_c12_5")
PROGRAM(apia, "mrs x0, s3_0_c2_c1_0") PROGRAM(pacia, ".arch armv8.3-a; pacia x0, x1")
static const struct program programs[] = {
  LIST(nothing), LIST(smc7), LIST(hvc5), LIST(svc3), LIST(undefined0), LIST(brk2), LIST(cpacr), LIST(cptr2), LIST(fmov),
  LIST(mdscr), LIST(oslsr), LIST(pmcr), LIST(cntps), LIST(wrcntps), LIST(scr), LIST(wrscr), LIST(sctlr3), LIST(hcr), LIST(spel2),
  LIST(tlbi3), LIST(tlbi1), LIST(tlbivm), LIST(at3), LIST(at12), LIST(sre3), LIST(apia), LIST(pacia),
};
PROGRAM(iar0, "mrs x0, s3_0_c12_c8_0") PROGRAM(bpr0, "mrs x0, s3_0_c12_c8_3") PROGRAM(en0, "mrs x0, s3_0_c12_c12_6")
PROGRAM(iar1, "mrs x0, s3_0_c12_c12_0") PROGRAM(en1, "mrs x0, s3_0_c12_c12_7") PROGRAM(pmr, "mrs x0, s3_0_c4_c6_0")
PROGRAM(icctlr, "mrs x0, s3_0_c12_c12_4") PROGRAM(rpr, "mrs x0, s3_0_c12_c11_3") PROGRAM(sgi1, "msr s3_0_c12_c11_5, xzr")
PROGRAM(iccsre, "mrs x0, s3_0_c12_c12_5")
static const struct program interfaces[] = {
  LIST(iar0), LIST(bpr0), LIST(en0), LIST(iar1), LIST(en1), LIST(pmr), LIST(icctlr), LIST(rpr), LIST(sgi1), LIST(iccsre),
};

static void run(const struct program *program, u64 level) {
  text(program->name);
  put(' ');
  enter(moved(program->code), 0x3c0 | (level ? level << 2 | 1 : 0), 0x40000000, 0);
  put('\n');
}
static void runAll(const char *what, u64 control, const struct program *list, unsigned count) {
  for (u64 ns = 0; ns < 2; ns++) {
    for (u64 level = 0; level < 3; level++) {
      if (level == 2 && !(ns && hasEL2)) continue;
      WRITE(SCR, SCR_RES1 | control | ns);
      for (unsigned k = 0; k < count; k++) {
        // QEMU has the secure state's hvc at EL2.
        if (!ns && list[k].code == hvc5 && control >> 8 & 1) continue;
        text(what); put(' '); text(ns ? "ns" : "s"); put('0' + level); put(' ');
        run(&list[k], level);
      }
    }
  }
}

static void traps(void) {
  static const struct { const char *name; u64 scr, cptr, mdcr; } controls[] = {
    {"none", 3ul << 16, 0, 0}, {"hce", 3ul << 16 | 1 << 8, 0, 0}, {"st", 3ul << 16 | 1 << 11, 0, 0}, {"pauth", 0, 0, 0},
    {"apk", 1ul << 17, 0, 0}, {"tcpac", 3ul << 16, 1ul << 31, 0}, {"tfp", 3ul << 16, 1 << 10, 0}, {"tpm", 3ul << 16, 0, 1 << 6},
    {"tda", 3ul << 16, 0, 1 << 9}, {"tdosa", 3ul << 16, 0, 1 << 10},
  };
  for (unsigned k = 0; k < COUNT(controls); k++) {
    WRITE("cptr_el3", controls[k].cptr);
    WRITE("mdcr_el3", controls[k].mdcr);
    runAll(controls[k].name, controls[k].scr, programs, COUNT(programs));
  }
  WRITE("cptr_el3", 0);
  WRITE("mdcr_el3", 0);
  static const struct program waits[] = {LIST(wfi0)};
  runAll("twi", 3ul << 16 | 1 << 12, waits, 1);
  if (hasGICv3) {
    for (u64 k = 0; k < 4; k++) { line("routes", k); runAll("gic", 3ul << 16 | k << 1, interfaces, COUNT(interfaces)); }
  }
  if (hasEL2) {
    // EL2 is asked before EL3, and the secure state does not ask it.
    WRITE("hcr_el2", 1ul << 31 | 3ul << 40 | 1 << 19);
    for (u64 ns = 0; ns < 2; ns++) { WRITE(SCR, SCR_RES1 | 3ul << 16 | ns); text("tsc "); show(ns); run(&programs[1], 1); }
    WRITE("hcr_el2", 1ul << 31 | 1 << 27 | 3ul << 40);
    WRITE(SCR, SCR_RES1 | 3ul << 16);
    run(&programs[3], 0);
    WRITE(SCR, SCR_RES1 | 3ul << 16 | 1);
    run(&programs[3], 0);
    WRITE("hcr_el2", 1ul << 31 | 3ul << 40);
  }
}

// MARK: EL3 itself

#define HERE(name, body) do { text(name); put(' '); __asm__ volatile(body : : : "x0", "x9", "x30", "memory"); put('\n'); } while (0)
static void own(void) {
  line("el", READ("currentel"));
  line("el3", (READ("id_aa64pfr0_el1") >> 12 & 15) != 0);
  static const u64 patterns[] = {~0ul, 0x123456789abcdefful, 0};
  for (unsigned k = 0; k < COUNT(patterns); k++) {
    u64 p = patterns[k];
    WRITE("tpidr_el3", p); show(READ("tpidr_el3"));
    WRITE("elr_el3", p); show(READ("elr_el3"));
    WRITE("far_el3", p); show(READ("far_el3"));
    WRITE("afsr0_el3", p); WRITE("mair_el3", p); show(READ("mair_el3"));
    WRITE("sp_el2", p); show(READ("sp_el2"));
    WRITE("sp_el1", p); show(READ("sp_el1"));
    WRITE("cntps_cval_el1", p); show(READ("cntps_cval_el1"));
    WRITE(SCR, p & 0x3a8f); show(READ(SCR) & (hasEL2 ? 0x3a8f : 0x3a8f & ~0x100));
    put('\n');
  }
  WRITE(SCR, SCR_RES1);
  HERE("smc", "smc #3");
  WRITE(SCR, SCR_RES1 | 1 << 7);
  HERE("smd", "smc #3");
  WRITE(SCR, SCR_RES1);
  HERE("hvc", "hvc #4");
  HERE("svc", "svc #5");
  HERE("brk", "brk #6");
  HERE("undefined", ".word 0");
  HERE("hole", "mov x9, #0x0f000000; ldr x0, [x9]");
  WRITE("cptr_el3", 1 << 10);
  HERE("float", "fmov d0, #1.0");
  WRITE("cptr_el3", 0);
  // EL2's registers, whether or not it is there.
  WRITE("tpidr_el2", 0x55); line("tpidr2", READ("tpidr_el2"));
  WRITE("vttbr_el2", 0x40000000); line("vttbr", READ("vttbr_el2"));
  WRITE("vttbr_el2", 0);
  // Returns that are not legal, to EL2 in each state, and one that is.
  static const u64 states[] = {0x3c9, 0x3c5, 0x3c4, 0x3c1, 0x3cd, 0x3c2, 0x3cb, 0x3d3};
  for (u64 ns = 0; ns < 2; ns++) {
    for (unsigned k = 0; k < COUNT(states); k++) {
      // EL0's program cannot end by smc; what is legal needs a level that is there.
      WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
      text("eret "); show(ns); show(states[k]);
      if (states[k] == 0x3cd) { put('\n'); continue; }
      u64 bad = states[k] == 0x3c1 || states[k] == 0x3c2 || states[k] == 0x3cb || states[k] == 0x3d3
                || (states[k] == 0x3c9 && !(ns && hasEL2));
      if (!bad) {
        enter(moved(nothing), states[k], 0, 0);
      } else {
        __asm__ volatile("adr x0, 1f; msr elr_el3, x0; msr spsr_el3, %0; isb; eret; 1: nop; nop" : : "r"(states[k]) : "x0", "memory");
      }
      put('\n');
    }
  }
}

// MARK: Memory

static u64 tables[3][512] __attribute__((aligned(4096)));
PROGRAM(peek, "ldr w0, [x9]") PROGRAM(poke, "str w10, [x9]; mov x0, #0")
PROGRAM(jump, "mov x0, #1; br x9")
PROGRAM(setpmr, "msr s3_0_c4_c6_0, x9; mrs x0, s3_0_c4_c6_0")
static void access(const char *name, u64 level, void *program, u64 address, u64 value) {
  text(name); put(' '); show(level); show(address);
  result = 0xdead;
  enter(program, 0x3c0 | (level ? level << 2 | 1 : 0), address, value);
  show(result);
  put('\n');
}
static void here(const char *name, u64 address) {
  u64 value;
  text(name); put(' '); show(address);
  __asm__ volatile("mov x0, #0; ldr w0, [%1]; mov %0, x0" : "=r"(value) : "r"(address) : "x0", "memory");
  show(value);
  put('\n');
}

static void memory(void) {
  static const u64 addresses[] = {0x0e000000, 0x0efffffc, 0x0f000000, 0x09040018, 0x090b0fe0, 0x48200000, 0x04000000};
  *(volatile u32 *)0x0e000000 = 0x5ec12e7;
  *(volatile u32 *)0x0efffffc = 0x1a57;
  *(volatile u32 *)0x48200000 = 0x0be11;
  for (u64 ns = 0; ns < 2; ns++) {
    WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
    for (unsigned k = 0; k < COUNT(addresses); k++) access(ns ? "ns" : "s", 1, moved(peek), addresses[k], 0);
    // The first flash bank, in which this lies, is the secure state's.
    text("flash "); show(ns);
    enter(nothing, 0x3c5, 0, 0);
    put('\n');
  }
}

static void translation(void) {
  // 4 GiB, level 1 first: flash and devices, RAM, and at 2 and 3 GiB the same table, there as a table that is not secure.
  for (int i = 0; i < 512; i++) tables[0][i] = tables[1][i] = 0;
  tables[0][0] = 0x00000000 | 0x701;
  tables[0][1] = 0x40000000 | 0x701;
  tables[0][2] = (u64)tables[1] | 3;
  tables[0][3] = (u64)tables[1] | 3 | 1ul << 63;
  static const u64 outputs[] = {0x0e000000, 0x0e000020, 0x08000000, 0x08000020, 0x48200000, 0x48200020, 0x0e000000, 0x48200000};
  for (unsigned k = 0; k < COUNT(outputs); k++) tables[1][k] = outputs[k] | 0x701;
  tables[1][6] |= 1 << 11;
  tables[1][7] &= ~(1ul << 10);
  *(volatile u32 *)0x48200000 = 0xd503201f;
  *(volatile u32 *)0x48200004 = 0xd4001fe3;  // smc #0xff
  WRITE("mair_el3", 0xff);
  WRITE("tcr_el3", 1ul << 31 | 1 << 23 | 32 | 2ul << 16 | 0x3500);
  WRITE("ttbr0_el3", tables[0]);
  __asm__ volatile("dsb sy; tlbi alle3; dsb sy; isb");
  WRITE("sctlr_el3", 0x30c50831);
  for (u64 table = 2; table < 4; table++)
    for (u64 k = 0; k < COUNT(outputs); k++) {
      // The controller's first register and type depend on what it is.
      here("m3", table << 30 | k << 21 | (k / 2 == 1 ? 0x400 : 0));
    }
  for (u64 k = 0; k < COUNT(outputs); k++)
    for (u64 table = 2; table < 4; table++) {
      __asm__ volatile("at s1e3r, %0; isb" : : "r"(table << 30 | k << 21));
      text("at3 "); show(table); show(k); show(READ("par_el1") & 0xfffffffff27f); put('\n');
    }
  // A page less: the translation is kept until it is told.
  tables[1][0] = 0x48200000 | 0x721;
  __asm__ volatile("dsb sy; tlbi vae3, %0; dsb sy; isb" : : "r"(0x80000000ul >> 12));
  here("vae3", 0x80000000);
  tables[1][0] = 0x0e000000 | 0x701;
  __asm__ volatile("dsb sy; tlbi alle3; dsb sy; isb");
  here("alle3", 0x80000000);
  WRITE("sctlr_el3", 0x30c50830);

  WRITE("mair_el1", 0xff);
  WRITE("tcr_el1", 32 | 1 << 23 | 2ul << 32 | 0x3500);
  WRITE("ttbr0_el1", tables[0]);
  for (u64 ns = 0; ns < 2; ns++) {
    WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
    __asm__ volatile("dsb sy; tlbi alle1; tlbi vmalle1; dsb sy; isb");
    WRITE("sctlr_el1", 0x30d00801);
    for (u64 table = 2; table < 4; table++)
      for (u64 k = 0; k < COUNT(outputs); k++) {
        u64 address = table << 30 | k << 21 | (k / 2 == 1 ? 0x400 : 0);
        access(ns ? "ns" : "s", 1, moved(peek), address, 0);
        __asm__ volatile("at s1e1r, %0; isb" : : "r"(address));
        text("at1 "); show(READ("par_el1") & 0xfffffffff27f); put('\n');
      }
    // Executing what is not secure, with and without SIF.
    for (u64 k = 4; k < 6; k++) {
      WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
      __asm__ volatile("dsb sy; tlbi alle1; tlbi vmalle1; dsb sy; isb");
      access("execute", 1, moved(jump), 2ul << 30 | k << 21, 0);
      WRITE(SCR, SCR_RES1 | 3ul << 16 | ns | 1 << 9);
      __asm__ volatile("dsb sy; tlbi alle1; tlbi vmalle1; dsb sy; isb");
      access("sif", 1, moved(jump), 2ul << 30 | k << 21, 0);
    }
    WRITE("sctlr_el1", 0x30d00800);
  }
  // SCR_EL3.EA is not asked: QEMU has the aborts of accesses at EL1 in any case.
}

// MARK: Interrupts

#define D(offset) (*(volatile u32 *)(0x8000000 + (offset)))
#define C(offset) (*(volatile u32 *)(0x8010000 + (offset)))
#define R(offset) (*(volatile u32 *)(0x80a0000 + (offset)))
#define R2(offset) R(0x10000 + (offset))
// EL1 or EL2 in a loop, until an interrupt comes.
PROGRAM(spin, "mov x0, x9; 2: sub x0, x0, #1; cbnz x0, 2b")
static u64 nonSecure(u64 address) {
  u64 control = READ(SCR);
  WRITE(SCR, SCR_RES1 | 3ul << 16 | 1);
  result = 0xdead;
  enter(moved(peek), 0x3c5, address, 0);
  WRITE(SCR, control);
  return result;
}
static void setNonSecure(u64 address, u64 value) {
  u64 control = READ(SCR);
  WRITE(SCR, SCR_RES1 | 3ul << 16 | 1);
  enter(moved(poke), 0x3c5, address, value);
  WRITE(SCR, control);
}
static void both(const char *name, u64 address) {
  text(name); put(' ');
  show(*(volatile u32 *)address);
  show(nonSecure(address));
  put('\n');
}

static u64 acknowledge2(void) {
  u64 number = C(0x0c), other = number;
  // AckCtl gives the secure state the others, too; QEMU has no GICC_AIAR.
  if (number == 1022) { C(0) |= 4; other = C(0x0c); }
  if (other != 1023) C(0x10) = other;
  C(0) &= ~4u;
  return number == 1022 ? 0x10000 | other : number;
}
static u64 acknowledge3(void) {
  u64 pending = READ("s3_0_c12_c8_2"), number = READ("s3_0_c12_c8_0");
  if (pending < 1020) { WRITE("s3_0_c12_c8_1", number); return number; }
  // Group 1 of the state that the special number says.
  u64 control = READ(SCR);
  WRITE(SCR, pending == 1020 ? control & ~1ul : control | 1);
  u64 other = READ("s3_0_c12_c12_0");
  if (other < 1020) WRITE("s3_0_c12_c12_1", other);
  WRITE(SCR, control);
  return number << 16 | other;
}
static void sendGroup(u64 number, u64 group) {
  if (!hasGICv3) { D(0xf00) = 2 << 24 | (group == 1 ? 1 << 15 : 0) | number; return; }
  u64 value = number << 24 | 1;
  WRITE(SCR, READ(SCR) & ~1ul);
  if (group == 0) WRITE("s3_0_c12_c11_7", value);
  else if (group == 1) WRITE("s3_0_c12_c11_6", value);
  else WRITE("s3_0_c12_c11_5", value);
}

static void deliver(void) {
  // Each group's interrupt, in each state and level, by each routing.
  static const struct { const char *name; u64 number, group; } sources[] = {{"g0", 0, 0}, {"g1ns", 8, 1}, {"g1s", 1, 2}};
  for (u64 ns = 0; ns < 2; ns++)
    for (u64 level = 1; level < (ns && hasEL2 ? 3 : 2); level++)
      for (u64 routes = 0; routes < 4; routes++)
        for (unsigned k = 0; k < (hasGICv3 ? 3 : 2); k++)
          for (u64 masked = 0; masked < 2; masked++) {
            text("deliver "); text(ns ? "ns" : "s"); show(level); show(routes); text(sources[k].name); put(' '); show(masked);
            sendGroup(sources[k].number, sources[k].group);
            WRITE(SCR, SCR_RES1 | 3ul << 16 | ns | routes << 1);
            result = 0xdead;
            enter(moved(spin), (masked ? 0x3c0 : 0) | level << 2 | 1, 0x10000, 0);
            // What was not taken waits.
            if (result != 0xdead) { text("waits "); show(READ("isr_el1")); show(acknowledge()); }
            put('\n');
          }
  WRITE(SCR, SCR_RES1 | 3ul << 16);
  // At EL3 itself.
  for (unsigned k = 0; k < (hasGICv3 ? 3 : 2); k++)
    for (u64 routes = 0; routes < 4; routes++) {
      text("own "); text(sources[k].name); put(' '); show(routes);
      sendGroup(sources[k].number, sources[k].group);
      WRITE(SCR, SCR_RES1 | 3ul << 16 | 1 | routes << 1);
      show(READ("isr_el1"));
      __asm__ volatile("msr daifclr, #3; nop; nop; isb; nop; msr daifset, #15; isb" : : : "memory");
      if (READ("isr_el1")) { text("waits "); show(acknowledge()); }
      put('\n');
    }
}

static void timer(void) {
  for (u64 ns = 0; ns < 2; ns++) {
    text("timer "); show(ns);
    WRITE(SCR, SCR_RES1 | 3ul << 16 | ns | 1 << 2);
    WRITE("cntps_tval_el1", 1000);
    WRITE("cntps_ctl_el1", 1);
    while (!(READ("cntps_ctl_el1") & 4)) {}
    show(READ("cntps_ctl_el1"));
    result = 0xdead;
    enter(moved(spin), 0x3c5, 0x40000000, 0);
    WRITE("cntps_ctl_el1", 0);
    show(result);
    put('\n');
  }
}

static void interrupts2(void) {
  acknowledge = acknowledge2;
  D(0x80) = 0xff00 | 1 << 30;
  D(0) = 3;
  D(0x100) = 0xffff | 3 << 29;
  for (u64 k = 0; k < 8; k++) D(0x400 + 4 * k) = k < 2 ? 0x20202020 : 0xa0a0a0a0;
  C(4) = 0xf0;
  C(0) = 0xb;
  both("dctlr", 0x8000000); both("igroupr", 0x8000080); both("isenabler", 0x8000100); both("priority0", 0x8000400);
  both("priority2", 0x8000408);
  setNonSecure(0x8000400, 0x40404040); both("nswrite0", 0x8000400);
  setNonSecure(0x8000408, 0x40404040); both("nswrite2", 0x8000408);
  setNonSecure(0x8000080, 0xffffffff); both("nsgroup", 0x8000080);
  // SGIs may always be enabled.
  setNonSecure(0x8000180, 3 << 29); both("nsdisable", 0x8000100);
  setNonSecure(0x8000000, 0); both("nsctlr", 0x8000000);
  setNonSecure(0x8000000, 1); both("nsctlr", 0x8000000);
  both("cctlr", 0x8010000); both("pmr", 0x8010004);
  setNonSecure(0x8010004, 0x80); both("nspmr", 0x8010004);
  C(4) = 0x40; both("spmr", 0x8010004);
  setNonSecure(0x8010004, 0x80); both("nspmr", 0x8010004);
  C(4) = 0xf0;
  setNonSecure(0x8010000, 0); both("nscctlr", 0x8010000);
  setNonSecure(0x8010000, 1); both("nscctlr", 0x8010000);
  both("rpr", 0x8010014);
  setNonSecure(0x8000f00, 2 << 24 | 8); both("nssgi8", 0x8000200);
  both("hppir", 0x8010018);
  text("iar "); show(C(0x0c)); show(nonSecure(0x801000c)); show(nonSecure(0x8010014)); show(C(0x14)); put('\n');
  D(0xf00) = 2 << 24;
  both("hppir", 0x8010018);
  text("iar "); show(nonSecure(0x801000c)); show(C(0x0c)); both("rpr", 0x8010014);
  setNonSecure(0x8010010, 0); both("nseoi0", 0x8010014);
  C(0x10) = 0; both("eoi0", 0x8010014);
  setNonSecure(0x8010010, 8); both("nseoi8", 0x8010014);
}

static void interrupts3(void) {
  acknowledge = acknowledge3;
  WRITE("s3_6_c12_c12_5", 15);
  if (hasEL2) WRITE("s3_4_c12_c9_5", 15);
  D(0) = 0x37;
  R(0x14) = 0;
  while (R(0x14) & 4) {}
  R2(0x80) = 0xff00 | 1 << 30;
  R2(0xd00) = 0x00fe;
  R2(0x100) = 0xffff | 3 << 29;
  for (u64 k = 0; k < 8; k++) R2(0x400 + 4 * k) = k < 2 ? 0x20202020 : 0xa0a0a0a0;
  WRITE("s3_0_c4_c6_0", 0xf0);
  WRITE("s3_0_c12_c12_6", 1);
  WRITE("s3_6_c12_c12_7", 3);
  both("igroupr", 0x80b0080); both("igrpmodr", 0x80b0d00); both("isenabler", 0x80b0100);
  both("priority0", 0x80b0400); both("priority2", 0x80b0408);
  setNonSecure(0x80b0400, 0x40404040); both("nswrite0", 0x80b0400);
  setNonSecure(0x80b0408, 0x40404040); both("nswrite2", 0x80b0408);
  setNonSecure(0x80b0080, 0xffffffff); both("nsgroup", 0x80b0080);
  setNonSecure(0x80b0180, 3 << 29); both("nsdisable", 0x80b0100);
  both("waker", 0x80a0014);
  line("security", D(4) >> 10 & 1);
  line("igrpen1", READ("s3_6_c12_c12_7"));
  for (u64 ns = 0; ns < 2; ns++) {
    WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
    line("banked", READ("s3_0_c12_c12_7"));
    WRITE("s3_0_c12_c12_7", 0);
    line("igrpen1", READ("s3_6_c12_c12_7"));
    WRITE("s3_0_c12_c12_7", 1);
  }
  WRITE(SCR, SCR_RES1 | 3ul << 16);
  // The mask as the non-secure state sees it, by whose FIQ is.
  for (u64 fiq = 0; fiq < 2; fiq++) {
    static const u64 masks[] = {0xf0, 0x80, 0x40};
    for (unsigned k = 0; k < COUNT(masks); k++) {
      WRITE(SCR, SCR_RES1 | 3ul << 16 | 1 | fiq << 2);
      WRITE("s3_0_c4_c6_0", masks[k]);
      access("pmr", 1, moved(pmr), 0, 0);
      access("setpmr", 1, moved(setpmr), 0xa0, 0);
      line("mask", READ("s3_0_c4_c6_0"));
    }
  }
  WRITE("s3_0_c4_c6_0", 0xf0);
  // Special numbers, and whose register ends what.
  static const u64 numbers[] = {0, 8, 1}, groups[] = {0, 1, 2};
  for (unsigned k = 0; k < 3; k++) {
    sendGroup(numbers[k], groups[k]);
    WRITE(SCR, SCR_RES1 | 3ul << 16 | 1);
    text("pending "); show(READ("s3_0_c12_c8_2")); show(READ("s3_0_c12_c8_0"));
    for (u64 ns = 0; ns < 2; ns++) {
      WRITE(SCR, SCR_RES1 | 3ul << 16 | ns);
      show(READ("s3_0_c12_c12_2")); show(READ("s3_0_c12_c12_0"));
    }
    line("running", READ("s3_0_c12_c11_3"));
    WRITE(SCR, SCR_RES1 | 3ul << 16 | 1 | 1 << 2);
    access("rpr", 1, moved(rpr), 0, 0);
    // EL3 has both groups 1, whichever state is below.
    WRITE(SCR, SCR_RES1 | 3ul << 16 | (k != 1));
    if (k == 0) WRITE("s3_0_c12_c12_1", 0); else WRITE("s3_0_c12_c8_1", numbers[k]);
    line("other", READ("s3_0_c12_c11_3"));
    if (k != 0) WRITE("s3_0_c12_c12_1", numbers[k]);
    line("ended", READ("s3_0_c12_c11_3"));
    WRITE(SCR, SCR_RES1 | 3ul << 16 | (k == 1));
    if (k == 0) WRITE("s3_0_c12_c8_1", 0); else WRITE("s3_0_c12_c12_1", numbers[k]);
    line("ended", READ("s3_0_c12_c11_3"));
  }
  WRITE(SCR, SCR_RES1 | 3ul << 16);
}

void work(void) {
  WRITE("vbar_el3", vectors3);
  WRITE(SCR, SCR_RES1);
  hasEL2 = (READ("id_aa64pfr0_el1") >> 8 & 15) != 0;
  hasGICv3 = (READ("id_aa64pfr0_el1") >> 24 & 15) != 0;
  // A copy of the programs in RAM, which the non-secure state can execute.
  for (u64 k = 0; k < 0x10000; k += 8) *(volatile u64 *)(0x44000000 + k) = *(volatile u64 *)k;
  __asm__ volatile("dsb sy; ic iallu; dsb sy; isb");
  for (const char *s = "secure side\n"; *s; s++) *(volatile u32 *)0x9040000 = *s;
  WRITE("cpacr_el1", 3ul << 20);
  WRITE("sctlr_el1", 0x30d00800 | 1 << 31);
  if (hasEL2) {
    WRITE("hcr_el2", 1ul << 31 | 3ul << 40);
    WRITE("cptr_el2", 0x33ff);
    WRITE("cnthctl_el2", 3);
    WRITE("mdcr_el2", 6);
    WRITE("vbar_el2", moved(vectors2));
    WRITE("sctlr_el2", 0x30c50830);
    if (hasGICv3) { WRITE("s3_6_c12_c12_5", 15); WRITE("s3_4_c12_c9_5", 15); }
  }
  WRITE("vbar_el1", moved(vectors1));
  own();
  memory();
  traps();
  translation();
  if (hasGICv3) interrupts3(); else interrupts2();
  deliver();
  timer();
  text("end\n");
  end();
}
