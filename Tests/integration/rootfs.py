#!/usr/bin/env python3
"""Debian trixie on a disk: login, a compiler, python3, sqlite3, files that survive, a clean file system. Takes long."""
import os
import shutil
import subprocess
import time

from harness import Machine, ROOT, Skip, case, check, emulator, linux, main, report, temporary

PROMPT = r"root@debian:[^#]*# "


def disk(name):
    """A copy of the root file system's image, built if it is not in the cache."""
    if not shutil.which("debootstrap", path=os.environ["PATH"] + ":/usr/sbin:/sbin"):
        raise Skip("debootstrap is missing; run scripts/install-deps --all")
    done = subprocess.run([ROOT / "scripts" / "fetch-rootfs"], check=True, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "APUS_SYSTEM": emulator()})
    path = temporary() / name
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", done.stdout.strip().splitlines()[-1], path], check=True)
    return path


def login(machine):
    machine.expect("debian login: ", 400)
    machine.send("root\r")
    machine.expect(PROMPT, 120)


def exercise(device):
    image = disk(f"{device}.img")
    machine = Machine(linux("-smp", "2", "-m", "1024", "-drive", f"file={image},format=raw,if=none,id=root", "-device",
                            f"{device},drive=root", append="apus_root=/dev/vda"))
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
        machine.send("reboot\r")
        machine.expect("OpenSBI v", 200)
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


@case("virtio-blk-device")
def mmio():
    exercise("virtio-blk-device")


@case("virtio-blk-pci")
def pci():
    exercise("virtio-blk-pci")


if __name__ == "__main__":
    main()
