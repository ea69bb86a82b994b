#!/usr/bin/env python3
"""A guest's disk as qcow2, over a backing file, by -drive and -blockdev, encrypted, and over the network."""
import re

from block import both_check, img, io, path, server, tool
from harness import Machine, case, check, linux, main, run


def boot(*options):
    return Machine(linux("-m", "256", *options))


def write_and_check(machine, *before):
    machine.prompt()
    for command in before:
        machine.command(command)
    # 3 MiB of a pattern at 5 MiB, read back past the guest's cache.
    machine.command("yes apus-disk | head -c 3145728 > /tmp/pattern")
    machine.command("dd if=/tmp/pattern of=/dev/vda bs=64k seek=80 conv=fsync")
    machine.command("echo 3 > /proc/sys/vm/drop_caches")
    machine.command("dd if=/dev/vda bs=64k skip=80 count=48 | cmp - /tmp/pattern")
    machine.command("dd if=/dev/vda bs=4k count=1 | tr -d '\\001' | wc -c | grep -x 0")
    machine.send("poweroff -f\r")
    check(machine.wait(60) == 0, f"the machine ended with {machine.code}: {machine.tail()}")


def verify(image):
    expected = (b"apus-disk\n" * 320000)[:3 << 20]
    copy = path("machine.raw")
    img("convert", "-O", "raw", image, copy)
    with open(copy, "rb") as file:
        check(file.read(4096) == b"\x01" * 4096, "the backing file does not shine through")
        file.seek(80 << 16)
        check(file.read(3 << 20) == expected, "the disk does not have what the guest wrote")


def overlay(name):
    base, image = path(name + "-base.qcow2"), path(name + ".qcow2")
    img("create", "-q", "-f", "qcow2", base, "64M")
    io(base, "write -q -P 1 0 1M")
    img("create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", image)
    return image


@case("drive")
def drive():
    image = overlay("drive")
    with boot("-drive", f"file={image},format=qcow2,if=none,id=disk,discard=unmap", "-device", "virtio-blk-device,drive=disk") as machine:
        write_and_check(machine)
    both_check(image)
    verify(image)


@case("io-uring")
def ring():
    """A guest's requests through io_uring, where tables are at hand and where they are not."""
    for mode, cache in (("io_uring", "none"), ("native", "none"), ("io_uring", "writeback")):
        image = overlay("ring")
        with boot("-drive", f"file={image},format=qcow2,if=none,id=disk,aio={mode},cache={cache}", "-device",
                  "virtio-blk-device,drive=disk") as machine:
            # The second time the clusters are there.
            write_and_check(machine, "dd if=/dev/urandom of=/dev/vda bs=64k seek=80 count=48 conv=fsync")
        both_check(image)
        verify(image)


@case("blockdev")
def blockdev():
    image = overlay("blockdev")
    with boot("-blockdev", '{"driver":"file","filename":"%s","node-name":"below"}' % image,
              "-blockdev", "qcow2,node-name=disk,file=below", "-device", "virtio-blk-pci,drive=disk") as machine:
        write_and_check(machine)
    both_check(image)
    verify(image)


@case("encrypted")
def encrypted():
    """A LUKS disk: its content is the guest's with the passphrase, nobody's without."""
    image = path("encrypted.qcow2")
    secret = ["--object", "secret,id=key,data=tailfeather"]
    img("create", "-q", "-f", "qcow2", *secret, "-o", "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10",
        image, "64M")
    drive = f"file={image},format=qcow2,if=none,id=disk"
    device = ["-device", "virtio-blk-device,drive=disk"]
    for options, says in [([], "key-secret"), (["encrypt.key-secret=key"], "no secret 'key'"),
                          (["encrypt.key-secret=key", "-object", "secret,id=key,data=wrong"], "passphrase|password")]:
        code, output = run(*linux("-m", "256", "-drive", ",".join([drive, *options[:1]]), *options[1:], *device))
        check(code == 1 and re.search(says, output), f"{options} ended with {code}: {output!r}")
    with boot("-object", secret[1], "-drive", drive + ",encrypt.key-secret=key", *device) as machine:
        machine.prompt()
        machine.command("echo hidden-words | dd of=/dev/vda bs=512 seek=9 conv=fsync")
        check("hidden-words" in machine.command("dd if=/dev/vda bs=512 skip=9 count=1 | head -n 1"), "it reads otherwise")
        machine.send("poweroff -f\r")
        check(machine.wait(60) == 0, f"the machine ended with {machine.code}: {machine.tail()}")
    with open(image, "rb") as file:
        check(b"hidden-words" not in file.read(), "the words are in the image as they are")


@case("killed")
def killed():
    """The emulator is killed while the guest writes: the image is consistent, and what sync acknowledged is there."""
    image = overlay("killed")
    with boot("-drive", f"file={image},format=qcow2,if=none,id=disk", "-device", "virtio-blk-device,drive=disk") as machine:
        machine.prompt()
        machine.command("yes apus-disk | head -c 3145728 > /tmp/pattern")
        machine.command("dd if=/tmp/pattern of=/dev/vda bs=64k seek=80 conv=fsync")
        machine.send("while true; do dd if=/dev/zero of=/dev/vda bs=1M seek=16 count=40 conv=fsync; done\r")
        machine.expect("records out", 60)
        machine.close()
    both_check(image)
    verify(image)


@case("network-disk")
def network_disk():
    image = overlay("network")
    socket = path("machine.sock")
    with server(tool("nbd"), "-t", "-k", socket, "-f", "qcow2", image, socket=socket):
        with boot("-drive", f"file=nbd:unix:{socket},format=raw,if=none,id=disk", "-device", "virtio-blk-device,drive=disk") as machine:
            write_and_check(machine)
    both_check(image)
    verify(image)


if __name__ == "__main__":
    main()
