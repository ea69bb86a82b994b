#!/usr/bin/env python3
"""apus-nbd -c and -d: an image as /dev/nbd0 in a Debian machine, as hosts of tests seldom have the kernel's driver; and such a
device as a disk of apus-img and apus-io.

The machine is qemu-system-x86_64's, with no help of the host's processor (long)."""
import os
import pathlib
import re
import shutil
import subprocess

from block import both_check, img, io, path, peer_io, run, tool
from harness import PATIENCE, ROOT, Skip, add_to_archive, case, check, main, temporary

# What happens in the machine; each line that begins with STEP is looked for.
SCRIPT = r"""
echo; modload virtio_blk; modload ext4; modload nbd
cp /dev/vda /root/disk.qcow2   # the qcow2 file is what the first disk holds
cd /root
apus-nbd -c /dev/nbd0 -f qcow2 disk.qcow2 && echo "STEP attached $(cat /sys/block/nbd0/size) $(cat /sys/block/nbd0/ro)"
apus-nbd -c /dev/nbd0 -f qcow2 /root/other.qcow2 2>/root/error || echo "STEP refused $(grep -c other.qcow2 /root/error)"
cp disk.qcow2 copy.qcow2
apus-nbd -c /dev/nbd0 -f qcow2 copy.qcow2 2>/root/error || echo "STEP busy $(grep -c /dev/nbd0 /root/error)"
cmp -n 1048576 /dev/nbd0 /pattern && echo STEP read-same
dd if=/dev/zero bs=1M count=2 2>/dev/null | tr '\0' '\125' >/root/written
dd if=/root/written of=/dev/nbd0 bs=64k seek=64 conv=fsync 2>/dev/null && echo STEP wrote
mke2fs -q -F /dev/nbd0 16384 2>/dev/null; mkdir -p /mnt
ls -d /sys/block/nbd0/nbd0p1 >/dev/null 2>&1 || echo STEP no-partition
modload ext2 2>/dev/null
mount -t ext4 /dev/nbd0 /mnt && cp /root/written /mnt/file && sync && umount /mnt && echo STEP mounted
apus-nbd -d /dev/nbd0 && echo STEP detached
pidof apus-nbd >/dev/null || echo STEP server-gone
[ "$(cat /sys/block/nbd0/size)" = 0 ] && echo STEP size-gone
apus-nbd -r -c /dev/nbd0 -f qcow2 disk.qcow2 && echo "STEP readonly $(cat /sys/block/nbd0/ro)"
mount -t ext4 -o ro /dev/nbd0 /mnt && cmp /root/written /mnt/file && umount /mnt && echo STEP file-same
dd if=/root/written of=/dev/nbd0 bs=4k count=1 conv=fsync 2>/dev/null || echo STEP no-write
apus-nbd -d /dev/nbd0
apus-nbd -d /dev/nbd0 2>/dev/null || echo STEP not-served
(apus-nbd -v -c /dev/nbd1 -f qcow2 disk.qcow2 2>/root/said; echo "STEP ended $?"; cat /root/said) &
for try in $(seq 200); do grep -q nbd1 /root/said && break; sleep 0.1; done
echo "STEP said $(grep -c "serving 'disk.qcow2' as /dev/nbd1" /root/said)"
dd if=/root/written of=/dev/nbd1 bs=64k seek=512 count=16 2>/dev/null
kill -TERM $(pidof apus-nbd); wait
apus-nbd -c /dev/nbd1 -f raw partitions.raw && ls -d /sys/block/nbd1/nbd1p1 >/dev/null && echo STEP partition
apus-nbd -d /dev/nbd1 >/dev/null
# A block device as a disk of ours.
dd if=/dev/zero of=plain.raw bs=1M count=8 2>/dev/null
apus-nbd -c /dev/nbd2 -f raw plain.raw && echo "STEP device $(apus-img info /dev/nbd2 | grep -c 'virtual size: 8 MiB (8388608 bytes)')"
apus-img convert -n -f raw -O host_device /pattern /dev/nbd2 && cmp -n 1048576 /dev/nbd2 /pattern && echo STEP converted
apus-io -f host_device -c "write -P 9 4M 64k" -c "write -z 5M 64k" -c "discard 6M 64k" -c flush -c "read -P 9 4M 64k" \
  -c "read -P 0 5M 64k" -c length /dev/nbd2 >/root/said && echo "STEP direct $(grep -cx '8 MiB' /root/said)"
apus-io -t none -f host_device -c "read -P 9 4M 64k" /dev/nbd2 >/dev/null && echo STEP uncached
apus-nbd -d /dev/nbd2 >/dev/null && apus-io -f raw -c "read -P 9 4M 64k" plain.raw >/dev/null && echo STEP kept
cp disk.qcow2 /dev/vda; sync; echo STEP done
"""


