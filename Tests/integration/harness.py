"""What the integration tests share: machines on pseudo-terminals, expectations with time limits, PASS and FAIL lines.

A test file declares its cases with @case and ends with main(). It runs alone (`Tests/integration/boot.py [NAME...]`) or
from scripts/integration. Every case is a function without arguments; an exception is its failure, `Skip` its excuse.

Environment:
  APUS_SYSTEM     the emulator; without it bin/apus-system-riscv64, built if it is not there
  APUS_ACCEL      passed as -accel to every machine that does not choose one itself
  APUS_PATIENCE   multiplies every time limit (a number, 1 if not set)
"""
import atexit
import fcntl
import os
import pathlib
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PATIENCE = float(os.environ.get("APUS_PATIENCE", "1"))
PROMPT = rb"[~/a-z] # "


class Failure(Exception):
    """A case did not see what it must."""


class Skip(Exception):
    """The host lacks what the case needs."""


def check(condition, message):
    if not condition:
        raise Failure(message)


def emulator():
    """The path of apus-system-riscv64."""
    path = os.environ.get("APUS_SYSTEM")
    if path:
        return path
    path = ROOT / "bin" / "apus-system-riscv64"
    if not path.exists():
        subprocess.run(["make", "-s", "build"], cwd=ROOT, check=True, stdout=sys.stderr)
    return str(path)


_guest = None


def guest():
    """The directory with the guest's kernel, RAM disk and firmware (see scripts/fetch-guest)."""
    global _guest
    if _guest is None:
        done = subprocess.run([ROOT / "scripts" / "fetch-guest"], check=True, stdout=subprocess.PIPE, text=True)
        _guest = pathlib.Path(done.stdout.strip().splitlines()[-1])
    return _guest


def linux(*options, append="", firmware=True, initrd="initramfs.cpio"):
    """Arguments that boot the guest's Linux to its shell."""
    directory = guest()
    arguments = ["-M", "virt", "-nographic", "-kernel", directory / "Image", "-initrd", directory / initrd,
                 "-append", ("console=ttyS0 " + append).strip()]
    if firmware:
        arguments += ["-bios", directory / "opensbi" / "fw_dynamic.bin"]
    return [str(argument) for argument in [*arguments, *options]]


_directory = None


def temporary():
    """A directory that goes away when the test file ends."""
    global _directory
    if _directory is None:
        _directory = pathlib.Path(tempfile.mkdtemp(prefix="apus-test-"))
        atexit.register(shutil.rmtree, _directory, ignore_errors=True)
    return _directory


def bare_metal(name, source, *flags):
    """Assembles and links a program for 0x80000000; returns the ELF file's path."""
    compiler = shutil.which("riscv64-linux-gnu-gcc")
    if not compiler:
        raise Skip("riscv64-linux-gnu-gcc is missing; run scripts/install-deps")
    path = temporary() / (name + ".S")
    path.write_text(source)
    output = temporary() / (name + ".elf")
    subprocess.run([compiler, "-march=rv64gc", "-mabi=lp64d", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none",
                    "-Wl,-N", "-Wl,--no-warn-rwx-segments",
                    "-Wl,-Ttext=0x80000000", *flags, "-o", output, path], check=True)
    return str(output)


def add_to_archive(folder, archive):
    """Appends an archive with a folder's files to an initial RAM disk."""
    names = sorted(str(name.relative_to(folder)) for name in folder.rglob("*"))
    made = subprocess.run(["cpio", "--quiet", "--create", "--format=newc", "--owner=0:0"], cwd=folder, check=True,
                          input="\n".join(names).encode(), stdout=subprocess.PIPE).stdout
    with open(archive, "ab") as file:
        file.write(b"\0" * (-file.tell() % 512))
        file.write(made)


def free_port():
    import socket
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


_running = []


