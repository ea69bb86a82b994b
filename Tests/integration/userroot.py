#!/usr/bin/env python3
"""A whole Debian riscv64 root under the user-mode emulator: made by it, and used for real work. Long; needs root.

The root is made by debootstrap, with its second stage run by the emulator in a chroot, without binfmt_misc, and kept in
the cache (APUS_CACHE); `remake` makes it again. `install` adds packages from the network, which the later cases use.
"""
import os
import pathlib
import shutil
import subprocess

from harness import PATIENCE, Skip, case, check, main, report
from guestprograms import emulator

SUITE = "trixie"
CACHE = pathlib.Path(os.environ.get("APUS_CACHE", pathlib.Path.home() / ".cache" / "apus"))
ROOTS = CACHE / "guest" / "riscv64"
ROOT_DIRECTORY = ROOTS / "userroot"
BASE = "ca-certificates,gcc,libc6-dev,openssl,perl,python3,sqlite3"
MORE = ("build-essential git golang-go openjdk-21-jdk-headless nodejs gdb strace bzip2 xz-utils curl file "
        "libpython3.13-testsuite")
# Mounts of its own, gone with the last process.
SCRIPT = """
set -e
mount -t proc proc "$1/proc"
mount --bind /sys "$1/sys"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/run"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /
exec chroot "$1" /apus-riscv64 /bin/sh -c "$2"
"""


def put_emulator(root):
    new = root / "apus-riscv64.new"
    shutil.copy(os.path.realpath(emulator()), new)
    new.rename(root / "apus-riscv64")


