#!/usr/bin/env python3
"""Wrong input of every kind: one clear message and an exit code, never a crash or a hang."""
import os
import re

from harness import Failure, Machine, bare_metal, case, check, guest, main, report, run, temporary


def file(name, content):
    path = temporary() / name
    path.write_bytes(content)
    return path


def all_refused(rows):
    """Checks (arguments, pattern) pairs; shows every failure."""
    wrong = [text for text in (refuses(*arguments, says=says) for arguments, says in rows) if text]
    report(f"{len(rows)} command lines")
    check(not wrong, f"{len(wrong)} were not refused as they should:\n     " + "\n     ".join(wrong))


def refuses(*arguments, says, code=1):
    """The emulator must end with `code` and one line that matches `says`; what is wrong otherwise, or nothing."""
    shown = " ".join(str(argument) for argument in arguments)
    try:
        check_refusal(shown, *run(*arguments, timeout=5), says, code)
    except Failure as failure:
        return f"'{shown}': {failure}" if shown not in str(failure) else str(failure)
    return None


def check_refusal(shown, result, output, says, code):
    check(result == code, f"'{shown}' ended with {result}, not {code}, printing {output[-300:]!r}")
    lines = [line for line in output.splitlines() if line]
    check(len(lines) == 1, f"'{shown}' printed {len(lines)} lines, not one: {output[-300:]!r}")
    check(lines[0].startswith("apus-system-riscv64: "), f"'{shown}' printed {lines[0]!r} without the program's name")
    check(re.search(says, lines[0]), f"'{shown}' printed {lines[0]!r}, which does not match '{says}'")


@case("options")
def options():
    table = [
        (["-nosuch"], "unknown option '-nosuch'"),
        (["--memory", "1G"], "unknown option"),
        (["disk.img"], "unexpected argument 'disk.img'"),
        (["-m"], "needs a value"),
        (["-M", "nosuch"], "unknown machine 'nosuch'"),
        (["-M", "virtt"], "virt"),
        (["-M", "virt,nosuch=on"], "nosuch"),
        (["-M", "virt,aclint=perhaps"], "aclint"),
        (["-cpu", "nosuch"], "nosuch"),
        (["-cpu", "rv64,nosuch=on"], "nosuch"),
        (["-cpu", "rv64,v=perhaps"], "perhaps"),
        (["-accel", "nosuch"], "unknown accelerator 'nosuch'"),
        (["-accel", "kvm"], "kvm"),
        (["-accel", "jit,nosuch=1"], "nosuch"),
        (["-accel", "jit,tb-size=0"], "tb-size"),
        (["-accel", "jit,host-level=sse5"], "sse4, avx, avx2, avx512, not 'sse5'"),
        (["-accel", "interpreter,host-level=sse4"], "host-level is for the JIT"),
        (["-smp", "0"], "-smp"),
        (["-smp", "-1"], "-smp"),
        (["-smp", "9"], "8"),
        (["-smp", "99999999999999999999"], "-smp"),
        (["-smp", "4,maxcpus=2"], "-smp"),
        (["-smp", "2,sockets=3"], "sockets=3"),
        (["-object", "rng-random,id=r,filename=/etc/passwd"], "/dev/urandom"),
        (["-device", "virtio-rng-device,rng=missing"], "missing"),
        (["-device", "virtio-rng-pci,period=100"], "period"),
        (["-device", "virtio-rng-pci,romfile=efi.rom"], "romfile"),
        (["-smp", "four"], "-smp"),
        (["-m", "0"], "-m"),
        (["-m", "lots"], "-m"),
        (["-m", "-5"], "-m"),
        (["-m", "99999999999999999999"], "-m"),
        (["-m", "8E"], "-m|memory"),
        (["-m", "512T"], "-m|memory"),
        (["-d", "nosuch"], "nosuch"),
        (["-rtc", "base=yesterday"], "yesterday"),
        (["-uuid", "1234"], "-uuid"),
        (["-display", "gtk"], "gtk"),
        (["-monitor", "stdio"], "monitor"),
        (["-serial", "nosuch"], "nosuch"),
        (["-serial", "chardev:nosuch"], "nosuch"),
        (["-serial", "stdio", "-serial", "stdio"], "one serial port"),
        (["-chardev", "stdio,id=a", "-chardev", "stdio,id=b"], "stdio"),
        (["-chardev", "null,id=a", "-chardev", "null,id=a"], "twice"),
        (["-chardev", "null"], "id"),
        (["-chardev", "nosuch,id=a"], "nosuch"),
        (["-serial", "file:/nosuch/file"], "/nosuch/file"),
        (["-serial", "unix:/nosuch/socket,server=on"], "/nosuch/socket"),
        (["-serial", "unix:/nosuch/socket,wait=off"], "wait="),
        (["-pidfile", "/nosuch/pid"], "/nosuch/pid"),
        (["-D", "/nosuch/log"], "/nosuch/log"),
        (["-snapshot"], "not implemented"),
        (["-M", "virt,mem-merge=on"], "mem-merge"),
        (["-M", "virt,graphics=on"], "graphics"),
        (["-name", "a,debug-threads=off"], "debug-threads"),
        (["-msg", "colour=on"], "colour"),
        (["-d", "page"], "page"),
        (["-chardev", "socket,id=a,path=/x,port=1,server=on"], "path="),
        (["-chardev", "socket,id=a,path=/x,nodelay=on"], "nodelay"),
    ]
    rows = []
    for arguments, says in table:
        extra = [] if any(argument in ("-serial", "-chardev") for argument in arguments) else ["-serial", "null"]
        if arguments[0] in ("-m",) and len(arguments) == 1:
            extra = []
        rows.append(([*extra, *arguments], says))
    all_refused(rows)


