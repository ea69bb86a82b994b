// What programs for the bare machine (virt) share: system registers, and lines on the serial port.
typedef unsigned long u64;

#define READ(name) ({ u64 value; __asm__ volatile("mrs %0, " name : "=r"(value)); value; })
#define WRITE(name, value) __asm__ volatile("msr " name ", %0; isb" : : "r"((u64)(value)))

static void put(char c) { *(volatile unsigned *)0x9000000 = c; }
static void text(const char *s) { while (*s) put(*s++); }
// Hexadecimal, and a space.
static void show(u64 value) {
  int shift = 60;
  while (shift > 0 && value >> shift == 0) shift -= 4;
  for (; shift >= 0; shift -= 4) put("0123456789abcdef"[value >> shift & 15]);
  put(' ');
}
