#!/usr/bin/env python3
"""The user-mode emulator on programs of its own: loading, paths, scripts, options, binfmt_misc, refusals.

APUS_USER names another emulator to test (bin/apus-riscv64 without it). What needs a whole Debian root is in userroot.py.
"""
import concurrent.futures
import os
import shutil
import subprocess
import sys
import time

from harness import PATIENCE, ROOT, Skip, case, check, free_port, main, report, temporary
from guestprograms import HELLO, LIBRARIES, NAMESPACE, build, emulator, run


@case("kinds-of-programs")
def kinds():
    """Static, static-pie, position-dependent and -independent dynamic programs."""
    for name, flags, options in [("static", ["-static", "-no-pie"], []), ("dynamic", ["-no-pie"], ["-L", LIBRARIES]),
                                 ("pie", ["-pie", "-fPIE"], ["-L", LIBRARIES])]:
        program = build("hello-" + name, HELLO, *flags)
        done = run(*options, program, "7", "two words", "")
        check(done.returncode == 7 and done.stdout == f"{program} [7] [two words] [] - 1\n",
              f"{name}: {done.returncode} {done.stdout!r} {done.stderr!r}")
    # The cross compiler's C library has no start-up code for static-pie.
    program = build("static-pie", "void _start(void) {\n"
                    "  register long a7 __asm__(\"a7\") = 94, a0 __asm__(\"a0\") = 31;\n"
                    "  __asm__ volatile(\"ecall\" : : \"r\"(a7), \"r\"(a0));\n}\n",
                    "-static-pie", "-fPIE", "-nostdlib", "-Wl,--no-dynamic-linker")
    done = run(program)
    check(done.returncode == 31, f"static-pie: {done.returncode} {done.stderr!r}")


@case("prefix-and-environment")
def prefix():
    """-L and its two variables; -0, -E, -U; arguments that are not UTF-8."""
    program = build("hello-pie", HELLO, "-pie", "-fPIE")
    for variable in ["APUS_LD_PREFIX", "QEMU_LD_PREFIX"]:
        done = run(program, env={**os.environ, variable: str(LIBRARIES), "SHOWN": "yes"})
        check(done.returncode == 0 and done.stdout.endswith(" yes 1\n"), f"{variable}: {done.stdout!r} {done.stderr!r}")
    done = run("-L", LIBRARIES, "-0", "other", "-E", "SHOWN=set", program)
    check(done.stdout == "other set 1\n", f"-0 and -E: {done.stdout!r}")
    done = run("-L", LIBRARIES, "-U", "SHOWN", program, env={**os.environ, "SHOWN": "yes"})
    check(done.stdout.endswith(" - 1\n"), f"-U: {done.stdout!r}")
    raw = subprocess.run([emulator().encode(), b"-L", str(LIBRARIES).encode(), str(program).encode(), b"0", b"\xff\xfe"],
                         stdout=subprocess.PIPE, timeout=60)
    check(b"[\xff\xfe]" in raw.stdout, f"bytes: {raw.stdout!r}")


@case("absolute-links-below-the-prefix")
def links():
    """A root directory whose loader is behind an absolute link, as Debian's roots have them."""
    root = temporary() / "linked"
    program = build("hello-pie", HELLO, "-pie", "-fPIE")
    (root / "real").mkdir(parents=True, exist_ok=True)
    for file in (LIBRARIES / "lib").iterdir():
        if file.name.startswith(("ld-linux", "libc.so")):
            shutil.copy(file, root / "real")
    if not (root / "lib").is_symlink():
        (root / "lib").symlink_to("/real")
    done = run("-L", root, program)
    check(done.returncode == 0, f"{done.returncode} {done.stderr!r}")


# Executes its arguments in a child and ends with its code, or 99 with the errno shown.
STARTER = r"""
#include <errno.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
int main(int argc, char **argv) {
  pid_t child = fork();
  if (child == 0) {
    execv(argv[1], argv + 1);
    printf("errno %d\n", errno);
    fflush(stdout);
    _exit(99);
  }
  int status;
  waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}
"""