@case("devices")
def devices():
    image = file("disk.raw", bytes(1 << 20))
    table = [
        (["-device", "nosuch"], "unknown device 'nosuch'"),
        (["-device", "virtio-blk-devic"], "virtio-blk-device"),
        (["-device", ""], "driver"),
        (["-device", "virtio-blk-device"], "drive"),
        (["-device", "virtio-blk-device,drive=nosuch"], "nosuch"),
        (["-device", "virtio-blk-pci,nosuch=1"], "nosuch"),
        (["-device", "virtio-net-device,netdev=nosuch"], "nosuch"),
        (["-device", "virtio-net-pci,mac=12:34"], "mac"),
        (["-device", "virtio-rng-device,max-bytes=many"], "max-bytes"),
        (["-device", "virtio-rng-device,ioeventfd=off"], "ioeventfd"),
        (["-device", "virtio-rng-pci,bus=nosuch"], "PCI bus 'nosuch'"),
        (["-device", "virtio-rng-device,bus=nosuch"], "bus 'nosuch'"),
        (["-device", "virtio-rng-device,bus=virtio-mmio-bus.9"], "virtio-mmio-bus.9"),
        (["-device", "virtio-rng-device,bus=virtio-mmio-bus.7", "-device", "virtio-balloon-device,bus=virtio-mmio-bus.7"],
         "taken"),
        (["-device", "virtio-rng-pci,rombar=1"], "rombar"),
        (["-device", "virtio-net-device,host_ufo=on"], "host_ufo"),
        (["-device", "virtio-net-device,guest_ufo=on"], "guest_ufo"),
        (["-device", "virtio-net-device,tx=timer"], "tx=timer"),
        (["-device", "virtio-rng-device"] + ["-device", "virtio-rng-device"] * 8, "slot"),
        (["-device", "virtio-rng-pci,addr=99"], "addr"),
        (["-device", "virtio-rng-pci,addr=3", "-device", "virtio-rng-pci,addr=3"], "addr|slot|in use|taken"),
        (["-device", "virtconsole,chardev=nosuch"], "nosuch|bus"),
        (["-netdev", "nosuch,id=a"], "nosuch"),
        (["-netdev", "user"], "id"),
        (["-netdev", "user,id=a,nosuch=1"], "nosuch"),
        (["-netdev", "user,id=a,net=300.0.0.0/8"], "net"),
        (["-netdev", "user,id=a,hostfwd=tcp::99999-:80"], "hostfwd"),
        (["-netdev", "user,id=a,hostfwd=nosuch"], "hostfwd"),
        (["-netdev", "user,id=a", "-netdev", "user,id=a"], "twice"),
        (["-netdev", "user,id=a,guestfwd=tcp::80-tcp:127.0.0.1:80,,nodelay"], "guestfwd"),
        (["-netdev", "tap,id=a,fd=9,vnet_hdr=off"], "vnet_hdr"),
        (["-netdev", "stream,id=a,server=on,reconnect=1,addr.type=unix,addr.path=/nosuch/x"], "reconnect"),
        (["-drive", f"file={image},format=raw,if=none,serial=x"], "serial="),
        (["-drive", f"file={image},format=raw,werror=maybe"], "werror"),
        (["-blockdev", f"raw,node-name=f,offset=512,file.driver=file,file.filename={image}", "-M", "virt,pflash0=f"],
         "offset="),
        (["-blockdev", "nbd,node-name=n,server.type=inet,server.path=/nosuch/x"], "server.path"),
        (["-blockdev", "memory,node-name=n,size=1M,read-only=on"], "read-only"),
        (["-drive", "if=virtio"], "file"),
        (["-drive", "file=/nosuch/disk,format=raw"], "/nosuch/disk"),
        (["-drive", f"file={image},format=nosuch"], "nosuch"),
        (["-drive", f"file={image},format=raw,if=nosuch"], "nosuch"),
        (["-drive", f"file={image},format=raw,cache=nosuch"], "nosuch"),
        (["-drive", f"file={image},format=raw,nosuch=1"], "nosuch"),
        (["-drive", f"file={image},format=raw,readonly=perhaps"], "perhaps"),
        (["-drive", f"file={image},format=raw,id=a,if=none", "-drive", f"file={image},format=raw,id=a,if=none"],
         "twice|lock|in use"),
        (["-drive", f"file={temporary()},format=raw"], "directory|regular"),
        (["-drive", f"file={image},format=raw,if=none,id=a", "-device", "virtio-blk-device,drive=a",
          "-device", "virtio-blk-device,drive=a"], "a"),
        (["-blockdev", "nosuch,node-name=a"], "nosuch"),
        (["-blockdev", "file,filename=/nosuch/disk,node-name=a"], "/nosuch/disk"),
        (["-blockdev", "raw,node-name=a,file=nosuch"], "nosuch"),
        (["-blockdev", f"file,filename={image}"], "node-name"),
        (["-object", "nosuch,id=a"], "nosuch"),
        (["-fw_cfg", "name=opt/a,file=/nosuch/file"], "/nosuch/file"),
        (["-fw_cfg", "opt/a"], "fw_cfg"),
        (["-drive", "if=pflash,format=raw,file=/nosuch/flash"], "/nosuch/flash"),
    ]
    all_refused([(["-serial", "null", "-display", "none", "-bios", "none", *arguments], says)
                 for arguments, says in table])


