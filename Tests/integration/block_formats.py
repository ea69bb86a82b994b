#!/usr/bin/env python3
"""Formats of other programs: what apus-img writes, Debian's qemu-img reads, and the other way."""
import os
import plistlib
import random
import shutil
import struct
import zlib

from block import img, io, output_json, path, peer, peer_img, peer_io, run, same, sample, tool
from harness import case, check, main

FORMATS = [("vdi", ""), ("vdi", "static=on"), ("vpc", "subformat=dynamic"), ("vpc", "subformat=fixed"),
           ("vmdk", "subformat=monolithicSparse"), ("vmdk", "subformat=streamOptimized"), ("vhdx", "")]


def options(text):
    return ["-o", text] if text else []


def exact(program, format):
    """qemu-img rounds a VHD's size up to whole cylinders unless it is told not to."""
    return "force_size=on" if format == "vpc" and program is peer_img else ""


@case("round-trips")
def round_trips():
    raw = sample("formats.raw", 9 << 20)
    for format, option in FORMATS:
        compressed = ["-c"] if "stream" in option else []
        for program in (img, peer_img):
            image, back = path("foreign." + format), path("foreign.raw")
            text = ",".join(part for part in (option, exact(program, format)) if part)
            # Compressed streams are made by one side with -c, by the other from the subformat alone.
            program("convert", *(compressed if program is img else []), "-f", "raw", "-O", format, *options(text), raw, image)
            same(raw, image, "-f", "raw", "-F", format)
            for reader in (img, peer_img):
                reader("convert", "-f", format, "-O", "raw", image, back)
                check(open(raw, "rb").read() == open(back, "rb").read(), f"{format} ({option}) reads wrong")
            ours, theirs = (output_json(name, "info", "-f", format, "--output=json", image) for name in (tool("img"), peer("img")))
            check(ours["virtual-size"] == theirs["virtual-size"] and ours["format"] == theirs["format"],
                  f"info differs: {ours} and {theirs}")
            if format != "vpc" or "fixed" not in option:
                check(output_json(tool("img"), "info", "--output=json", image)["format"] == format, f"{format} is not recognised")


@case("random-writes")
def random_writes():
    for number, (format, option) in enumerate(FORMATS):
        if "stream" in option:
            continue
        size = 6 << 20
        image = path("random." + format)
        img("create", "-q", "-f", format, *options(option), image, size)
        generator = random.Random(number)
        model = bytearray(size)
        for turn in range(4):
            commands = []
            for _ in range(12):
                offset = generator.randrange(size)
                length = min(generator.choice([1, 512, 70_000, 1 << 20]), size - offset)
                if generator.randrange(4):
                    pattern = generator.randrange(1, 256)
                    commands.append(f"write -q -P {pattern} {offset} {length}")
                    model[offset:offset + length] = bytes([pattern]) * length
                else:
                    commands.append(f"write -q -z {offset} {length}")
                    model[offset:offset + length] = bytes(length)
            (io if turn % 2 == 0 else peer_io)(image, *commands, options=("-f", format))
            if format in ("vdi", "vhdx"):
                run(peer("img"), "check", "-f", format, image)
        expected = path("expected.raw")
        open(expected, "wb").write(model)
        same(expected, image, "-f", "raw", "-F", format)


@case("read-only-formats")
def read_only_formats():
    raw = sample("others.raw", 9 << 20)
    for format in ("parallels", "qed"):
        image = path("other." + format)
        peer_img("convert", "-f", "raw", "-O", format, raw, image)
        same(raw, image, "-f", "raw", "-F", format)
        check(output_json(tool("img"), "info", "--output=json", image)["format"] == format, f"{format} is not recognised")
        check("read-only" in img("create", "-f", format, image, "1M", code=1), f"{format} was created")
        io(image, "write 0 512", code=1, options=("-f", format))
    # Differences to a backing file, with clusters of zeros.
    base, image = path("qed.base"), path("overlay.qed")
    shutil.copy(raw, base)
    peer_img("create", "-q", "-f", "qed", "-b", base, "-F", "raw", image, "10M")
    peer_io(image, "write -q -P 9 100k 100k", "write -q -z 1M 1M", options=("-f", "qed"))
    img("convert", "-f", "qed", "-O", "raw", image, path("qed-ours.raw"))
    peer_img("convert", "-f", "qed", "-O", "raw", image, path("qed-theirs.raw"))
    check(open(path("qed-ours.raw"), "rb").read() == open(path("qed-theirs.raw"), "rb").read(), "the overlay reads wrong")


