// EL2 on the bare machine (virtualization=on): what its controls trap, the syndromes of stage 2, translation instructions.
// A line an event: what was run, and where its exception went, with syndrome and addresses.
#include "bare.h"

__asm__(".section .text.start\n"
        ".global _start\n"
        "_start: ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "b work\n"
        ".text\n"
        // EL2: only exceptions of lower levels are expected; others end the program.
        ".balign 2048\n"
        "vectors2:\n"
        ".rept 8\n.balign 128\nb unexpected\n.endr\n"
        ".balign 128\nb lower\n"
        ".balign 128\nmov x0, #1\nb leave\n"
        ".rept 6\n.balign 128\nb unexpected\n.endr\n"
        "lower: sub sp, sp, #256\n"
        "stp x0, x1, [sp]\nstp x2, x3, [sp, #16]\nstp x4, x5, [sp, #32]\nstp x6, x7, [sp, #48]\n"
        "stp x8, x9, [sp, #64]\nstp x10, x11, [sp, #80]\nstp x12, x13, [sp, #96]\nstp x14, x15, [sp, #112]\n"
        "stp x16, x17, [sp, #128]\nstp x18, x30, [sp, #144]\n"
        "bl handle\n"
        "mov x19, x0\n"
        "ldp x0, x1, [sp]\nldp x2, x3, [sp, #16]\nldp x4, x5, [sp, #32]\nldp x6, x7, [sp, #48]\n"
        "ldp x8, x9, [sp, #64]\nldp x10, x11, [sp, #80]\nldp x12, x13, [sp, #96]\nldp x14, x15, [sp, #112]\n"
        "ldp x16, x17, [sp, #128]\nldp x18, x30, [sp, #144]\n"
        "add sp, sp, #256\n"
        "cbnz x19, leave\n"
        "eret\n"
        // enter(program, SPSR, argument, EL1's stack) comes back from `leave`.
        "enter: stp x19, x20, [sp, #-96]!\nstp x21, x22, [sp, #16]\nstp x23, x24, [sp, #32]\nstp x25, x26, [sp, #48]\n"
        "stp x27, x28, [sp, #64]\nstp x29, x30, [sp, #80]\n"
        "msr elr_el2, x0\nmsr spsr_el2, x1\nmov x9, x2\nmsr sp_el1, x3\nmsr sp_el0, x3\neret\n"
        "leave: ldp x21, x22, [sp, #16]\nldp x23, x24, [sp, #32]\nldp x25, x26, [sp, #48]\n"
        "ldp x27, x28, [sp, #64]\nldp x29, x30, [sp, #80]\nldp x19, x20, [sp], #96\nret\n"
        // EL1: every exception goes on to EL2 and skips its instruction.
        ".balign 2048\n"
        "vectors1:\n"
        ".rept 16\n.balign 128\nhvc #1\neret\n.endr\n");
extern char vectors1[], vectors2[];
u64 enter(void *program, u64 state, u64 argument, u64 stack);

static void parameter(void) {
  u64 value = READ("par_el1") & 0xffffffffff3ff;
  show((value & 0x101) == 0x101 ? value & ~6ul : value);
}
static void end(void) { __asm__ volatile("mov x0, %0; smc #0" : : "r"(0x84000008ul) : "x0"); }
void unexpected(void) {
  text("unexpected ");
  show(READ("esr_el2")); show(READ("elr_el2")); show(READ("far_el2"));
  put('\n');
  end();
}