@case("files")
def files():
    """Missing, empty, truncated and foreign kernels, RAM disks, firmware and device trees."""
    kernel = (guest() / "Image").read_bytes()
    elf = bytearray(open(bare_metal("tiny", ".globl _start\n_start: j _start\n"), "rb").read())
    half = file("half.elf", bytes(elf[:80]))
    far = bytearray(elf)
    offset = int.from_bytes(far[32:40], "little")
    count = int.from_bytes(far[56:58], "little")
    for index in range(count):
        far[offset + index * 56 + 24:offset + index * 56 + 32] = (0x4_0000_0000).to_bytes(8, "little")
    wrong_segments = bytearray(elf)
    wrong_segments[32:40] = (1 << 62).to_bytes(8, "little")
    huge = bytearray(elf)
    for index in range(count):
        huge[offset + index * 56 + 40:offset + index * 56 + 48] = ((1 << 63) + 1).to_bytes(8, "little")
    other = bytearray(elf)
    other[18:20] = (62).to_bytes(2, "little")
    narrow = bytearray(elf)
    narrow[4] = 1
    large_tree = bytearray(b"\xd0\x0d\xfe\xed" + (1 << 31).to_bytes(4, "big") + bytes(32))
    none = ["-bios", "none"]
    table = [
        ([*none, "-kernel", "/nosuch/kernel"], "/nosuch/kernel"),
        ([*none, "-kernel", temporary()], "directory"),
        ([*none, "-kernel", file("empty", b"")], "empty"),
        ([*none, "-kernel", half], "half.elf"),
        ([*none, "-kernel", file("far.elf", bytes(far))], "far.elf"),
        ([*none, "-kernel", file("segments.elf", bytes(wrong_segments))], "segments.elf"),
        ([*none, "-kernel", file("huge.elf", bytes(huge))], "huge.elf"),
        ([*none, "-kernel", file("other.elf", bytes(other))], "other.elf"),
        ([*none, "-kernel", file("narrow.elf", bytes(narrow))], "narrow.elf"),
        ([*none, "-kernel", file("bad.gz", b"\x1f\x8b\x08\x00" + bytes(60))], "bad.gz"),
        ([*none, "-m", "16", "-kernel", guest() / "Image"], "Image"),
        ([*none, "-kernel", file("half-image", kernel[:1 << 20])], "cut off"),
        (["-bios", "/nosuch/bios"], "/nosuch/bios"),
        (["-bios", file("no-bios", b"")], "no-bios"),
        (["-bios", file("big-bios", bytes(20 << 20)), "-m", "16"], "big-bios"),
        ([*none, "-initrd", "/etc/passwd"], "-initrd needs -kernel"),
        ([*none, "-append", "x"], "-append needs -kernel"),
        ([*none, "-kernel", guest() / "Image", "-initrd", "/nosuch/initrd"], "/nosuch/initrd"),
        ([*none, "-m", "64", "-kernel", guest() / "Image", "-initrd", file("big", bytes(48 << 20))], "big"),
        ([*none, "-dtb", "/nosuch/tree"], "/nosuch/tree"),
        ([*none, "-dtb", file("empty.dtb", b"")], "empty.dtb"),
        ([*none, "-dtb", file("text.dtb", b"this is not a device tree, is it?" * 10)], "text.dtb"),
        ([*none, "-dtb", file("short.dtb", bytes(large_tree))], "short.dtb"),
    ]
    all_refused([(["-nographic", *arguments], says) for arguments, says in table])


