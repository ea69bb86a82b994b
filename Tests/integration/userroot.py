#!/usr/bin/env python3
"""Whole Debian roots under the user-mode emulator: made by it, and used for real work. Long; needs root.

Cases of the riscv64 root (trixie) have plain names, those of the arm64 root (bookworm) begin with `aarch64-`. A root is made by
debootstrap with its second stage run by the emulator, and kept in the cache (APUS_CACHE); `remake` makes it again. The
riscv64 root's commands run without binfmt_misc, the other's through it, with an instance of their own (Linux 6.7); `binfmt`
makes a riscv64 root that way, too, and throws it away. `install` adds packages from the network, which the later cases use.
"""
import os
import pathlib
import shutil
import subprocess
import sys

import harness
from harness import PATIENCE, Skip, check, main, report

CACHE = pathlib.Path(os.environ.get("APUS_CACHE", pathlib.Path.home() / ".cache" / "apus"))
SOURCES = pathlib.Path(__file__).resolve().parents[2]
NAMESPACE = pathlib.Path(__file__).with_name("namespace.py")
BASE = "ca-certificates,gcc,libc6-dev,openssl,perl,python3,sqlite3"
MORE = "build-essential netbase git golang-go nodejs gdb strace bzip2 xz-utils curl file"
# Mounts of its own, gone with the last process. Arguments: the root, the emulator, the guest, how programs start, the command.
SCRIPT = """
set -e
root=$1 emulator=$2 guest=$3 way=$4 command=$5
if [ "$way" = binfmt ]; then
  mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
  "$6" binfmt install --isa "$guest" --emulator "$emulator"
fi
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs tmpfs "$root/run"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 PATH=/.apus:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /
if [ "$way" = binfmt ]; then exec chroot "$root" /bin/sh -c "$command"; fi
exec chroot "$root" "/apus-$guest" /bin/sh -c "$command"
"""

# Nobody may make a device in a user namespace of his own: links to the mounted ones serve debootstrap.
MKNOD = """#!/bin/sh
while [ "${1#-}" != "$1" ]; do [ "$1" != -m ] || shift; shift; done
node=${1##*/}
[ -e "$1" ] || ln -s "/dev/${node#test-dev-}" "$1"
"""