def dmg(name, data, types=(0x80000005, 1, 0), chunk=128 << 10):
    """An Apple disk image with zlib, raw and zero chunks."""
    body, chunks = b"", b""
    count = 0
    for number, start in enumerate(range(0, len(data), chunk)):
        piece = data[start:start + chunk]
        kind = 0 if not any(piece) else types[number % len(types)] or types[0]
        stored = b"" if kind == 0 else piece if kind == 1 else zlib.compress(piece)
        chunks += struct.pack(">IIQQQQ", kind, 0, start // 512, len(piece) // 512, len(body), len(stored))
        body += stored
        count += 1
    chunks += struct.pack(">IIQQQQ", 0xffffffff, 0, len(data) // 512, 0, len(body), 0)
    mish = struct.pack(">4sIQQQII", b"mish", 1, 0, len(data) // 512, 0, 0, 0) + bytes(24) + bytes(136) + struct.pack(">I", count + 1) + chunks
    assert len(mish) == 204 + 40 * (count + 1)
    plist = plistlib.dumps({"resource-fork": {"blkx": [{"Attributes": "0x0050", "Data": mish, "ID": "0", "Name": "disk"}]}})
    koly = bytearray(512)
    struct.pack_into(">4sIIIQQQ", koly, 0, b"koly", 4, 512, 1, 0, 0, len(body))
    struct.pack_into(">QQ", koly, 0xd8, len(body), len(plist))
    struct.pack_into(">Q", koly, 492, len(data) // 512)
    target = path(name)
    open(target, "wb").write(body + plist + bytes(koly))
    return target


@case("apple-disk-images")
def apple_disk_images():
    raw = sample("apple.raw", 5 << 20)
    data = open(raw, "rb").read()
    image = dmg("apple.dmg", data)
    same(raw, image, "-f", "raw", "-F", "dmg")
    check(output_json(tool("img"), "info", "--output=json", image)["format"] == "dmg", "dmg is not recognised")
    for kind, name in ((0x80000006, "bzip2"), (0x80000007, "LZFSE"), (0x80000004, "ADC")):
        output = img("convert", "-f", "dmg", "-O", "raw", dmg("other.dmg", data, types=(kind,)), path("other.raw"), code=1)
        check(name in output, f"{name} is not named: {output}")
    pristine = open(image, "rb").read()
    generator = random.Random(3)
    for _ in range(60):
        broken = bytearray(pristine)
        for _ in range(generator.randrange(1, 4)):
            broken[generator.choice([generator.randrange(len(broken) - 8000, len(broken)), generator.randrange(len(broken))])] \
                = generator.randrange(256)
        open(path("broken.dmg"), "wb").write(broken[:len(broken) if generator.randrange(5) else generator.randrange(len(broken))])
        output = run(tool("img"), "convert", "-f", "dmg", "-O", "raw", path("broken.dmg"), path("broken.raw"), code=None, timeout=60)
        check("Fatal error" not in output and "crashed" not in output, f"crashed: {output[-300:]}")


@case("vmdk-extents")
def vmdk_extents():
    raw = sample("extents.raw", 9 << 20)
    for kind in ("twoGbMaxExtentSparse", "twoGbMaxExtentFlat", "monolithicFlat"):
        image = path(f"{kind}.vmdk")
        peer_img("convert", "-f", "raw", "-O", "vmdk", "-o", f"subformat={kind}", raw, image)
        same(raw, image, "-f", "raw", "-F", "vmdk")
        io(image, "write -q -P 5 1M 300k", options=("-f", "vmdk"))
        peer_io(image, "read -q -P 5 1M 300k", options=("-f", "vmdk"))
    # Larger than one extent.
    image = path("large.vmdk")
    peer_img("create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", image, "5G")
    peer_io(image, "write -q -P 1 2047M 2M", "write -q -P 2 4900M 1M", options=("-f", "vmdk"))
    io(image, "read -q -P 1 2047M 2M", "read -q -P 2 4900M 1M", "read -q -P 0 3G 1M", "write -q -P 3 4095M 2M", options=("-f", "vmdk"))
    peer_io(image, "read -q -P 3 4095M 2M", options=("-f", "vmdk"))
    # A difference to a parent.
    base, overlay = path("parent.vmdk"), path("child.vmdk")
    peer_img("convert", "-f", "raw", "-O", "vmdk", raw, base)
    peer_img("create", "-q", "-f", "vmdk", "-b", base, "-F", "vmdk", overlay)
    peer_io(overlay, "write -q -P 7 2M 100k", options=("-f", "vmdk"))
    io(overlay, "read -q -P 7 2M 100k", "write -q -P 8 5M 10k", options=("-f", "vmdk"))
    for program, target in ((img, "child-ours.raw"), (peer_img, "child-theirs.raw")):
        program("convert", "-f", "vmdk", "-O", "raw", overlay, path(target))
    check(open(path("child-ours.raw"), "rb").read() == open(path("child-theirs.raw"), "rb").read(), "the child reads wrong")
    os.remove(base)
    check("parent.vmdk" in img("convert", "-f", "vmdk", "-O", "raw", overlay, path("child-ours.raw"), code=1), "a missing parent")


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ 0x82f63b78 if crc & 1 else crc >> 1
    return crc ^ 0xffffffff


def sealed(data):
    """A header or log entry with its checksum."""
    data = bytearray(data)
    data[4:8] = bytes(4)
    data[4:8] = struct.pack("<I", crc32c(data))
    return bytes(data)


@case("vhdx-log")
def vhdx_log():
    """The block table's last change stands only in the log, as after a crash."""
    image = path("log.vhdx")
    img("create", "-q", "-f", "vhdx", image, "64M")
    io(image, "write -q -P 1 0 4k", "write -q -P 2 20M 4k", options=("-f", "vhdx"))
    data = bytearray(open(image, "rb").read())
    table = 3 << 20
    sector = bytes(data[table:table + 4096])
    data[table:table + 4096] = bytes(4096)
    log, guid, sequence = 1 << 20, bytes(range(16)), 77
    # Two entries: the first clears a sector that is zeros anyhow, the second has the table.
    def entry(number, descriptors, sectors, tail, end):
        head = struct.pack("<4sIIIQII16sQQ", b"loge", 0, 4096 * (1 + len(sectors)), tail, number, len(descriptors), 0, guid, end, end)
        return sealed((head + b"".join(descriptors)).ljust(4096, b"\0") + b"".join(sectors))
    size = len(data)
    first = entry(sequence, [struct.pack("<4sIQQQ", b"zero", 0, 4096, table + 8192, sequence)], [], 0, size)
    number = sequence + 1
    second = entry(number, [b"desc" + sector[4092:4096] + sector[:8] + struct.pack("<QQ", table, number)],
                   [struct.pack("<4sI", b"data", number >> 32) + sector[8:4092] + struct.pack("<I", number & 0xffffffff)], 0, size)
    data[log:log + len(first) + len(second)] = first + second
    for place in (65536, 131072):
        header = bytearray(data[place:place + 4096])
        header[48:64] = guid
        header[68:80] = struct.pack("<IQ", 1 << 20, log)
        data[place:place + 4096] = sealed(header)
    open(image, "wb").write(data)
    theirs = path("log-theirs.vhdx")
    shutil.copy(image, theirs)
    check("log" in img("info", image, code=1), "a log that waits was overlooked")
    io(image, "read -q -P 1 0 4k", "read -q -P 2 20M 4k", "write -q -P 3 40M 4k", options=("-f", "vhdx"))
    peer_img("check", "-r", "all", "-f", "vhdx", theirs)
    peer_io(theirs, "read -q -P 2 20M 4k", "write -q -P 3 40M 4k", options=("-f", "vhdx"))
    same(image, theirs, "-f", "vhdx", "-F", "vhdx")
    peer_img("check", "-f", "vhdx", image)
    # A damaged entry is no entry.
    data[log + len(first) + 4096 + 100] ^= 1
    open(image, "wb").write(data)
    run(tool("io"), "-f", "vhdx", "-c", "read -P 0 0 4k", image)


@case("broken")
def broken():
    """Damaged headers are errors, not crashes."""
    for format, option in FORMATS:
        image = path("broken." + format)
        img("create", "-q", "-f", format, *options(option), image, "4M")
        pristine = open(image, "rb").read()
        generator = random.Random(9)
        for _ in range(25):
            data = bytearray(pristine)
            for _ in range(generator.randrange(1, 5)):
                data[generator.randrange(min(len(data), 2048))] = generator.randrange(256)
            open(image, "wb").write(data)
            for command in (["info", "-f", format, image], ["convert", "-f", format, "-O", "raw", image, path("broken.raw")]):
                output = run(tool("img"), *command, code=None, timeout=30)
                check("Fatal error" not in output and "crashed" not in output and "Signal" not in output,
                      f"{command} crashed: {output[-300:]}")


@case("checks")
def checks():
    """Tables that contradict themselves: both sides find the same kind of fault."""
    raw = path("check.raw")
    open(raw, "wb").write(b"\x01" * (3 << 20) + bytes(2 << 20) + b"\x02" * (1 << 20) + bytes(2 << 20))
    for format in ("vdi", "vmdk", "vhdx", "vpc", "qed", "parallels"):
        image = path("check." + format)
        peer_img("create", "-q", "-f", format, image, "8M")
        peer_io(image, "write -q -P 1 0 3M", "write -q -P 2 5M 1M", options=("-f", format))
        results = [run(program, "check", "-f", format, image, code=63 if format == "vpc" else 0) for program in (tool("img"), peer("img"))]
        if format != "vpc":
            check(results[0] == results[1], f"{format}: {results}")
        data = open(image, "rb").read()
        entry, size = {"vdi": lambda: (struct.unpack_from("<I", data, 0x154)[0], "<I"), "parallels": lambda: (64, "<I"),
                       "qed": lambda: (struct.unpack_from("<Q", data, struct.unpack_from("<Q", data, 40)[0])[0], "<Q")}.get(
                           format, lambda: (None, None))()
        if entry is None:
            continue
        width = struct.calcsize(size)
        for value, code in ((struct.unpack_from(size, data, entry)[0], None if format == "parallels" else 2),
                            ((1 << 40) if format == "qed" else (1 << 20), 2)):
            damaged = path("check-damaged." + format)
            open(damaged, "wb").write(data[:entry + width] + struct.pack(size, value) + data[entry + 2 * width:])
            run(tool("img"), "check", "-f", format, damaged, code=2)
            run(peer("img"), "check", "-f", format, damaged, code=code)


if __name__ == "__main__":
    main()