# Programs that must neither crash the emulator nor stop it from being ended.
GUESTS = {
    "jump-to-nothing": "li t0, 0x12345678\n jr t0\n",
    "jump-to-zero": "csrw mtvec, zero\n jr zero\n",
    "jump-odd": "li t0, 0x80000001\n jr t0\n",
    "jump-past-memory": "li t0, 0x80000000 + (64 << 20) - 4\n li t1, 0x13\n sw t1, 0(t0)\n fence.i\n jr t0\n",
    "jump-to-device": "li t0, 0x10000000\n jr t0\n",
    "illegal": ".word 0\n .word 0xffffffff\n",
    "trap-loop": "la t0, 1f\n csrw mtvec, t0\n .align 2\n1: .word 0\n",
    "unmapped": "la t0, 2f\n csrw mtvec, t0\n li t1, 0x700000000\n1: sd t1, 0(t1)\n addi t1, t1, 8\n j 1b\n"
                " .align 2\n2: csrr t2, mepc\n addi t2, t2, 4\n csrw mepc, t2\n mret\n",
    "device-sweep": "la t0, 2f\n csrw mtvec, t0\n li t1, 0x101000\n li t3, 0x10200000\n"
                    "1: ld t2, 0(t1)\n sd t2, 0(t1)\n lw t2, 4(t1)\n sw t2, 4(t1)\n lbu t2, 3(t1)\n sb t2, 3(t1)\n"
                    " addi t1, t1, 1028\n bltu t1, t3, 1b\n wfi\n j .\n"
                    " .align 2\n2: csrr t2, mepc\n addi t2, t2, 4\n csrw mepc, t2\n mret\n",
    "pci-sweep": "la t0, 2f\n csrw mtvec, t0\n li t1, 0x30000000\n li t3, 0x31000000\n"
                 "1: lw t2, 0(t1)\n not t4, t2\n sw t4, 0(t1)\n lhu t2, 2(t1)\n sh t2, 2(t1)\n addi t1, t1, 4\n"
                 " bltu t1, t3, 1b\n wfi\n j .\n"
                 " .align 2\n2: csrr t2, mepc\n addi t2, t2, 4\n csrw mepc, t2\n mret\n",
    "wfi-forever": "1: wfi\n j 1b\n",
    "page-table-loop": "la t0, table\n srli t1, t0, 12\n ori t2, zero, 1\n slli t3, t1, 10\n or t3, t3, t2\n"
                       " li t4, 512\n1: sd t3, 0(t0)\n addi t0, t0, 8\n addi t4, t4, -1\n bnez t4, 1b\n"
                       " li t2, 8\n slli t2, t2, 60\n or t1, t1, t2\n la t2, 3f\n csrw mtvec, t2\n"
                       " csrw satp, t1\n li t0, 1 << 11\n csrs mstatus, t0\n li t0, 1 << 17\n csrs mstatus, t0\n"
                       " li t0, 1 << 12\n csrc mstatus, t0\n2: ld t5, 0(zero)\n j 2b\n"
                       " .align 2\n3: csrr t2, mepc\n addi t2, t2, 4\n csrw mepc, t2\n j 2b\n"
                       " .align 12\ntable: .space 4096\n",
    "self-modifying": "la t0, 2f\n li t3, 0x00000013\n li t4, 0x00100013\n"
                      "1: sw t3, 0(t0)\n fence.i\n2: nop\n sw t4, 0(t0)\n fence.i\n j 1b\n",
}


