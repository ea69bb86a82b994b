// Pointer authentication at EL1 on the bare machine: codes of known keys under several translation controls, a number a line.
typedef unsigned long u64;

__asm__(".section .text.start\n"
        ".global _start\n"
        "_start: ldr x0, =0x48000000\n"
        "mov sp, x0\n"
        "b work\n"
        ".text");

static void put(char c) { *(volatile unsigned *)0x9000000 = c; }
static void show(u64 value) {
  for (int shift = 60; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
  put('\n');
}

#define KEY(name, low, high) \
  __asm__ volatile("msr s3_0_c2_" name "0, %0; msr s3_0_c2_" name "1, %1" : : "r"((u64)(low)), "r"((u64)(high)));
#define KEY2(name, low, high) \
  __asm__ volatile("msr s3_0_c2_" name "2, %0; msr s3_0_c2_" name "3, %1" : : "r"((u64)(low)), "r"((u64)(high)));
#define APPLY(instruction) \
  { u64 value = pointers[i]; __asm__ volatile(instruction " %0, %1" : "+r"(value) : "r"(modifiers[j])); show(value); }

void work(void) {
  KEY("c1_", 0xec2802d4e0a488e9, 0x84be85ce9804e94b)
  KEY2("c1_", 0x0123456789abcdef, 0xfedcba9876543210)
  KEY("c2_", 0x1111111122222222, 0x3333333344444444)
  KEY2("c2_", 0x5555555566666666, 0x7777777788888888)
  KEY("c3_", 0xec2802d4e0a488e9, 0x84be85ce9804e94b)
  static const u64 pointers[] = {0x0000123456789abc, 0xffff800012345678, 0xfb623599da6e8127,
                                 0x00ff000000001000, 0x5a00123456789abc, 0xa5ff800012345678};
  static const u64 modifiers[] = {0, 0x477d469dec0b8762};
  // Addresses of 48 and 39 bits; the top byte counts, or not, or not for data.
  static const u64 controls[] = {16 | 16ul << 16, 16 | 16ul << 16 | 3ul << 37, 25 | 25ul << 16 | 3ul << 37,
                                 16 | 16ul << 16 | 3ul << 37 | 3ul << 51};
  u64 sum;
  __asm__ volatile("pacga %0, %1, %2" : "=r"(sum) : "r"(pointers[2]), "r"(modifiers[1]));
  show(sum);
  for (int k = 0; k < 4; k++) {
    __asm__ volatile("msr tcr_el1, %0; isb" : : "r"(controls[k]));
    for (int enabled = 0; enabled < 2; enabled++) {
      u64 control;
      __asm__ volatile("mrs %0, sctlr_el1" : "=r"(control));
      control &= ~(1ul << 31 | 1ul << 30 | 1ul << 27 | 1ul << 13);
      if (enabled) control |= 1ul << 31 | 1ul << 30 | 1ul << 27 | 1ul << 13;
      __asm__ volatile("msr sctlr_el1, %0; isb" : : "r"(control));
      for (int i = 0; i < 6; i++) {
        for (int j = 0; j < 2; j++) {
          APPLY("pacia") APPLY("pacib") APPLY("pacda") APPLY("pacdb")
          APPLY("autia") APPLY("autib") APPLY("autda") APPLY("autdb")
        }
        // QEMU 7.2 does not strip where no key is enabled; the manual's Strip asks for none.
        if (!enabled) continue;
        u64 value = pointers[i];
        __asm__ volatile("xpaci %0" : "+r"(value));
        show(value);
        value = pointers[i];
        __asm__ volatile("xpacd %0" : "+r"(value));
        show(value);
        value = pointers[i];
        __asm__ volatile("pacia %0, %1; autia %0, %1" : "+r"(value) : "r"(5ul));
        show(value);
      }
    }
  }
  // SYSTEM_OFF
  __asm__ volatile("ldr x0, =0x84000008; hvc #0");
}