class Machine:
    """One run of the emulator, on a pseudo-terminal of its own (or on pipes)."""

    def __init__(self, arguments, terminal=True, program=None, environment=None):
        arguments = [str(argument) for argument in arguments]
        if program is None:
            program = [emulator()]
            accelerator = os.environ.get("APUS_ACCEL")
            if accelerator and "-accel" not in arguments:
                arguments = [*arguments, "-accel", accelerator]
        self.command_line = [*program, *arguments]
        self.output = b""
        self.position = 0
        self.code = None
        self.usage = None
        self.slave = None
        environment = {**os.environ, **(environment or {})}
        if terminal:
            self.master, self.slave = os.openpty()
            # As it was before the emulator could change it.
            self.terminal_attributes = termios.tcgetattr(self.slave)
            self.process = subprocess.Popen(
                self.command_line, stdin=self.slave, stdout=self.slave, stderr=self.slave, start_new_session=True,
                env=environment, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        else:
            self.process = subprocess.Popen(
                self.command_line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                start_new_session=True, env=environment)
            self.master = self.process.stdout.fileno()
        self.pid = self.process.pid
        self.started = time.monotonic()
        _running.append(self)

    # --- the console ---

    def pump(self, seconds):
        """Takes what has been printed; waits at most so long. False at the end of the output."""
        ready, _, _ = select.select([self.master], [], [], max(0, seconds))
        if not ready:
            return True
        try:
            chunk = os.read(self.master, 65536)
        except OSError:
            chunk = b""
        self.output += chunk
        return bool(chunk)

    def expect(self, pattern, timeout=60):
        """Waits for a regular expression behind what was matched before; returns the match."""
        if isinstance(pattern, str):
            pattern = pattern.encode()
        deadline = time.monotonic() + timeout * PATIENCE
        while True:
            match = re.compile(pattern, re.S).search(self.output, self.position)
            if match:
                self.position = match.end()
                return match
            left = deadline - time.monotonic()
            if left <= 0:
                raise Failure(f"'{pattern.decode(errors='replace')}' did not come within {timeout:g} s; the end of the "
                              f"output: {self.tail()}")
            # A slave that is open here too never shows an end.
            ended = not self.pump(min(left, 0.5)) or self.poll() is not None
            # A flood is searched a piece at a time, not after every few bytes.
            pause = time.monotonic() + 0.05
            while time.monotonic() < pause and select.select([self.master], [], [], 0.005)[0] and self.pump(0):
                pass
            if ended:
                while self.pump(0.1) and select.select([self.master], [], [], 0)[0]:
                    pass
                if not re.compile(pattern, re.S).search(self.output, self.position):
                    raise Failure(f"the emulator ended (code {self.wait(10)}) before '"
                                  f"{pattern.decode(errors='replace')}'; the end of the output: {self.tail()}")

    def send(self, text):
        data = text.encode() if isinstance(text, str) else text
        while data:
            # The UART's queue is short: never wait for room without taking output.
            _, ready, _ = select.select([], [self.master], [], 0.2)
            if ready:
                data = data[os.write(self.master, data[:64]):]
            self.pump(0)

    def command(self, text, timeout=60, code=0):
        """Runs a shell command in the guest; returns its output as text."""
        # The terminal shows the command too, but not with the sums worked out.
        self.send("echo apus-$((20+1)); " + text + "; echo apus-$((40+2))-$?\r")
        match = self.expect(rb"apus-21\r*\n(.*?)apus-42-(\d+)\r*\n", timeout)
        output = match.group(1).decode(errors="replace").replace("\r", "")
        if code is not None:
            check(int(match.group(2)) == code, f"'{text}' in the guest ended with {int(match.group(2))}, printing "
                                               f"{output.strip()[-400:]!r}")
        return output

    def prompt(self, timeout=120):
        """Waits for the guest's shell."""
        self.expect(rb"Apus guest ready\.", timeout)
        self.expect(PROMPT, 30)

    def tail(self):
        return repr(self.output[-600:].decode(errors="replace"))

    # --- the process ---

    def poll(self):
        if self.code is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self._ended(status, usage)
        return self.code

    def _ended(self, status, usage):
        self.code = os.waitstatus_to_exitcode(status)
        self.process.returncode = self.code
        self.usage = usage
        self.wall = time.monotonic() - self.started

    def wait(self, timeout=30):
        """Waits for the emulator's end and returns its exit code (negative for a signal)."""
        deadline = time.monotonic() + timeout * PATIENCE
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise Failure(f"the emulator did not end within {timeout:g} s; the end of the output: {self.tail()}")
            if not self.pump(0.02):
                time.sleep(0.002)
        while select.select([self.master], [], [], 0)[0] and self.pump(0):
            pass
        return self.code

    def cpu_seconds(self):
        """User and system time used so far."""
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def signal(self, number):
        os.kill(self.pid, number)

    def close(self):
        """Ends the emulator, hard if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            _, status, usage = os.wait4(self.pid, 0)
            self._ended(status, usage)
        if self.slave is not None:
            os.close(self.slave)
            os.close(self.master)
            self.slave = None
        elif self.process.stdout:
            self.process.stdout.close()
        if self in _running:
            _running.remove(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def run(*arguments, timeout=20, terminal=False):
    """Runs the emulator to its end; returns (exit code, output)."""
    with Machine(arguments, terminal=terminal) as machine:
        code = machine.wait(timeout)
        return code, machine.output.decode(errors="replace").replace("\r", "")


_cases = []
_only_named = set()


def case(name, only_named=False):
    """Declares a case; with `only_named` one that runs only when it is named: it takes long, or is a known failure
    (docs/known-failures.md)."""
    def declare(function):
        _cases.append((name, function))
        if only_named:
            _only_named.add(name)
        return function
    return declare


def report(text):
    """A measured value, shown below the case's line."""
    print(f"     {text}", flush=True)


def main():
    """Runs the cases (those named on the command line) and ends with 1 if one failed."""
    names = sys.argv[1:]
    if names == ["--list"]:
        print("\n".join(name for name, _ in _cases))
        sys.exit(0)
    unknown = set(names) - {name for name, _ in _cases}
    if unknown:
        sys.exit(f"{sys.argv[0]}: there is no case {', '.join(sorted(unknown))}; --list shows them")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    title = pathlib.Path(sys.argv[0]).stem
    failed = 0
    for name, function in _cases:
        if (name not in names) if names else (name in _only_named):
            continue
        started = time.monotonic()
        try:
            function()
            line = f"PASS {title}/{name}"
        except Skip as reason:
            line = f"SKIP {title}/{name}: {reason}"
        except (Failure, subprocess.CalledProcessError, OSError) as reason:
            failed += 1
            line = f"FAIL {title}/{name}: {reason}"
        finally:
            for machine in list(_running):
                machine.close()
        print(f"{line} ({time.monotonic() - started:.1f} s)", flush=True)
    sys.exit(1 if failed else 0)
