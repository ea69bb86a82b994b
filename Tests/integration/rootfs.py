#!/usr/bin/env python3
"""Debian on a disk, trixie for riscv64 and bookworm for aarch64: login, a compiler, python3, sqlite3, files that survive, a clean file system. Takes long."""
import os
import shutil
import subprocess
import time

import aarch64_system
from harness import Machine, ROOT, Skip, case, check, emulator, linux, main, report, temporary

PROMPT = r"root@debian:[^#]*# "


def disk(name, target="riscv64"):
    """A copy of the root file system's image, built if it is not in the cache."""
    if not shutil.which("debootstrap", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        raise Skip("debootstrap is missing; run scripts/install-deps --all")
    program = emulator() if target == "riscv64" else aarch64_system.emulator()
    done = subprocess.run([ROOT / "scripts" / "fetch-rootfs", target], check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "APUS_SYSTEM": program})
    path = temporary() / name
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", done.stdout.strip().splitlines()[-1], path], check=True)
    return path


def login(machine):
    machine.expect("debian login: ", 400)
    machine.send("root\r")
    machine.expect(PROMPT, 120)


def exercise(device, target="riscv64"):
    image = disk(f"{target}-{device}.img", target)
    options = ["-smp", "2", "-m", "1024", "-drive", f"file={image},format=raw,if=none,id=root", "-device",
               f"{device},drive=root"]
    if target == "riscv64":
        machine = Machine(linux(*options, append="apus_root=/dev/vda"))
    else:
        machine = aarch64_system.Machine(aarch64_system.linux(
            *options, "-machine", "gic-version=3", "-netdev", "user,id=n", "-device", "virtio-net-pci,netdev=n",
            append="apus_root=/dev/vda"))
    with machine:
        login(machine)
        report(f"login after {time.monotonic() - machine.started:.0f} s")
        machine.command("echo 'int printf(const char *, ...); int main(void) { double s = 0; "
                        "for (int i = 1; i <= 1000; i++) s += 1.0 / i; printf(\"%.10f\", s); }' >/root/t.c", 30)
        check("7.4854708606" in machine.command("gcc -O2 -o /root/t /root/t.c && /root/t", 300),
              "the compiled program is wrong")
        check("3628800" in machine.command("python3 -c 'import math, json, hashlib; print(math.factorial(10))'", 300),
              "python3 is wrong")
        check("499500" in machine.command(
            "sqlite3 /root/t.db 'create table t(n); with recursive c(n) as (select 0 union all select n + 1 from c "
            "where n < 999) insert into t select n from c; select sum(n) from t;'", 120), "sqlite3 is wrong")
        digest = machine.command("head -c 20000000 /dev/urandom >/root/random; sync; md5sum /root/random", 120).split()[0]
        if target == "aarch64":
            network(machine)
        machine.send("reboot\r")
        machine.expect("OpenSBI v" if target == "riscv64" else "Booting Linux", 200)
        login(machine)
        check(digest in machine.command("echo 3 >/proc/sys/vm/drop_caches; md5sum /root/random", 120),
              "a file changed over the reboot")
        check("499500" in machine.command("sqlite3 /root/t.db 'select sum(n) from t; pragma integrity_check;'", 120),
              "the data base changed over the reboot")
        failed = machine.command("systemctl --failed --no-legend --plain", 60, code=None).strip()
        if failed:
            report(f"failed units: {failed}")
        machine.send("poweroff\r")
        check(machine.wait(200) == 0, f"poweroff ended with {machine.code}")
    done = subprocess.run(["/usr/sbin/e2fsck", "-fn", image], capture_output=True, text=True)
    check(done.returncode == 0, f"fsck found errors: {done.stdout[-500:]}")


def network(machine):
    """A file from the host's web server."""
    with aarch64_system.served(b"swift" * 1000) as port:
        machine.command("i=$(ls /sys/class/net | grep -v lo); ip addr add 10.0.2.15/24 dev $i; ip link set $i up", 60)
        fetch = f"import urllib.request; print(len(urllib.request.urlopen('http://10.0.2.2:{port}/file').read()))"
        check("5000" in machine.command(f'python3 -c "{fetch}"', 120), "the network does not work")


@case("virtio-blk-device")
def mmio():
    exercise("virtio-blk-device")


@case("virtio-blk-pci")
def pci():
    exercise("virtio-blk-pci")


@case("aarch64")
def aarch64():
    exercise("virtio-blk-pci", "aarch64")


@case("aarch64-installer")
def installer():
    fetch = ". scripts/lib/debian.sh; debian_fetch bookworm arm64 debian-installer-12-netboot-arm64"
    done = subprocess.run(["bash", "-c", fetch], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    subprocess.run(["dpkg-deb", "-x", done.stdout.strip().splitlines()[-1], temporary()], check=True)
    files = temporary() / "usr/lib/debian-installer/images/12/arm64/text/debian-installer/arm64"
    with aarch64_system.Machine(["-M", "virt", "-cpu", "max", "-m", "1024", "-nographic", "-kernel", files / "linux",
                                 "-initrd", files / "initrd.gz", "-append", "console=ttyAMA0"]) as machine:
        machine.expect("Choose the language|Select a language", 300)


if __name__ == "__main__":
    main()
