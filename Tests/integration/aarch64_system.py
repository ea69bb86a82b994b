#!/usr/bin/env python3
"""AArch64 machines: a Debian kernel on both interrupt controllers, devices on both buses, firmware, the power key.

APUS_SYSTEM_AARCH64 names another emulator to test (bin/apus-system-aarch64 without it).
"""
import contextlib
import functools
import hashlib
import http.server
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

from aarch64machine import Machine, emulator, guest
from guestprograms import build
from harness import ROOT, Skip, case, check, main, temporary


def linux(*options, append=""):
    directory = guest()
    return ["-M", "virt", "-cpu", "max", "-m", "512", "-nographic", "-kernel", directory / "Image", "-initrd",
            directory / "initramfs.cpio", "-append", ("console=ttyAMA0 " + append).strip(), *options]


def power_off(machine):
    machine.send("poweroff -f\r")
    check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("gicv2-one-cpu")
def one_cpu():
    with Machine(linux()) as machine:
        machine.prompt()
        check("aarch64" in machine.command("uname -m"), "uname -m is wrong")
        check("GIC-0" in machine.command("cat /proc/interrupts"), "the interrupt controller is no GICv2")
        check("499500" in machine.command("seq 0 999 | awk '{ s += $1 } END { print s }'"), "awk is wrong")
        machine.send("reboot -f\r")
        machine.prompt()
        power_off(machine)


@case("gicv3-four-cpus")
def four_cpus():
    digest = hashlib.md5(b"".join(b"%d\n" % number for number in range(1, 501))).hexdigest()
    with Machine(linux("-smp", "4", "-machine", "gic-version=3")) as machine:
        machine.prompt()
        machine.command("dmesg -n 1")
        check(machine.command("nproc").strip() == "4", "nproc is not 4")
        check("GICv3" in machine.command("cat /proc/interrupts"), "the interrupt controller is no GICv3")
        machine.command("(for c in 0 1 2 3; do (for i in $(seq 40); do seq 500 | sort -n | md5sum; done | sort | "
                        "uniq -c >/tmp/out$c) & done; wait)", 180)
        sums = machine.command("cat /tmp/out0 /tmp/out1 /tmp/out2 /tmp/out3")
        check(sums.split() == ["40", digest, "-"] * 4, f"parallel pipelines do not agree: {sums!r}")
        # A CPU goes and comes back.
        machine.command("echo 0 >/sys/devices/system/cpu/cpu3/online && echo 1 >/sys/devices/system/cpu/cpu3/online", 30)
        check(machine.command("taskset -c 3 nproc").strip() == "1", "the fourth CPU did not come back")
        power_off(machine)


@case("models")
def models():
    for model, part in [("cortex-a53", "0xd03"), ("cortex-a57", "0xd07"), ("cortex-a72", "0xd08"),
                        ("cortex-a76", "0xd0b"), ("neoverse-n1", "0xd0c")]:
        with Machine(linux("-cpu", model)) as machine:
            machine.prompt()
            seen = machine.command("cat /proc/cpuinfo")
            check(part in seen, f"{model} is not what the guest sees")
            check(("asimddp" in seen) == (model in ("cortex-a76", "neoverse-n1")) and "aes" in seen and " afp" not in seen,
                  f"{model}: {seen}")
    with Machine(linux("-cpu", "max,pauth-impdef=off")) as machine:
        machine.prompt()
        seen = machine.command("cat /proc/cpuinfo")
        for name in "pmull sha512 sha3 sm4 asimddp fphp asimdfhm fcma jscvt ilrcpc flagm2 frint i8mm bf16 sb paca pacg rng afp rpres".split():
            check(f" {name} " in seen.replace("\r", " ").replace("\n", " ") + " ", f"max has no {name}: {seen}")


