#!/usr/bin/env python3
"""The Raspberry Pi 3 B: a Debian kernel with its own device tree, both serial ports, the memory card, restart and power-off.

APUS_SYSTEM_AARCH64 names another emulator to test (bin/apus-system-aarch64 without it)."""
import functools
import hashlib
import re
import shutil
import struct
import subprocess

from aarch64machine import Machine, emulator, guest
from harness import ROOT, Skip, case, check, main, temporary


@functools.cache
def tree():
    """Debian's device tree. Its Bluetooth module on the PL011 would take the port away from the console: it is left out."""
    path = temporary() / "rpi.dtb"
    shutil.copy(guest() / "dtb" / "bcm2837-rpi-3-b.dtb", path)
    subprocess.run(["fdtput", "-r", path, "/soc/serial@7e201000/bluetooth"], check=True)
    return path


def raspi(*options, console="ttyAMA0", append=""):
    return ["-M", "raspi3b", "-display", "none", "-kernel", guest() / "Image", "-dtb", tree(), "-initrd",
            guest() / "initramfs.cpio", "-append", f"console={console},115200 {append}".strip(), *options]


def with_drivers(machine, *modules):
    machine.prompt()
    machine.command("dmesg -n 1")
    for module in modules:
        machine.command(f"modload {module}", 30)


