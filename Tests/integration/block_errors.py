#!/usr/bin/env python3
"""What goes wrong below an image: errors that are told, and no damage; odd names, chains and options."""
import json
import os
import re

from block import both_check, img, io, path, run, tool
from harness import case, check, main


def graph(image, **rule):
    rules = {f"inject-error.0.{key}": value for key, value in rule.items()}
    return "json:" + json.dumps({"driver": "qcow2", "file": {"driver": "blkdebug", "image": {"driver": "file", "filename": image},
                                                           "inject-error": [rule]}}) if rules else image


@case("failing-writes")
def failing_writes():
    """Every write of a job fails once, one after the other: the image stays consistent."""
    told = False
    for errno in (5, 28):
        for after in range(0, 14):
            image = path("failing.qcow2")
            img("create", "-q", "-f", "qcow2", image, "8M")
            io(image, "write -q -P 1 0 1M")
            output = io(graph(image, iotype="write", after=after, once=True, errno=errno), "write -P 2 512k 1M", "flush",
                        "write -P 3 4M 100k", "discard 0 64k", "flush", "write -P 4 6M 64k", code=None)
            run(tool("img"), "check", image, code=None)
            value = run(tool("img"), "check", "--output=json", image, code=None)
            check('"corruptions"' not in value, f"after {after}: {output} {value}")
            told = told or "fails as asked" in output
            io(image, "read -q -P 1 64k 448k")
    check(told, "no write failed")


@case("failing-flush")
def failing_flush():
    image = path("failing-flush.qcow2")
    img("create", "-q", "-f", "qcow2", image, "8M")
    output = io(graph(image, iotype="flush", once=True), "write -q 0 64k", "flush", code=1)
    check("fails as asked" in output, f"the failure was not told: {output}")
    both_check(image)


@case("faults-by-events")
def faults_by_events():
    """Rules that wait for events and states, from options and from a file; drivers with limits."""
    image, settings = path("events.qcow2"), path("events.conf")
    img("create", "-q", "-f", "qcow2", image, "8M")
    io(image, "write -q -P 1 0 4M")
    open(settings, "w").write('[inject-error]\n# The second read of data fails, once.\nevent = "read_aio"\nstate = "2"\nonce = "on"\n'
                              '[set-state]\nevent = "read_aio"\nstate = "1"\nnew_state = "2"\n')
    output = io(f"blkdebug:{settings}:{image}", "read -q -P 1 0 64k", "read -q 64k 64k", "read -q -P 1 128k 64k", code=1)
    check(output.count("fails as asked") == 1, f"the reads said: {output}")
    for number, event in enumerate(("l2_load", "l2_update", "cluster_alloc", "refblock_load", "write_aio", "pwritev")):
        output = io(graph(image, event=event, once=True), f"write -q -P 2 {4096 + number * 512}k 64k", "flush", code=None)
        check("fails as asked" in output, f"{event}: nothing failed: {output}")
        both_check(image)
    check("nosuch_event" in io(graph(image, event="nosuch_event"), "quit", code=1), "an unknown event was not refused")
    open(settings, "w").write("[inject-error]\nevent = read_aio\n")
    check("events.conf:2" in io(f"blkdebug:{settings}:{image}", "quit", code=1), "a bad line was not named")
    raw = path("limits.raw")
    open(raw, "wb").write(b"\x05" * (1 << 20))
    limited = f"driver=raw,file.driver=blkdebug,file.align=4096,file.max-transfer=8192,file.image.filename={raw}"
    io(limited, "write -q -P 6 1000 30000", "read -q -P 5 0 1000", "read -q -P 6 1000 30000", "read -q -P 5 31000 1000",
       "write -q -z 40000 20000", "read -q -P 5 39000 1000", "read -q -P 0 40000 20000", "read -q -P 5 60000 5000",
       options=("--image-opts",))
    data = open(raw, "rb").read()
    check(data == b"\x05" * 1000 + b"\x06" * 30000 + b"\x05" * 9000 + bytes(20000) + b"\x05" * ((1 << 20) - 60000), "other bytes changed")


@case("commit-through-options")
def commit_through_options():
    """A backing file that a json: name describes is written to as it says."""
    base, top = path("window.raw"), path("window-top.qcow2")
    open(base, "wb").write(b"\x05" * (3 << 20))
    window = "json:" + json.dumps({"driver": "raw", "offset": 1 << 20, "size": 1 << 20, "file": {"driver": "file", "filename": base}})
    img("create", "-q", "-f", "qcow2", "-b", window, "-F", "raw", top)
    io(top, "read -q -P 5 0 1M", "write -q -P 6 64k 64k", options=("-f", "qcow2"))
    img("commit", "-q", "-f", "qcow2", top)
    start = (1 << 20) + 65536
    check(open(base, "rb").read() == b"\x05" * start + b"\x06" * 65536 + b"\x05" * ((3 << 20) - start - 65536), "written elsewhere")
    base = path("window.qcow2")
    img("create", "-q", "-f", "qcow2", base, "1M")
    img("create", "-q", "-f", "qcow2", "-b", graph(base, event="write_aio", errno=28), "-F", "qcow2", top)
    io(top, "write -q -P 6 64k 64k", options=("-f", "qcow2"))
    check("fails as asked" in img("commit", "-f", "qcow2", top, code=1), "the commit did not fail")
    io(top, "read -q -P 6 64k 64k", options=("-f", "qcow2"))


