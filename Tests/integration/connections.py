#!/usr/bin/env python3
"""Ways in and out of a machine: tap and socket networks, tftp, guestfwd, serial ports on sockets and terminals, packed
rings, a device tree of the user's, an image shared by two machines."""
import hashlib
import os
import re
import select
import shutil
import socket
import socketserver
import subprocess
import termios
import threading
import time
import tty

from harness import PATIENCE, PROMPT, Failure, Machine, Skip, case, check, free_port, linux, main, run, temporary


def address(machine, last):
    machine.command(f"ip addr add 10.9.0.{last}/24 dev eth0 && ip link set eth0 up")


def pair(first, second):
    """Two machines on one network reach each other, and files pass between them whole."""
    with Machine(linux("-m", "128", "-nic", first)) as server:
        # It listens by then.
        server.expect("OpenSBI v", 60)
        with Machine(linux("-m", "128", "-nic", second)) as client:
            server.prompt()
            client.prompt()
            address(server, 1)
            address(client, 2)
            check("0% packet loss" in client.command("ping -c 3 -W 10 10.9.0.1", 60), "the other machine does not answer")
            server.command("mkdir /tmp/www && head -c 2000000 /dev/urandom >/tmp/www/file && httpd -p 80 -h /tmp/www")
            digest = server.command("md5sum </tmp/www/file").split()[0]
            fetched = client.command("wget -q -O - http://10.9.0.1/file | md5sum", 60).split()[0]
            check(fetched == digest, "the file differs after its way between the machines")


@case("net-socket")
def net_socket():
    port = free_port()
    pair(f"socket,listen=127.0.0.1:{port}", f"socket,connect=127.0.0.1:{port},mac=52:54:00:12:34:57")


@case("net-stream")
def net_stream():
    path = temporary() / "net"
    pair(f"stream,server=on,addr.type=unix,addr.path={path}",
         f"stream,addr.type=unix,addr.path={path},mac=52:54:00:12:34:57")


@case("net-dgram")
def net_dgram():
    ends = [free_port(), free_port()]

    def end(here, there):
        return ",".join(f"{name}.type=inet,{name}.host=127.0.0.1,{name}.port={ends[number]}"
                        for name, number in (("local", here), ("remote", there)))

    pair("dgram," + end(0, 1), "dgram," + end(1, 0) + ",mac=52:54:00:12:34:57")


@case("net-tap")
def net_tap():
    if os.geteuid() != 0 or not os.path.exists("/dev/net/tun") or not shutil.which("ip"):
        raise Skip("a tap interface needs root, /dev/net/tun and the command ip")
    name = f"apus{os.getpid() % 100000}"
    probe = subprocess.run(f"ip tuntap add dev {name} mode tap && ip addr add 198.18.77.1/30 dev {name}; code=$?; "
                           f"ip tuntap del dev {name} mode tap; exit $code", shell=True, capture_output=True, text=True)
    if probe.returncode != 0:
        raise Skip(f"this host makes no tap interface: {probe.stderr.strip()}")
    # The interface goes when the emulator ends.
    with Machine(linux("-m", "128", "-netdev", f"tap,id=n,ifname={name},script=no,downscript=no",
                       "-device", "virtio-net-pci,netdev=n")) as machine:
        machine.prompt()
        done = subprocess.run(f"ip addr add 198.18.77.1/30 dev {name} && ip link set {name} up", shell=True,
                              capture_output=True, text=True)
        check(done.returncode == 0, f"the interface cannot be set up: {done.stderr}")
        machine.command("ip addr add 198.18.77.2/30 dev eth0 && ip link set eth0 up")
        check("0% packet loss" in machine.command("ping -c 3 -W 10 198.18.77.1", 60), "the host does not answer")
        machine.command("mkdir /tmp/www && head -c 3000000 /dev/urandom >/tmp/www/file && httpd -p 80 -h /tmp/www")
        digest = machine.command("md5sum </tmp/www/file").split()[0]
        with socket.create_connection(("198.18.77.2", 80), timeout=30) as connection:
            connection.sendall(b"GET /file HTTP/1.0\r\n\r\n")
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        check(hashlib.md5(answer.split(b"\r\n\r\n", 1)[1]).hexdigest() == digest, "the file from the guest differs")
    check(not os.path.exists(f"/sys/class/net/{name}"), "the tap interface is still there")


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"echo " + self.request.recv(100))