@case("pointer-authentication")
def pointer_authentication():
    """Codes of known keys under several translation controls. The sum is that of QEMU 7.2's lines, and the first line is the
    published example of QARMA."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if not compiler:
        raise Skip("the cross compiler is missing; run scripts/install-deps")
    program = temporary() / "authentication"
    subprocess.run([compiler, "-O1", "-march=armv8.3-a", "-mgeneral-regs-only", "-nostdlib", "-ffreestanding", "-fno-pic",
                    "-static", "-Wl,-Ttext=0x40400000,--build-id=none,-e,_start", "-o", program,
                    ROOT / "Tests" / "Guests" / "aarch64" / "authentication.c"], check=True)
    for options in [[], ["-accel", "interpreter"]]:
        done = subprocess.run([emulator(), "-M", "virt", "-cpu", "max,pauth-impdef=off", "-m", "256", "-nographic", "-monitor",
                               "none", "-serial", "stdio", "-kernel", program, *options], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=60)
        lines = done.stdout.replace(b"\r", b"")
        check(lines.startswith(b"c003b93900000000\n"), f"{options}: {lines[:100]!r} {done.stderr!r}")
        check(hashlib.sha256(lines).hexdigest().startswith("7b640d45dc76cf5d"), f"{options}: {len(lines.splitlines())} lines")


def initrd_with(program):
    """The RAM disk with a program in its root directory."""
    archive = subprocess.run(["cpio", "-o", "-H", "newc", "--quiet"], input=program.name.encode(), cwd=program.parent,
                             stdout=subprocess.PIPE, check=True).stdout
    initrd = temporary() / f"{program.name}-initrd"
    initrd.write_bytes((guest() / "initramfs.cpio").read_bytes() + archive)
    return initrd


@case("debug-registers")
def debug_registers():
    """Single steps, break and watch points that a program in the guest sets by ptrace; the output is that under QEMU 7.2."""
    with Machine(linux("-initrd", initrd_with(build("debug", "debug.c", "-static", target="aarch64")))) as machine:
        machine.prompt()
        output = machine.command("/debug").replace("\r", "")
        for line in ["break: signal 5 code 4 at sequence+0", "steps: 4 8 4 8 4 8 12 20 24 32 36 40 40 44 48 52 56 60 out",
                     "watch: signal 5 code 4 address watched+0", "read: signal 5 code 4 address watched+8",
                     "end: exited with 25"]:
            check(line in output, f"'{line}' is not in {output!r}")
        power_off(machine)


@case("virtualization")
def virtualization():
    """Kernels that start at EL2 and make KVM ready there, on both controllers, with and without virtual host extensions."""
    for cpus, controller, model, kvm in [("1", "2", "max", "VHE mode"), ("4", "2", "cortex-a57", "Hyp mode"),
                                         ("1", "3", "cortex-a72", "Hyp mode"), ("4", "3", "max", "VHE mode")]:
        with Machine(linux("-machine", f"virtualization=on,gic-version={controller}", "-smp", cpus, "-cpu", model)) as machine:
            machine.prompt()
            log = machine.command("dmesg | grep -E 'started at|kvm|psci:'")
            check("All CPU(s) started at EL2" in log and f"{kvm} initialized successfully" in log,
                  f"{model}, {cpus} CPUs, GICv{controller}: {log!r}")
            check(machine.command("nproc").strip() == cpus, "CPUs are missing")
            check(machine.command("cat /proc/device-tree/psci/method").strip("\0\r\n ") == "smc", "PSCI is not called by smc")
            check(machine.command("ls /dev/kvm").strip() == "/dev/kvm", "there is no /dev/kvm")
            power_off(machine)


def bare_program(name, *options):
    """Tests/Guests/aarch64/NAME.c for the bare machine."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if not compiler:
        raise Skip("the cross compiler is missing; run scripts/install-deps")
    program = temporary() / name
    subprocess.run([compiler, "-O1", "-march=armv8-a", "-mgeneral-regs-only", "-nostdlib", "-ffreestanding", "-fno-pic",
                    "-static", "-Wl,-Ttext=0x40400000,--build-id=none,-e,_start", "-o", program, *options,
                    ROOT / "Tests" / "Guests" / "aarch64" / f"{name}.c"], check=True)
    return program