@case("bad-chains")
def bad_chains():
    a, b = path("circle-a.qcow2"), path("circle-b.qcow2")
    img("create", "-q", "-f", "qcow2", "-u", "-b", b, "-F", "qcow2", a, "1M")
    img("create", "-q", "-f", "qcow2", "-u", "-b", a, "-F", "qcow2", b, "1M")
    check("circle" in img("convert", "-O", "raw", a, path("circle.raw"), code=1), "a circle was not found")
    os.remove(b)
    check("circle-b" in img("convert", "-O", "raw", a, path("circle.raw"), code=1), "the missing file is not named")
    img("info", a)
    base = path("no-format.raw")
    open(base, "wb").write(bytes(4096))
    check("-F raw" in img("create", "-f", "qcow2", "-b", base, path("no-format.qcow2"), code=1), "no format was asked for")


@case("truncated")
def truncated():
    image = path("cut.qcow2")
    img("create", "-q", "-f", "qcow2", image, "8M")
    io(image, "write -q -P 1 0 4M")
    size = os.path.getsize(image)
    for part in (0, 100, 511, 65536, 65536 * 3, size // 2):
        data = open(image, "rb").read(part)
        cut = path("cut-copy.qcow2")
        open(cut, "wb").write(data)
        for command in (["info", "-f", "qcow2"], ["check", "-f", "qcow2"], ["check", "-r", "all", "-f", "qcow2"]):
            run(tool("img"), *command, cut, code=None)


@case("filters")
def filters():
    image, base = path("filter.qcow2"), path("filter-base.raw")
    open(base, "wb").write(b"\x07" * (1 << 20))
    img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", image)
    name = "json:" + json.dumps({"driver": "copy-on-read", "file": {"driver": "qcow2", "file": {"driver": "file", "filename": image}}})
    io(name, "read -q -P 7 0 128k")
    check("131072/1048576 bytes allocated" in io(image, "alloc 0 1M"), "copy-on-read did not keep what was read")
    name = "json:" + json.dumps({"driver": "throttle", "limits": {"iops-total": 1000},
                                 "file": {"driver": "qcow2", "file": {"driver": "file", "filename": image}}})
    io(name, "read -q -P 7 0 1M")
    window = "json:" + json.dumps({"driver": "raw", "offset": 65536, "size": 4096, "file": {"driver": "file", "filename": base}})
    check(re.search(r"virtual size: 4 KiB", img("info", window)), "a raw window has the wrong size")


@case("options")
def wrong_options():
    """What is not known is refused by name."""
    image, present = path("options.qcow2"), path("present.qcow2")
    img("create", "-q", "-f", "qcow2", present, "1M")
    for command, word in [
        (["create", "-f", "qcow2", "-o", "nosuch=1", image, "1M"], "nosuch"), (["create", "-f", "nosuch", image, "1M"], "nosuch"),
        (["create", "-f", "qcow2", image], "size"), (["create", "-f", "qcow2", image, "1X"], "1X"),
        (["create", "-f", "qcow2", "-o", "cluster_size=3k", image, "1M"], "cluster_size"),
        (["create", "-f", "qcow2", "-o", "refcount_bits=3", image, "1M"], "refcount_bits"),
        (["create", "-f", "qcow2", "-o", "compat=0.10,extended_l2=on", image, "1M"], "extended_l2"),
        (["convert", "-O", "qcow2", "/nosuch/image", image], "/nosuch/image"), (["nosuch"], "nosuch"),
        (["info", "--nosuch", image], "nosuch"), (["resize", image, "x"], "x"), (["info", "foo:bar"], "foo"),
        (["info", "nbd://127.0.0.1:1/"], "127.0.0.1"), (["info", "json:{"], "JSON"),
        (["info", "--image-opts", "driver=nosuch"], "nosuch"), (["info", "--image-opts", "driver=file,filename=/dev/zero"], "regular"),
        (["convert", "-c", "-O", "raw", __file__, image], "compression"), (["snapshot", "-a", "x", __file__], "snapshots"),
        (["convert", "--object", "x", "a", "b"], "object"), (["amend", "--force", "-o", "size=2M", present], "force"),
        (["create", "--image-opts", image, "1M"], "image-opts"), (["create", "-q", "-f", "raw", "-o", "preallocation=x", image, "1M"], "preallocation"),
    ]:
        output = run(tool("img"), *command, code=1)
        check(word in output, f"'{' '.join(command)}' says: {output}")


if __name__ == "__main__":
    main()
