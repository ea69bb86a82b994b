#!/usr/bin/env python3
"""The level avx512, which hosts of tests may lack: on a CPU of Bochs, where a Debian kernel runs the emulator (long).

Bochs is some hundred times slower than this host, so what must come out is computed here, by the interpreter.
"""
import hashlib
import pathlib
import re
import select
import shutil
import socket
import struct
import subprocess

from harness import Failure, Machine, PATIENCE, ROOT, Skip, add_to_archive, case, check, main, temporary
import guestprograms

BLOCKS = 200
# Random programs: the guest, what the mnemonics begin with, seeds. First those that the level is about.
PROGRAMS = [("aarch64", only, range(4000, 4000 + count)) for only, count in
            [("cm", 2), ("s", 5), ("u", 5), ("b", 2), ("+sha3", 1), ("fcvt", 3), ("x", 1), ("abs", 1), ("c", 2), ("orn", 1),
             ("extensions", 2), (None, 8)]]
PROGRAMS += [("riscv64", only, range(4500, 4500 + count)) for only, count in [("fcvt", 2), (None, 8)]]
# Others: the guest, the name, the source.
SOURCES = [(target, name, source) for target in ("riscv64", "aarch64")
           for name, source in (("hello", guestprograms.HELLO), ("compute", "../riscv64/compute.c"))]
# CPUs without the instructions that count bits, and with them; options. The rounds of SHA-1 that Bochs 2.7 has on the second are
# not those of a real CPU.
CPUS = {"skylake": ("corei7_skylake_x", ""), "icelake": ("corei7_icelake_u", "-accel jit,opt=-host-sha")}

SCRIPT = r"""
dmesg -n 1; echo; echo "LINE cpu $(grep -m1 ^flags /proc/cpuinfo | tr ' ' '\n' | grep -c -x -e avx512vl -e avx512bw -e avx512dq -e avx512cd)"
cd /apus
apus-riscv64 -accel jit,host-level=avx512 hello-riscv64 >/dev/null && echo LINE level
for target in riscv64 aarch64; do
  for program in *-$target; do
    apus-$target OPTIONS $program >/tmp/out 2>/tmp/error; echo "LINE code $program $?"
    if [ "$(md5sum </tmp/out | cut -c 1-32)" = "$(cat /sums/$program)" ]; then
      echo "LINE same $program"
    else
      pieces=$(($(wc -c </tmp/out) / PIECE))
      for piece in $(seq 0 $pieces); do dd if=/tmp/out bs=PIECE skip=$piece count=1 2>/dev/null | md5sum | cut -c 1-8; done >/tmp/sums
      echo "LINE sums $program $(tr '\n' ' ' </tmp/sums)"; head -c 300 /tmp/error
    fi
  done
done
echo LINE end
sleep 3  # until the serial port has sent it
"""


def emulator(target):
    return ROOT / "bin" / f"apus-{target}"


def make_programs(folder, programs, sources):
    """Leaves programs as NAME-TARGET in a folder; returns their names."""
    tool = emulator("riscv64").resolve().parent / "apus-difftest"
    if not tool.exists():
        raise Skip("apus-difftest is not built")
    names = []
    for target, only, seeds in programs:
        for seed in seeds:
            name = f"{only or 'all'}-{seed}-{target}"
            subprocess.run([tool, "--isa", target, "--reference", "none", "--seed", str(seed), "--blocks", str(BLOCKS),
                            *(["--only", only] if only else []), "--save", folder / name], check=True)
            names.append(name)
    for target, name, source in sources:
        name = f"{name}-{target}"
        shutil.copy(guestprograms.build(name, source, "-static", "-O2", target=target), folder / name)
        names.append(name)
    return names


def expected(folder, name, piece):
    """The exit code, the sum of what the program writes, and the first digits of those of its pieces."""
    done = subprocess.run([emulator(name.split("-")[-1]), "-accel", "interpreter", name], cwd=folder, stdin=subprocess.DEVNULL,
                          capture_output=True, timeout=120 * PATIENCE)
    pieces = [done.stdout[start:start + piece] for start in range(0, len(done.stdout) + 1, piece)]
    return done.returncode, hashlib.md5(done.stdout).hexdigest(), [hashlib.md5(part).hexdigest()[:8] for part in pieces]


def make_disk(directory, bochs, kernel, ramdisk):
    """A disk with one FAT partition, from which SYSLINUX boots."""
    disk, first = directory / "disk.img", 2048
    count = (sum(path.stat().st_size for path in (kernel, ramdisk)) + (16 << 20)) // 512
    record = bytearray((bochs / "root/usr/lib/syslinux/mbr/mbr.bin").read_bytes()[:440].ljust(512, b"\0"))
    record[446:462] = bytes([0x80, 0, 0, 0, 0x0c, 0, 0, 0]) + struct.pack("<II", first, count)
    record[510:] = b"\x55\xaa"
    with open(disk, "wb") as file:
        file.write(record)
        file.truncate((first + count) * 512)
    # Bochs does not describe the sizes of protection keys' state and of the compacted form: the kernel, which would do without
    # AVX then, is not to see pku, xsavec and xsaves; nor umip, rdpid and fsrm, with which it does not start on Ice Lake there.
    (directory / "syslinux.cfg").write_text(
        "default apus\nlabel apus\n kernel Image\n append initrd=initrd console=ttyS0 quiet panic=-1 mitigations=off nokaslr "
        "clearcpuid=321,323,514,515,534,580 nopku apus_run=\"sh /test\"\n")
    at = f"{disk}@@{first * 512}"
    subprocess.run(["mformat", "-i", at, "-T", str(count), "-h", "16", "-s", "63", "-H", str(first), "-F", "::"], check=True)
    subprocess.run([bochs / "root/usr/bin/syslinux", "--install", "--offset", str(first * 512), disk], check=True)
    for path, name in ((directory / "syslinux.cfg", "syslinux.cfg"), (kernel, "Image"), (ramdisk, "initrd")):
        subprocess.run(["mcopy", "-i", at, path, f"::/{name}"], check=True)
    return disk