def check_lines(program, digest, *options):
    """Runs a program for the bare machine, whose output must have a SHA-256 sum that begins with `digest`."""
    done = subprocess.run([emulator(), "-cpu", "max", "-m", "256", "-nographic", "-monitor", "none", "-serial", "stdio",
                           "-kernel", program, *options], stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    lines = done.stdout.replace(b"\r", b"")
    check(hashlib.sha256(lines).hexdigest().startswith(digest),
          f"{options}: {len(lines.splitlines())} lines, {lines[-200:]!r} {done.stderr!r}")


@case("hypervisor-registers")
def hypervisor_registers():
    """What EL2's controls trap, stage 2's faults with their syndromes, and `at`, on the bare machine. The sum is that of QEMU
    7.2's lines; where QEMU does otherwise than the manual the program does not ask."""
    program = bare_program("hypervisor")
    for options in [[], ["-accel", "interpreter"]]:
        check_lines(program, "9058cfb083a20d5c", "-M", "virt,virtualization=on", *options)


@case("guarded-pages")
def guarded_pages():
    """Branch targets in pages with GP, at EL1 and EL0, stepped, and in pages that come when they are asked for. The sums are those
    of QEMU 7.2's lines."""
    for first, lines in [("1", "78fc2362b259c96e"), ("2", "1b22983dc0133cfc")]:
        program = bare_program("guardedpages", f"-DFIRST={first}")
        for options in [[], ["-accel", "interpreter"], ["-accel", "jit,verify=on"]]:
            check_lines(program, lines, "-M", "virt", *options)
    # Debian's kernel gives a program guarded pages; what it prints is as in user mode.
    program = build("branchtargets", "branchtargets.c", "-static", target="aarch64")
    expected = subprocess.run([ROOT / "bin" / "apus-aarch64", program], capture_output=True, text=True, timeout=60).stdout
    with Machine(linux("-initrd", initrd_with(program))) as machine:
        machine.prompt()
        output = machine.command("/branchtargets").replace("\r", "")
        check("mapped: through" in expected and expected.strip() in output, f"{output!r} instead of {expected!r}")
        power_off(machine)


@case("address-spaces")
def address_spaces():
    """20,000 steps over address spaces with several upper and lower tables, as kernels with KPTI have them: what is mapped after
    each kind of TLB maintenance, at EL1 and EL0. The sum is that of QEMU 7.2's lines."""
    program = bare_program("uppertables", "-DSTEPS=20000")
    for options in [[], ["-accel", "interpreter"], ["-accel", "jit,verify=on"]]:
        check_lines(program, "23e22d1a008cde7a", "-M", "virt", *options)


@case("context-points")
def context_points():
    """Break points that compare CONTEXTIDR_EL1, alone and named by addresses and watch points. QEMU 7.2 has the latter's lines; it
    lacks those that are alone."""
    program = bare_program("contextpoints")
    # Types without the lowest bit, and what they compare: EL1's context, VMID or EL2's context.
    lower, upper = {2, 6, 10, 14}, {8, 10, 12, 14}
    for model, machine, types in [("max", "virt", (2, 6)), ("cortex-a53", "virt", (2,)),
                                  ("max", "virt,virtualization=on", range(2, 16, 2)), ("cortex-a53", "virt,virtualization=on", (2, 8, 10))]:
        lines = ["compare 1"]
        for other in range(3 if "on" in machine else 2):
            lines.append(f"alone 0 0 {other} c6000022 target")
            for kind in types:
                # 4 is for AArch32.
                if kind == 4 or other == 1 and kind in lower or other == 2 and kind in upper:
                    continue
                lines.append(f"alone {kind:x} 0 {other} c6000022 target")
                for link in (4, 5):
                    lines += [f"address {kind + 1:x} {link} {other} c6000022 target", f"store {kind + 1:x} {link} {other} d6000062 store"]
        lines.append("end")
        for options in [[], ["-accel", "interpreter"], ["-accel", "jit,verify=on"]]:
            done = subprocess.run([emulator(), "-M", machine, "-cpu", model, "-m", "256", "-nographic", "-monitor", "none", "-serial",
                                   "stdio", "-kernel", program, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                  timeout=60)
            check([line.strip() for line in done.stdout.splitlines()] == lines,
                  f"{model} {machine} {options}: {done.stdout!r} {done.stderr!r}")


@case("interpreter")
def interpreter():
    # All the way to a shell takes a minute: the first seconds have page tables, exceptions and the interrupt controller.
    with Machine(linux("-accel", "interpreter", append="earlycon=pl011,0x9000000")) as machine:
        machine.expect("PSCIv1.1 detected", 60)
        machine.expect("arch_timer: cp15 timer", 120)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(content):
    """Serves `content` as /file on a loopback port."""
    (temporary() / "served").mkdir(exist_ok=True)
    (temporary() / "served" / "file").write_bytes(content)
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(temporary() / "served")))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()


