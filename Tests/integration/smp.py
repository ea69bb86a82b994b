#!/usr/bin/env python3
"""Several CPUs: all come up, run at the same time, and share memory as they must."""
import hashlib

from harness import Machine, case, check, linux, main

SEQUENCE_SUM = hashlib.md5(b"".join(b"%d\n" % number for number in range(1, 501))).hexdigest()


@case("four-cpus")
def four_cpus():
    with Machine(linux("-smp", "4", "-m", "512")) as machine:
        machine.prompt()
        # The kernel tells on the console when a busy host delays an interrupt.
        machine.command("dmesg -n 1")
        check(machine.command("nproc").strip() == "4", "nproc is not 4")
        check(machine.command("grep -c ^processor /proc/cpuinfo").strip() == "4", "/proc/cpuinfo does not show 4 CPUs")
        loop = "i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; echo $i"
        # In a subshell, which does not tell about its jobs.
        machine.command(f"(for c in 0 1 2 3; do taskset -c $c sh -c '{loop}' >/tmp/out$c & done; wait)", 120)
        check(machine.command("cat /tmp/out0 /tmp/out1 /tmp/out2 /tmp/out3").split() == ["60000"] * 4,
              "a busy loop on one of four CPUs did not finish: " + machine.command("cat /tmp/out*"))
        # Processes that start, talk through pipes and end, on all CPUs at once.
        machine.command("(for c in 0 1 2 3; do (for i in $(seq 40); do seq 500 | sort -n | md5sum; done | sort | "
                        "uniq -c >/tmp/out$c) & done; wait)", 180)
        sums = machine.command("cat /tmp/out0 /tmp/out1 /tmp/out2 /tmp/out3")
        check(sums.split() == ["40", SEQUENCE_SUM, "-"] * 4, f"parallel pipelines do not agree: {sums!r}")
        interrupts = machine.command("grep -i 'timer interrupts' /proc/interrupts || cat /proc/interrupts")
        check(interrupts, "no interrupts are shown")
        machine.send("poweroff -f\r")
        check(machine.wait(20) == 0, f"poweroff ended with {machine.code}")


@case("eight-cpus")
def eight_cpus():
    with Machine(linux("-smp", "8", "-m", "512")) as machine:
        machine.prompt(180)
        check(machine.command("nproc").strip() == "8", "nproc is not 8")


@case("eight-cpus-reboot")
def eight_cpus_reboot():
    with Machine(linux("-smp", "8", "-m", "512")) as machine:
        machine.prompt(180)
        machine.send("reboot -f\r")
        machine.prompt(180)
        check(machine.command("nproc").strip() == "8", "nproc is not 8 after a reboot: "
              + machine.command("dmesg | grep -iE 'smp|cpu[0-9]'"))


@case("one-cpu")
def one_cpu():
    with Machine(linux("-smp", "1", "-m", "128")) as machine:
        machine.prompt()
        check(machine.command("nproc").strip() == "1", "nproc is not 1")


if __name__ == "__main__":
    main()
