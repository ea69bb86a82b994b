#!/usr/bin/env python3
"""qcow2 images of every kind, written by apus-img and apus-io and read by Debian's qemu-img, and the other way."""
import glob
import itertools
import json
import struct
import os
import pty
import random
import re
import select
import subprocess
import time

from block import (both_check, img, io, path, peer, peer_img, peer_io, run, same, same_information, same_map, sample,
                   tool)
from harness import PATIENCE, ROOT, case, check, main

VARIANTS = [
    "compat=0.10", "cluster_size=512", "cluster_size=4k", "cluster_size=2M", "refcount_bits=1", "refcount_bits=2",
    "refcount_bits=8", "refcount_bits=32", "refcount_bits=64", "lazy_refcounts=on", "extended_l2=on",
    "extended_l2=on,cluster_size=16k", "compression_type=zstd", "cluster_size=1k,refcount_bits=64", "",
]


def options(variant):
    return ["-o", variant] if variant else []


@case("convert-matrix")
def convert_matrix():
    """raw to qcow2 and back by both programs, plain and compressed."""
    raw = sample("matrix.raw", 3 << 20)
    for variant, compressed in itertools.product(VARIANTS, ([], ["-c"])):
        ours, theirs, back = path("ours.qcow2"), path("theirs.qcow2"), path("back.raw")
        img("convert", *compressed, "-O", "qcow2", *options(variant), raw, ours)
        peer_img("convert", *compressed, "-O", "qcow2", *options(variant), raw, theirs)
        for image in (ours, theirs):
            both_check(image)
            same(raw, image)
            same_information(image)
            img("convert", "-O", "raw", image, back)
            check(open(raw, "rb").read() == open(back, "rb").read(), f"{image} ({variant}) reads wrong")
        same_map(theirs)


def random_commands(generator, size, count, model, compressed=False):
    """apus-io commands that change an image, applied to `model` too."""
    commands = []
    for _ in range(count):
        offset = generator.randrange(size)
        length = min(generator.choice([1, 511, 512, 4096, 65536, 100_000, 300_000]), size - offset)
        kind = generator.randrange(10)
        if kind < 6:
            pattern = generator.randrange(1, 256)
            commands.append(f"write -q -P {pattern} {offset} {length}")
            model[offset:offset + length] = bytes([pattern]) * length
        elif kind < 9:
            unmap = "-u " if kind == 8 else ""
            commands.append(f"write -q -z {unmap}{offset} {length}")
            model[offset:offset + length] = bytes(length)
        else:
            commands.append("flush")
    return commands