@case("children-and-scripts")
def children():
    """execve of programs and scripts from a guest, without binfmt_misc."""
    starter = build("starter", STARTER, "-static")
    program = build("hello-static", HELLO, "-static", "-no-pie")
    done = run(starter, program, "3", "x")
    check(done.returncode == 3 and done.stdout == f"{program} [3] [x] - 1\n", f"program: {done.stdout!r} {done.stderr!r}")
    script = temporary() / "script"
    script.write_text(f"#! {program}  5 of one  \nignored\n")
    script.chmod(0o755)
    done = run(starter, script, "more")
    check(done.returncode == 5 and done.stdout == f"{program} [5 of one] [{script}] [more] - 1\n", f"script: {done.stdout!r}")
    nested = temporary() / "nested"
    nested.write_text(f"#!{script}\n")
    nested.chmod(0o755)
    done = run(starter, nested)
    check(done.returncode == 5 and f"[{script}] [{nested}]" in done.stdout, f"nested: {done.stdout!r}")
    loop = temporary() / "loop"
    loop.write_text(f"#!{loop}\n")
    loop.chmod(0o755)
    plain = temporary() / "plain"
    plain.write_text("neither\n")
    broken = temporary() / "broken"
    broken.write_bytes(program.read_bytes()[:70])
    lost = build("lost", HELLO, "-pie", "-fPIE", "-Wl,--dynamic-linker=/nonexistent/loader")
    for path, number, mode in [("/nonexistent", 2, None), (loop, 40, None), ("/etc", 13, None), (plain, 13, 0o644),
                               (plain, 8, 0o755), (broken, 8, 0o755), (lost, 2, None)]:
        if mode:
            os.chmod(path, mode)
        done = run(starter, path)
        check(done.returncode == 99 and done.stdout == f"errno {number}\n", f"{path}: {done.stdout!r} {done.stderr!r}")
    host = run(starter, "/bin/echo", "from the host")
    check(host.stdout == "from the host\n", f"a host's program: {host.stdout!r}")


@case("refusals")
def refusals():
    """What cannot be run: one clear line, and 126 or 127."""
    program = build("hello-static", HELLO, "-static", "-no-pie")
    whole = bytearray(program.read_bytes())

    def variant(name, change):
        data = bytearray(whole)
        data = change(data) or data
        path = temporary() / name
        path.write_bytes(data)
        path.chmod(0o755)
        return path

    def put(offset, value, size):
        def change(data):
            data[offset:offset + size] = value.to_bytes(size, "little")
        return change

    cases = [
        (variant("empty", lambda data: data[:0] or bytearray(b"x")), "not an ELF"),
        (variant("short", lambda data: data[:40]), "not an ELF"),
        (variant("headers-only", lambda data: data[:64]), "program headers"),
        (variant("cut", lambda data: data[:2000]), "does not fit the file"),
        (variant("machine", put(18, 62, 2)), "machine is 62"),
        (variant("class", put(4, 1, 1)), "64-bit"),
        (variant("order", put(5, 2, 1)), "little-endian"),
        (variant("type", put(16, 1, 2)), "type is 1"),
        (variant("count", put(56, 0, 2)), "program headers"),
        (variant("far-table", put(32, 1 << 60, 8)), "program headers"),
        (variant("entry-size", put(54, 1, 2)), "program headers"),
        (build("lost", HELLO, "-pie", "-fPIE", "-Wl,--dynamic-linker=/nonexistent/loader"), "-L"),
    ]
    for path, message in cases:
        done = run(path)
        check(done.returncode in (126, 127), f"{path.name}: ended with {done.returncode}: {done.stderr!r}")
        check(message in done.stderr and done.stderr.count("\n") == 1, f"{path.name}: {done.stderr!r}")
    # Any byte of the headers may be wrong: never a crash of the emulator's own.
    import random
    source = random.Random(4)
    for number in range(60):
        data = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            data[source.randrange(5, 64 + 56 * 4)] = source.randrange(256)
        path = temporary() / "random"
        path.write_bytes(data)
        path.chmod(0o755)
        try:
            done = run("-s", "64k", path, timeout=5)
        except subprocess.TimeoutExpired:
            continue
        check("internal error" not in done.stderr and "Fatal" not in done.stderr, f"seed {number}: {done.stderr!r}")


