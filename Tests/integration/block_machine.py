#!/usr/bin/env python3
"""A guest's disk as qcow2, over a backing file, by -drive and -blockdev, and over the network."""
from block import both_check, img, io, path, server, tool
from harness import Machine, case, check, linux, main


def boot(*options):
    return Machine(linux("-m", "256", *options))


def write_and_check(machine):
    machine.prompt()
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


@case("blockdev")
def blockdev():
    image = overlay("blockdev")
    with boot("-blockdev", '{"driver":"file","filename":"%s","node-name":"below"}' % image,
              "-blockdev", "qcow2,node-name=disk,file=below", "-device", "virtio-blk-pci,drive=disk") as machine:
        write_and_check(machine)
    both_check(image)
    verify(image)


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