@case("guests")
def guests():
    """Guests that misbehave: the emulator stays alive, quiet, small, and ends when told to."""
    for accelerator in ["jit", "interpreter"]:
        for name, source in GUESTS.items():
            program = bare_metal(name, ".option norelax\n.option norvc\n.globl _start\n_start:\n" + source)
            with Machine(["-m", "64", "-bios", "none", "-kernel", program, "-nographic", "-accel", accelerator],
                         terminal=False) as machine:
                for _ in range(4):
                    machine.pump(0.1)
                check(machine.poll() is None, f"{name} ({accelerator}) ended the emulator with {machine.code}: "
                                              f"{machine.tail()}")
                check(len(machine.output) < 4096, f"{name} ({accelerator}) floods the log: {machine.output[:300]!r}")
                with open(f"/proc/{machine.pid}/status") as status:
                    resident = int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) // 1024
                check(resident < 160, f"{name} ({accelerator}) uses {resident} MiB")
                machine.signal(15)
                check(machine.wait(10) == 0, f"{name} ({accelerator}): SIGTERM ended it with {machine.code}")
    report(f"{len(GUESTS)} programs")


@case("random-programs")
def random_programs():
    """Random bytes as a program, many seeds."""
    import random
    seeds = int(os.environ.get("APUS_SEEDS", "20"))
    for seed in range(seeds):
        path = file(f"random-{seed}", random.Random(seed).randbytes(1 << 16))
        with Machine(["-m", "64", "-bios", path, "-nographic", "-no-reboot"], terminal=False) as machine:
            machine.pump(0.1)
            machine.poll()
            if machine.code is None:
                machine.signal(15)
                machine.wait(10)
            check(machine.code is not None and 0 <= machine.code < 128,
                  f"random program with seed {seed} ended the emulator with {machine.code}: {machine.tail()}")


if __name__ == "__main__":
    main()
