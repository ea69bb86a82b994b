#!/usr/bin/env python3
"""AArch64 programs under the user-mode emulator: loading, threads, signals, and results equal to the host's own.

APUS_USER_AARCH64 names another emulator to test (bin/apus-aarch64 without it).
"""
import hashlib
import os
import pathlib
import shutil
import subprocess

from harness import PATIENCE, ROOT, Skip, case, check, main, temporary
import guestprograms
from guestprograms import HELLO

LIBRARIES = pathlib.Path("/usr/aarch64-linux-gnu")


def run(*words, timeout=120, **options):
    emulator = os.environ.get("APUS_USER_AARCH64") or str(ROOT / "bin" / "apus-aarch64")
    return subprocess.run([emulator, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, errors="replace", timeout=timeout * PATIENCE, **options)


def build(name, source, *flags, compiler="aarch64-linux-gnu-gcc"):
    found = shutil.which(compiler)
    if not found or not (LIBRARIES / "include" / "stdio.h").exists():
        raise Skip("the cross compiler or its C library is missing; run scripts/install-deps")
    path = temporary() / (name + ".c")
    path.write_text(source)
    output = temporary() / f"{name}-{compiler}"
    subprocess.run([found, "-O2", "-w", "-ffp-contract=off", *flags, "-o", output, path, "-lm", "-lpthread"], check=True)
    return output


@case("kinds-of-programs")
def kinds():
    for name, flags, options in [("static", ["-static"], []), ("pie", ["-pie", "-fPIE"], ["-L", LIBRARIES])]:
        program = build("hello-" + name, HELLO, *flags)
        for engine in [[], ["-accel", "interpreter"]]:
            done = run(*options, *engine, program, "7", "two words", "")
            check(done.returncode == 7 and done.stdout == f"{program} [7] [two words] [] - 1\n",
                  f"{name}: {done.returncode} {done.stdout!r} {done.stderr!r}")


@case("wrong-machine")
def wrong_machine():
    done = run("/bin/true")
    check(done.returncode != 0 and "AArch64" in done.stderr and len(done.stderr.splitlines()) == 1,
          f"a program of the host's ended with {done.returncode}: {done.stderr!r}")
    done = run("-cpu", "cortex-z99", "/bin/true")
    check(done.returncode == 1 and "cortex-z99" in done.stderr, f"an unknown CPU: {done.stderr!r}")


@case("branch-targets")
def branch_targets():
    """Guarded pages by mmap and mprotect, and by a program's property; the rules are the architecture's, as QEMU 7.2 has them."""
    program = guestprograms.build("branchtargets", "branchtargets.c", "-static", target="aarch64")
    accepted = {"nop": "", "bti": "", "bti c": "call linkage", "bti j": "jump linkage", "bti jc": "call jump linkage"}
    kinds = [("blr", "call"), ("br", "linkage"), ("br x17", "linkage"), ("ret", None), ("br in the page", "jump"),
             ("br x17 in the page", "linkage")]
    lines = ["hwcap2 1"]
    for guarded in [1, 0]:
        lines.append(f"guarded {guarded}")
        for kind, type_ in kinds:
            for index, (name, takes) in enumerate(accepted.items()):
                is_through = not guarded or type_ is None or type_ in takes.split()
                lines.append(f"{kind} to {name}: " + ("through" if is_through else f"signal 4 code 1 at {8 * index}"))
            lines.append(f"{kind} to brk: signal 5 code 1 at 40")
    lines += ["mapped: signal 4 code 1 at 0", "mapped: through"]
    for engine in [[], ["-accel", "interpreter"]]:
        done = run(*engine, program)
        check(done.returncode == 0 and done.stdout.splitlines() == lines, f"{engine}: {done.stdout!r} {done.stderr!r}")
    done = run("-cpu", "cortex-a76", program)
    check("hwcap2 0" in done.stdout and "signal 4" not in done.stdout, f"a model without BTI: {done.stdout!r}")
    # A program whose property says that all of its code has landing pads, and one without it.
    source = temporary() / "property.s"
    source.write_text(""".global _start
_start: adr x9, 1f
  br x9
  nop
1: mov x0, #0
  mov x8, #93
  svc 0
""")
    for flags, code in [(["-Wl,-z,force-bti"], -4), ([], 0)]:
        output = temporary() / "property"
        subprocess.run(["aarch64-linux-gnu-gcc", "-nostdlib", "-static", *flags, "-o", output, source], check=True,
                       stderr=subprocess.DEVNULL)
        done = run(output)
        check(done.returncode == code, f"{flags}: the program ended with {done.returncode}: {done.stderr!r}")


THREADS = r"""
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>
static atomic_long words;
static _Atomic unsigned char bytes;
static _Atomic unsigned short halves;
static long plain;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void *work(void *unused) {
  for (int i = 0; i < 20000; i++) {
    atomic_fetch_add(&words, 1);
    atomic_fetch_add(&bytes, 1);
    atomic_fetch_add(&halves, 3);
    pthread_mutex_lock(&mutex);
    plain++;
    pthread_mutex_unlock(&mutex);
  }
  return unused;
}
static sigjmp_buf back;
static volatile sig_atomic_t count;
static void handler(int number, siginfo_t *info, void *context) {
  ucontext_t *u = context;
  if (number == SIGSEGV) {
    printf("fault at %p %d\n", info->si_addr, u->uc_mcontext.fault_address == (unsigned long)info->si_addr);
    siglongjmp(back, 1);
  }
  if (number == SIGILL) u->uc_mcontext.pc += 4;
  if (number == SIGUSR1) raise(SIGUSR2), printf("first\n");
  if (number == SIGUSR2) printf("second\n");
  count++;
}
int main(void) {
  pthread_t threads[4];
  for (int i = 0; i < 4; i++) pthread_create(&threads[i], 0, work, 0);
  for (int i = 0; i < 4; i++) pthread_join(threads[i], 0);
  printf("%ld %d %d %ld\n", (long)words, bytes, halves, plain);
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
  sigaction(SIGSEGV, &action, 0);
  sigaction(SIGILL, &action, 0);
  sigaction(SIGUSR2, &action, 0);
  sigaddset(&action.sa_mask, SIGUSR2);
  sigaction(SIGUSR1, &action, 0);
  struct sigaction old;
  sigaction(SIGUSR1, 0, &old);
  printf("masked %d %d\n", sigismember(&old.sa_mask, SIGUSR2), sigismember(&old.sa_mask, SIGINT));
  if (!sigsetjmp(back, 1)) *(volatile int *)0x10 = 1;
  register double kept __asm__("d9") = 2.5;
  __asm__ volatile("udf #0" : "+w"(kept));
  raise(SIGUSR1);
  printf("%d signals, %g\n", count, kept);
  int status;
  if (fork() == 0) _exit(9);
  wait(&status);
  printf("child %d\n", WEXITSTATUS(status));
  return 0;
}
"""


@case("threads-and-signals")
def threads_and_signals():
    """Atomics of every width by LSE and by exclusive pairs; handlers that read and change their context; fork."""
    for name, flags, cpu in [("lse", ["-march=armv8.1-a"], "max"), ("exclusive", ["-mno-outline-atomics"], "cortex-a72")]:
        done = run("-cpu", cpu, build("threads-" + name, THREADS, "-static", *flags))
        wanted = "80000 128 43392 80000\nmasked 1 0\nfault at 0x10 1\nfirst\nsecond\n3 signals, 2.5\nchild 9\n"
        check(done.returncode == 0 and done.stdout == wanted, f"{name}: {done.returncode} {done.stdout!r} {done.stderr!r}")


CHANGING = r"""
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <stdint.h>
int main(void) {
  uint32_t *code = mmap(0, 8192, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  unsigned sum = 0;
  for (uint32_t i = 0; i < 3000; i++) {
    uint32_t *place = code + (i & 3) * 511;  // one of them across two pages
    place[0] = 0x52800000 | (i & 0xffff) << 5;  // mov w0, #i
    place[1] = 0x11000400;                      // add w0, w0, #1
    place[2] = 0xd65f03c0;                      // ret
    __builtin___clear_cache((char *)place, (char *)(place + 3));
    sum = sum * 31 + ((unsigned (*)(void))place)();
  }
  unsigned expected = 0;
  for (uint32_t i = 0; i < 3000; i++) expected = expected * 31 + i + 1;
  mprotect(code, 4096, PROT_READ | PROT_WRITE);
  code[0] = 0x52800540;  // mov w0, #42
  code[1] = 0xd65f03c0;
  mprotect(code, 4096, PROT_READ | PROT_EXEC);
  __builtin___clear_cache((char *)code, (char *)(code + 2));
  printf("%d %u\n", sum == expected, ((unsigned (*)(void))code)());
  return 0;
}
"""


@case("changing-code")
def changing_code():
    for engine in [[], ["-accel", "interpreter"]]:
        done = run(*engine, build("changing", CHANGING, "-static"))
        check(done.returncode == 0 and done.stdout == "1 42\n", f"{engine}: {done.returncode} {done.stdout!r} {done.stderr!r}")


NUMBERS = r"""
#include <fenv.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static uint64_t seed = 88172645463325252ull;
static uint64_t next(void) { seed ^= seed << 13; seed ^= seed >> 7; return seed ^= seed << 17; }
static uint64_t sum;
static void add(uint64_t value) { sum = (sum ^ value) * 0x100000001b3ull; }
static int compare(const void *a, const void *b) { return *(int *)a < *(int *)b ? -1 : *(int *)a > *(int *)b; }
int main(void) {
  static int numbers[20000];
  static float floats[4096], more[4096];
  static unsigned char text[5000], other[5000];
  for (int i = 0; i < 20000; i++) numbers[i] = next();
  qsort(numbers, 20000, sizeof *numbers, compare);
  for (int i = 0; i < 20000; i++) add(numbers[i]);
  printf("sorted %016llx\n", (unsigned long long)sum);
  for (int i = 1; i < 2000; i++) {
    int64_t a = next() >> (i & 63), b = (int64_t)(next() | 1) >> (i & 31);
    add(a / (b ? b : 1)), add(a % (b ? b : 1)), add(a * b), add((uint64_t)((__int128)a * b >> 64));
    add(__builtin_clzll(a | 1)), add(__builtin_ctzll(a | 8)), add(__builtin_popcountll(a)), add(__builtin_bswap32(a));
    add(a >> (b & 63)), add((uint32_t)a << (b & 31)), add(a < b), add((uint64_t)a < (uint64_t)b);
  }
  printf("integers %016llx\n", (unsigned long long)sum);
  for (int i = 0; i < 4096; i++) floats[i] = (int)next() / 1e6f, more[i] = (int)next() / 1e3f;
  float total = 0;
  for (int i = 0; i < 4096; i++) total += floats[i] * more[i] - sqrtf(fabsf(more[i]));
  double d = 0;
  for (int i = 1; i < 3000; i++) d += sin(i) * exp(-i / 500.0) + log(i) / i + pow(i, 0.3) - cbrt(i);
  printf("floats %.9g %.17g\n", total, d);
  printf("%d %lld %u %.6f %e %a\n", (int)-2.75, (long long)1e15, (unsigned)3e9, 1.0 / 3, 1e-310, 0.1);
  for (int i = 0; i < 4999; i++) text[i] = 'a' + next() % 26;
  memcpy(other, text, 5000);
  for (int i = 0; i < 300; i++) {
    int at = next() % 4000, length = next() % 900;
    memmove(other + at, other + at + i % 7, length);
    add(memcmp(text, other, 4999) > 0), add(strlen((char *)other + at));
    char *found = strchr((char *)other + at, 'a' + i % 26);
    add(found ? found - (char *)other : -1);
    memset(other + at / 2, 'b', length % 50);
  }
  for (int i = 0; i < 4999; i++) add(other[i]);
  printf("strings %016llx\n", (unsigned long long)sum);
  fesetround(FE_UPWARD);
  volatile double one = 1, three = 3;
  printf("upward %.20g", one / three);
  fesetround(FE_TONEAREST);
  feclearexcept(FE_ALL_EXCEPT);
  volatile double overflow = 1e308;
  overflow *= 10;
  printf(" %d %d\n", !!fetestexcept(FE_OVERFLOW), !!fetestexcept(FE_DIVBYZERO));
  return 0;
}
"""


@case("numbers-as-on-the-host")
def numbers():
    """Integers, floating point and strings give what the same program gives on the host; vectorised loops too."""
    if not shutil.which("gcc"):
        raise Skip("the host's compiler is missing")
    native = subprocess.run([build("numbers", NUMBERS, compiler="gcc")], stdout=subprocess.PIPE, text=True, check=True)
    for flags in [["-O2"], ["-O3"], ["-O0"]]:
        done = run(build("numbers", NUMBERS, "-static", *flags))
        check(done.returncode == 0 and done.stdout == native.stdout,
              f"{flags}: {done.returncode} {done.stdout!r}, not {native.stdout!r}; {done.stderr!r}")


@case("vectors-of-floats")
def vectors_of_floats():
    """Results and flags on operands at the edges, by FPCR's rounding mode (8: default NaN); the digests are those of the
    output under qemu-aarch64-static 7.2."""
    program = guestprograms.build("vectorfloats", "vectorfloats.c", "-static", "-ffp-contract=off", target="aarch64")
    for control, digest in [("0", "62901e1bbf2e2a30"), ("1", "06327ab435f7f267"), ("2", "91945ae8cdf4af05"), ("3", "09be3236940cf040"), ("8", "0d306a562d7449ee")]:
        for engine in [[], ["-accel", "interpreter"]]:
            done = run(*engine, program, control)
            check(done.returncode == 0 and hashlib.sha256(done.stdout.encode()).hexdigest()[:16] == digest,
                  f"{control} {engine}: {done.returncode} {done.stdout[:2000]!r} {done.stderr!r}")


@case("conversions")
def conversions():
    """Between floats and integers; the digests are those of qemu-aarch64-static 7.2."""
    program = guestprograms.build("conversions", "conversions.c", "-static", target="aarch64")
    expected = ["a396a4b31438ea6e", "73886cab07ea33ca", "312b3d2e1d60f49b", "b0132dc0b21ca4f3", "b85cfaf369a5d018",
                "0e1e183ea1282f4f", "7634958023f8c7e5", "0834fe5853a8d18d"]
    for engine in [[], ["-accel", "jit,opt=-host-vector"], ["-accel", "jit,host-level=sse4"], ["-accel", "interpreter"]]:
        done = run(*engine, program)
        found = [line.split()[1] for line in done.stdout.splitlines()]
        check(done.returncode == 0 and found == expected, f"{engine}: {done.returncode} {found} {done.stderr!r}")


IDENTIFICATION = r"""
#include <stdio.h>
#include <sys/auxv.h>
#define SHOW(name) { unsigned long value; __asm__("mrs %0, " name : "=r"(value)); printf(" %lx", value); }
int main(void) {
  printf("%lx %lx", getauxval(16), getauxval(26));
  // MIDR, MPIDR, PFR0, PFR1, ISAR0, ISAR1, MMFR0, MMFR2
  SHOW("s3_0_c0_c0_0") SHOW("s3_0_c0_c0_5") SHOW("s3_0_c0_c4_0") SHOW("s3_0_c0_c4_1")
  SHOW("s3_0_c0_c6_0") SHOW("s3_0_c0_c6_1") SHOW("s3_0_c0_c7_0") SHOW("s3_0_c0_c7_2")
  puts("");
  return 0;
}
"""


@case("identification")
def identification():
    """Capabilities and feature registers as Linux shows them for the core, and they agree with each other."""
    program = build("identification", IDENTIFICATION, "-static")
    expected = {
        "cortex-a53": "8fb 0 410fd034 80000000 11 0 11120 0 ff000000 0",
        "cortex-a76": "119ffb 0 414fd0b1 80000000 110011 10 100010211120 100001 ff000000 0",
        "neoverse-n1": "10119ffb 0 414fd0c1 80000000 110011 20 100010211120 100001 ff000000 0",
        "max": "fdbffffb 336181 f0510 80000000 1000000110011 121 1021111110212120 10101110211102 ff000000 0",
        "max,pauth=off": "3dbffffb 336181 f0510 80000000 1000000110011 121 1021111110212120 10101100211002 ff000000 0",
        "max,pauth-impdef=off": "fdbffffb 336181 f0510 80000000 1000000110011 121 1021111110212120 10101101211012 ff000000 0",
    }
    for model, values in expected.items():
        done = run("-cpu", model, program)
        check(done.stdout.strip() == values, f"{model}: {done.stdout!r} {done.stderr!r}")
    for model in ["max,pauth=maybe", "max,sve=on", "cortex-a53,pauth=on"]:
        done = run("-cpu", model, program)
        check(done.returncode == 1 and model in done.stderr and len(done.stderr.splitlines()) == 1, f"{model}: {done.stderr!r}")


@case("alternate-float")
def alternate_float():
    """FPCR's AH, NEP and FIZ: the values are in the program."""
    program = guestprograms.build("alternatefloat", "alternatefloat.c", "-static", "-march=armv8.6-a+fp16+fp16fml", target="aarch64")
    expected = "hwcap2 1 1, cpuinfo 1, registers 1 1, fpcr 2000007\nframe 6, then 3\n178 checks, 0 wrong\n"
    for engine in [[], ["-accel", "jit,opt=-host-vector"], ["-accel", "interpreter"]]:
        done = run(*engine, program)
        check(done.returncode == 0 and done.stdout == expected, f"{engine}: {done.stdout!r} {done.stderr!r}")
    done = run("-cpu", "cortex-a76", program)
    check(done.stdout == "hwcap2 0 0, cpuinfo 0, registers 0 0, fpcr 2000000\n", f"a model without AFP: {done.stdout!r}")


@case("ciphers")
def ciphers():
    """The benchmark's kernels: the host's instructions, the portable code and the evaluator agree."""
    source = (ROOT / "Benchmarks" / "guests" / "aarch64" / "cipher.c").read_text()
    program = build("cipher", source, "-static", "-march=armv8-a+crypto+crc")
    for kernel in ["aes", "sha1", "sha256", "pmull", "crc32", "crc32c"]:
        outputs = [run(*options, program, kernel, 2).stdout for options in [
            [], ["-accel", "jit,opt=-host-crypto-host-sha"], ["-accel", "jit,opt=-host-vector"], ["-accel", "interpreter"]]]
        check(outputs[0].startswith(kernel + " ") and len(set(outputs)) == 1, f"{kernel}: {outputs}")


AUTHENTICATION = r"""
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
static uint64_t sign(uint64_t pointer, uint64_t modifier) { __asm__("pacia %0, %1" : "+r"(pointer) : "r"(modifier)); return pointer; }
static uint64_t check(uint64_t pointer, uint64_t modifier) { __asm__("autia %0, %1" : "+r"(pointer) : "r"(modifier)); return pointer; }
static uint64_t strip(uint64_t pointer) { __asm__("xpaci %0" : "+r"(pointer)); return pointer; }
static uint64_t generic(uint64_t a, uint64_t b) { uint64_t sum; __asm__("pacga %0, %1, %2" : "=r"(sum) : "r"(a), "r"(b)); return sum; }
static jmp_buf back;
static __attribute__((noinline)) int deep(int n) { if (!n) longjmp(back, 1); return deep(n - 1) + 1; }
int main(void) {
  unsigned changed = 0, same = 0, refused = 0, stripped = 0, generics = 0;
  for (uint64_t i = 0; i < 1000; i++) {
    uint64_t pointer = (uint64_t)&back + 16 * i, modifier = i * 0x9e3779b97f4a7c15, code = sign(pointer, modifier);
    changed += code != pointer;
    same += check(code, modifier) == pointer;
    refused += check(code, modifier + 1) != pointer;
    stripped += strip(code) == pointer && (code & 0xff80ffffffffffff) == pointer;
    generics += (generic(pointer, modifier) & 0xffffffff) == 0 && generic(pointer, modifier) != generic(pointer, modifier + 1);
  }
  int jumped = setjmp(back) ? 1 : deep(20);
  printf("%d %d %d %d %d %d\n", changed > 900, same == 1000, refused > 900, stripped == 1000, generics > 990, jumped);
  return 0;
}
"""


@case("pointer-authentication")
def pointer_authentication():
    program = build("authentication", AUTHENTICATION, "-static", "-march=armv8.3-a", "-mbranch-protection=pac-ret+leaf")
    for model in ["max", "max,pauth-impdef=off"]:
        for engine in [[], ["-accel", "interpreter"]]:
            done = run("-cpu", model, *engine, program)
            check(done.stdout == "1 1 1 1 1 1\n", f"{model} {engine}: {done.stdout!r} {done.stderr!r}")
    done = run("-cpu", "max,pauth=off", program)
    check(done.returncode != 0, "instructions that are not there run")


if __name__ == "__main__":
    main()