static int events;
// 1 ends the program that runs.
int handle(u64 *registers) {
  u64 syndrome = READ("esr_el2"), cause = syndrome >> 26, below = READ("esr_el1");
  if ((cause == 0x16 || cause == 0x15) && (syndrome & 0xffff) == 0xff) return 1;
  if (cause == 0x16 && (syndrome & 0xffff) == 1 && below >> 26 == 0x15 && (below & 0xffff) == 0xff) return 1;
  events++;
  if (cause == 0x16 && (syndrome & 0xffff) == 1) {
    text("el1 ");
    show(READ("esr_el1"));
    if (READ("esr_el1") >> 26 >= 0x20) show(READ("far_el1"));
    // An illegal return leaves its mark.
    if (below >> 26 == 0x0e) WRITE("spsr_el1", READ("spsr_el1") & ~(1ul << 20));
    // Of instructions that cannot be fetched the program ends.
    if (READ("esr_el1") >> 27 == 0x10) return 1;
    WRITE("elr_el1", READ("elr_el1") + (READ("esr_el1") >> 26 == 0x15 ? 0 : 4));
    return 0;
  }
  text("el2 ");
  // Of stage 1's walk through stage 2, QEMU gives stage 1's level.
  show(cause >= 0x20 && cause <= 0x25 && syndrome & 0x80 ? syndrome & ~3ul : syndrome);
  if (cause >= 0x20 && cause <= 0x25) { show(READ("far_el2")); show(READ("hpfar_el2")); }
  if (cause >> 1 == 0x10) return 1;
  if (cause != 0x16) WRITE("elr_el2", READ("elr_el2") + 4);
  return 0;
}