def install(program, folder):
    """A program with the libraries that it is linked to."""
    (folder / "bin").mkdir(parents=True)
    shutil.copy(os.path.realpath(program), folder / "bin" / "apus-nbd")
    for name in ("apus-img", "apus-io"):
        (folder / "bin" / name).symlink_to("apus-nbd")
    for library in re.findall(r"(?:=> )?(/\S+) \(0x", run("ldd", program)):
        target = folder / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(os.path.realpath(library), target)


@case("kernel-device")
def kernel_device():
    machine = shutil.which("qemu-system-x86_64")
    if not machine:
        raise Skip("qemu-system-x86_64 is missing; run scripts/install-deps --all")
    guest = subprocess.run([ROOT / "scripts" / "fetch-guest", "x86_64"], check=True, stdout=subprocess.PIPE, text=True)
    guest = pathlib.Path(guest.stdout.strip())
    image = path("disk.qcow2")
    img("create", "-f", "qcow2", image, "64M")
    pattern = bytes(index * 7 % 251 for index in range(1 << 20))
    open(path("pattern"), "wb").write(pattern)
    io(image, f"write -q -s {path('pattern')} 0 1M")
    # A disk for the machine to fetch the file from and to bring it back to, with room for it to grow.
    os.truncate(image, 16 << 20)
    partitions = bytearray(1 << 20)
    partitions[446:462] = bytes([0, 0, 2, 0, 0x83, 0, 9, 0]) + (8).to_bytes(4, "little") + (1024).to_bytes(4, "little")
    partitions[510:512] = b"\x55\xaa"

    folder = temporary() / "initrd"
    install(tool("nbd"), folder)
    (folder / "pattern").write_bytes(pattern)
    (folder / "root").mkdir()
    (folder / "root" / "partitions.raw").write_bytes(partitions)
    (folder / "test").write_text(SCRIPT)
    ramdisk = path("initramfs.cpio")
    shutil.copy(guest / "initramfs.cpio", ramdisk)
    add_to_archive(folder, ramdisk)
    shown = run(machine, "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1024", "-nographic", "-no-reboot", "-kernel",
                guest / "Image", "-initrd", ramdisk, "-append", 'console=ttyS0 quiet panic=-1 apus_run="sh /test"',
                "-drive", f"file={image},format=raw,if=virtio", timeout=200 * PATIENCE)
    steps = re.findall(r"^STEP (.*?)\r?$", shown, re.M)
    expected = ["attached 131072 0", "refused 1", "busy 1", "read-same", "wrote", "no-partition", "mounted",
                "detached", "server-gone", "size-gone", "readonly 1", "file-same", "no-write", "not-served",
                "said 1", "ended 0", "partition", "device 1", "converted", "direct 1",
                "uncached", "kept", "done"]
    check(steps == expected, f"the steps were {steps}; the machine showed {shown[-3000:]}")
    both_check(image)
    # What was written last, before SIGTERM, came through the kernel's cache and the server's end.
    for program in (io, peer_io):
        program(image, "read -q -P 0x55 32M 1M", options=("-f", "qcow2"))


main()
