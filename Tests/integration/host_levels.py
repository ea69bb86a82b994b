#!/usr/bin/env python3
"""The levels of host instructions that the JIT uses: each by its option, and on CPUs that really lack the others.

The second is qemu-x86_64-static with a CPU model: there an instruction that the model lacks is an illegal one.
"""
import shutil
import subprocess

from harness import Machine, PATIENCE, ROOT, Skip, case, check, linux, main, temporary
import aarch64machine
import guestprograms

LEVELS = ["sse4", "avx", "avx2", "avx512"]
# CPU models, and the levels that each has.
MODELS = {"Nehalem": 1, "Westmere": 1, "SandyBridge": 2, "Haswell": 3}
TARGETS = ["riscv64", "aarch64"]
QEMU = "qemu-x86_64-static"


def levels():
    """Those that this host has."""
    program = guestprograms.build("hello", guestprograms.HELLO, "-static")
    return [level for level in LEVELS if run("riscv64", "-accel", f"jit,host-level={level}", program).returncode == 0]


def run(target, *words, before=(), timeout=120):
    return subprocess.run([*before, ROOT / "bin" / f"apus-{target}", *map(str, words)], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=timeout * PATIENCE)


def difftest(target, *words):
    """Random programs, JIT against evaluator alone; with --save only leaves one."""
    tool = (ROOT / "bin" / "apus-riscv64").resolve().parent / "apus-difftest"
    if not tool.exists():
        raise Skip("apus-difftest is not built")
    done = subprocess.run([tool, "--isa", target, "--reference", "none", *map(str, words)], capture_output=True, text=True)
    check(done.returncode == 0 and ("--save" in words or " 0 with differences" in done.stdout), f"{words}: {done.stdout[-4000:]}{done.stderr}")


@case("random-blocks")
def random_blocks():
    for target in TARGETS:
        for level in levels():
            difftest(target, "--blocks", 2000, "--seed", 900, "--host-level", level)
        # No products without carries, either, as on the oldest.
        difftest(target, "--blocks", 1000, "--seed", 950, "--options", "-accel jit,host-level=sse4,opt=-host-crypto-host-sha")


def boot(target, level):
    accelerator = ["-accel", f"jit,host-level={level}"]
    if target == "riscv64":
        return Machine(linux("-m", "256", *accelerator, append="apus_run=\"uname -m\""))
    directory = aarch64machine.guest()
    return aarch64machine.Machine(
        ["-M", "virt", "-m", "256", "-nographic", "-kernel", directory / "Image", "-initrd", directory / "initramfs.cpio",
         "-append", "console=ttyAMA0 apus_run=\"uname -m\"", *accelerator])


@case("boot")
def boots():
    """Debian's kernels to a program of their RAM disks and to power-off."""
    for target in TARGETS:
        for level in levels():
            with boot(target, level) as machine:
                machine.expect(rf"\n{target}\r", 120)
                check(machine.wait(60) == 0, f"{target}, {level}: power-off ended with {machine.code}")


@case("masked-cpus")
def masked_cpus():
    """A random program on CPUs of each level leaves what it leaves here, and no higher level may be asked for."""
    qemu = shutil.which(QEMU)
    if not qemu:
        raise Skip(f"{QEMU} is missing (package qemu-user-static)")
    for target in TARGETS:
        program = temporary() / f"blocks-{target}"
        difftest(target, "--seed", 970, "--blocks", 200, "--save", program)
        expected = run(target, program)
        check(expected.returncode == 0 and expected.stdout, f"{target}: {expected.returncode} {expected.stderr!r}")
        for model, count in MODELS.items():
            before = [qemu, "-cpu", model]
            done = run(target, program, before=before)
            check(done.returncode == 0 and done.stdout == expected.stdout,
                  f"{target} on {model}: {done.returncode} {done.stderr!r} {done.stdout[:200]!r}")
            for level in LEVELS[count:]:
                done = run(target, "-accel", f"jit,host-level={level}", program, before=before)
                check(done.returncode == 1 and b"lacks it" in done.stderr, f"{model} takes {level}: {done.stderr!r}")
        done = run(target, program, before=[qemu, "-cpu", "Penryn"], timeout=300)
        check(done.returncode == 0 and done.stdout == expected.stdout and b"x86-64-v2" in done.stderr,
              f"{target} on Penryn: {done.returncode} {done.stderr!r}")


if __name__ == "__main__":
    main()