@case("net-user-services")
def net_user_services():
    """TFTP, and connections of the guest that go to a port and to a command of the host."""
    directory = temporary() / "tftp"
    directory.mkdir()
    (directory / "loader").write_bytes(os.urandom(300_000))
    digest = hashlib.md5((directory / "loader").read_bytes()).hexdigest()
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    nic = (f"user,tftp={directory},bootfile=loader,hostname=kestrel,"
           f"guestfwd=tcp:10.0.2.100:7-tcp:127.0.0.1:{server.server_address[1]},"
           "guestfwd=tcp:10.0.2.101:8-cmd:tr a-z A-Z")
    with Machine(linux("-m", "128", "-nic", nic)) as machine:
        machine.prompt()
        machine.command("udhcpc -i eth0 -n -q 2>&1", 30)
        fetched = machine.command("tftp -g -r loader -l /tmp/loader 10.0.2.2 && md5sum /tmp/loader", 60)
        check(digest in fetched, f"the file over TFTP differs: {fetched!r}")
        answer = machine.command("(echo hello; sleep 1) | timeout 5 nc 10.0.2.100 7; true", 30)
        check("echo hello" in answer, f"the forwarded port answered {answer!r}")
        answer = machine.command("(echo swift; sleep 1) | timeout 5 nc 10.0.2.101 8; true", 30)
        check("SWIFT" in answer, f"the command answered {answer!r}")
    server.shutdown()
    server.server_close()


class Line:
    """The other end of a serial port."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.output = b""

    def expect(self, pattern, timeout=120):
        deadline = time.monotonic() + timeout * PATIENCE
        while not re.search(pattern, self.output, re.S):
            ready = select.select([self.descriptor], [], [], max(0, deadline - time.monotonic()))[0]
            chunk = os.read(self.descriptor, 65536) if ready else b""
            if not chunk:
                raise Failure(f"{pattern!r} did not come over the line; there came {self.output[-300:]!r}")
            self.output += chunk

    def shell(self):
        """The guest's shell answers over the line."""
        self.expect(rb"Apus guest ready\..*" + PROMPT)
        os.write(self.descriptor, b"echo line-$((6*7))\r")
        self.expect(rb"line-42")
        os.write(self.descriptor, b"poweroff -f\r")


def serial(option, descriptor):
    arguments = [argument for argument in linux("-m", "128") if argument != "-nographic"]
    with Machine([*arguments, "-display", "none", "-serial", option], terminal=False) as machine:
        end = descriptor(machine)
        Line(end.fileno() if hasattr(end, "fileno") else end).shell()
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")


def connect(family, place):
    deadline = time.monotonic() + 30 * PATIENCE
    while True:
        connection = socket.socket(family)
        try:
            connection.connect(place)
            return connection
        except OSError:
            connection.close()
            check(time.monotonic() < deadline, f"nothing listens at {place}")
            time.sleep(0.05)


@case("serial-tcp")
def serial_tcp():
    port = free_port()
    serial(f"tcp:127.0.0.1:{port},server=on,nodelay=on", lambda _: connect(socket.AF_INET, ("127.0.0.1", port)))


@case("serial-unix")
def serial_unix():
    path = str(temporary() / "serial")
    serial(f"unix:{path},server=on", lambda _: connect(socket.AF_UNIX, path))
    check(not os.path.exists(path), "the socket is still there after the end")