@case("options")
def options():
    for words in [["-nonsense"], ["-cpu", "none"], ["-accel", "none"], ["-accel", "jit,perf-map=x"], ["-accel", "jit,host-level=sse5"],
                  ["-accel", "interpreter,host-level=sse4"], ["-s", "1"], ["-d", "none"], ["-L"], ["-L", "/nonexistent"],
                  []]:
        done = run(*words)
        check(done.returncode == 1 and done.stderr.startswith("apus-riscv64: ") and done.stderr.count("\n") == 1,
              f"{words}: {done.returncode} {done.stderr!r}")
    program = build("hello-static", HELLO, "-static", "-no-pie")
    log = temporary() / "log"
    done = run("-strace", "-D", log, program)
    check(done.returncode == 0 and "write(1," in log.read_text() and "exit_group(0)" in log.read_text(), log.read_text())
    for word in ["-version", "-help"]:
        check(run(word).returncode == 0, word)
    unknown = build("unknown", "#include <unistd.h>\n#include <errno.h>\n"
                    "int main(void) { return syscall(4000) == -1 && errno == 38 && syscall(425, 0, 0) == -1 && errno == 38"
                    " ? 0 : 1; }\n", "-static")
    done = run("-d", "unimp", unknown)
    check(done.returncode == 0 and done.stderr.count("unimp:") == 2, f"{done.returncode} {done.stderr!r}")


@case("translation-log")
def translation_log():
    """All blocks of a program in each form that -d shows."""
    program = build("hello-static", HELLO, "-static", "-no-pie")
    log = temporary() / "translation"
    for items in [("in_asm", "op", "op_opt", "out_asm"), ("in_asm",), ("op",), ("op_opt",), ("out_asm",), ("exec", "cpu")]:
        done = run("-d", ",".join(items), "-D", log, program)
        check(done.returncode == 0 and done.stdout, f"{items}: {done.returncode} {done.stderr!r}")
        text = log.read_text()
        for item, mark in [("in_asm", "ecall"), ("op", "\nOP:"), ("op_opt", "OP without unused values:"), ("out_asm", "\nOUT: [size="),
                           ("exec", "Trace 0: 0x"), ("cpu", "\nzero 0000")]:
            check((mark in text) == (item in items), f"{items}: {mark!r}: {text[:2000]!r}")


@case("chroot-without-binfmt")
def chroot():
    """The emulator inside a root directory without /proc executes programs by its own path."""
    if os.geteuid() != 0:
        raise Skip("it needs root")
    root = temporary() / "root"
    root.mkdir(exist_ok=True)
    shutil.copy(os.path.realpath(emulator()), root / "apus-riscv64")
    shutil.copy(build("hello-static", HELLO, "-static", "-no-pie"), root / "hello")
    shutil.copy(build("starter", STARTER, "-static"), root / "starter")
    done = run("/apus-riscv64", "/starter", "/hello", "4", program=["chroot", root])
    check(done.returncode == 4 and done.stdout == "/hello [4] - 1\n", f"{done.returncode} {done.stdout!r} {done.stderr!r}")