struct program { const char *name; void *code; };
#define PROGRAM(name, body) \
  __asm__(".balign 16\n" #name ": " body "\nhvc #0xff\nsvc #0xff\n1: b 1b\n"); extern char name[];
#define LIST(name) {#name, name}
PROGRAM(idpfr0, "mrs x0, id_aa64pfr0_el1") PROGRAM(idisar1, "mrs x3, id_aa64isar1_el1") PROGRAM(revidr, "mrs x0, revidr_el1")
PROGRAM(ctr, "mrs x0, ctr_el0") PROGRAM(clidr, "mrs x0, clidr_el1") PROGRAM(csselr, "msr csselr_el1, xzr")
PROGRAM(actlr, "mrs x0, actlr_el1") PROGRAM(rdttbr, "mrs x5, ttbr0_el1") PROGRAM(wrttbr, "msr ttbr0_el1, x5")
PROGRAM(rdsctlr, "mrs x5, sctlr_el1") PROGRAM(rdcontext, "mrs x7, contextidr_el1") PROGRAM(wrfar, "msr far_el1, x7")
PROGRAM(dcisw, "mov x0, #0; dc isw, x0") PROGRAM(dcivac, "mov x0, #0x40000000; dc ivac, x0")
PROGRAM(dccivac, "mov x0, #0x40000000; dc civac, x0") PROGRAM(dccvau, "mov x0, #0x40000000; dc cvau, x0")
PROGRAM(dczva, "ldr x0, =0x47000000; dc zva, x0") PROGRAM(iciallu, "ic iallu") PROGRAM(icivau, "mov x0, #0x40000000; ic ivau, x0")
PROGRAM(tlbiall, "tlbi vmalle1") PROGRAM(tlbiva, "mov x4, #0; tlbi vae1is, x4") PROGRAM(ats1e1r, "mov x0, #0x40000000; at s1e1r, x0")
PROGRAM(cpacr, "mrs x0, cpacr_el1") PROGRAM(hvc5, "hvc #5") PROGRAM(smc0, "mov x0, #0x84000000; smc #7")
PROGRAM(svc3, "svc #3") PROGRAM(undefined0, ".word 0") PROGRAM(brk2, "brk #2") PROGRAM(hcr, "mrs x0, hcr_el2")
PROGRAM(el12, "mrs x0, s3_5_c1_c0_0") PROGRAM(cntpct, "mrs x0, cntpct_el0") PROGRAM(cntpctl, "mrs x0, cntp_ctl_el0")
PROGRAM(cntvct, "mrs x0, cntvct_el0") PROGRAM(cntvctl, "mrs x9, cntv_ctl_el0") PROGRAM(cntfrq, "mrs x0, cntfrq_el0")
PROGRAM(fmov, "fmov d0, #1.0") PROGRAM(mdscr, "mrs x0, mdscr_el1") PROGRAM(oslsr, "mrs x0, oslsr_el1") PROGRAM(mdrar, "mrs x0, mdrar_el1")
PROGRAM(pmcr, "mrs x0, pmcr_el0") PROGRAM(pmccntr, "mrs x0, pmccntr_el0") PROGRAM(daif, "mrs x0, daif") 
PROGRAM(wfi, "wfi") PROGRAM(eret0, "adr x0, 2f; msr elr_el1, x0; mov x0, #9; msr spsr_el1, x0; eret; 2: nop")
PROGRAM(pacia, ".arch armv8.3-a; pacia x0, x1") PROGRAM(apiakey, "mrs x0, s3_0_c2_c1_0")

static const struct program programs[] = {
  LIST(idpfr0), LIST(idisar1), LIST(revidr), LIST(ctr), LIST(clidr), LIST(csselr), LIST(actlr), LIST(rdttbr), LIST(wrttbr),
  LIST(rdsctlr), LIST(rdcontext), LIST(wrfar), LIST(dcisw), LIST(dcivac), LIST(dccivac), LIST(dccvau), LIST(dczva), LIST(iciallu),
  LIST(icivau), LIST(tlbiall), LIST(tlbiva), LIST(ats1e1r), LIST(cpacr), LIST(hvc5), LIST(smc0), LIST(svc3), LIST(undefined0),
  LIST(brk2), LIST(hcr), LIST(el12), LIST(cntpct), LIST(cntpctl), LIST(cntvct), LIST(cntvctl), LIST(cntfrq), LIST(fmov), LIST(mdscr),
  LIST(oslsr), LIST(mdrar), LIST(pmcr), LIST(pmccntr), LIST(daif), LIST(eret0), LIST(pacia), LIST(apiakey),
};
#define COUNT(list) (sizeof list / sizeof *list)

static void run(const struct program *program, u64 level) {
  text(program->name);
  put(' ');
  events = 0;
  enter(program->code, 0x3c0 | (level == 1 ? 5 : 0), 0, 0x46000000);
  put('\n');
}
static void runAll(const char *what, u64 level) {
  for (unsigned k = 0; k < COUNT(programs); k++) {
    text(what);
    put(level == 1 ? '1' : '0');
    put(' ');
    run(&programs[k], level);
  }
}

// MARK: Stage 2

static u64 tables[16][8192] __attribute__((aligned(65536)));
PROGRAM(load8, "ldrb w1, [x9]") PROGRAM(load16s, "ldrsh x17, [x9]") PROGRAM(load32s, "ldrsw x2, [x9]") PROGRAM(load64, "ldr x30, [x9]")
PROGRAM(load32x, "mov x8, #0; ldr w3, [x9, x8]") PROGRAM(loadpost, "ldr x4, [x9], #8") PROGRAM(loadpair, "ldp x5, x6, [x9]")
PROGRAM(store8, "strb w7, [x9]") PROGRAM(store64, "str xzr, [x9]") PROGRAM(store32u, "stur w8, [x9, #4]") PROGRAM(loadacquire, "ldar w9, [x9]")
PROGRAM(storerelease, "stlrh w10, [x9]") PROGRAM(loadvector, "ldr q0, [x9]") PROGRAM(exclusive, "ldxr x11, [x9]") PROGRAM(jump, "br x9")
PROGRAM(load8sw, "ldrsb w12, [x9]") PROGRAM(loadT, "ldtr x13, [x9]")
static const struct program accesses[] = {
  LIST(load8), LIST(load16s), LIST(load32s), LIST(load64), LIST(load32x), LIST(loadpost), LIST(loadpair), LIST(store8), LIST(store64),
  LIST(store32u), LIST(loadacquire), LIST(storerelease), LIST(loadvector), LIST(exclusive), LIST(jump), LIST(load8sw), LIST(loadT),
};
static void access(const struct program *program, u64 level, u64 address) {
  text(program->name);
  put(' ');
  enter(program->code, 0x3c0 | (level == 1 ? 5 : 0), address, 0x46000000);
  put('\n');
}

#define LEAF(attributes) ((attributes) | 0xfcul | 1ul << 10 | 3ul << 8)
// Identity for RAM by the granule's blocks, but for pages below 0x47400000, which are what the tests are about.
static void stage2(u64 bits) {
  for (unsigned k = 0; k < 16; k++) for (unsigned i = 0; i < 8192; i++) tables[k][i] = 0;
  u64 stride = bits - 3, block = 1ul << (bits + stride);
  // Level 2 from address 0: for 4 and 16 KiB one or several tables of it hang below tables[0].
  u64 *level2 = tables[1];
  u64 special = 0x47000000, pages = (u64)tables[8];
  for (u64 address = 0x40000000; address < 0x50000000; address += block) {
    u64 index = address >> (bits + stride) & ((1ul << stride) - 1);
    level2[index] = LEAF(address) | 1;
  }
  u64 index = special >> (bits + stride) & ((1ul << stride) - 1);
  u64 base = special & ~(block - 1);
  level2[index] = pages | 3;
  u64 *level3 = (u64 *)pages, count = 1ul << stride;
  for (u64 k = 0; k < count; k++) level3[k] = LEAF(base + (k << bits)) | 3;
  u64 first = (special - base) >> bits;
  level3[first] = 0;                                                   // not there
  level3[first + 1] = (LEAF(special + (1 << bits)) & ~(2ul << 6)) | 3; // read-only
  level3[first + 2] = (LEAF(special + (2 << bits)) & ~(3ul << 6)) | 3; // no access
  level3[first + 3] = LEAF(special + (3 << bits)) | 3 | 2ul << 53;     // not executable
  level3[first + 4] = (LEAF(special + (4 << bits)) & ~(1ul << 10)) | 3;  // never accessed
  level3[first + 5] = LEAF(0x10000000000) | 3;                         // too large an address, with PS of 36 bits
  level3[first + 6] = LEAF(special + (6 << bits)) | 1;                 // reserved
  level3[first + 7] = (LEAF(special + (7 << bits)) & ~(2ul << 6)) | 3 | 1ul << 51;  // dirty by hardware
}

void work(void) {
  WRITE("vbar_el2", vectors2);
  WRITE("vbar_el1", vectors1);
  u64 wide = 1ul << 31, authentication = 3ul << 40;
  text("id ");
  show((READ("id_aa64pfr0_el1") >> 8 & 15) != 0);
  put('\n');
  // SCTLR_EL1: nothing for EL0, then all.
  static const struct { const char *name; u64 hcr; } controls[] = {
    {"none", 0}, {"tid1", 1ul << 16}, {"tid2", 1ul << 17}, {"tid3", 1ul << 18}, {"tsc", 1ul << 19}, {"tacr", 1ul << 21}, {"tsw", 1ul << 22},
    {"tpc", 1ul << 23}, {"tpu", 1ul << 24}, {"ttlb", 1ul << 25}, {"tvm", 1ul << 26}, {"tdz", 1ul << 28},
    {"trvm", 1ul << 30}, {"tge", 1ul << 27}, {"api", 3ul << 40},
  };
  WRITE("cptr_el2", 0x33ff);
  WRITE("mdcr_el2", 6);
  for (u64 user = 0; user < 2; user++) {
    WRITE("sctlr_el1", 0x30d00800 | 1ul << 31 | (user ? 1ul << 26 | 1ul << 18 | 1ul << 16 | 1ul << 15 | 1ul << 14 | 1ul << 9 : 0));
    WRITE("cntkctl_el1", user ? 0x303 : 0);
    WRITE("cpacr_el1", user ? 3ul << 20 : 1ul << 20);
    for (unsigned k = 0; k < COUNT(controls); k++) {
      u64 hcr = wide | (authentication ^ controls[k].hcr);
      WRITE("hcr_el2", hcr);
      if (!(hcr >> 27 & 1)) runAll(controls[k].name, 1);
      // A program of EL0 ends by svc, which comes to EL2 by way of EL1, or at once; its hvc is undefined.
      if (k == 0 || k == 2 || k == 11 || k == 13 || k == 14) runAll(controls[k].name, 0);
    }
  }
  WRITE("hcr_el2", wide | authentication);
  WRITE("cptr_el2", 0x33ff | 1 << 10); runAll("tfp", 1);
  WRITE("cptr_el2", 0x33ff | 1ul << 31); runAll("tcpac", 1);
  WRITE("cptr_el2", 0x33ff);
  static const u64 debug[] = {1 << 6, 1 << 8, 1 << 9, 1 << 10, 1 << 11};
  for (unsigned k = 0; k < COUNT(debug); k++) { WRITE("mdcr_el2", debug[k] | 6); runAll("mdcr", 1); }
  WRITE("mdcr_el2", 6);
  for (unsigned k = 0; k < 4; k++) { WRITE("cnthctl_el2", k); runAll("cnthctl", 1); }
  WRITE("cnthctl_el2", 3);
  // Waiting, trapped.
  WRITE("hcr_el2", wide | authentication | 3ul << 13);
  static const struct program waits[] = {LIST(wfi)};
  run(&waits[0], 1);
  run(&waits[0], 0);

  static const u64 granules[] = {12, 14, 16};
  for (unsigned g = 0; g < 3; g++) {
    u64 bits = granules[g];
    stage2(bits);
    // 36 bits in and out. Of 4 KiB level 1 first, of the others level 2, of 16 KiB in several tables.
    u64 root = (u64)tables[1];
    if (bits == 12) { tables[0][1] = (u64)tables[1] | 3; root = (u64)tables[0]; }
    WRITE("vttbr_el2", root | 5ul << 48);
    u64 vtcr = 1ul << 31 | 28 | 1 << 6 | (bits == 12 ? 0 : bits == 14 ? 2 : 1) << 14 | 1 << 16 | 0x3500;
    for (u64 flags = 0; flags < 4; flags += 3) {
      WRITE("vtcr_el2", vtcr | flags << 21);
      WRITE("hcr_el2", wide | authentication | 1);
      WRITE("sctlr_el1", 0x30d00800);
      __asm__ volatile("dsb sy; tlbi vmalls12e1; dsb sy; isb");
      for (u64 page = 0; page < 9; page++) {
        u64 address = 0x47000000 + (page << bits) + 8;
        if (page == 8) address = 1ul << 36;
        *(volatile unsigned *)(0x47000000 + ((page & 7) << bits) + 8) = 0xd503201f;
        for (unsigned k = 0; k < COUNT(accesses); k++) {
          // What can be executed there is not what is asked.
          if (accesses[k].code == jump && (page == 1 || page == 7 || (page == 4 && flags))) continue;
          text("s2 "); show(bits); show(flags); show(page);
          access(&accesses[k], 1, address);
        }
      }
      // The first of stage 1's tables, or the second one, is not there, or has no access; then a page of EL1's is not.
      // 39 bits of address: levels 1 to 3, of 4 KiB.
      WRITE("tcr_el1", 25 | 25 << 16 | 1ul << 32);
      WRITE("mair_el1", 0xff);
      for (u64 page = 0; page < 5; page++) {
        volatile u64 *level1 = (u64 *)(page < 3 ? 0x47000000 + (page << bits) : 0x47800000);
        volatile u64 *level2 = (u64 *)(page == 3 ? 0x47000000ul : 0x47801000ul);
        for (int i = 0; i < 512; i++) { level1[i] = 0; level2[i] = 0x40000000 + ((u64)i << 21) + 0x701; }
        level1[1] = (u64)level2 | 3;
        // An entry of EL0's, which EL1 may use, too.
        level2[64] |= 1 << 6;
        WRITE("ttbr0_el1", level1);
        WRITE("ttbr1_el1", level1);
        __asm__ volatile("dsb sy; tlbi vmalls12e1; dsb sy; isb");
        static const u64 addresses[] = {0x47000008, 0x48000000, 0x80000000, 0xffffff8047000008};
        for (unsigned a = 0; a < COUNT(addresses); a++) {
          WRITE("sctlr_el1", 0x30d00801);
          text("at "); show(bits); show(page); show(addresses[a]);
          __asm__ volatile("at s1e1r, %0; isb" : : "r"(addresses[a])); parameter();
          __asm__ volatile("at s1e0w, %0; isb" : : "r"(addresses[a])); parameter();
          __asm__ volatile("at s12e1w, %0; isb" : : "r"(addresses[a])); parameter();
          __asm__ volatile("at s12e0r, %0; isb" : : "r"(addresses[a])); parameter();
          put('\n');
          if (page > 0 && page < 3) continue;
          for (unsigned k = 0; k < COUNT(accesses); k++) {
            if (accesses[k].code == jump) continue;
            text("s1 "); show(bits); show(flags); show(page); show(a);
            access(&accesses[k], 1, addresses[a]);
          }
        }
        WRITE("sctlr_el1", 0x30d00800);
      }
    }
  }
  text("end\n");
  end();
}
