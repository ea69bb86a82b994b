// A bare-metal program that makes every semihosting call and prints what comes back; built for both architectures.
typedef unsigned long word;
#define FAIL ((word)-1)

static word call(word operation, const void *parameter) {
#ifdef __aarch64__
  register word x0 __asm__("x0") = operation;
  register const void *x1 __asm__("x1") = parameter;
  __asm__ volatile("hlt #0xf000" : "+r"(x0) : "r"(x1) : "memory");
  return x0;
#else
  register word a0 __asm__("a0") = operation;
  register const void *a1 __asm__("a1") = parameter;
  __asm__ volatile(".option push\n.option norvc\n.balign 16\nslli x0, x0, 0x1f\nebreak\nsrai x0, x0, 7\n.option pop"
                   : "+r"(a0) : "r"(a1) : "memory");
  return a0;
#endif
}

static word length(const char *text) {
  word count = 0;
  while (text[count]) count++;
  return count;
}
static void print(const char *text) { call(0x04, text); }
static void number(const char *name, word value) {
  static char text[32];
  int at = 31;
  int negative = (long)value < 0;
  word rest = negative ? -value : value;
  do text[--at] = '0' + rest % 10; while (rest /= 10);
  if (negative) text[--at] = '-';
  print(name);
  print(" ");
  print(&text[at]);
  print("\n");
}

static word call1(word operation, word a) { word block[1] = {a}; return call(operation, block); }
static word call2(word operation, word a, word b) { word block[2] = {a, b}; return call(operation, block); }
static word call3(word operation, word a, word b, word c) { word block[3] = {a, b, c}; return call(operation, block); }
static word open(const char *path, word mode) { return call3(0x01, (word)path, mode, length(path)); }

static char buffer[200000];
static char path[64];

static void files(void) {
  word name[3] = {(word)path, 7, sizeof path};
  number("tmpnam", call(0x0d, name));
  word file = open(path, 7);
  number("opened", file != FAIL && file != 0);
  for (word i = 0; i < sizeof buffer; i++) buffer[i] = (char)(i * 7 + i / 251);
  number("write", call3(0x05, file, (word)buffer, sizeof buffer));
  number("flen", call1(0x0c, file));
  number("seek", call2(0x0a, file, 1000));
  for (word i = 0; i < sizeof buffer; i++) buffer[i] = 0;
  number("read", call3(0x06, file, (word)buffer, sizeof buffer));
  number("same", buffer[0] == (char)(1000 * 7 + 1000 / 251) && buffer[50000] == (char)(51000 * 7 + 51000 / 251));
  number("at-end", call3(0x06, file, (word)buffer, 10));
  number("istty", call1(0x09, file));
  number("close", call1(0x02, file));
  number("closed", call1(0x02, file));
  number("errno", call(0x13, 0));
  static char other[80];
  word at = 0;
  while (path[at]) { other[at] = path[at]; at++; }
  other[at++] = 'x';
  word both[4] = {(word)path, length(path), (word)other, length(other)};
  number("rename", call(0x0f, both));
  number("gone", open(path, 0));
  number("errno", call(0x13, 0));
  file = open(other, 8);
  number("append", call3(0x05, file, (word)"tail", 4));
  number("flen", call1(0x0c, file));
  call1(0x02, file);
  number("remove", call2(0x0e, (word)other, length(other)));
  number("remove", call2(0x0e, (word)other, length(other)));
  number("bad-mode", open(other, 12));
}

int main(void) {
  print("start\n");
  call(0x03, "*");
  call(0x03, "\n");
  word output = open(":tt", 4), errors = open(":tt", 8), input = open(":tt", 0);
  number("consoles", output != FAIL && errors != FAIL && input != FAIL);
  number("console", call3(0x05, output, (word)"hello\n", 6));
  number("console", call3(0x05, errors, (word)"error\n", 6));
  number("istty", call1(0x09, output));
  word features = open(":semihosting-features", 0);
  number("feature-bytes", call1(0x0c, features));
  number("features", call3(0x06, features, (word)buffer, 5));
  number("magic", buffer[0] == 'S' && buffer[1] == 'H' && buffer[2] == 'F' && buffer[3] == 'B');
  number("bits", (word)buffer[4]);
  number("features-write", open(":semihosting-features", 4));
  files();
  number("iserror", call1(0x08, FAIL));
  number("iserror", call1(0x08, 3));
  number("clock", (long)call(0x10, 0) >= 0);
  number("time", call(0x11, 0) > 1700000000);
  word ticks[1] = {0};
  number("elapsed", call(0x30, ticks));
  number("ticked", ticks[0] > 0);
  number("tickfreq", call(0x31, 0));
  word line[2] = {(word)buffer, sizeof buffer};
  number("cmdline", call(0x15, line));
  print(buffer);
  print("\n");
  number("cmdline-length", line[1] == length(buffer));
  line[1] = 3;
  number("cmdline-short", call(0x15, line));
  word heap[4] = {1, 1, 1, 1};
  number("heapinfo", call1(0x16, (word)heap));
  number("heap", heap[0] < heap[1] && heap[3] < heap[2] && heap[0] > (word)&buffer);
  number("unmapped", call3(0x05, output, 0x7fff00000000, 4) != 0);
  word reason[2] = {0x20026, 42};
  call(0x18, reason);
  return 0;
}

#ifdef __aarch64__
__asm__(".section .text.unlikely,\"ax\"\n.global _start\n_start: adr x0, stack_top\n mov sp, x0\n"
        " mov x0, #(3 << 20)\n msr cpacr_el1, x0\n isb\n bl main\n1: b 1b\n.text");
#else
__asm__(".section .text.unlikely,\"ax\"\n.global _start\n_start: la sp, stack_top\n call main\n1: j 1b\n.text");
#endif
__asm__(".bss\n.balign 16\n.space 16384\n.global stack_top\nstack_top: .quad 0\n.text");
