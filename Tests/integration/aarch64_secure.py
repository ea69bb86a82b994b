#!/usr/bin/env python3
"""AArch64 machines with EL3 and a secure state: a program at EL3, Debian's kernel without firmware, Trusted Firmware-A.

aarch64_secure.py [--tf-a CHECKOUT [--u-boot FILE]] [CASE...]: the cases tf-a-* build a checkout of
TrustedFirmware-A/trusted-firmware-a, with U-Boot (Debian's u-boot-qemu, or FILE) behind it.
APUS_SYSTEM_AARCH64 names another emulator to test (bin/apus-system-aarch64 without it).
"""
import functools
import hashlib
import os
import pathlib
import re
import shutil
import subprocess
import sys

from aarch64machine import Machine, emulator, guest
from harness import ROOT, Skip, case, check, main, temporary

OPTIONS = {"--tf-a": None, "--u-boot": "/usr/lib/u-boot/qemu_arm64/u-boot.bin"}


@functools.cache
def program():
    """The program as firmware: code and constants from address 0, its memory in RAM."""
    if not shutil.which("aarch64-linux-gnu-gcc"):
        raise Skip("the cross compiler is missing; run scripts/install-deps")
    linked, flat = temporary() / "secure.elf", temporary() / "secure.bin"
    subprocess.run(["aarch64-linux-gnu-gcc", "-O1", "-march=armv8-a", "-mgeneral-regs-only", "-nostdlib", "-ffreestanding",
                    "-fno-pic", "-static", "-Wl,-Ttext=0,-Tbss=0x48100000,--build-id=none,-e,_start", "-o", linked,
                    ROOT / "Tests" / "Guests" / "aarch64" / "secure.c"], check=True)
    subprocess.run(["aarch64-linux-gnu-objcopy", "-O", "binary", "-j", ".text", "-j", ".rodata*", linked, flat], check=True)
    return flat


def events(machine, *options):
    """What the program prints, and what it prints to the secure port."""
    port = temporary() / "secure-port"
    done = subprocess.run([emulator(), "-M", machine, "-cpu", "max", "-m", "256", "-display", "none", "-monitor", "none", "-serial",
                           "stdio", "-serial", f"file:{port}", "-bios", program(), *options], stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120)
    check(done.returncode == 0, f"{machine}: ended with {done.returncode}, {done.stderr!r}")
    return done.stdout.replace(b"\r", b""), port.read_bytes()


@case("events")
def program_events():
    """What EL3 keeps from other levels and states, memory, returns, the interrupt controller, the secure timer. The sums are
    those of QEMU 7.2's lines; where QEMU does otherwise than the manual the program does not ask."""
    for machine, digest in SUMS.items():
        for options in [[], ["-accel", "interpreter"]]:
            lines, port = events("virt,secure=on," + machine, *options)
            check(hashlib.sha256(lines).hexdigest().startswith(digest),
                  f"{machine} {options}: {len(lines.splitlines())} lines, {lines[-200:]!r}")
            check(port.replace(b"\r", b"") == b"secure side\n", f"the secure port shows {port!r}")


SUMS = {"gic-version=2": "c64db1731e4bdfc0", "gic-version=2,virtualization=on": "d04faeb82f77b091",
        "gic-version=3": "cd53070d2012c7cb", "gic-version=3,virtualization=on": "9869fe6bd33b38b4"}


def power_off(machine):
    machine.send("poweroff -f\r")
    check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


def shell(machine, cpus, controller, method, level):
    """The machine at its shell: a kernel in the non-secure state, with all CPUs by PSCI."""
    machine.command("dmesg -n 1")
    log = machine.command("dmesg | grep -E 'started at|psci:'")
    check(f"started at {level}" in log, f"the CPUs are not at {level}: {log!r}")
    check(machine.command("nproc").strip() == cpus, "CPUs are missing")
    check(f"GICv{controller}" in machine.command("cat /proc/interrupts") or controller == "2",
          f"the interrupt controller is no GICv{controller}")
    check(machine.command("cat /proc/device-tree/psci/method").strip("\0\r\n ") == method, f"PSCI is not called by {method}")
    check("499500" in machine.command("seq 0 999 | awk '{ s += $1 } END { print s }'"), "awk is wrong")
    if cpus != "1":
        machine.command("echo 0 >/sys/devices/system/cpu/cpu1/online && echo 1 >/sys/devices/system/cpu/cpu1/online", 30)
        check(machine.command("taskset -c 1 nproc").strip() == "1", "the second CPU did not come back")


def kernel(controller, extra="", cpus="4", model="max", method="hvc", level="EL1"):
    directory = guest()
    with Machine(["-M", f"virt,secure=on,gic-version={controller}{extra}", "-cpu", model, "-smp", cpus, "-m", "512", "-nographic",
                  "-kernel", directory / "Image", "-initrd", directory / "initramfs.cpio", "-append", "console=ttyAMA0"]) as machine:
        machine.prompt(90)
        shell(machine, cpus, controller, method, level)
        # Secure memory is not there: an external abort ends who reads it.
        seen = machine.command("devmem 0x4000000; devmem 0xe000000; echo code-$?")
        check(re.search("0x0000000[^x]*code-[1-9]", seen), f"secure memory: {seen!r}")
        machine.send("reboot -f\r")
        machine.prompt(90)
        power_off(machine)