@case("random-writes")
def random_writes():
    """Writes, zeros and flushes at any offset over a backing file; both programs read what was meant."""
    size = 2 << 20
    for number, variant in enumerate(VARIANTS):
        generator = random.Random(number)
        base = path("base.raw")
        content = generator.randbytes(size // 2)
        open(base, "wb").write(content)
        model = bytearray(content + bytes(size - len(content)))
        image = path("random.qcow2")
        if os.path.exists(image):
            os.remove(image)
        img("create", "-q", "-f", "qcow2", *options(variant), "-b", base, "-F", "raw", image, size)
        # The writers take turns: each goes on where the other stopped.
        for turn in range(4):
            commands = random_commands(generator, size, 25, model)
            (io if turn % 2 == 0 else peer_io)(image, *commands, options=("-f", "qcow2"))
            both_check(image)
        expected = path("expected.raw")
        open(expected, "wb").write(model)
        same(image, expected)
        same_map(image)


@case("snapshots")
def snapshots():
    """Internal snapshots made, applied and deleted by both programs in turn."""
    for variant in ("", "compat=0.10", "cluster_size=4k", "extended_l2=on", "refcount_bits=8", "lazy_refcounts=on"):
        size = 4 << 20
        image = path("snapshots.qcow2")
        img("create", "-q", "-f", "qcow2", *options(variant), image, size)
        generator = random.Random(7)
        model = bytearray(size)
        states = {}
        for number, (program, writer) in enumerate([(img, io), (peer_img, peer_io), (img, peer_io), (peer_img, io)]):
            writer(image, *random_commands(generator, size, 12, model), options=("-f", "qcow2"))
            program("snapshot", "-c", f"s{number}", image)
            states[f"s{number}"] = bytes(model)
            both_check(image)
        same_information(image)
        for name, program in (("s1", img), ("s3", peer_img), ("s0", img)):
            program("snapshot", "-a", name, image)
            both_check(image)
            expected = path("expected.raw")
            open(expected, "wb").write(states[name])
            same(image, expected)
            other = path("extracted.raw")
            img("convert", "-l", "s2", "-O", "raw", image, other)
            check(open(other, "rb").read() == states["s2"], f"snapshot s2 reads wrong ({variant})")
        for name, program in (("s1", img), ("s0", peer_img), ("s3", img), ("s2", img)):
            program("snapshot", "-d", name, image)
            both_check(image)


@case("resize")
def resize():
    for variant in ("", "compat=0.10", "cluster_size=512", "extended_l2=on"):
        image = path("resize.qcow2")
        img("create", "-q", "-f", "qcow2", *options(variant), image, "1M")
        io(image, "write -q -P 1 0 1M")
        img("resize", "-q", image, "+40M")
        io(image, "read -q -P 1 0 1M", "read -q -P 0 1M 40M", "write -q -P 2 40M 1M")
        both_check(image)
        img("resize", "-q", image, "100k", code=1)
        img("resize", "-q", "--shrink", image, "100k")
        both_check(image)
        img("resize", "-q", image, "2M")
        both_check(image)
        peer_io(image, "read -q -P 1 0 100k", "read -q -P 0 100k 1900k", options=("-f", "qcow2"))
        same_information(image)


@case("preallocation")
def preallocation():
    for mode, extra in itertools.product(("metadata", "falloc", "full"), ("", ",extended_l2=on", ",cluster_size=4k")):
        image = path("preallocated.qcow2")
        img("create", "-q", "-f", "qcow2", "-o", f"preallocation={mode}{extra}", image, "5M")
        both_check(image)
        io(image, "read -q -P 0 0 5M", "write -q -P 9 1M 64k")
        both_check(image)
        img("resize", "-q", f"--preallocation={mode}", image, "9M")
        both_check(image)
        peer_io(image, "read -q -P 9 1M 64k", "read -q -P 0 2M 7M", options=("-f", "qcow2"))


@case("chains")
def chains():
    """commit, rebase and map over chains of three, with relative names."""
    base, middle, top = path("chain-base.raw"), path("chain-middle.qcow2"), path("chain-top.qcow2")
    for program in (img, peer_img):
        open(base, "wb").write(b"\x01" * (1 << 20))
        img("create", "-q", "-f", "qcow2", "-b", "chain-base.raw", "-F", "raw", middle)
        peer_img("create", "-q", "-f", "qcow2", "-b", "chain-middle.qcow2", "-F", "qcow2", top)
        io(middle, "write -q -P 2 0 128k")
        io(top, "write -q -P 3 64k 128k", "write -q -z 512k 64k")
        for image in (middle, top):
            same_information(image)
            same_map(image)
        ours = json.loads(img("info", "--backing-chain", "--output=json", top))
        check([entry["filename"] for entry in ours] == [top, middle, base], f"the chain is {ours}")
        program("commit", "-q", top)
        both_check(top)
        both_check(middle)
        io(middle, "read -q -P 2 0 64k", "read -q -P 3 64k 128k", "read -q -P 1 192k 320k", "read -q -P 0 512k 64k")
        io(top, "write -q -P 4 900k 1k", "read -q -P 3 64k 128k")
        program("rebase", "-q", "-b", base, "-F", "raw", top)
        both_check(top)
        os.remove(middle)
        io(top, "read -q -P 2 0 64k", "read -q -P 3 64k 128k", "read -q -P 0 512k 64k", "read -q -P 4 900k 1k")
        program("rebase", "-q", "-b", "", "-F", "raw", top) if program is img else img("rebase", "-q", "-b", "", top)
        both_check(top)
        io(top, "read -q -P 3 64k 128k", "read -q -P 1 600k 300k")


@case("commit-base-names")
def commit_base_names():
    """The image to commit to may be named as in the chain, or in full; names are relative to the image."""
    folder = path("commit-names")
    os.makedirs(f"{folder}/sub", exist_ok=True)
    for number, (image, base, code) in enumerate([
            ("sub/top.qcow2", "mid.qcow2", 0), ("sub/top.qcow2", f"{folder}/sub/mid.qcow2", 0),
            (f"{folder}/sub/top.qcow2", f"{folder}/sub/../sub/mid.qcow2", 0), ("sub/top.qcow2", "sub/mid.qcow2", 1)]):
        for name, backing in (("base", None), ("mid", "base"), ("top", "mid")):
            words = ["-b", f"{backing}.qcow2", "-F", "qcow2"] if backing else []
            img("create", "-q", "-f", "qcow2", *words, f"{folder}/sub/{name}.qcow2", "1M")
        io(f"{folder}/sub/top.qcow2", "write -q -P 6 0 64k")
        done = subprocess.run([tool("img"), "commit", "-q", "-b", base, image], cwd=folder, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, text=True)
        check(done.returncode == code and (code == 0 or base in done.stdout), f"{image} to {base}: {done}")
        io(f"{folder}/sub/mid.qcow2", f"read -q -P {6 if code == 0 else 0} 0 64k")


@case("bitmaps")
def bitmaps():
    image = path("bitmaps.qcow2")
    img("create", "-q", "-f", "qcow2", image, "8M")
    img("bitmap", "--add", image, "ours")
    peer_img("bitmap", "--add", "-g", "32k", image, "theirs")
    same_information(image)
    both_check(image)
    io(image, "write -q -P 1 1M 64k")
    both_check(image)
    peer_io(image, "write -q -P 1 3M 64k", options=("-f", "qcow2"))
    both_check(image)
    same_information(image)
    img("bitmap", "--add", "--disable", image, "merged")
    img("bitmap", "--merge", "ours", "--merge", "theirs", image, "merged")
    both_check(image)
    img("bitmap", "--clear", image, "ours")
    peer_img("bitmap", "--merge", "theirs", image, "ours")
    img("bitmap", "--disable", image, "theirs")
    img("bitmap", "--enable", image, "theirs")
    copy = path("bitmaps-copy.qcow2")
    img("convert", "--bitmaps", "-O", "qcow2", image, copy)
    both_check(copy)
    same_information(copy)
    img("bitmap", "--remove", image, "theirs")
    img("bitmap", "--remove", image, "ours")
    img("bitmap", "--remove", image, "merged")
    both_check(image)
    same_information(image)


@case("data-file")
def data_file():
    for raw in ("", ",data_file_raw=on"):
        image, data = path("external.qcow2"), path("external.data")
        img("create", "-q", "-f", "qcow2", "-o", f"data_file={data}{raw}", image, "4M")
        io(image, "write -q -P 5 1M 100k", "write -q -z 1M 4k")
        both_check(image)
        peer_io(image, "read -q -P 5 1028k 96k", "read -q -P 0 1M 4k", "write -q -P 6 3M 64k", options=("-f", "qcow2"))
        both_check(image)
        io(image, "read -q -P 6 3M 64k")
        same_information(image)
        if raw:
            same(image, data, "-f", "qcow2", "-F", "raw")


@case("repair")
def repair():
    """Leaks and wrong counts, made by hand, are found by both and repaired."""
    image = path("broken.qcow2")
    for damage in ("leak", "count", "lost-block", "copied"):
        img("create", "-q", "-f", "qcow2", image, "4M")
        io(image, "write -q -P 1 0 512k")
        with open(image, "r+b") as file:
            table = int.from_bytes(read_at(file, 48, 8), "big")
            block = int.from_bytes(read_at(file, table, 8), "big")
            if damage == "leak":
                write_at(file, block + 2 * 40, b"\x00\x01")
                file.truncate(41 << 16)
            elif damage == "count":
                write_at(file, block + 2 * 6, b"\x00\x00")
            elif damage == "lost-block":
                write_at(file, table, bytes(8))
            else:
                l1 = int.from_bytes(read_at(file, 40, 8), "big")
                l2 = int.from_bytes(read_at(file, l1, 8), "big") & 0x00FFFFFFFFFFFE00
                write_at(file, l2, bytes([0]))
        expected = 3 if damage == "leak" else 2
        img("check", image, code=expected)
        peer_img("check", image, code=expected)
        img("check", "-r", "all", image)
        both_check(image)
        io(image, "read -q -P 1 0 512k", "write -q -P 2 1M 1M")
        both_check(image)


def read_at(file, offset, count):
    file.seek(offset)
    return file.read(count)


def write_at(file, offset, data):
    file.seek(offset)
    file.write(data)


@case("leaks-and-lazy-counts")
def leaks_and_lazy_counts():
    image = path("lost-snapshot.qcow2")
    img("create", "-q", "-f", "qcow2", image, "4M")
    io(image, "write -q -P 1 0 1M")
    img("snapshot", "-c", "a", image)
    with open(image, "r+b") as file:
        # The snapshot is forgotten: its references are leaks. Without them the image's own flags are wrong.
        file.seek(60)
        file.write(bytes(12))
    check("Leaked" in img("check", image, code=3), "the leaks are not told of")
    check("COPIED" in img("check", "-r", "leaks", image), "the flags were not repaired")
    both_check(image)
    io(image, "read -q -P 1 0 1M")

    for given, stored, is_lazy in (("on", "off", True), ("off", "on", False)):
        img("create", "-q", "-f", "qcow2", "-o", f"lazy_refcounts={stored}", image, "4M")
        run(tool("io"), "--image-opts", "-c", "write -q -P 2 0 1M", "-c", "flush", "-c", "sigraise 9",
            f"driver=qcow2,lazy-refcounts={given},file.filename={image}", code=None, signals=(9,))
        dirty = open(image, "rb").read(80)[79] & 1
        check(dirty == is_lazy, f"with lazy-refcounts={given} the image is {'' if dirty else 'not '}marked as dirty")
        peer_io(image, "read -q -P 2 0 1M", options=("-f", "qcow2"))
        both_check(image)
    check("lazy-refcounts" in run(tool("io"), "--image-opts", "-c", "quit", f"driver=qcow2,lazy-refcounts=perhaps,file.filename={image}",
                                  code=1), "a wrong value was not refused")


@case("amend")
def amend():
    image = path("amend.qcow2")
    img("create", "-q", "-f", "qcow2", image, "4M")
    io(image, "write -q -P 1 0 1M", "write -q -z 512k 256k")
    for change in ("refcount_bits=64", "refcount_bits=1", "lazy_refcounts=on", "refcount_bits=16", "compat=0.10",
                   "compat=1.1", "size=6M"):
        img("amend", "-o", change, image)
        both_check(image)
        same_information(image)
        peer_io(image, "read -q -P 1 0 512k", "read -q -P 0 512k 256k", "read -q -P 1 768k 256k", options=("-f", "qcow2"))


@case("amend-with-snapshots")
def amend_with_snapshots():
    """Zero flags go away in tables that snapshots share, with and without a backing file."""
    base = path("amend-base.raw")
    open(base, "wb").write(b"\x05" * (2 << 20))
    for backing in ([], ["-b", base, "-F", "raw"]):
        image, old, new = path("amend-snapshots.qcow2"), path("amend-old.qcow2"), path("amend-new.qcow2")
        img("create", "-q", "-f", "qcow2", *backing, image, "2M")
        io(image, "write -q -P 3 1M 64k", "write -q -z 0 128k", "write -q -z 1M 64k", "write -q -z 1536k 100k",
           options=("-f", "qcow2"))
        img("snapshot", "-c", "a", image)
        io(image, "write -q -P 7 64k 64k", "write -q -z -u 1M 64k", options=("-f", "qcow2"))
        peer_img("snapshot", "-c", "b", image)
        io(image, "write -q -z 256k 64k", options=("-f", "qcow2"))
        run("cp", image, old)
        check("100/100%" in img("amend", "-p", "-o", "compat=0.10", image).replace(".00", ""), "no progress was shown")
        check("compat: 0.10" in peer_img("info", image), "the version is not 2")
        both_check(image)
        same(old, image)
        for name in ("a", "b"):
            run("cp", image, new)
            for program, file in ((peer_img, old), (img, new)):
                program("snapshot", "-a", name, file)
            both_check(new)
            same(old, new)
        check("snapshots" in img("resize", image, "4M", code=1), "an image of version 2 with snapshots was resized")
        img("amend", "-o", "compat=1.1,size=1M", image)
        check("'a'" in img("amend", "-o", "compat=0.10", image, code=1), "a snapshot's other size was lost")
        img("snapshot", "-a", "b", image)
        both_check(image)
        same(old, image)


@case("shrink-with-snapshots")
def shrink_with_snapshots():
    image = path("shrink.qcow2")
    for cluster in ("64k", "4k"):
        img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={cluster}", image, "256M")
        io(image, "write -q -P 3 100M 64k", "write -q -P 4 250M 1M", "write -q -b -P 9 0 128k")
        img("snapshot", "-c", "a", image)
        io(image, "write -q -P 5 240M 1M")
        img("resize", "-q", "--shrink", image, "50M")
        both_check(image)
        peer_img("snapshot", "-a", "a", image)
        both_check(image)
        for program in (io, peer_io):
            program(image, "read -q -P 3 100M 64k", "read -q -P 4 250M 1M", "read -q -P 0 240M 1M", options=("-f", "qcow2"))


@case("measure-and-dd")
def measure_and_dd():
    """The small commands, beside qemu-img's."""
    raw = sample("small.raw", 4 << 20)
    for words in (["--size", "1G"], ["--size", "3G", "-O", "qcow2", "-o", "cluster_size=4k"], ["-O", "qcow2", raw], ["-O", "raw", raw],
                  ["-O", "qcow2", "-o", "extended_l2=on,preallocation=full", raw], ["-O", "qcow2", "-o", "refcount_bits=64", "--size", "1T"]):
        sizes = [json.loads(program("measure", "--output=json", *words)) for program in (img, peer_img)]
        check(sizes[0] == sizes[1], f"measure {words} says {sizes}")
    # Not both count and skip: QEMU 7.2 takes what it skips off the count, which dd does not.
    for words in (["bs=1M", "count=2"], ["bs=4k", "skip=100"], ["bs=1024", "count=77"], ["bs=2M", "skip=9"]):
        copies = []
        for program in (img, peer_img):
            copy = path("dd.raw")
            program("dd", "-f", "raw", "-O", "raw", *words, f"if={raw}", f"of={copy}")
            copies.append(open(copy, "rb").read())
        check(copies[0] == copies[1], f"dd {words} makes {len(copies[0])} and {len(copies[1])} bytes")
    other = path("small-other.raw")
    open(other, "wb").write(open(raw, "rb").read()[:-1] + b"\xee")
    for program in (img, peer_img):
        program("compare", "-f", "raw", "-F", "raw", raw, other, code=1)
        program("compare", "-f", "raw", "-F", "raw", raw, "/nosuch", code=2)
        program("check", "-f", "raw", raw, code=63)


@case("help-and-progress")
def help_and_progress():
    """Help of every command, completion that a shell takes, progress on a terminal after a second and on request."""
    usage = img("--help")
    commands = re.findall(r"^  ([a-z]+) ", usage, re.M)
    check(len(commands) == 15, f"the commands are {commands}")
    document = open(ROOT / "docs" / "storage-tools.md").read()
    for name in commands:
        text = img(name, "--help")
        check(f"usage: apus-img {name}" in text and text in document, f"docs/storage-tools.md has no such help: {text}")
    check(run(tool("nbd"), "--help") in document and run(tool("io"), "--help") in document, "docs/storage-tools.md has another help")
    for name in ("img", "io", "nbd"):
        script = run(tool(name), "--completion")
        shown = run("bash", "-c", f"{script}\ncomplete -p apus-{name}\nCOMP_WORDS=(apus-{name} --he); COMP_CWORD=1; "
                    f"_apus_{name} apus-{name} --he apus-{name}; echo \"${{COMPREPLY[*]}}\"")
        check("--help" in shown.splitlines()[-1], f"completion says {shown}")
    raw = sample("progress.raw", 16 << 20)
    check("(100.00/100%)" in img("convert", "-p", "-O", "raw", raw, path("progress-copy.raw")), "-p shows nothing")
    for rate, is_shown in (("4M", True), ("1G", False)):
        terminal, other = pty.openpty()
        words = ["convert", "-r", rate, "-f", "raw", "-O", "raw", raw, path("progress-copy.raw")]
        done = subprocess.run([tool("img"), *words], stderr=other, stdout=subprocess.DEVNULL, timeout=60 * PATIENCE)
        os.close(other)
        shown = b""
        while select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        os.close(terminal)
        check(done.returncode == 0 and (b"/100%" in shown) == is_shown, f"at {rate} the terminal shows {shown}")


@case("written-zeros")
def written_zeros():
    """What was written as zeros is stored as such, as by qemu-io, also where nothing lies behind."""
    for variant in ("", "extended_l2=on", "compat=0.10", "cluster_size=512"):
        ours, theirs = path("zeros-ours.qcow2"), path("zeros-theirs.qcow2")
        for program, image in ((io, ours), (peer_io, theirs)):
            img("create", "-q", "-f", "qcow2", *options(variant), image, "8M")
            program(image, "write -q -z 1M 1M", "write -q -P 1 3M 1M", "write -q -z -u 3M 512k", "discard -q 5M 1M",
                    "write -q -z 7M 100k", options=("-f", "qcow2"))
        maps = []
        for image in (ours, theirs):
            entries = json.loads(img("map", "--output=json", image))
            # How finely data is cut depends on where its clusters lie.
            kinds = [(entry["zero"], entry["present"]) for entry in entries]
            maps.append([(entry["start"], kind) for index, (entry, kind) in enumerate(zip(entries, kinds))
                         if index == 0 or kinds[index - 1] != kind])
        check(maps[0] == maps[1], f"{variant}: the maps are {maps}")


@case("copy-workers")
def copy_workers():
    """convert -m and -W: as many workers as are asked for, and the same bytes."""
    raw = sample("workers.raw", 24 << 20)
    for words in (["-m", "1"], ["-m", "4"], ["-m", "4", "-W"], ["-m", "16", "-W", "-c"], ["-W", "-c"], ["-m", "3", "-C"]):
        for form in ("raw", "qcow2"):
            if "-c" in words and form == "raw":
                continue
            target = path(f"workers-copy.{form}")
            img("convert", *words, "-O", form, raw, target)
            same("-f", "raw", "-F", form, raw, target)
            if form == "qcow2":
                both_check(target)
    # Slowed down, so that the threads can be counted.
    process = subprocess.Popen([tool("img"), "convert", "-m", "5", "-r", "4M", "-f", "raw", "-O", "raw", raw, path("slow.raw")])
    try:
        deadline = time.monotonic() + 60 * PATIENCE
        names = []
        while names.count("copy") < 4:
            check(time.monotonic() < deadline and process.poll() is None, f"the threads were {names}")
            names = [open(name).read().split("-")[0].strip() for name in glob.glob(f"/proc/{process.pid}/task/*/comm")]
            time.sleep(0.01)
        check(names.count("copy") == 4, f"-m 5 has {names}")
    finally:
        process.kill()
        process.wait()


@case("damaged-snapshots")
def damaged_snapshots():
    """A snapshot table that is wrong: it is told, repaired where that is possible, and nothing else is lost."""
    image, copy = path("snapshots-damaged.qcow2"), path("snapshots-damaged-copy.qcow2")
    img("create", "-q", "-f", "qcow2", image, "8M")
    io(image, "write -q -P 1 0 2M")
    peer_img("snapshot", "-c", "one", image)
    io(image, "write -q -P 2 1M 2M")
    data = open(image, "rb").read()
    table = struct.unpack_from(">Q", data, 64)[0]

    def damaged(place, layout, value):
        with open(copy, "wb") as file:
            file.write(data[:place] + struct.pack(layout, value) + data[place + struct.calcsize(layout):])

    # The snapshot's L1 table is misplaced: the disk is still there, and what the snapshot has is not given away.
    damaged(table, ">Q", struct.unpack_from(">Q", data, table)[0] + 512)
    check("misplaced" in img("check", copy, code=2), "the misplaced table was not found")
    io(copy, "read -q -P 1 0 1M", "read -q -P 2 1M 2M", "write -q -P 3 4M 64k", options=("-f", "qcow2"))
    check("misplaced" in img("snapshot", "-a", "one", copy, code=1), "a damaged snapshot was applied")
    img("check", "-r", "all", copy, code=2)
    with open(copy, "r+b") as file:
        file.seek(table)
        file.write(data[table:table + 8])
    both_check(copy)
    img("snapshot", "-a", "one", copy)
    io(copy, "read -q -P 1 0 2M", "read -q -P 0 2M 6M", options=("-f", "qcow2"))
    # More entries than there are: only check opens the image, and cuts the table.
    damaged(60, ">I", 60000)
    check("does not end" in io(copy, "quit", code=1, options=("-f", "qcow2")), "a table without an end was opened")
    img("check", copy, code=2)
    img("check", "-r", "all", copy)
    both_check(copy)
    io(copy, "read -q -P 1 0 1M", "read -q -P 2 1M 2M", options=("-f", "qcow2"))
    img("snapshot", "-a", "one", copy)
    io(copy, "read -q -P 1 0 2M", "read -q -P 0 2M 6M", options=("-f", "qcow2"))
    both_check(copy)
    # Backing files are found from where a json: name's file lies.
    img("create", "-q", "-f", "qcow2", "-b", "snapshots-damaged.qcow2", "-F", "qcow2", path("relative.qcow2"))
    io(f'json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{path("relative.qcow2")}"}}}}', "read -q -P 2 1M 2M")
    check("-F" in img("rebase", "-u", "-b", image, path("relative.qcow2"), code=1), "rebase without the backing file's format")


@case("long-tables")
def long_tables():
    """Tables longer than what a refcount block counts: L1 tables of small clusters, a LUKS header in them."""
    image = path("long.qcow2")
    for size, options in (("2G", "cluster_size=512"), ("300M", "cluster_size=512,refcount_bits=64"), ("8G", "cluster_size=1k,refcount_bits=64")):
        img("create", "-q", "-f", "qcow2", "-o", options, image, size)
        io(image, "write -q -P 1 0 1M", "write -q -P 2 200M 64k")
        img("snapshot", "-c", "one", image)
        io(image, "write -q -P 3 512k 1M")
        both_check(image)
        img("resize", "-q", image, "+4G")
        io(image, "write -q -P 4 4200M 64k")
        img("snapshot", "-c", "two", image)
        both_check(image)
        io(image, "read -q -P 1 0 512k", "read -q -P 2 200M 64k")
    secret = ("--object", "secret,id=s0,data=astrochicken")
    img("create", "-q", *secret, "-f", "qcow2", "-o", "cluster_size=512,encrypt.format=luks,encrypt.iter-time=10,encrypt.key-secret=s0",
        image, "1M")
    opened = f"driver=qcow2,file.filename={image},encrypt.key-secret=s0"
    io(opened, "write -q -P 5 0 1M", options=(*secret, "--image-opts"))
    peer_io(opened, "read -q -P 5 0 1M", options=(*secret, "--image-opts"))
    img("check", image)
    peer_img("check", *secret, "--image-opts", opened)


@case("request-modes")
def request_modes():
    """Requests through io_uring: the same bytes, on every layer that passes them on and on those that do not."""
    raw = sample("modes.raw", 24 << 20)
    image = path("modes.qcow2")
    for mode, cache in (("threads", "none"), ("native", "none"), ("native", "directsync"), ("io_uring", "none"),
                        ("io_uring", "writeback"), ("io_uring", "writethrough")):
        img("convert", "-O", "qcow2", raw, image)
        # Each write is flushed in two of the modes.
        count = "600" if cache in ("none", "writeback") else "40"
        for target, format in ((raw, "raw"), (image, "qcow2")):
            # Aligned requests and others, over data, holes, the image's end and clusters that are not there yet.
            for size, step, offset in ((4096, 69632, 0), (65536, 65536, 512), (5632, 7168, 1024)):
                for write in ((), ("-w", "--pattern=85")):
                    img("bench", "-q", *write, "-i", mode, "-t", cache, "-d", "32", "-c", count, "-s", size, "-S", step, "-o", offset,
                        "-f", format, target)
        both_check(image)
        same(raw, image, "-f", "raw", "-F", "qcow2")
        io(image, "aio_write -q -P 7 0 64k", "aio_flush", "read -q -P 7 0 64k", options=("-f", "qcow2", "-i", mode, "-t", cache))
        peer_io(image, "read -q -P 7 0 64k", options=("-f", "qcow2",))
    check("cache mode" in img("bench", "-n", "-f", "raw", raw, code=1), "aio=native with the page cache was not refused")
    check("aio mode" in img("bench", "-i", "fast", "-f", "raw", raw, code=1), "an unknown mode was not refused")


@case("locking")
def locking():
    """A file that one program writes is refused by the other."""
    import subprocess
    image = path("locked.qcow2")
    img("create", "-q", "-f", "qcow2", image, "1M")
    for holder, other in ((tool("io"), peer("img")), (peer("io"), tool("img"))):
        with subprocess.Popen([holder, "-f", "qcow2", image], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            # The prompt says that the image is open.
            process.stdout.read(6)
            output = run(other, "info", image, code=1)
            check("lock" in output or "another process" in output, f"the refusal is: {output}")
            run(other, "info", "-U", image)
            process.stdin.write(b"quit\n")
            process.stdin.flush()
            process.wait(30)
        run(other, "info", image)


if __name__ == "__main__":
    main()