@case("binfmt-command")
def binfmt_command():
    """apus binfmt on a directory that is none of the kernel's: what it writes, whom it gives way to, what it refuses."""
    directory, files = temporary() / "binfmt_misc", temporary() / "binfmt-files.d"
    directory.mkdir(exist_ok=True)
    (directory / "register").write_text("")
    (directory / "status").write_text("enabled\n")
    shutil.copy(os.path.realpath(emulator()), temporary() / "apus-riscv64")
    environment = {**os.environ, "APUS_BINFMT": str(directory), "APUS_BINFMT_D": str(files)}
    ours = ["--emulator", temporary() / "apus-riscv64"]

    def call(*words):
        return run("binfmt", *words, program=[ROOT / "bin" / "apus"], env=environment)

    magic, mask = "7f454c460201010000000000000000000200f300", "ffffffffffffff00fffffffffffffffffeffffff"
    for words, flags in [([], "FP"), (["--no-argv0"], "F"), (["--credentials"], "FPC"), (["--no-argv0", "--credentials"], "FC")]:
        done = call("install", *ours, *words, "--systemd")
        check(done.returncode == 0, f"{words}: {done.stderr!r}")
        line = (directory / "register").read_text()
        fields = line.split(":")
        check(fields[1:4] == ["apus-riscv64", "M", ""] and fields[4].replace("\\x", "") == magic
              and fields[5].replace("\\x", "") == mask and fields[6:] == [str(temporary() / "apus-riscv64"), flags], line)
        check((files / "apus-riscv64.conf").read_text() == line + "\n", "the file for systemd")
        check(call("file", *ours, *words).stdout == line + "\n", "file")
    check(call("status").returncode == 1, "status without a registration")

    def other(name, magic, mask="", state="enabled", offset=0):
        (directory / name).write_text(f"{state}\ninterpreter /usr/bin/other\nflags: F\noffset {offset}\nmagic {magic}\n"
                                      + (f"mask {mask}\n" if mask else ""))
        done = call("install", *ours)
        check((name in done.stderr) == (done.returncode == 1), f"{name}: {done.stderr!r}")
        forced = call("install", *ours, "--force")
        check(forced.returncode == 0, f"{name}: {forced.stderr!r}")
        (directory / name).unlink()
        return done.returncode == 1
    check(other("same", magic, mask), "the same magic")
    check(other("executables", magic), "executables only")
    check(other("objects", magic.replace("0200f3", "0300f3"), mask), "shared objects")
    check(other("gnu", magic[:14] + "03" + magic[16:]), "Linux's OS ABI")
    check(other("any-elf", "7f454c46"), "any ELF file")
    check(other("by-machine", "f300", offset=18), "the machine alone")
    check(not other("disabled", magic, mask, state="disabled"), "one that is disabled")
    check(not other("aarch64", magic.replace("f300", "b700"), mask), "another machine")
    check(not other("class", magic[:8] + "01" + magic[10:], mask), "32 bits")
    check(not other("longer", magic + "01000000"), "one that looks further")
    done = call("install", "--isa", "aarch64", *ours)
    check(done.returncode == 0 and "\\xb7\\x00" in (directory / "register").read_text(), "aarch64")
    for words, message in [([], "say install"), (["nonsense"], "say install"), (["install", "--nonsense"], "no option"),
                           (["status", "--force"], "no option"), (["install", "--isa"], "needs a name"),
                           (["install", "--isa", "vax"], "no guest"), (["install", "--emulator"], "needs a file"),
                           (["install", "--emulator", "/nonexistent"], "no emulator"),
                           (["install", "--emulator", "/bin/ls"], "not static"),
                           (["install", "--emulator", ROOT / "scripts" / "binfmt"], "not an ELF"),
                           (["remove"], "not registered")]:
        done = call(*words)
        check(done.returncode == 1 and message in done.stderr and done.stderr.count("\n") == 1, f"{words}: {done.stderr!r}")
    check("usage: apus binfmt" in call("--help").stdout, "--help")


@case("binfmt")
def binfmt():
    """apus binfmt in a binfmt_misc instance of our own."""
    if run(sys.executable, NAMESPACE, "mount", "-t", "binfmt_misc", "none", "/proc/sys/fs/binfmt_misc",
           program=[]).returncode != 0:
        raise Skip("there is no binfmt_misc in a user namespace here")
    root = temporary() / "binfmt-root"
    root.mkdir(exist_ok=True)
    shutil.copy(build("hello-static", HELLO, "-static", "-no-pie"), root / "hello")
    other = r":other:M::\x7f\x45\x4c\x46\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xf3\x00::/bin/true:"
    script = f"""
set -u
binfmt="{ROOT}/bin/apus binfmt"
export APUS_BINFMT_D="{temporary()}/binfmt.d"
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
{ROOT}/scripts/binfmt status && exit 10
$binfmt install --emulator {emulator()} || exit 11
$binfmt status || exit 12
(exec -a its-name {root}/hello 3 'a b'); [ $? = 3 ] || exit 13
chroot {root} /hello 6; [ $? = 6 ] || exit 14
$binfmt install --no-argv0 --systemd --emulator {emulator()} || exit 22
(exec -a its-name {root}/hello 8); [ $? = 8 ] || exit 23
grep -q ':F$' "$APUS_BINFMT_D/apus-riscv64.conf" || exit 24
[ "$($binfmt file --no-argv0 --emulator {emulator()})" = "$(cat "$APUS_BINFMT_D/apus-riscv64.conf")" ] || exit 25
$binfmt status --isa aarch64 && exit 26
$binfmt status --isa nonsense && exit 27
$binfmt remove --systemd || exit 15
[ -e "$APUS_BINFMT_D/apus-riscv64.conf" ] && exit 28
$binfmt remove && exit 16
$binfmt install --credentials --emulator {emulator()} || exit 29
grep -q '^flags: POCF$' /proc/sys/fs/binfmt_misc/apus-riscv64 || exit 30
$binfmt install --isa aarch64 --emulator {emulator()} || exit 31
grep -q '^magic 7f454c460201010000000000000000000200b700$' /proc/sys/fs/binfmt_misc/apus-aarch64 || exit 32
$binfmt status && $binfmt status --isa aarch64 || exit 33
$binfmt remove && $binfmt remove --isa aarch64 || exit 34
printf '%s' '{other}' >/proc/sys/fs/binfmt_misc/register
$binfmt install --emulator {emulator()} && exit 17
$binfmt install --emulator {emulator()} --force || exit 18
$binfmt status | grep 'other handlers: other' || exit 19
$binfmt install --emulator /bin/ls && exit 20
$binfmt nonsense && exit 21
exit 0
"""
    done = run(sys.executable, NAMESPACE, "bash", "-c", script, program=[])
    check(done.returncode == 0, f"ended with {done.returncode}: {done.stdout!r} {done.stderr!r}")
    check("its-name [3] [a b]" in done.stdout and "/hello [6]" in done.stdout and
          f"{root}/hello [8]" in done.stdout, done.stdout)