@case("serial-unix-client")
def serial_unix_client():
    path = str(temporary() / "listener")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    listener.settimeout(30 * PATIENCE)
    serial(f"unix:{path}", lambda _: listener.accept()[0])
    listener.close()


@case("serial-pty")
def serial_pty():
    def terminal(machine):
        path = machine.expect(rb"char device redirected to (/dev/pts/\d+)", 30).group(1)
        descriptor = os.open(path, os.O_RDWR | os.O_NOCTTY)
        tty.setraw(descriptor, termios.TCSANOW)
        return descriptor

    serial("pty", terminal)


@case("device-tree")
def device_tree():
    path = temporary() / "virt.dtb"
    code, output = run(*linux("-m", "128", "-machine", f"dumpdtb={path}", append="greeting=salve"))
    check(code == 0 and "dtb dumped" in output, f"dumpdtb ended with {code}: {output!r}")
    tree = path.read_bytes()
    check(tree.count(b"riscv-virtio,qemu\0") == 1, "the tree does not name the model once")
    path.write_bytes(tree.replace(b"riscv-virtio,qemu\0", b"riscv-virtio,apus\0"))
    with Machine(linux("-m", "128", "-dtb", path, append="greeting=ave")) as machine:
        machine.prompt()
        check("riscv-virtio,apus" in machine.command("cat /proc/device-tree/model"), "the tree is not the one given")
        check("greeting=ave" in machine.command("cat /proc/cmdline"), "-append does not count")


@case("packed-rings")
def packed_rings():
    disk = temporary() / "disk.raw"
    disk.write_bytes(os.urandom(4 << 20))
    digest = hashlib.md5(disk.read_bytes()).hexdigest()
    with Machine(linux("-m", "128", "-smp", "2", "-drive", f"file={disk},format=raw,if=none,id=d",
                       "-device", "virtio-blk-pci,drive=d,packed=on,num-queues=2", "-netdev", "user,id=n",
                       "-device", "virtio-net-device,netdev=n,packed=on",
                       "-device", "virtio-rng-device,packed=on")) as machine:
        machine.prompt()
        features = machine.command("cat /sys/bus/virtio/devices/virtio*/features").split()
        packed = [line for line in features if line[34] == "1"]
        check(len(packed) == 3, f"{len(packed)} devices, not 3, negotiated packed rings")
        check(digest in machine.command("md5sum /dev/vda", 60), "the disk reads differently")
        machine.command("dd if=/dev/vda of=/tmp/half bs=64k count=32 2>/dev/null && "
                        "dd if=/tmp/half of=/dev/vda bs=64k seek=32 conv=fsync 2>/dev/null", 60)
        machine.command("udhcpc -i eth0 -n -q 2>&1 && ping -c 2 -W 10 10.0.2.2", 60)
        machine.send("poweroff -f\r")
        check(machine.wait(30) == 0, f"poweroff ended with {machine.code}")
    content = disk.read_bytes()
    check(content[:2 << 20] == content[2 << 20:], "what the guest wrote did not reach the image")


@case("shared-image")
def shared_image():
    """Two machines have one image open if both say share-rw=on, and only then."""
    disk = temporary() / "shared.raw"
    disk.write_bytes(bytes(1 << 20))
    options = ["-m", "128", "-drive", f"file={disk},format=raw,if=none,id=d"]
    with Machine(linux(*options, "-device", "virtio-blk-device,drive=d,share-rw=on")) as first:
        first.prompt()
        code, output = run(*linux(*options, "-device", "virtio-blk-device,drive=d"))
        check(code == 1 and "lock" in output, f"a second user without share-rw ended with {code}: {output!r}")
        with Machine(linux(*options, "-device", "virtio-blk-device,drive=d,share-rw=on")) as second:
            second.prompt()
            first.command("echo from-the-first | dd of=/dev/vda conv=fsync 2>/dev/null")
            check("from-the-first" in second.command("head -c 14 /dev/vda; echo"), "the second does not see the write")


if __name__ == "__main__":
    main()