def boot(directory, bochs, disk, cpu, port):
    """Bochs with its first serial port on a TCP port of ours."""
    (directory / "bochsrc").write_text(f"""display_library: term
plugin_ctrl: unmapped=1, biosdev=1, serial=1
cpu: model={cpu}, count=1, ips=100000000, reset_on_triple_fault=0
memory: guest=1024, host=1024
romimage: file={bochs}/root/usr/share/bochs/BIOS-bochs-latest
vgaromimage: file={bochs}/root/usr/share/vgabios/vgabios.bin
ata0-master: type=disk, path={disk}, mode=flat
boot: disk
com1: enabled=1, mode=socket-client, dev=localhost:{port}
log: {directory}/bochs.log
panic: action=fatal
clock: sync=none
""")
    # It has a debugger, which wants to be told to go on.
    (directory / "commands").write_text("c\n")
    return Machine(["-q", "-f", directory / "bochsrc", "-rc", directory / "commands"], program=[str(bochs / "bochs")],
                   environment={"TERM": "vt100"})


def on_cpu(name, programs, sources):
    """Boots a CPU of Bochs, runs the programs on it and compares what they leave with what they leave here."""
    for tool in ("mformat", "mcopy", "cpio"):
        if not shutil.which(tool):
            raise Skip(f"{tool} is missing; run scripts/install-deps")
    def fetched(*words):
        done = subprocess.run([ROOT / "scripts" / words[0], *words[1:]], check=True, stdout=subprocess.PIPE, text=True)
        return pathlib.Path(done.stdout.strip().splitlines()[-1])
    guest, bochs = fetched("fetch-guest", "x86_64"), fetched("fetch-bochs")
    cpu, options = CPUS[name]
    directory = temporary() / name
    folder = directory / "disk" / "apus"
    folder.mkdir(parents=True)
    names = make_programs(folder, programs, sources)
    # Random programs write as much for each block.
    total = len(subprocess.run([emulator("aarch64"), folder / next(n for n in names if n.endswith("0-aarch64"))],
                               capture_output=True).stdout)
    piece = total // BLOCKS
    wanted = {one: expected(folder, one, piece) for one in names}
    for subdirectory in ("bin", "sums"):
        (directory / "disk" / subdirectory).mkdir()
    for one, (_, total, _) in wanted.items():
        (directory / "disk/sums" / one).write_text(total)
    subprocess.run(["strip", "-o", directory / "disk/bin/apus-riscv64", emulator("riscv64").resolve()], check=True)
    (directory / "disk/bin/apus-aarch64").symlink_to("apus-riscv64")
    (directory / "disk" / "test").write_text(SCRIPT.replace("PIECE", str(piece)).replace("OPTIONS", options))
    ramdisk = directory / "initramfs.cpio"
    shutil.copy(guest / "initramfs.cpio", ramdisk)
    add_to_archive(directory / "disk", ramdisk)
    subprocess.run(["gzip", "-1", ramdisk], check=True)
    ramdisk = directory / "initramfs.cpio.gz"
    disk = make_disk(directory, bochs, guest / "Image", ramdisk)

    shown = b""
    # The file is for those who want to look on.
    with socket.create_server(("127.0.0.1", 0)) as server, open(directory / "serial", "wb", buffering=0) as log:
        with boot(directory, bochs, disk, cpu, server.getsockname()[1]) as machine:
            server.settimeout(60 * PATIENCE)
            serial, _ = server.accept()
            while b"\nLINE end" not in shown and b"Kernel panic" not in shown:
                # It is silent from the boot loader to the first program.
                ready, _, _ = select.select([serial, machine.master], [], [], 1800 * PATIENCE)
                if machine.master in ready:
                    machine.pump(0)
                part = serial.recv(65536) if serial in ready else b""
                check(part or serial not in ready and ready, f"Bochs showed no more than {shown[-2000:]!r}")
                shown += part
                log.write(part)
    lines = [line.split() for line in re.findall(r"^LINE (.*?)\r?$", shown.decode(errors="replace"), re.M)]
    check(["cpu", "4"] in lines and ["level"] in lines, f"the level is refused: {shown[-2000:]!r}")
    for one, (code, _, sums) in wanted.items():
        check(["code", one, str(code)] in lines, f"{one}: not {code}; {shown[-2000:]!r}")
        if ["same", one] not in lines:
            found = next((line[2:] for line in lines if line[:2] == ["sums", one]), [])
            wrong = [index for index, sum in enumerate(sums) if found[index:index + 1] != [sum]]
            raise Failure(f"{one}: pieces {wrong[:20]} of {len(sums)} differ")


@case("skylake")
def skylake():
    """Random programs of both guests, a few others."""
    on_cpu("skylake", PROGRAMS, SOURCES)


@case("icelake")
def icelake():
    """A few random programs."""
    on_cpu("icelake", [("aarch64", only, range(4600, 4602)) for only in ("c", "s", "u", None)], SOURCES)


if __name__ == "__main__":
    main()