class Debugger:
    """A client of the remote serial protocol."""

    def __init__(self, port):
        import socket
        for _ in range(200):
            try:
                self.socket = socket.create_connection(("127.0.0.1", port), 1)
                self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                break
            except OSError:
                time.sleep(0.05)
        self.socket.settimeout(30 * PATIENCE)
        self.rest = b""

    def send(self, text):
        self.socket.sendall(b"$%s#%02x" % (text.encode(), sum(text.encode()) & 255))

    def receive(self):
        while True:
            start = self.rest.find(b"$")
            end = self.rest.find(b"#", start)
            if start >= 0 and 0 <= end and end + 2 < len(self.rest):
                text = self.rest[start + 1:end].decode()
                self.rest = self.rest[end + 3:]
                self.socket.sendall(b"+")
                return text
            data = self.socket.recv(4096)
            if not data:
                return ""
            self.rest += data

    def ask(self, text):
        self.send(text)
        return self.receive()


@case("debugger")
def debugger():
    """-g: registers, memory, a breakpoint, a step, an interrupt, a fault, the end."""
    program = build("debugged", r"""
#include <unistd.h>
volatile long counter;
__attribute__((noinline)) void mark(long value) { counter += value; }
int main(int argc, char **argv) {
  mark(3);
  mark(4);
  if (argc > 1) for (;;) pause();
  *(volatile int *)16 = 1;
  return 0;
}
""", "-static", "-no-pie")
    names = subprocess.run(["riscv64-linux-gnu-nm", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    address = {line.split()[2]: int(line.split()[0], 16) for line in names.splitlines() if len(line.split()) == 3}

    def little(text):
        return int.from_bytes(bytes.fromhex(text), "little")
    for words in [[], ["wait"]]:
        port = free_port()
        process = subprocess.Popen([emulator(), "-g", str(port), program, *words])
        try:
            client = Debugger(port)
            check(client.ask("qSupported").startswith("PacketSize="), "qSupported")
            check(client.ask("?").startswith("T05"), "the first stop")
            check(little(client.ask("p20")) == address["_start"], "the first PC")
            mark = address["mark"]
            old = client.ask(f"m{mark:x},2")
            check(client.ask(f"M{mark:x},2:0290") == "OK", "a breakpoint")  # c.ebreak
            for value in (3, 4):
                check(client.ask("c").startswith("T05") and little(client.ask("p20")) == mark, "the breakpoint is met")
                check(little(client.ask("pa")) == value, f"a0 is {value}")
                check(client.ask(f"M{mark:x},2:{old}") == "OK" and client.ask("s").startswith("T05"), "a step")
                check(little(client.ask("p20")) != mark, "the step moves the PC")
                check(client.ask(f"M{mark:x},2:0290") == "OK", "the breakpoint again")
            client.send("c")
            if words:
                time.sleep(0.3)
                client.socket.sendall(b"\x03")
                check(client.receive().startswith("T02"), "the interrupt")
            else:
                check(client.receive().startswith("T0b"), "the fault")
            check(little(client.ask(f"m{address['counter']:x},8")) == 7, "memory")
            check(client.ask("P0a=2a00000000000000") == "OK" and little(client.ask("pa")) == 42, "a register")
            if words:
                client.send("k")
                check(process.wait(30) == 137, f"killed: {process.returncode}")
            else:
                check(client.ask("C0b") == "X0b", "the end")
                check(process.wait(30) == -11, f"ended with {process.returncode}")
        finally:
            process.kill()
            process.wait()


@case("debugger-threads")
def debugger_threads():
    """-g: all threads are shown and rest while one has stopped; one steps alone; each stop is told once."""
    program = build("debugged-threads", r"""
#include <pthread.h>
#include <unistd.h>
volatile long counts[3];
__attribute__((noinline)) void mark(long k) { counts[k]++; }
static void *work(void *k) { for (;;) mark((long)k); }
int main(void) {
  pthread_t thread;
  for (long k = 1; k < 3; k++) pthread_create(&thread, 0, work, (void *)k);
  for (;;) pause();
}
""", "-static", "-no-pie")
    names = subprocess.run(["riscv64-linux-gnu-nm", program], stdout=subprocess.PIPE, text=True, check=True).stdout
    address = {line.split()[2]: int(line.split()[0], 16) for line in names.splitlines() if len(line.split()) == 3}
    mark = address["mark"]

    def little(text):
        return int.from_bytes(bytes.fromhex(text), "little")
    port = free_port()
    process = subprocess.Popen([emulator(), "-g", str(port), program])
    try:
        client = Debugger(port)
        client.ask("qSupported")
        check(client.ask("vCont?").startswith("vCont;c;C;s;S"), "vCont")

        def threads():
            return client.ask("qfThreadInfo")[1:].split(",")

        def place(thread):
            check(client.ask("Hg" + thread) == "OK", f"Hg{thread}")
            return little(client.ask("p20"))

        def counts():
            return client.ask(f"m{address['counts']:x},18")
        check(len(threads()) == 1, "one thread at first")
        old = client.ask(f"m{mark:x},2")
        check(client.ask(f"M{mark:x},2:0290") == "OK", "a breakpoint")
        # A thread each time, both in the end, and the values that go with it.
        seen = set()
        end = time.monotonic() + 30 * PATIENCE
        for number in range(100000):
            if number >= 40 and len(seen) == 2 or time.monotonic() > end:
                break
            report = client.ask("vCont;c")
            check(report.startswith("T05thread:"), report)
            thread = report[10:].rstrip(";")
            check(thread in threads() and client.ask("T" + thread) == "OK", f"{thread} is one of the threads")
            check(place(thread) == mark, "it is at the breakpoint")
            seen.add(thread)
            before = {other: place(other) for other in threads()}
            check(client.ask("Hg" + thread) == "OK" and little(client.ask("pa")) in (1, 2), "its argument")
            # It steps over the breakpoint alone.
            check(client.ask(f"M{mark:x},2:{old}") == "OK", "the instruction")
            stepped = client.ask("vCont;s:" + thread)
            check(stepped == report, f"the step ended with {stepped}")
            check(client.ask(f"M{mark:x},2:0290") == "OK", "the breakpoint again")
            after = {other: place(other) for other in threads()}
            check(after[thread] != mark and all(after[o] == before[o] for o in before if o != thread), "only it has moved")
        check(len(threads()) == 3 and len(seen) == 2, f"{seen} of {threads()}")
        # The other of the two steps alone, chosen by number.
        other = (seen - {thread}).pop()
        check(client.ask(f"M{mark:x},2:{old}") == "OK", "without the breakpoint")
        at, shown = place(other), counts()
        check(client.ask("vCont;s:" + other) == f"T05thread:{other};", "the other's step")
        check(place(other) != at and place(thread) == after[thread], "only the other has moved")
        # All rest: nothing changes.
        shown = counts()
        time.sleep(0.2)
        check(counts() == shown, "they rest")
        client.send("vCont;c")
        time.sleep(0.3)
        client.socket.sendall(b"\x03")
        report = client.receive()
        check(report.startswith("T02thread:") and counts() != shown, f"the interrupt: {report}")
        check(client.ask("T7fffffff") == "E01" and client.ask("vCont;x").startswith("E"), "what is not there")
        name = bytes.fromhex(client.ask("qThreadExtraInfo," + thread)).decode()
        check(name == "debugged-thread", f"the thread's name is {name!r}")
        client.send("k")
        check(process.wait(30) == 137, f"killed: {process.returncode}")
    finally:
        process.kill()
        process.wait()


@case("core-files")
def core_files():
    """A crash leaves a core file of the guest's, and a wait status that says so."""
    pattern = open("/proc/sys/kernel/core_pattern").read().strip()
    if pattern.startswith(("|", "/")):
        raise Skip(f"core files go elsewhere here: {pattern}")
    program = build("crashing", r"""
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
long *volatile nowhere;
int marked = 4711;
__attribute__((noinline)) int crash(int value) { *nowhere = value; return value; }
int main(int argc, char **argv) {
  mmap(0, 8192, PROT_READ, MAP_PRIVATE, open(argv[1], O_RDONLY), 0);
  for (int i = 0; i < 2; i++) {
    void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(page, 0xa5 + i, 4096);
    if (i == 1) madvise(page, 4096, MADV_DONTDUMP);
  }
  return crash(20);
}
""", "-static", "-no-pie", "-g")
    directory = temporary() / "cores"
    directory.mkdir(exist_ok=True)

    def limits():
        import resource
        resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    untouched = temporary() / "untouched"
    untouched.write_bytes(b"\xa4" * 8192)
    process = subprocess.Popen([emulator(), program, untouched], cwd=directory, preexec_fn=limits)
    status = os.waitpid(process.pid, 0)[1]
    process.returncode = 0
    check(os.WTERMSIG(status) == 11 and os.WCOREDUMP(status), f"the wait status is 0x{status:x}")
    files = list(directory.iterdir())
    check(len(files) == 1, f"there are {files}")
    data = files[0].read_bytes()
    check(data[:4] == b"\x7fELF" and data[16] == 4 and int.from_bytes(data[18:20], "little") == 243, "it is no riscv64 core file")
    check(b"\xa4" * 8192 in data, "a file's pages that nobody touched are missing")
    check(b"\xa5" * 4096 in data and b"\xa6" * 4096 not in data, "MADV_DONTDUMP's page is in it, or another's is not")
    debugger = shutil.which("gdb-multiarch")
    if debugger:
        text = subprocess.run([debugger, "-batch", "-ex", "bt", "-ex", "print marked", program, files[0]], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120 * PATIENCE).stdout
        check("in crash (" in text and "in main (" in text and "= 4711" in text and "SIGSEGV" in text, text)


@case("addresses")
def addresses():
    """Programs lie elsewhere each time, unless the process asked for the same."""
    program = build("addresses", "#include <stdio.h>\n#include <stdlib.h>\n"
                    "int main(void) { int x; printf(\"%p %p %p\\n\", (void *)main, (void *)&x, malloc(300000)); }\n", "-pie", "-fPIE")
    first, second = (run("-L", LIBRARIES, program).stdout.split() for _ in range(2))
    check(len(first) == 3 and all(a != b for a, b in zip(first, second)), f"{first} {second}")
    first, second = (run("-R", emulator(), "-L", LIBRARIES, program, program=["setarch"]).stdout for _ in range(2))
    check(first == second and first, f"{first} {second}")


@case("seen-by-others")
def seen_by_others():
    """/proc/PID of a guest process, as ps and pgrep read it."""
    program = build("debugged-sleep", "#include <unistd.h>\nint main(void) { write(1, \"x\", 1); pause(); }\n", "-static")
    process = subprocess.Popen([emulator(), "-0", "its-name", program, "one"], stdout=subprocess.PIPE)
    try:
        process.stdout.read(1)
        line = open(f"/proc/{process.pid}/cmdline", "rb").read()
        name = open(f"/proc/{process.pid}/comm").read()
        check(name == "debugged-sleep\n", f"its name is {name!r}")
        if line.startswith(emulator().encode()):
            raise Skip("the kernel takes no description of a process (CONFIG_CHECKPOINT_RESTORE)")
        check(line == b"its-name\0one\0", f"its command line is {line!r}")
    finally:
        process.kill()
        process.wait()


@case("busy-program")
def busy_program():
    """The file of a guest program that runs cannot be opened for writing, nor truncated."""
    program = build("busy", "#include <unistd.h>\nint main(void) { write(1, \"x\", 1); pause(); }\n", "-static")
    opener = build("opener", r"""
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
int main(int argc, char **argv) {
  for (int i = 0; i < 3; i++) {
    static const int flags[] = {O_RDONLY, O_RDWR, O_WRONLY | O_CREAT};
    errno = 0;
    open(argv[1], flags[i], 0700);
    printf("%d ", errno);
  }
  struct stat status;
  stat(argv[1], &status);
  errno = 0;
  truncate(argv[1], -1);
  printf("%d ", errno);
  errno = 0;
  truncate(argv[1], status.st_size);
  printf("%d ", errno);
  if (errno) {
    errno = 0;
    open(argv[1], O_RDONLY | O_TRUNC);
    printf("%d ", errno);
  }
  uint64_t how[3] = {O_WRONLY | O_APPEND};
  errno = 0;
  syscall(437, AT_FDCWD, argv[1], how, sizeof how);
  printf("%d ", errno);
  stat(argv[1], &status);
  printf("%d", status.st_size > 0);
}
""", "-static")
    process = subprocess.Popen([emulator(), program], stdout=subprocess.PIPE)
    try:
        process.stdout.read(1)
        if open(f"/proc/{process.pid}/cmdline", "rb").read().startswith(emulator().encode()):
            raise Skip("the kernel takes no description of a process (CONFIG_CHECKPOINT_RESTORE)")
        busy = run(opener, program).stdout
        check(busy == "0 26 26 22 26 26 26 1", f"while it runs: {busy}")
        copy = temporary() / "busy-copy"
        shutil.copy(program, copy)
        idle = "0 0 0 22 0 0 1"
        check(run(opener, copy).stdout == idle, "a copy")
    finally:
        process.kill()
        process.wait()
    check(run(opener, program).stdout == idle, "afterwards")


@case("threads-memory")
def threads_memory():
    """Threads that come and go leave nothing behind: 20,000 of them, 8 at a time, and 10,000, 64 at a time."""
    program = build("churn", "churn.c", "-static")
    for count, at_once in [(20000, 8), (10000, 64)]:
        done = run(program, count, at_once, timeout=120)
        check(done.returncode == 0, f"{done.returncode} {done.stdout!r} {done.stderr!r}")
        early, late = map(int, done.stdout.split())
        report(f"{at_once} at a time: {early} KiB, then {late} KiB")
        check(late <= early + 1024, f"{at_once} at a time: memory grew from {early} to {late} KiB")


@case("many-processes")
def many():
    """120 short processes, eight at a time."""
    program = build("hello-pie", HELLO, "-pie", "-fPIE")

    def one(number):
        return run("-L", LIBRARIES, program, str(number % 100)).returncode == number % 100
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        good = list(pool.map(one, range(120)))
    check(all(good), f"{good.count(False)} of {len(good)} failed")


FLAGS = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
int main(void) {
  static const uint64_t values[] = {0, 0x3ff0000000000000, 0xbff8000000000000, 0x7ff8000000000000, 0x7ff0000000000001, 1};
  int wrong = 0;
  for (int i = 0; i < 6; i++)
    for (int j = 0; j < 6; j++)
      for (unsigned long flags = 0; flags < 32; flags++) {
        double x, y;
        unsigned long less, after, raised;
        memcpy(&x, values + i, 8);
        memcpy(&y, values + j, 8);
        __asm__ volatile("fsflags %3\nfrflags t0\nflt.d %0, %4, %5\nfsflags t0\nfrflags %1\n"
                         "frflags t0\nfle.d t1, %4, %5\nfrflags %2\nfsflags t0"
                         : "=&r"(less), "=&r"(after), "=&r"(raised) : "r"(flags), "f"(x), "f"(y) : "t0", "t1");
        int isNaN = x != x || y != y;
        if (after != flags || less != (!isNaN && x < y) || raised != (flags | (isNaN ? 16 : 0))) wrong++;
      }
  printf("%d\n", wrong);
}
"""


@case("flags-put-back")
def flags_put_back():
    """A comparison between frflags and fsflags leaves no flag, whatever it compared; one without raises invalid."""
    program = build("flags", FLAGS, "-O1", "-static")
    for options in [], ["-accel", "interpreter"]:
        done = run(*options, program)
        check(done.stdout == "0\n", f"{options}: {done.stdout!r} wrong, {done.stderr!r}")


if __name__ == "__main__":
    main()
