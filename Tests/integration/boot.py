#!/usr/bin/env python3
"""Linux on the virt machine: the shell, the ways to its end, what it costs when idle."""
import os
import signal
import subprocess
import termios
import time

from harness import Machine, ROOT, case, check, emulator, linux, main, report, run, temporary

SMALL = ["-smp", "2", "-m", "512"]


def ctrl_a(key):
    return b"\x01" + key.encode()


@case("make-run")
def make_run():
    """`make run` gives a shell that answers; Ctrl-a x leaves, with the terminal as it was and no process left."""
    emulator()
    # The emulator is there already; what is tested is the recipe and its terminal.
    recipe = subprocess.run(["make", "-n", "run"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    check("apus-system-riscv64" in recipe, "make run does not start apus-system-riscv64")
    command = recipe[recipe.index("guest=$(scripts/fetch-guest)"):].replace("bin/apus-system-riscv64", emulator())
    with Machine([], program=["bash", "-c", f"cd '{ROOT}' && {command}"]) as machine:
        machine.prompt()
        check(termios.tcgetattr(machine.slave) != machine.terminal_attributes,
              "the terminal was not put in raw mode")
        check(machine.command("echo $((6*7))").strip() == "42", "the shell cannot calculate")
        check("riscv64" in machine.command("uname -a"), "uname -a does not say riscv64")
        check(machine.command("nproc").strip() == "2", "nproc is not 2")
        machine.send(ctrl_a("x"))
        check(machine.wait(10) == 0, f"Ctrl-a x ended with {machine.code}")
        check(termios.tcgetattr(machine.slave) == machine.terminal_attributes,
              "the terminal was not restored")
        left = subprocess.run(["ps", "-s", str(machine.pid), "-o", "pid="], capture_output=True, text=True).stdout
        check(not left.strip(), f"processes were left behind: {left}")


@case("poweroff")
def poweroff():
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        machine.send("poweroff -f\r")
        check(machine.wait(20) == 0, f"poweroff ended with {machine.code}")


@case("reboot")
def reboot():
    """A reboot starts the machine again, twice; with -no-reboot it ends it."""
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        machine.command("touch /root/only-in-memory")
        for _ in range(2):
            machine.send("reboot -f\r")
            machine.expect("OpenSBI v", 20)
            machine.prompt()
            check(machine.command("ls /root").strip() == "", "memory survived the reboot")
        machine.send("poweroff -f\r")
        check(machine.wait(20) == 0, f"poweroff after reboots ended with {machine.code}")
    with Machine(linux(*SMALL, "-no-reboot")) as machine:
        machine.prompt()
        machine.send("reboot -f\r")
        check(machine.wait(20) == 0, f"-no-reboot ended with {machine.code}")


@case("interpreter")
def interpreter():
    with Machine(linux("-m", "256", "-accel", "interpreter", append="apus_run=\"uname -m\"")) as machine:
        machine.expect("riscv64", 300)
        check(machine.wait(150) == 0, f"poweroff ended with {machine.code}")


@case("daemon")
def daemon():
    """-daemonize returns once the machine runs; the machine goes on and takes its pid file away at the end."""
    directory = temporary()
    for name in ("pid", "log"):
        (directory / name).unlink(missing_ok=True)
    arguments = [argument for argument in linux(*SMALL, append="apus_run=\"sleep 1\"") if argument != "-nographic"]
    done = subprocess.run([emulator(), *arguments, "-display", "none", "-daemonize", "-pidfile", "pid", "-serial",
                           "file:log"], cwd=directory, timeout=30, stdin=subprocess.DEVNULL)
    check(done.returncode == 0, f"-daemonize ended with {done.returncode}")
    number = int((directory / "pid").read_text())
    deadline = time.monotonic() + 60
    while (directory / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    check(not (directory / "pid").exists(), "the pid file was left behind")
    check("Power down" in (directory / "log").read_text(), "the guest did not power off")
    while os.path.exists(f"/proc/{number}") and time.monotonic() < deadline:
        time.sleep(0.1)
    check(not os.path.exists(f"/proc/{number}"), "the daemon did not end")


@case("kernel-panic")
def kernel_panic():
    """A kernel that panics and reboots ends a -no-reboot machine."""
    with Machine(linux(*SMALL, "-no-reboot", append="panic=-1 rdinit=/nothing init=/nothing")) as machine:
        machine.expect("Kernel panic", 60)
        check(machine.wait(30) == 0, f"it ended with {machine.code}")


@case("idle")
def idle():
    """A guest at its prompt costs next to nothing."""
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        time.sleep(3)
        while machine.pump(0.1) and machine.output[machine.position:]:
            machine.position = len(machine.output)
        before, started = machine.cpu_seconds(), time.monotonic()
        time.sleep(10)
        share = (machine.cpu_seconds() - before) / (time.monotonic() - started) * 100
        report(f"idle: {share:.2f} % of a core")
        check(share < 2, f"an idle guest uses {share:.1f} % of a core; 2 % is the limit")


@case("signals")
def signals():
    """SIGTERM, SIGHUP and SIGINT end the emulator in order, busy or idle, with the terminal restored."""
    for number, busy in [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGHUP, False),
                         (signal.SIGINT, True)]:
        with Machine(linux(*SMALL)) as machine:
            machine.prompt()
            if busy:
                machine.send("while true; do :; done\r")
                time.sleep(0.5)
            machine.signal(number)
            check(machine.wait(10) == 0, f"signal {number} ended it with {machine.code}")
            check(b"terminating on signal" in machine.output, f"no message for signal {number}")
            check(termios.tcgetattr(machine.slave) == machine.terminal_attributes,
                  f"the terminal was not restored after {number}")


@case("killed-early")
def killed_early():
    """A signal at any moment of the start ends the emulator."""
    for delay in [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 0.7]:
        with Machine(linux(*SMALL), terminal=False) as machine:
            time.sleep(delay)
            machine.signal(signal.SIGTERM)
            code = machine.wait(10)
            check(code in (0, -signal.SIGTERM), f"SIGTERM after {delay} s ended it with {code}")


@case("input-flood")
def input_flood():
    """Input much faster than the guest reads arrives whole and in order."""
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        text = "".join(f"{number:07d}\n" for number in range(4000))
        machine.send("stty -echo -icanon; head -c 32000 | md5sum; stty sane\r")
        time.sleep(0.5)
        machine.send(text)
        import hashlib
        machine.expect(hashlib.md5(text.encode()).hexdigest(), 60)


@case("output-flood")
def output_flood():
    """A hundred kilobytes printed by the guest arrives whole."""
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        machine.send("stty -onlcr; seq 20000 | md5sum; seq 20000; stty onlcr; echo the-end\r")
        machine.expect(r"\nthe-end", 120)
        import hashlib
        text = "".join(f"{number}\n" for number in range(1, 20001)).encode()
        check(text in machine.output.replace(b"\r", b""), "the output was changed on its way")


@case("break-and-help")
def break_and_help():
    """Ctrl-a h helps, Ctrl-a Ctrl-a types a Ctrl-a, Ctrl-c reaches the guest."""
    with Machine(linux(*SMALL)) as machine:
        machine.prompt()
        machine.send(ctrl_a("h"))
        machine.expect("end the emulator", 10)
        machine.send("\r")
        machine.send("sleep 1000\r")
        time.sleep(0.5)
        machine.send(b"\x03")
        check(machine.command("echo alive").strip().endswith("alive"), "Ctrl-c did not end the guest's sleep")


@case("paused")
def paused():
    """-S runs no guest code and ends at once."""
    with Machine(linux(*SMALL, "-S"), terminal=False) as machine:
        time.sleep(1)
        machine.pump(0)
        check(machine.output == b"", f"a paused machine printed {machine.output!r}")
        check(machine.cpu_seconds() < 0.5, f"a paused machine used {machine.cpu_seconds()} s")
        machine.signal(signal.SIGTERM)
        check(machine.wait(10) == 0, f"it ended with {machine.code}")


if __name__ == "__main__":
    main()