def devices(suffix, *options):
    content = os.urandom(3 << 20)
    disk = temporary() / f"disk-{suffix}.raw"
    disk.write_bytes(content)
    digest = hashlib.md5(content).hexdigest()
    with served(content) as port:
        with Machine(linux("-drive", f"file={disk},format=raw,if=none,id=d", "-device", f"virtio-blk-{suffix},drive=d",
                           "-netdev", "user,id=n", "-device", f"virtio-net-{suffix},netdev=n", *options)) as machine:
            machine.prompt()
            check(digest in machine.command("md5sum /dev/vda"), "the disk's content is wrong")
            if suffix == "pci":
                controller = "ITS-MSI" if "gic-version=3" in options else "MSI"
                check(re.search(controller + r"\s+\d+\s+Edge\s+virtio", machine.command("cat /proc/interrupts")),
                      "the devices' interrupts are no messages")
            machine.command("dd if=/dev/zero of=/dev/vda bs=4096 count=1 seek=7 conv=notrunc 2>/dev/null; sync")
            machine.command("ip link set eth0 up; udhcpc -q -i eth0 -s /etc/udhcpc/default.script >/dev/null 2>&1")
            check(digest in machine.command(f"wget -q -O - http://10.0.2.2:{port}/file | md5sum"),
                  "the file's content is wrong")
            power_off(machine)
        check(disk.read_bytes() == content[:7 * 4096] + bytes(4096) + content[8 * 4096:], "what was written is wrong")


@case("virtio-mmio")
def mmio():
    devices("device")


@case("virtio-pci")
def pci():
    devices("pci")


@case("virtio-pci-gicv3")
def pci_v3():
    devices("pci", "-machine", "gic-version=3", "-smp", "2")


def press_power_key(machine):
    machine.send("hexdump -v -n 24 /dev/input/event0; echo pressed\r")
    machine.expect(r"hexdump[^\n]*\n", 10)
    machine.pump(1)
    machine.send(b"\x01p")
    # Type 1 (key), code 116 (power), value 1.
    machine.expect(r"0001 0074 0001 0000", 20)
    machine.expect("pressed", 10)


@case("power-key")
def power_key():
    with Machine(linux("-serial", "mon:stdio")) as machine:
        machine.prompt()
        machine.command("modload gpio_keys evdev")
        press_power_key(machine)


def flash():
    """Copies of the firmware and of its variables."""
    code, variables = temporary() / "code.fd", temporary() / "vars.fd"
    shutil.copy(guest() / "efi" / "AAVMF_CODE.fd", code)
    shutil.copy(guest() / "efi" / "AAVMF_VARS.fd", variables)
    return (["-drive", f"if=pflash,format=raw,readonly=on,file={code}", "-drive",
             f"if=pflash,format=raw,file={variables}"], variables)


@case("uefi-kernel")
def uefi_kernel():
    options, variables = flash()
    before = variables.read_bytes()
    disk = temporary() / "acpi.raw"
    disk.write_bytes(bytes(1 << 20))
    options += ["-machine", "gic-version=3", "-drive", f"file={disk},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d"]
    name = "/sys/firmware/efi/efivars/ApusTest-12345678-1234-1234-1234-123456789abc"
    with Machine(linux(*options, "-serial", "mon:stdio")) as machine:
        machine.prompt(180)
        check("EDK II" in machine.command("dmesg | grep -i 'efi:'"), "the kernel was not started by UEFI")
        tables = machine.command("ls /sys/firmware/acpi/tables").split()
        check({"APIC", "DSDT", "FACP", "GTDT", "IORT", "SPCR"} <= set(tables), f"the ACPI tables are {tables}")
        check("PNP0A08:00" in machine.command("ls /sys/bus/acpi/devices"), "ACPI has no PCI bus")
        log = machine.command("dmesg | grep -i -E 'acpi.*(error|exception|warning)' || true")
        check(log.strip() == "", f"the kernel complains about the ACPI tables: {log!r}")
        check("ITS-MSI" in machine.command("modload virtio_pci virtio_blk; cat /proc/interrupts"),
              "with ACPI the disk's interrupts are no messages")
        machine.command("modload evdev")
        press_power_key(machine)
        machine.command("modload efivarfs; mount -t efivarfs efivarfs /sys/firmware/efi/efivars")
        machine.command(f"printf '\\007\\000\\000\\000swift' >{name}")
        power_off(machine)
    check(variables.read_bytes() != before, "the variables' flash bank did not change")
    with Machine(linux(*options)) as machine:
        machine.prompt(180)
        machine.command("modload efivarfs; mount -t efivarfs efivarfs /sys/firmware/efi/efivars")
        check("swift" in machine.command(f"cat {name}"), "the variable did not survive")
        machine.send("reboot -f\r")
        machine.prompt(180)