def card(name, megabytes=64):
    """A card with one FAT partition that holds a file."""
    if not shutil.which("mkfs.vfat") or not shutil.which("mcopy"):
        raise Skip("dosfstools or mtools are missing; run scripts/install-deps")
    path = temporary() / name
    start, count = 2048, megabytes * 2048 - 2048
    with open(path, "wb") as file:
        file.truncate(megabytes << 20)
        entry = struct.pack("<B3sB3sII", 0x80, b"\0\2\0", 0x0e, b"\0\2\0", start, count)
        file.seek(446)
        file.write(entry)
        file.seek(510)
        file.write(b"\x55\xaa")
    subprocess.run(["mkfs.vfat", "--offset", str(start), path, str(count // 2)], check=True, stdout=subprocess.DEVNULL)
    hello = temporary() / "hello.txt"
    hello.write_text("from the host\n")
    subprocess.run(["mcopy", "-i", f"{path}@@{start * 512}", hello, "::hello.txt"], check=True)
    return path


@case("pl011-four-cpus")
def first_port():
    with Machine(raspi("-serial", "mon:stdio")) as machine:
        with_drivers(machine, "bcm2835_wdt", "bcm2835_rng")
        check("aarch64" in machine.command("uname -m"), "uname -m is wrong")
        check(machine.command("nproc").strip() == "4", "nproc is not 4")
        check("Raspberry Pi 3 Model B" in machine.command("cat /proc/device-tree/model; echo"), "the model is wrong")
        digest = hashlib.md5(b"".join(b"%d\n" % number for number in range(1, 301))).hexdigest()
        machine.command("(for c in 0 1 2 3; do (for i in $(seq 10); do seq 300 | sort -n | md5sum; done | sort | "
                        "uniq -c >/tmp/out$c) & done; wait)", 120)
        sums = machine.command("cat /tmp/out0 /tmp/out1 /tmp/out2 /tmp/out3")
        check(sums.split() == ["10", digest, "-"] * 4, f"parallel pipelines do not agree: {sums!r}")
        interrupts = machine.command("cat /proc/interrupts")
        timers = re.search(r"(\d+) +(\d+) +(\d+) +(\d+) +bcm2836-timer", interrupts)
        check(timers and all(int(count) > 10 for count in timers.groups()), f"the timers: {interrupts}")
        calls = re.search(r"IPI\d+: +(\d+) +(\d+) +(\d+) +(\d+) +Function call", interrupts)
        check(calls and all(int(count) > 0 for count in calls.groups()), f"no mailbox interrupts: {interrupts}")
        noise = machine.command("head -c 64 /dev/hwrng | md5sum; head -c 64 /dev/hwrng | md5sum").split()
        check(noise[0] != noise[2], f"the random number generator repeats itself: {noise}")
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("mini-uart")
def second_port():
    with Machine(raspi("-serial", "null", "-serial", "stdio", console="ttyS1")) as machine:
        with_drivers(machine, "bcm2835_wdt")
        check("ttyS1" in machine.command("cat /sys/class/tty/console/active"), "the console is not the mini UART")
        long = "x" * 200
        check(machine.command(f"echo {long} | wc -c").strip() == "201", "a long line came in pieces")
        check(machine.command("seq 2000 | tail -n 1").strip() == "2000", "output is cut off")
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("memory-card")
def memory_card():
    path = card("card.img")
    with Machine(raspi("-serial", "mon:stdio", "-drive", f"file={path},format=raw,if=sd")) as machine:
        with_drivers(machine, "bcm2835", "bcm2835_wdt", "vfat", "nls_cp437", "nls_ascii")
        machine.command("for i in $(seq 50); do [ -b /dev/mmcblk0p1 ] && break; sleep 0.1; done")
        machine.command("mount -t vfat -o iocharset=ascii /dev/mmcblk0p1 /mnt")
        check(machine.command("cat /mnt/hello.txt").strip() == "from the host", "the host's file is not there")
        machine.command("dd if=/dev/urandom of=/mnt/big.bin bs=1M count=20 2>/dev/null && sync", 120)
        digest = machine.command("md5sum </mnt/big.bin").split()[0]
        machine.command("umount /mnt && echo 3 >/proc/sys/vm/drop_caches")
        machine.command("mount -t vfat -o iocharset=ascii /dev/mmcblk0p1 /mnt")
        check(machine.command("md5sum </mnt/big.bin", 60).split()[0] == digest, "the file reads otherwise")
        machine.command("echo from the guest >/mnt/guest.txt && umount /mnt && sync")
        check("timeout" not in machine.command("dmesg | grep -i sdhost", code=None), "the SD host timed out")
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")
    partition = f"{path}@@{2048 * 512}"
    text = subprocess.run(["mtype", "-i", partition, "::guest.txt"], check=True, capture_output=True).stdout
    check(text == b"from the guest\n", f"the guest's file holds {text!r}")
    big = subprocess.run(["mtype", "-i", partition, "::big.bin"], check=True, capture_output=True).stdout
    check(hashlib.md5(big).hexdigest() == digest, "the guest's large file differs")


@case("memory-card-qcow2")
def large_card():
    """A card of 4 GiB, with addresses in blocks, in a format; -sd names it."""
    path = temporary() / "large.qcow2"
    subprocess.run([ROOT / "bin" / "apus-img", "create", "-q", "-f", "qcow2", path, "4G"], check=True)
    with Machine(raspi("-serial", "mon:stdio", "-sd", path)) as machine:
        with_drivers(machine, "bcm2835", "bcm2835_wdt")
        machine.command("for i in $(seq 50); do [ -b /dev/mmcblk0 ] && break; sleep 0.1; done")
        check(machine.command("cat /sys/block/mmcblk0/size").strip() == str(8 << 20), "the card's size is wrong")
        machine.command("dd if=/dev/urandom of=/root/data bs=64k count=8 2>/dev/null")
        for seek in [0, 60000, 65528]:
            machine.command(f"dd if=/root/data of=/dev/mmcblk0 bs=64k seek={seek} conv=fsync 2>/dev/null", 60)
            machine.command(f"echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/mmcblk0 bs=64k skip={seek} count=8 2>/dev/null | "
                            "cmp - /root/data", 60)
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


@case("second-controller")
def second_controller():
    """The card at the SDHCI controller: a device tree without SDHOST and the wireless module. With them it finds no card."""
    other = temporary() / "emmc.dtb"
    shutil.copy(tree(), other)
    node = "/soc/mmc@7e300000"
    for name in ["pinctrl-0", "pinctrl-names", "mmc-pwrseq", "non-removable"]:
        subprocess.run(["fdtput", "-d", other, node, name], check=True)
    subprocess.run(["fdtput", "-r", other, node + "/wifi@1"], check=True)
    subprocess.run(["fdtput", "-t", "s", other, "/soc/mmc@7e202000", "status", "disabled"], check=True)
    path = card("emmc.img")
    with Machine(raspi("-serial", "mon:stdio", "-sd", path, "-dtb", other)) as machine:
        with_drivers(machine, "sdhci_iproc", "bcm2835_wdt", "vfat", "nls_cp437", "nls_ascii")
        machine.command("for i in $(seq 50); do [ -b /dev/mmcblk0p1 ] && break; sleep 0.1; done")
        machine.command("mount -t vfat -o iocharset=ascii /dev/mmcblk0p1 /mnt && cat /mnt/hello.txt | grep 'from the host'")
        machine.command("dd if=/dev/urandom of=/mnt/big.bin bs=64k count=40 2>/dev/null && md5sum </mnt/big.bin >/tmp/sum && "
                        "umount /mnt && echo 3 >/proc/sys/vm/drop_caches", 60)
        machine.command("mount -t vfat -o iocharset=ascii /dev/mmcblk0p1 /mnt && md5sum </mnt/big.bin | cmp - /tmp/sum && umount /mnt", 60)
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")
    with Machine(raspi("-serial", "mon:stdio", "-sd", path)) as machine:
        with_drivers(machine, "bcm2835", "sdhci_iproc")
        machine.command("for i in $(seq 50); do [ -b /dev/mmcblk0 ] && break; sleep 0.1; done; sleep 1")
        check(machine.command("ls /sys/block | grep -c mmcblk").strip() == "1", "the card is there twice")
        machine.command("ls -l /sys/block/mmcblk0 | grep 3f202000")


@case("reboot")
def reboot():
    with Machine(raspi("-serial", "mon:stdio")) as machine:
        with_drivers(machine, "bcm2835_wdt")
        machine.send("reboot -f\r")
        with_drivers(machine, "bcm2835_wdt")
        # The watchdog that nobody feeds.
        machine.command("(echo >/dev/watchdog; sleep 100) & sleep 0.1", 10)
        machine.prompt(90)
        machine.send("\x01x")
        check(machine.wait(20) == 0, f"Ctrl-a x ended with {machine.code}")


BARE_METAL = """00010001 80000000 80000004 00000000
00010002 80000000 80000004 00a02082
00010003 80000000 80000006 12005452 00005734
00010005 80000000 80000008 00000000 3c000000
00010006 80000000 80000008 3c000000 04000000
00028001 80000000 80000008 00000003 00000001
00030001 80000000 80000008 00000001 00000001
00040003 80000000 80000008 00000280 000001e0
00048003 80000000 80000008 00000320 00000258
00048004 80000000 80000008 00000320 00000258
00048005 80000000 80000004 00000020
00040001 80000000 80000008 3c100000 001d4c00
00040008 80000000 80000004 00000c80
00040006 80000000 80000004 00000001
00040009 80000000 80000008 00000000 00000000
00100020 00001000
0010001c 00000102
00101114 00001f00
00200000 00000000
00200034 00000000
00215054 00000060
00215064 0000030e
0000b200 00000000"""


@case("bare-metal")
def bare_metal():
    """An ELF program with the firmware's answers, and what QEMU answers; on all cores, with semihosting."""
    if not shutil.which("aarch64-linux-gnu-gcc"):
        raise Skip("the cross compiler is missing; run scripts/install-deps")
    program = temporary() / "raspi-bare"
    subprocess.run(["aarch64-linux-gnu-gcc", "-O1", "-fno-builtin", "-fno-tree-loop-distribute-patterns", "-mgeneral-regs-only",
                    "-nostdlib", "-ffreestanding", "-fno-pic", "-static", "-Wl,-Ttext=0x80000,--build-id=none,-e,_start,-N,"
                    "--no-warn-rwx-segments", "-o", program, ROOT / "Tests" / "Guests" / "aarch64" / "raspi.c"], check=True)
    for binary in filter(None, [emulator(), shutil.which("qemu-system-aarch64")]):
        done = subprocess.run([binary, "-M", "raspi3b", "-display", "none", "-serial", "none", "-monitor", "none", "-kernel",
                               program, "-semihosting"], capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
        lines = "\n".join(line.strip() for line in done.stderr.splitlines())
        check(done.returncode == 5 and lines == BARE_METAL, f"{binary}: {done.returncode} {lines}")


@case("interpreter")
def interpreter():
    with Machine(raspi("-serial", "mon:stdio", "-accel", "interpreter")) as machine:
        machine.prompt(300)
        check(machine.command("nproc").strip() == "4", "nproc is not 4")


@case("wrong-options")
def wrong_options():
    odd = temporary() / "odd.img"
    odd.write_bytes(bytes(3 << 20))
    image = ["-kernel", guest() / "Image"]
    rows = [
        (["-m", "512"], "has always 1024M of memory"),
        (["-smp", "2"], "has always 4 CPUs"),
        (["-cpu", "max"], "has cortex-a53 only"),
        (["-machine", "gic-version=3"], "unknown property of machine raspi3b 'gic-version'"),
        (["-device", "virtio-net-pci"], "has no bus"),
        (["-nic", "user"], "has no bus"),
        (["-drive", f"file={odd},format=raw", *image], "power of two"),
        (["-drive", f"file={odd},format=raw,if=virtio"], "unknown interface 'virtio'"),
        (["-drive", f"file={odd},format=raw,index=1"], "one card slot"),
        (["-sd", odd, "-sd", odd], "slot is taken|used twice|another"),
        (["-drive", f"file={odd},if=pflash,format=raw"], "has no flash"),
        (["-serial", "null", "-serial", "null", "-serial", "stdio"], "has 2 serial ports"),
        (["-fw_cfg", "name=opt/a,string=b"], "no firmware configuration"),
        (["-machine", "dumpdtb=/tmp/never.dtb", *image], "no device tree of its own"),
        ([], "nothing to start"),
        ([*image, "-dtb", odd], "cannot load"),
    ]
    wrong = []
    for options, says in rows:
        serial = [] if "-serial" in options else ["-serial", "null"]
        done = subprocess.run([emulator(), "-M", "raspi3b", "-display", "none", *serial, *map(str, options)],
                              capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
        lines = done.stderr.splitlines()
        if done.returncode != 1 or len(lines) != 1 or not re.search(says, lines[0]):
            wrong.append(f"{options}: {done.returncode} {done.stderr!r}")
    check(not wrong, "\n     ".join(wrong))
    done = subprocess.run([emulator(), "-M", "help"], capture_output=True, text=True, timeout=30)
    check("raspi3b" in done.stdout and "virt " in done.stdout, f"-M help: {done.stdout!r}")


if __name__ == "__main__":
    main()
