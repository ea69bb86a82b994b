#!/usr/bin/env python3
"""User mode under hard use at once: 64 threads in contention, fork storms, signals at 10 kHz, 200 short processes at a
time. No hang, no wrong count, no memory that grows.

soak.py [--minutes N] [CASE...]: ten minutes without it, or APUS_SOAK's seconds; the case `short` takes 20 seconds."""
import concurrent.futures
import os
import subprocess
import sys

from harness import PATIENCE, case, check, main, report
from guestprograms import HELLO, build, emulator

SECONDS = float(os.environ.get("APUS_SOAK", "600"))


@case("short")
def short():
    all_at_once_for(20)


@case("all-at-once")
def all_at_once():
    all_at_once_for(SECONDS)


def all_at_once_for(seconds):
    program = build("soak", "soak.c", "-static")
    hello = build("hello-static", HELLO, "-static", "-no-pie")
    running = {mode: subprocess.Popen([emulator(), program, mode, str(seconds)], stdout=subprocess.PIPE, text=True)
               for mode in ["threads", "forks", "signals"]}

    def one(number):
        done = subprocess.run([emulator(), hello, str(number % 100), "x"], stdout=subprocess.PIPE, text=True,
                              timeout=120 * PATIENCE)
        return done.returncode == number % 100 and done.stdout == f"{hello} [{number % 100}] [x] - 1\n"
    count = wrong = 0
    with concurrent.futures.ThreadPoolExecutor(200) as pool:
        while any(process.poll() is None for process in running.values()):
            results = list(pool.map(one, range(200)))
            count += len(results)
            wrong += results.count(False)
            for process in running.values():
                try:
                    process.wait(0.2)
                except subprocess.TimeoutExpired:
                    pass
    check(wrong == 0, f"{wrong} of {count} short processes failed")
    for mode, process in running.items():
        words = process.stdout.read().split()
        check(process.returncode == 0 and words[:1] == ["ok"], f"{mode}: {process.returncode} {words}")
        work, early, late = map(int, words[1:4])
        report(f"{mode}: {work} units, resident {early} KiB, then {late} KiB")
        check(late < early * 1.2 + 4096, f"{mode}: memory grew from {early} to {late} KiB")
    report(f"{count} short processes")


if __name__ == "__main__":
    if "--minutes" in sys.argv:
        index = sys.argv.index("--minutes")
        try:
            SECONDS = 60 * float(sys.argv[index + 1])
        except (IndexError, ValueError):
            sys.exit("soak.py: --minutes needs a number")
        del sys.argv[index:index + 2]
        if len(sys.argv) == 1:
            sys.argv.append("all-at-once")
    main()