@case("kernel-gicv2")
def kernel_v2():
    kernel("2")


@case("kernel-gicv3")
def kernel_v3():
    kernel("3", model="cortex-a57", cpus="1")


@case("kernel-gicv2-el2")
def kernel_v2_el2():
    kernel("2", ",virtualization=on", model="cortex-a72", cpus="2", method="smc", level="EL2")


@case("kernel-gicv3-el2")
def kernel_v3_el2():
    kernel("3", ",virtualization=on", method="smc", level="EL2")


@functools.cache
def trusted(driver):
    """BL1 and, 256 KiB behind its start, the package of what it loads."""
    if not OPTIONS["--tf-a"]:
        raise Skip("give --tf-a CHECKOUT")
    if not pathlib.Path(OPTIONS["--u-boot"]).exists():
        raise Skip(f"there is no {OPTIONS['--u-boot']}; install u-boot-qemu, or give --u-boot FILE")
    output = temporary() / driver
    subprocess.run(["make", "-s", "-C", OPTIONS["--tf-a"], "CROSS_COMPILE=aarch64-linux-gnu-", "PLAT=qemu",
                    f"QEMU_USE_GIC_DRIVER={driver}", f"BL33={OPTIONS['--u-boot']}", f"BUILD_BASE={output}", "LOG_LEVEL=40", "all",
                    "fip"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    flash = output / "flash.bin"
    first = (output / "qemu" / "release" / "bl1.bin").read_bytes()
    flash.write_bytes(first.ljust(256 << 10, b"\0") + (output / "qemu" / "release" / "fip.bin").read_bytes())
    return flash


def firmware(controller, extra="", cpus="4", level="EL1", model="max"):
    """BL1, BL2, BL31, U-Boot, and the kernel that -kernel gives, with its PSCI."""
    directory = guest()
    with Machine(["-M", f"virt,secure=on,gic-version={controller}{extra}", "-cpu", model, "-smp", cpus, "-m", "1024", "-nographic",
                  "-bios", trusted(f"QEMU_GICV{controller}"), "-kernel", directory / "Image", "-initrd",
                  directory / "initramfs.cpio", "-append", "console=ttyAMA0"]) as machine:
        for start in range(2):
            machine.expect("BL1: Booting BL2", 60)
            machine.expect("BL1: Booting BL31", 60)
            machine.expect("BL31: Preparing for EL3 exit to normal world", 60)
            machine.expect("Hit any key to stop autoboot", 60)
            machine.send("\r")
            machine.expect("=> ", 60)
            machine.send("qfw load $kernel_addr_r $ramdisk_addr_r\r")
            machine.expect(r"initrd \w+ size \w+\s+=> ", 60)
            machine.send("booti $kernel_addr_r $ramdisk_addr_r:$filesize $fdtcontroladdr\r")
            machine.prompt(120)
            shell(machine, cpus, controller, "smc", level)
            if start == 0:
                machine.send("reboot -f\r")
        power_off(machine)


@case("tf-a-gicv2")
def trusted_v2():
    firmware("2")


@case("tf-a-gicv3")
def trusted_v3():
    firmware("3", cpus="2", model="cortex-a57")


@case("tf-a-gicv2-el2")
def trusted_v2_el2():
    firmware("2", ",virtualization=on", cpus="2", level="EL2", model="cortex-a72")


@case("tf-a-gicv3-el2")
def trusted_v3_el2():
    firmware("3", ",virtualization=on", level="EL2")


@case("bad-input")
def bad_input():
    large = temporary() / "large"
    with open(large, "wb") as file:
        file.truncate((64 << 20) + 1)
    table = [(["-M", "virt,secure=maybe"], "secure"), (["-M", "raspi3b,secure=on"], "secure"),
             (["-M", "virt,secure=on", "-serial", "null", "-serial", "null"], "2 serial ports"),
             (["-M", "virt", "-serial", "null"], "one serial port"), (["-M", "virt,secure=on,mte=on"], "mte"),
             (["-M", "virt,secure=on", "-bios", large], "64 MiB|RAM"), (["-M", "virt,secure=on", "-bios", "/nosuch"], "/nosuch")]
    for arguments, says in table:
        done = subprocess.run([emulator(), "-nographic", "-serial", "null", *map(str, arguments)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=20)
        lines = done.stderr.splitlines()
        check(done.returncode == 1 and len(lines) == 1 and lines[0].startswith("apus-system-aarch64: ")
              and re.search(says, lines[0]), f"{arguments}: {done.returncode}, {done.stderr!r}")


if __name__ == "__main__":
    for name in OPTIONS:
        if name in sys.argv:
            index = sys.argv.index(name)
            if index + 1 == len(sys.argv) or not os.path.exists(sys.argv[index + 1]):
                sys.exit(f"aarch64_secure.py: {name} needs a path")
            OPTIONS[name] = os.path.abspath(sys.argv[index + 1])
            del sys.argv[index:index + 2]
    main()
