// A bare-metal program for the Raspberry Pi 3: asks the firmware by the mailbox, and prints answers and registers by
// semihosting. What it asks for is what QEMU 7.2 answers in the same way.
typedef unsigned u32;
typedef unsigned long u64;

static u64 call(u64 operation, const void *parameter) {
  register u64 x0 __asm__("x0") = operation;
  register const void *x1 __asm__("x1") = parameter;
  __asm__ volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
  return x0;
}

static void print(u32 value) {
  static char text[10];
  for (int i = 0; i < 8; i++) text[i] = "0123456789abcdef"[value >> (28 - 4 * i) & 15];
  text[8] = ' ';
  text[9] = 0;
  call(4, text);
}

#define REGISTER(offset) (*(volatile u32 *)(u64)(0x3f000000u + (offset)))
static volatile u32 message[64] __attribute__((aligned(64)));

static void ask(u32 tag, u32 count, u32 first, u32 second) {
  for (int i = 0; i < 64; i++) message[i] = 0;
  message[0] = (6 + count) * 4;
  message[2] = tag;
  message[3] = count * 4;
  message[5] = first;
  if (count > 1) message[6] = second;
  u32 mail = (u32)(u64)message | 8;
  REGISTER(0xb8a0) = mail;
  while (REGISTER(0xb898) & (1u << 30)) {}
  u32 reply = REGISTER(0xb880);
  print(tag);
  print(message[1]);
  print(message[4]);
  for (u32 i = 0; i < count; i++) print(message[5 + i]);
  call(4, reply == mail ? "\n" : "wrong mail\n");
}

void main(void) {
  static const u32 tags[][4] = {
      {0x10001, 1, 0, 0}, {0x10002, 1, 0, 0}, {0x10003, 2, 0, 0}, {0x10005, 2, 0, 0}, {0x10006, 2, 0, 0},
      {0x28001, 2, 3, 3}, {0x30001, 2, 1, 0}, {0x40003, 2, 0, 0}, {0x48003, 2, 800, 600}, {0x48004, 2, 800, 600},
      {0x48005, 1, 32, 0}, {0x40001, 2, 16, 0}, {0x40008, 1, 0, 0}, {0x40006, 1, 0, 0}, {0x40009, 2, 0, 0},
  };
  for (u32 i = 0; i < sizeof tags / sizeof tags[0]; i++) ask(tags[i][0], tags[i][1], tags[i][2], tags[i][3]);
  // Power manager, clocks locked, pins, mini UART, interrupt controller.
  static const u32 registers[] = {0x100020, 0x10001c, 0x101114, 0x200000, 0x200034, 0x215054, 0x215064, 0xb200};
  for (u32 i = 0; i < sizeof registers / sizeof registers[0]; i++) {
    print(registers[i]);
    print(REGISTER(registers[i]));
    call(4, "\n");
  }
  u64 end[2] = {0x20026, 5};
  call(0x18, end);
}

__asm__(".section .text.unlikely,\"ax\"\n.global _start\n_start: mrs x0, mpidr_el1\n and x0, x0, #3\n cbnz x0, 1f\n"
        " mov x0, #0x200000\n mov sp, x0\n bl main\n1: wfe\n b 1b\n.text");