def inside(command, timeout=300, root=ROOT_DIRECTORY):
    """Runs a shell command in the root; its output and code."""
    if os.geteuid() != 0:
        raise Skip("it needs root")
    if not (root / "usr/bin/gcc").exists():
        make()
    put_emulator(root)
    done = subprocess.run(
        ["timeout", "-s", "KILL", str(timeout * PATIENCE), "unshare", "--kill-child", "--mount", "--pid", "--fork",
         "--mount-proc", "bash", "-c", SCRIPT, "bash", str(root), command],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    return done.stdout, done.returncode


def expect(command, wanted, timeout=300):
    text, code = inside(command, timeout)
    check(code == 0 and wanted in text, f"{command!r} ended with {code}: {text[-800:]}")
    return text


def make():
    if os.geteuid() != 0:
        raise Skip("it needs root")
    if not shutil.which("debootstrap"):
        raise Skip("debootstrap is missing; run scripts/install-deps --all")
    work = ROOTS / "userroot.new"
    shutil.rmtree(work, ignore_errors=True)
    packages = CACHE / "debs" / f"rootfs-{SUITE}"
    packages.mkdir(parents=True, exist_ok=True)
    mirror = subprocess.run(["bash", "-c", '. "$0"; debian_mirror', str(pathlib.Path(__file__).parents[2] /
                             "scripts" / "lib" / "debian.sh")], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    subprocess.run(["debootstrap", "--foreign", "--arch=riscv64", "--variant=minbase", f"--include={BASE}",
                    f"--cache-dir={packages}", "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", SUITE, work,
                    mirror], check=True, stdout=subprocess.DEVNULL)
    put_emulator(work)
    done = subprocess.run(["unshare", "--kill-child", "--mount", "--pid", "--fork", "--mount-proc", "env", "-i",
                           "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive", "HOME=/root",
                           "chroot", work, "/apus-riscv64", "/bin/sh", "/debootstrap/debootstrap", "--second-stage"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=3000)
    check(done.returncode == 0 and "installed successfully" in done.stdout, done.stdout[-1500:])
    shutil.copy("/etc/resolv.conf", work / "etc")
    (work / "etc/apt/sources.list").write_text(f"deb {mirror} {SUITE} main\n")
    shutil.rmtree(ROOT_DIRECTORY, ignore_errors=True)
    work.rename(ROOT_DIRECTORY)


@case("second-stage")
def second_stage():
    if not (ROOT_DIRECTORY / "usr/bin/gcc").exists():
        make()
    expect("dpkg --audit; dpkg -l | grep -c ^ii; cat /etc/debian_version", "13.")


@case("remake", known_failure=True)
def remake():
    """Not a failure, but too long for every run: by name only."""
    make()


@case("compiler")
def compiler():
    expect(r"""cd /tmp && cat >a.c <<'END'
#include <stdio.h>
#include <math.h>
int main(void) {
  double s = 0;
  for (int i = 1; i < 100000; i++) s += sin(i) / i;
  printf("%.6f\n", s);
  return 0;
}
END
gcc -O2 -o a a.c -lm && ./a""", "1.0708")


@case("python")
def python():
    expect("python3 -c \"import json, decimal, subprocess, threading, sqlite3, ssl, ctypes; "
           "print(subprocess.run(['uname', '-m'], capture_output=True, text=True).stdout, decimal.Decimal(2).sqrt())\"",
           "riscv64\n 1.414213562373095048801688724")


@case("perl-sqlite-openssl")
def tools():
    expect("perl -e 'my %h; $h{$_ % 1000} += $_ for 1..100000; print join(\",\", map { $h{$_} } 0..2), \"\\n\"'",
           "5050000,4950100,4950200")
    expect("sqlite3 :memory: \"create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where "
           "x<50000) insert into t select x, x*x from c; select sum(b), count(*) from t where a % 7 = 0;\"",
           "|7142")
    expect("head -c 1000000 /dev/zero | openssl sha256; openssl genrsa 1024 2>/dev/null | openssl rsa -check -noout; "
           "openssl speed -seconds 1 sha256 2>&1 | tail -1",
           "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025")


@case("install")
def install():
    """Packages from the network, with their maintainers' scripts (Java's among them)."""
    expect(f"apt-get update -q && apt-get install -y -q --no-install-recommends {MORE} && dpkg --audit && echo all-well",
           "all-well", 3000)


def installed(program):
    if not (ROOT_DIRECTORY / "usr/bin" / program).exists():
        raise Skip(f"{program} is not in the root; run the case install")


@case("git")
def git():
    installed("git")
    expect("cd /tmp && rm -rf one two && git init -q one && cd one && git config user.email a@b && git config user.name n && "
           "for i in 1 2 3 4 5; do echo $i >file; git add file; git commit -qm c$i; done && cd .. && git clone -q one two && "
           "git -C two log --oneline | wc -l && git -C two fsck --full", "5")


@case("go")
def go():
    installed("go")
    expect("""mkdir -p /tmp/go && cd /tmp/go && cat >h.go <<'END'
package main
import ("fmt"; "sync"; "time")
func main() {
  var wait sync.WaitGroup
  c := make(chan int, 10)
  for i := 0; i < 100; i++ { wait.Add(1); go func(k int) { defer wait.Done(); time.Sleep(time.Millisecond); c <- k }(i) }
  go func() { wait.Wait(); close(c) }()
  s := 0
  for k := range c { s += k }
  fmt.Println("go", s)
}
END
go build -o h h.go && ./h""", "go 4950", 900)


@case("java")
def java():
    installed("javac")
    expect("""mkdir -p /tmp/java && cd /tmp/java && cat >H.java <<'END'
import java.util.*;
public class H {
  public static void main(String[] a) throws Exception {
    long s = 0;
    Map<Integer, String> m = new HashMap<>();
    for (int i = 0; i < 300000; i++) { m.put(i % 5000, "v" + i); s += m.get(i % 5000).length(); }
    Thread[] t = new Thread[4];
    final long[] r = new long[4];
    for (int k = 0; k < 4; k++) { final int q = k; t[k] = new Thread(() -> { for (int i = 0; i < 1000000; i++) r[q] += i % 7; }); t[k].start(); }
    for (Thread x : t) x.join();
    System.out.println("sum " + s + " " + Arrays.stream(r).sum());
  }
}
END
javac H.java && java H""", "sum 1988890 11999988", 600)


@case("node")
def node():
    installed("node")
    expect("node -e 'let s = 0; for (let i = 0; i < 1e7; i++) s += i % 7; console.log(s); setTimeout(() => "
           "console.log(require(\"crypto\").createHash(\"sha1\").update(\"x\").digest(\"hex\")), 10)'",
           "29999994\n11f6ad8ec52a2984abaafd7c3b516503785c2072", 300)


@case("strace")
def strace():
    """strace in the root, on guest programs."""
    installed("strace")
    expect("strace true 2>&1", "+++ exited with 0 +++", 60)
    text = expect("cd /tmp && strace -f -o calls sh -c 'ls / >/dev/null; echo done' && cat calls", "done", 120)
    check(text.count("execve(\"") == 2 and "exited with 0" in text and "clone" in text, text[-800:])


@case("gdb")
def gdb():
    """gdb in the root: a breakpoint, the stack, registers, steps; a program that crashes, and its core file."""
    installed("gdb")
    text = expect("""cd /tmp && cat >g.c <<'END'
#include <stdio.h>
int fact(int n) { return n < 2 ? 1 : n * fact(n - 1); }
int main(int argc, char **argv) { printf("hello %d\\n", fact(5)); return argc > 1 ? *(volatile int *)8 : 3; }
END
gcc -g -O0 g.c -o g
gdb -batch -ex 'break fact' -ex run -ex bt -ex 'info registers' -ex stepi -ex delete -ex c ./g 2>&1
gdb -batch -ex 'run crash' -ex bt ./g 2>&1
ulimit -c unlimited; rm -f core*; ./g crash; timeout 60 gdb -batch -ex bt ./g core* 2>&1 | grep 'in main' || echo no core
""", "exited with code 03", 200)
    for wanted in ["fact (n=5)", "in main (argc=1", "a0             0x5", "hello 120", "in main (argc=2", "SIGSEGV"]:
        check(wanted in text, f"{wanted!r} is missing: {text[-2000:]}")
    check("no core" not in text, text[-1000:])


@case("python-tests")
def python_tests():
    """test_socket is left out where the host has no VSOCK: its two errors there are the host's."""
    if not (ROOT_DIRECTORY / "usr/lib/python3.13/test/test_mmap.py").exists():
        raise Skip("Python's tests are not in the root; run the case install")
    for name in ["test_signal", "test_threading", "test_subprocess", "test_mmap", "test_posix", "test_os",
                 "test_faulthandler", "test_ctypes", "test_eintr", "test_select", "test_epoll", "test_pty", "test_ssl"]:
        if not list((ROOT_DIRECTORY / "usr/lib/python3.13/test").glob(name + "*")):
            continue
        expect(f"cd /tmp && python3 -m test --timeout 200 -i test_timerfd_initval {name} 2>&1 | tail -30", "Result: SUCCESS", 400)
        report(f"{name} passes")


@case("build-a-package")
def build_package():
    """zlib's or bzip2's own source, from Debian: make and its checks."""
    installed("make")
    expect("cd /tmp && grep -q deb-src /etc/apt/sources.list || sed 's/^deb /deb-src /' /etc/apt/sources.list "
           ">/etc/apt/sources.list.d/source.list; apt-get update -q && rm -rf bzip2-* && "
           "apt-get install -y -q --no-install-recommends dpkg-dev && apt-get source -q bzip2 && cd bzip2-*/ && "
           "make -s bzip2 libbz2.a 2>&1 | tail -3; ./bzip2 -9 <bzip2.c >x.bz2 && ./bzip2 -dc x.bz2 | cmp - bzip2.c && "
           "./bzip2 -1 <sample1.ref | cmp - sample1.bz2 && echo same", "same", 900)


if __name__ == "__main__":
    main()