@case("uefi-shell")
def uefi_shell():
    options, _ = flash()
    with Machine(["-M", "virt", "-cpu", "cortex-a57", "-m", "256", "-nographic", *options]) as machine:
        machine.expect("UEFI Interactive Shell", 120)
        machine.expect("Shell>", 60)
        machine.send("\rver\r")
        machine.expect("EDK II", 30)
        machine.send("reset -s\r")
        check(machine.wait(60) == 0, f"reset -s ended with {machine.code}")


@case("uefi-grub")
def uefi_grub():
    """GRUB, Debian's, from a disk: the removable medium's path, its menu, a kernel and its RAM disk."""
    disk = temporary() / "esp.img"
    with open(disk, "wb") as file:
        file.truncate(96 << 20)
    menu = temporary() / "grub.cfg"
    menu.write_text('set timeout=0\nmenuentry "Apus" {\n  linux /Image console=ttyAMA0 quiet apus_run=uname\n  initrd /initrd\n}\n')
    subprocess.run(["/usr/sbin/mkfs.vfat", "-F", "32", disk], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["mmd", "-i", disk, "::/EFI", "::/EFI/BOOT", "::/EFI/debian"], check=True)
    for source, target in [(guest() / "efi" / "grubaa64.efi.signed", "EFI/BOOT/BOOTAA64.EFI"), (menu, "EFI/debian/grub.cfg"),
                           (guest() / "Image", "Image"), (guest() / "initramfs.cpio", "initrd")]:
        subprocess.run(["mcopy", "-i", disk, source, f"::/{target}"], check=True)
    options, _ = flash()
    with Machine(["-M", "virt", "-cpu", "max", "-m", "1024", "-nographic", *options, "-drive",
                  f"file={disk},format=raw,if=none,id=d", "-device", "virtio-blk-pci,drive=d"]) as machine:
        machine.expect("Welcome to GRUB", 60)
        machine.expect("exit code 0", 120)
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("bad-input")
def bad_input():
    small = temporary() / "small"
    small.write_bytes(b"\x7fELF")
    table = [(["-M", "virt,gic-version=5"], "gic-version"), (["-M", "virt,ras=on"], "ras"),
             (["-M", "virt,virtualization=maybe"], "virtualization"),
             (["-M", "raspi9"], "raspi9"), (["-cpu", "cortex-a99"], "cortex-a99"),
             (["-cpu", "max,sve=on"], "sve"), (["-cpu", "max,pauth=maybe"], "maybe"), (["-cpu", "cortex-a53,pauth=on"], "pauth"), (["-kernel", small], "ELF"),
             (["-kernel", ROOT / "Package.swift", "-initrd", "/nosuch"], "/nosuch"), (["-smp", "9"], "8"),
             (["-drive", f"if=pflash,format=raw,file={small}"], "67108864"), (["-m", "300G"], "255G"),
             (["-bios", "/nosuch/bios"], "/nosuch/bios")]
    for arguments, says in table:
        done = subprocess.run([emulator(), "-nographic", "-serial", "null", *map(str, arguments)], stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=20)
        lines = done.stderr.splitlines()
        check(done.returncode == 1 and len(lines) == 1 and lines[0].startswith("apus-system-aarch64: ")
              and re.search(says, lines[0]), f"{arguments}: {done.returncode}, {done.stderr!r}")


@case("lost-guest")
def lost_guest():
    """Undefined instructions without a vector table, on one and several CPUs: the machine can still be ended."""
    nothing = temporary() / "nothing"
    nothing.write_bytes(bytes(4096))
    for options in [[], ["-smp", "4", "-machine", "gic-version=3"], ["-accel", "interpreter"]]:
        machine = Machine(["-M", "virt", "-nographic", "-kernel", nothing, *options], terminal=False)
        with machine:
            time.sleep(0.5)
            check(machine.poll() is None, f"it ended with {machine.code}: {machine.tail()}")
            machine.signal(signal.SIGTERM)
            machine.wait(10)


if __name__ == "__main__":
    main()
