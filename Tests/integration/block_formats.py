#!/usr/bin/env python3
"""Formats of other programs: what apus-img writes, Debian's qemu-img reads, and the other way."""
import random

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


if __name__ == "__main__":
    main()
