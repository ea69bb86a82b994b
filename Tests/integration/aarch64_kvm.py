#!/usr/bin/env python3
"""Virtual machines inside AArch64 machines: Debian's kernel starts at EL2, and its QEMU runs the same kernel under KVM.

APUS_SYSTEM_AARCH64 names another emulator to test (bin/apus-system-aarch64 without it).
"""
import functools
import os
import pathlib
import subprocess

from harness import Machine, ROOT, case, check, main


def emulator():
    return os.environ.get("APUS_SYSTEM_AARCH64") or str(ROOT / "bin" / "apus-system-aarch64")


@functools.cache
def kernel():
    """Debian's (see scripts/fetch-guest)."""
    done = subprocess.run([ROOT / "scripts" / "fetch-guest", "aarch64"], check=True, stdout=subprocess.PIPE, text=True)
    return pathlib.Path(done.stdout.strip().splitlines()[-1]) / "Image"


@functools.cache
def disk():
    """The RAM disk with QEMU (see scripts/fetch-kvm-guest)."""
    done = subprocess.run([ROOT / "scripts" / "fetch-kvm-guest"], check=True, stdout=subprocess.PIPE, text=True)
    return pathlib.Path(done.stdout.strip().splitlines()[-1]) / "initramfs.cpio"


def virtual_machine(options, model, cpus, append="", inner="", mode="VHE mode"):
    with Machine(["-M", "virt,virtualization=on" + options, "-cpu", model, "-smp", cpus, "-m", "1536", "-nographic", "-kernel",
                  kernel(), "-initrd", disk(), "-append", ("console=ttyAMA0 " + append).strip()],
                 program=[emulator()]) as machine:
        machine.prompt(60)
        machine.command("dmesg -n 1")
        check(f"{mode} initialized successfully" in machine.command("dmesg | grep kvm"), f"KVM is not in {mode}")
        machine.send(f"APPEND=quiet /guest/run {inner}\r")
        machine.expect("Apus guest ready", 300)
        machine.expect("~ # ", 30)
        # The inner machine is one: EL1, its own CPUs, its own clock that goes on.
        machine.send("dmesg | grep -E 'started at|KVM:'; echo cpus-$(nproc)-; seq 0 999 | awk '{ s += $1 } END { print \"sum-\" s }'\r")
        machine.expect("All CPU.s. started at EL1", 60)
        machine.expect("cpus-" + ("2" if "-smp 2" in inner else "1") + "-", 30)
        machine.expect("sum-499500", 30)
        machine.send("time sleep 1; poweroff -f\r")
        machine.expect(r"real\s+0m 1\.", 30)
        machine.expect("Power down[^#]*~ # ", 60)
        check("499500" in machine.command("seq 0 999 | awk '{ s += $1 } END { print s }'"), "the outer machine does not go on")
        # Once more: identifiers of virtual machines are used again.
        machine.send("APPEND='quiet apus_run=nproc' /guest/run\r")
        machine.expect("exit code 0", 300)
        machine.expect("~ # ", 60)
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("vhe-gicv3")
def vhe_v3():
    virtual_machine(",gic-version=3", "max", "2", inner="-smp 2")


@case("vhe-gicv2")
def vhe_v2():
    virtual_machine("", "max", "1")


@case("nvhe-gicv3")
def nvhe_v3():
    virtual_machine(",gic-version=3", "max", "1", append="kvm-arm.mode=nvhe", mode="Hyp mode")


@case("protected")
def protected():
    virtual_machine(",gic-version=3", "max", "1", append="kvm-arm.mode=protected", mode="Protected nVHE mode")


@case("armv8.0-gicv2")
def first():
    virtual_machine("", "cortex-a57", "2", inner="-smp 2", mode="Hyp mode")


@case("armv8.0-gicv3")
def first_v3():
    virtual_machine(",gic-version=3", "cortex-a72", "1", mode="Hyp mode")


if __name__ == "__main__":
    main()
