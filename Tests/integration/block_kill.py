#!/usr/bin/env python3
"""apus-io and apus-img killed at random moments: the image stays consistent, and what a flush acknowledged is there."""
import os
import random
import shutil
import subprocess
import time

from block import img, output_json, path, peer, run, tool
from harness import case, check, main, report

ROUNDS = int(os.environ.get("APUS_KILLS", "160"))


def consistent(image, lazy):
    """No corruption. A file whose dirty bit is set is repaired by its next opening for writing."""
    if lazy or output_json(tool("img"), "info", "-U", "--output=json", image)["dirty-flag"]:
        run(tool("io"), "-f", "qcow2", "-c", "flush", image)
    for program in (tool("img"), peer("img")):
        value = output_json(program, "check", "--output=json", image)
        check(value.get("corruptions", 0) == 0 and value["check-errors"] == 0, f"{program} finds {value}")


@case("writer")
def writer():
    """Numbered patterns, discards and growing sizes, with a flush after each round; the last acknowledged one is read back."""
    generator = random.Random(int(os.environ.get("APUS_SEEDS", "3")))
    acknowledged = 0
    for number in range(ROUNDS):
        lazy = number % 4 == 3
        image = path("kill.qcow2")
        options = ["", "extended_l2=on", "cluster_size=4k", "lazy_refcounts=on"][number % 4]
        img("create", "-q", "-f", "qcow2", *(["-o", options] if options else []), image, "64M")
        process = subprocess.Popen([tool("io"), "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        lines = []
        expected = {}
        for step in range(200):
            block = generator.randrange(1000)
            pattern = step % 255 + 1
            lines.append((f"write -q -P {pattern} {block * 65000} 65000", block, pattern))
            if step % 5 == 4:
                lines.append((f"discard -q {62 << 20} 1M", None, 0))
            if step % 20 == 7:
                lines.append((f"truncate {64 + step}M", None, 0))
            if step % 3 == 2:
                lines.append(("flush", None, 0))
                # A command after the flush whose output says that the flush is through.
                lines.append(("length", None, 0))
        deadline = time.monotonic() + generator.random() * 0.15
        script = "".join(line + "\n" for line, _, _ in lines)
        try:
            process.stdin.write(script)
            process.stdin.flush()
        except BrokenPipeError:
            pass
        while time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        output = process.stdout.read()
        process.wait()
        done = output.count(" MiB\n")
        acknowledged += done
        seen = 0
        for line, block, pattern in lines:
            if line == "length":
                seen += 1
            if seen >= done:
                break
            if block is not None:
                expected[block] = pattern
        consistent(image, lazy)
        # Blocks written again after the last acknowledged flush may have either content.
        later = set()
        seen = 0
        for line, block, pattern in lines:
            if line == "length":
                seen += 1
            if seen >= done and block is not None:
                later.add(block)
        commands = [f"read -q -P {pattern} {block * 65000} 65000" for block, pattern in expected.items() if block not in later]
        for start in range(0, len(commands), 200):
            run(tool("io"), "-r", "-f", "qcow2", *(word for command in commands[start:start + 200] for word in ("-c", command)),
                image)
    report(f"{ROUNDS} kills, {acknowledged} acknowledged flushes")


@case("tools")
def tools():
    """snapshot, resize, bitmap, commit and convert killed in the middle."""
    generator = random.Random(5)
    source = path("kill-source.qcow2")
    img("create", "-q", "-f", "qcow2", "-o", "cluster_size=4k", source, "64M")
    run(tool("io"), "-f", "qcow2", "-c", "write -q -P 1 0 16M", "-c", "write -q -P 2 40M 8M", source)
    img("snapshot", "-c", "first", source)
    run(tool("io"), "-f", "qcow2", "-c", "write -q -P 3 1M 2M", source)
    jobs = [["snapshot", "-c", "second"], ["snapshot", "-a", "first"], ["snapshot", "-d", "first"],
            ["bitmap", "--add"], ["resize", "-q"], ["resize", "-q", "--shrink"], ["amend", "-o", "refcount_bits=32"],
            ["bitmap", "--clear"], ["check", "-r", "all"]]
    # Resizing moves bitmaps, too.
    img("bitmap", "--add", source, "kept")
    small = path("kill-small.qcow2")
    shutil.copy(source, small)
    img("snapshot", "-d", "first", small)
    for number in range(ROUNDS // 2):
        image = path("kill-tool.qcow2")
        job = jobs[number % len(jobs)]
        shutil.copy(small if "--shrink" in job else source, image)
        extra = {"--add": ["b"], "--clear": ["kept"], "--shrink": ["50M"], "-q": ["80M"]}.get(job[-1], [])
        process = subprocess.Popen([tool("img"), *job, image, *extra], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        time.sleep(generator.random() * 0.06)
        process.kill()
        process.communicate()
        consistent(image, False)
        run(tool("io"), "-f", "qcow2", "-c", "read -q -P 2 40M 8M", "-c", "read -q -P 1 8M 8M", image)
    report(f"{ROUNDS // 2} kills")


if __name__ == "__main__":
    main()
