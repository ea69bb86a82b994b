#!/usr/bin/env python3
"""What goes wrong below an image: errors that are told, and no damage; odd names, chains and options."""
import json
import os
import re

from block import both_check, img, io, path, peer_io, run, tool
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


@case("breakpoints")
def breakpoints():
    """Requests that stand still at an event of blkdebug, and others that wait for them or do not."""
    image = path("breaks.qcow2")
    img("create", "-q", "-f", "qcow2", image, "8M")
    # The second write lies in the same cluster: it waits for the first one's allocation, the third does not.
    output = io(graph(image, event="l1_update", errno=5, state=9), "break write_aio A", "aio_write -P 1 0 4k", "wait_break A",
                "aio_write -P 2 4k 4k", "write -P 3 1M 64k", "resume A", "aio_flush", "read -q -P 1 0 4k", "read -q -P 2 4k 4k",
                "read -q -P 3 1M 64k")
    order = re.findall(r"Suspended|Resuming|at offset \d+", output)
    check(order[:3] == ["Suspended", "at offset 1048576", "Resuming"] and sorted(order[3:]) == ["at offset 0", "at offset 4096"],
          f"the order was {order}: {output}")
    both_check(image)
    # Parts of one block are changed one after the other, those of others at once.
    raw = path("breaks.raw")
    open(raw, "wb").write(b"\x05" * 65536)
    limited = f"driver=raw,file.driver=blkdebug,file.align=4096,file.image.filename={raw}"
    output = io(limited, "break pwritev_rmw_after_head A", "aio_write -P 1 512 512", "wait_break A", "aio_write -P 2 1024 512",
                "aio_write -P 3 0 4096", "write -P 4 8704 512", "resume A", "aio_flush", options=("--image-opts",))
    check(output.index("offset 8704") < output.index("Resuming") < output.index("offset 512"), f"the order was wrong: {output}")
    check(open(raw, "rb").read()[8192:12288] == b"\x05" * 512 + b"\x04" * 512 + b"\x05" * 3072, "another block is wrong")
    # Nobody resumes: the end of the session does.
    io(limited, "break pwritev A", "aio_write -P 6 0 4096", "wait_break A", options=("--image-opts",))
    check(open(raw, "rb").read()[:4096] == b"\x06" * 4096, "a suspended write was lost")
    for words, what in (("break nosuch A", "nosuch"), ("resume A", "'A'"), ("remove_break A", "'A'"), ("break pwritev", "name")):
        check(what in io(limited, words, code=1, options=("--image-opts",)), f"'{words}' was not refused")
    check("blkdebug" in io(raw, "break pwritev A", code=1, options=("-f", "raw")), "a break without blkdebug was not refused")


@case("option-merging")
def option_merging():
    """Options beside a json: name, reopening with others, and no backing file by option."""
    base, top = path("merge-base.qcow2"), path("merge.qcow2")
    img("create", "-q", "-f", "qcow2", base, "1M")
    io(base, "write -q -P 7 0 64k")
    img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top)
    plain = json.dumps({"file.filename": top})
    check("format name: qcow2" in io(base, "close", f"open -o driver=qcow2 json:{plain.replace(' ', '')}", "info"), "not merged")
    for name in ({"driver": "qcow2", "file": {"driver": "file", "filename": top}, "backing": None},):
        for program in (io, peer_io):
            program("json:" + json.dumps(name), "read -q -P 0 0 64k")
    io(top, "read -q -P 7 0 64k")
    output = io(top, "reopen -o driver=raw", "reopen -o node-name=x", "reopen -o driver=qcow2", "reopen -r", "write 0 4k", code=1)
    check(output.count("cannot be changed") == 2 and "read-only" in output, f"reopen says {output}")
    raw = path("merge.raw")
    open(raw, "wb").write(bytes(4096))
    io("json:" + json.dumps({"driver": "raw", "offset": 512, "size": 512, "file": {"driver": "file", "filename": raw}}),
       "write -q -P 1 0 512", "reopen -o driver=raw,offset=1536,size=1024", "write -q -P 2 0 1024")
    check(open(raw, "rb").read() == bytes(512) + b"\1" * 512 + bytes(512) + b"\2" * 1024 + bytes(1536), "the window did not move")
    # A file: name is a path, whatever it looks like.
    for name, backing in (("below.qcow2", None), ("a:b.qcow2", "below.qcow2")):
        words = ["-b", backing, "-F", "qcow2"] if backing else []
        run("env", "-C", os.path.dirname(raw), tool("img"), "create", "-q", "-f", "qcow2", *words, f"file:{name}", "1M")
    shown = run("env", "-C", os.path.dirname(raw), tool("img"), "info", "file:a:b.qcow2")
    check("image: ./a:b.qcow2" in shown and "(actual path: ./below.qcow2)" in shown, f"info says {shown}")
    # The name goes below all formats and filters that the options name.
    io(base, "close", f"open -o driver=copy-on-read,file.driver=qcow2 {top}", "read -q -P 7 0 64k")
    check("65536/65536 bytes allocated" in io(top, "alloc 0 64k"), "nothing was kept")
    check("read-only" in io(base, "close", f"open -r -o driver=copy-on-read,file.driver=qcow2 {top}", code=1), "not refused")


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
