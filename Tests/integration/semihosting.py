#!/usr/bin/env python3
"""Semihosting: a bare-metal program that makes every call, on both architectures, under QEMU too where it is installed.

APUS_SYSTEM and APUS_SYSTEM_AARCH64 name other emulators to test."""
import os
import re
import shutil
import subprocess

from harness import ROOT, Skip, case, check, main, temporary

SOURCE = ROOT / "Tests" / "Guests" / "semihosting" / "program.c"
TARGETS = {
    "aarch64": ("aarch64-linux-gnu-gcc", ["-mgeneral-regs-only", "-mcmodel=tiny", "-Wl,-Ttext=0x40400000"],
                ["-M", "virt", "-cpu", "cortex-a57"]),
    "riscv64": ("riscv64-linux-gnu-gcc", ["-mcmodel=medany", "-Wl,-Ttext=0x80000000"], ["-M", "virt", "-bios", "none"]),
}
EXPECTED = """start
*
consoles 1
console 0
error
console 0
istty 0
feature-bytes 5
features 0
magic 1
bits 3
features-write -1
tmpnam 0
opened 1
write 0
flen 200000
seek 0
read 1000
same 1
at-end 10
istty 0
close 0
closed -1
errno 9
rename 0
gone -1
errno 2
append 0
flen 200004
remove 0
remove -1
bad-mode -1
iserror 1
iserror 0
clock 1
time 1
elapsed 0
ticked 1
tickfreq 1000000000
cmdline 0
LINE
cmdline-length 1
cmdline-short -1
heapinfo 0
heap 1
unmapped 1
"""


def program(target):
    compiler, flags, _ = TARGETS[target]
    if not shutil.which(compiler):
        raise Skip(f"{compiler} is missing; run scripts/install-deps")
    path = temporary() / f"semihosting-{target}"
    subprocess.run([compiler, "-O1", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-pic", "-static",
                    "-Wl,--build-id=none,-e,_start", *flags, "-o", path, SOURCE], check=True)
    return path


def emulator(target):
    variable = "APUS_SYSTEM_AARCH64" if target == "aarch64" else "APUS_SYSTEM"
    return os.environ.get(variable) or str(ROOT / "bin" / f"apus-system-{target}")


def run(binary, target, *options, timeout=60):
    return subprocess.run([binary, *TARGETS[target][2], "-m", "256", "-display", "none", "-serial", "none", "-monitor", "none",
                           "-kernel", program(target), *options], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          timeout=timeout)


def calls(target):
    for engine in [[], ["-accel", "interpreter"]]:
        done = run(emulator(target), target, "-append", "one two", "-semihosting", *engine)
        check(done.returncode == 42, f"the program's exit code became {done.returncode}: {done.stderr[-300:]!r}")
        check(done.stdout == "hello\n", f"standard output: {done.stdout!r}")
        expected = EXPECTED.replace("LINE", f"{program(target)} one two")
        check(done.stderr == expected, f"standard error: {done.stderr!r}")
    done = run(emulator(target), target, "-semihosting-config", "enable=on,target=native,arg=prog,arg=a,,b,arg=c")
    check("\nprog a,b c\n" in done.stderr, f"arguments: {done.stderr!r}")
    other = shutil.which(f"qemu-system-{target}")
    if other:
        # QEMU 7.2 overwrites where mode a appends, and finds its heap elsewhere on RISC-V.
        differing = r"flen 20000\d|heap \d"
        theirs = run(other, target, "-append", "one two", "-semihosting")
        check(re.sub(differing, "", theirs.stderr) == re.sub(differing, "", EXPECTED.replace("LINE", f"{program(target)} one two"))
              and theirs.returncode == 42, f"QEMU does otherwise: {theirs.stderr!r}")


@case("aarch64")
def aarch64():
    calls("aarch64")


@case("riscv64")
def riscv64():
    calls("riscv64")


@case("input")
def console_input():
    """The program's standard input is the emulator's; one that waits for input ends on a signal all the same."""
    source = temporary() / "input.s"
    source.write_text("""
.global _start
_start: adr x1, block
  mov x0, #1
  hlt #0xf000          // open :tt for reading
  adr x1, block2
  str x0, [x1]
  mov x0, #6
  hlt #0xf000          // read 4 bytes
  adr x1, text
  mov x0, #4
  hlt #0xf000          // print them
  adr x1, reason
  mov x0, #0x18
  hlt #0xf000
1: b 1b
.balign 8
block: .quad name, 0, 3
block2: .quad 0, text, 4
reason: .quad 0x20026, 7
name: .asciz ":tt"
text: .asciz "????\\n"
""")
    path = temporary() / "input"
    if not shutil.which("aarch64-linux-gnu-gcc"):
        raise Skip("the cross compiler is missing; run scripts/install-deps")
    subprocess.run(["aarch64-linux-gnu-gcc", "-nostdlib", "-static", "-Wl,-Ttext=0x40400000,-N,--no-warn-rwx-segments,--build-id=none,-e,_start", "-o", path,
                    source], check=True)
    command = [emulator("aarch64"), "-M", "virt", "-display", "none", "-serial", "none", "-semihosting", "-kernel", path]
    done = subprocess.run(command, input="abcdef", capture_output=True, text=True, timeout=30)
    check((done.returncode, done.stderr) == (7, "abcd\n"), f"{done.returncode} {done.stderr!r}")
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        process.wait(2)
        check(False, f"the program did not wait for input: {process.stderr.read()!r}")
    except subprocess.TimeoutExpired:
        process.terminate()
        check(process.wait(20) == 0, f"the signal's exit code is {process.returncode}")


@case("off-by-default")
def off():
    for target in TARGETS:
        for options in [[], ["-semihosting-config", "enable=off"]]:
            try:
                done = run(emulator(target), target, *options, timeout=2)
                check(False, f"{target}: the emulator ended: {done.returncode} {done.stderr!r}")
            except subprocess.TimeoutExpired as caught:
                check(not caught.stdout and not (caught.stderr or b"").replace(b"terminating", b"").strip(),
                      f"{target}: the program ran: {caught.stderr!r}")


@case("wrong-options")
def wrong_options():
    for value, says in [("target=gdb", "only native"), ("chardev=a", "chardev= is not implemented"), ("enable=maybe", "enable"),
                        ("userspace=x", "userspace"), ("argument=x", "argument")]:
        done = subprocess.run([emulator("aarch64"), "-M", "virt", "-display", "none", "-serial", "none", "-semihosting-config", value],
                              capture_output=True, text=True, timeout=20, stdin=subprocess.DEVNULL)
        check(done.returncode == 1 and says in done.stderr and len(done.stderr.splitlines()) == 1,
              f"{value}: {done.returncode} {done.stderr!r}")


if __name__ == "__main__":
    main()