class Root:
    """A Debian root of one guest architecture."""

    def __init__(self, target, arch, suite, release, python, packages, way):
        self.target, self.arch, self.suite, self.release, self.python = target, arch, suite, release, python
        self.packages, self.way = packages, way
        self.directory = CACHE / "guest" / target / "userroot"

    def emulator(self):
        named = os.environ.get("APUS_USER")
        if named and pathlib.Path(named).name == f"apus-{self.target}":
            return pathlib.Path(named)
        return SOURCES / "bin" / f"apus-{self.target}"

    def put_emulator(self, root):
        new = root / f"apus-{self.target}.new"
        shutil.copy(os.path.realpath(self.emulator()), new)
        new.rename(root / f"apus-{self.target}")
        (root / ".apus").mkdir(exist_ok=True)
        (root / ".apus/mknod").write_text(MKNOD)
        (root / ".apus/mknod").chmod(0o755)
        if (root / "etc").exists():
            (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")

    def start(self, command, timeout, root, way):
        self.put_emulator(root)
        if way != "binfmt":
            (root / ".apus/mknod").unlink()
        spaces = ([sys.executable, str(NAMESPACE)] if way == "binfmt" else
                  ["unshare", "--kill-child", "--mount", "--pid", "--fork", "--mount-proc"])
        done = subprocess.run(
            ["timeout", "-s", "KILL", str(timeout * PATIENCE), *spaces, "bash", "-c", SCRIPT, "bash", str(root),
             os.path.abspath(self.emulator()), self.target, way, command, str(SOURCES / "bin" / "apus")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        return done.stdout, done.returncode

    def expect(self, command, wanted, timeout=300):
        """Runs a shell command in the root; its output must have `wanted` in it."""
        if os.geteuid() != 0:
            raise Skip("it needs root")
        if not (self.directory / "usr/bin/gcc").exists():
            self.make()
        text, code = self.start(command, timeout, self.directory, self.way)
        check(code == 0 and wanted in text, f"{command!r} ended with {code}: {text[-800:]}")
        return text

    def make(self):
        work = self.make_at(self.directory.with_name("userroot.new"), self.way)
        shutil.rmtree(self.directory, ignore_errors=True)
        work.rename(self.directory)

    def make_at(self, work, way):
        if os.geteuid() != 0:
            raise Skip("it needs root")
        if not shutil.which("debootstrap"):
            raise Skip("debootstrap is missing; run scripts/install-deps --all")
        shutil.rmtree(work, ignore_errors=True)
        packages = CACHE / "debs" / f"rootfs-{self.suite}"
        packages.mkdir(parents=True, exist_ok=True)
        mirror = subprocess.run(["bash", "-c", '. "$0"; debian_mirror', str(SOURCES / "scripts" / "lib" / "debian.sh")],
                                check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
        subprocess.run(["debootstrap", "--foreign", f"--arch={self.arch}", "--variant=minbase", f"--include={BASE}",
                        f"--cache-dir={packages}", "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", self.suite, work,
                        mirror], check=True, stdout=subprocess.DEVNULL)
        text, code = self.start("/debootstrap/debootstrap --second-stage", 3000, work, way)
        check(code == 0 and "installed successfully" in text, text[-1500:])
        shutil.copy("/etc/resolv.conf", work / "etc")
        (work / "etc/apt/sources.list").write_text(f"deb {mirror} {self.suite} main\n")
        return work

    def need(self, program):
        if not (self.directory / "usr/bin" / program).exists():
            raise Skip(f"{program} is not in the root; run the case install")


RISCV64 = Root("riscv64", "riscv64", "trixie", "13.", "3.13", "openjdk-21-jdk-headless libpython3.13-testsuite", "chroot")
AARCH64 = Root("aarch64", "arm64", "bookworm", "12.", "3.11", "openjdk-17-jdk-headless libpython3.11-testsuite", "binfmt")


def case(name, **options):
    """Declares a case of each root."""
    def declare(function):
        for root, prefix in [(RISCV64, ""), (AARCH64, "aarch64-")]:
            def run(root=root):
                function(root)
            run.__doc__ = function.__doc__
            harness.case(prefix + name, **options)(run)
        return function
    return declare


@case("second-stage")
def second_stage(root):
    root.expect("dpkg --audit; dpkg -l | grep -c ^ii; cat /etc/debian_version", root.release)


@case("remake", only_named=True)
def remake(root):
    """The root made anew."""
    root.make()


@case("binfmt", only_named=True)
def binfmt(root):
    """A root made through binfmt_misc, and thrown away."""
    shutil.rmtree(root.make_at(root.directory.with_name("userroot.binfmt"), "binfmt"))


@case("compiler")
def compiler(root):
    root.expect(r"""cd /tmp && cat >a.c <<'END'
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
def python(root):
    root.expect("python3 -c \"import json, decimal, subprocess, threading, sqlite3, ssl, ctypes; "
           "print(subprocess.run(['uname', '-m'], capture_output=True, text=True).stdout, decimal.Decimal(2).sqrt())\"",
           f"{root.target}\n 1.414213562373095048801688724")


@case("perl-sqlite-openssl")
def tools(root):
    root.expect("perl -e 'my %h; $h{$_ % 1000} += $_ for 1..100000; print join(\",\", map { $h{$_} } 0..2), \"\\n\"'",
           "5050000,4950100,4950200")
    root.expect("sqlite3 :memory: \"create table t(a,b); with recursive c(x) as (select 1 union all select x+1 from c where "
           "x<50000) insert into t select x, x*x from c; select sum(b), count(*) from t where a % 7 = 0;\"",
           "|7142")
    root.expect("head -c 1000000 /dev/zero | openssl sha256; openssl genrsa 1024 2>/dev/null | openssl rsa -check -noout; "
           "openssl speed -seconds 1 sha256 2>&1 | tail -1",
           "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025")


@case("install")
def install(root):
    """Packages from the network, with their maintainers' scripts (Java's among them)."""
    root.expect(f"apt-get update -q && apt-get install -y -q --no-install-recommends {MORE} {root.packages} && dpkg --audit && echo all-well",
           "all-well", 3000)


@case("git")
def git(root):
    root.need("git")
    root.expect("cd /tmp && rm -rf one two && git init -q one && cd one && git config user.email a@b && git config user.name n && "
           "for i in 1 2 3 4 5; do echo $i >file; git add file; git commit -qm c$i; done && cd .. && git clone -q one two && "
           "git -C two log --oneline | wc -l && git -C two fsck --full", "5")


@case("go")
def go(root):
    root.need("go")
    root.expect("""mkdir -p /tmp/go && cd /tmp/go && cat >h.go <<'END'
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
def java(root):
    root.need("javac")
    root.expect("""mkdir -p /tmp/java && cd /tmp/java && cat >H.java <<'END'
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
def node(root):
    root.need("node")
    root.expect("node -e 'let s = 0; for (let i = 0; i < 1e7; i++) s += i % 7; console.log(s); setTimeout(() => "
           "console.log(require(\"crypto\").createHash(\"sha1\").update(\"x\").digest(\"hex\")), 10)'",
           "29999994\n11f6ad8ec52a2984abaafd7c3b516503785c2072", 300)


@case("strace")
def strace(root):
    """strace in the root, on guest programs."""
    root.need("strace")
    root.expect("strace true 2>&1", "+++ exited with 0 +++", 60)
    text = root.expect("cd /tmp && strace -f -o calls sh -c 'ls / >/dev/null; echo done' && cat calls", "done", 120)
    check(text.count("execve(\"") == 2 and "exited with 0" in text and "clone" in text, text[-800:])


@case("gdb")
def gdb(root):
    """gdb in the root: a breakpoint, the stack, registers, steps; a program that crashes, and its core file."""
    root.need("gdb")
    text = root.expect("""cd /tmp && cat >g.c <<'END'
#include <stdio.h>
int fact(int n) { return n < 2 ? 1 : n * fact(n - 1); }
int main(int argc, char **argv) { printf("hello %d\\n", fact(5)); return argc > 1 ? *(volatile int *)8 : 3; }
END
gcc -g -O0 g.c -o g
gdb -batch -ex 'break fact' -ex run -ex bt -ex 'info registers' -ex stepi -ex delete -ex c ./g 2>&1
gdb -batch -ex 'run crash' -ex bt ./g 2>&1
ulimit -c unlimited; rm -f core*; ./g crash; timeout 60 gdb -batch -ex bt ./g core* 2>&1 | grep 'in main' || echo no core
""", "exited with code 03", 200)
    for wanted in ["fact (n=5)", "in main (argc=1", f"{'a0' if root is RISCV64 else 'x0'}             0x5", "hello 120", "in main (argc=2", "SIGSEGV"]:
        check(wanted in text, f"{wanted!r} is missing: {text[-2000:]}")
    check("no core" not in text, text[-1000:])


@case("python-tests")
def python_tests(root):
    """Tests that need the host's VSOCK, which may not be there, and a timer exact to a millisecond are left out."""
    if not (root.directory / f"usr/lib/python{root.python}/test/test_mmap.py").exists():
        raise Skip("Python's tests are not in the root; run the case install")
    for name in ["test_signal", "test_threading", "test_subprocess", "test_mmap", "test_socket", "test_asyncio", "test_posix",
                 "test_os", "test_faulthandler", "test_ctypes", "test_eintr", "test_select", "test_epoll", "test_pty", "test_ssl"]:
        if not list((root.directory / f"usr/lib/python{root.python}/test").glob(name + "*")):
            continue
        root.expect(f"cd /tmp && python3 -m test --timeout {int(400 * PATIENCE)} -i test_timerfd_initval -i '*VSOCK*' {name} 2>&1 | tail -30",
                    "esult: SUCCESS", 900)
        report(f"{name} passes")


SOURCE = ("cd /tmp && grep -q deb-src /etc/apt/sources.list || sed 's/^deb /deb-src /' /etc/apt/sources.list "
          ">/etc/apt/sources.list.d/source.list; apt-get update -q && apt-get install -y -q --no-install-recommends dpkg-dev && ")


@case("configure-make-check")
def configure_make_check(root):
    """zlib's own source, from Debian."""
    root.need("make")
    root.expect(SOURCE + "rm -rf zlib[-_]* && apt-get source -q --tar-only zlib && tar xf zlib_*.tar.* && cd zlib-*/ && ./configure && "
                "make -s && make check", "*** zlib test OK ***", 900)


@case("build-a-package")
def build_package(root):
    """bzip2's own source, from Debian: make and its checks."""
    root.need("make")
    root.expect(SOURCE + "rm -rf bzip2-* && apt-get source -q bzip2 && cd bzip2-*/ && "
                "make -s bzip2 libbz2.a 2>&1 | tail -3; ./bzip2 -9 <bzip2.c >x.bz2 && ./bzip2 -dc x.bz2 | cmp - bzip2.c && "
                "./bzip2 -1 <sample1.ref | cmp - sample1.bz2 && echo same", "same", 900)


if __name__ == "__main__":
    main()
