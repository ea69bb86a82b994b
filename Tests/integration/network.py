#!/usr/bin/env python3
"""User networking: the guest fetches from a server on the host's loopback and is reached through hostfwd."""
import hashlib
import http.server
import os
import socket
import threading
import time
import urllib.request

from harness import Machine, case, check, free_port, linux, main, report, temporary

BYTE_COUNT = 3_000_001


def serve():
    """A file server on a free loopback port: (server, the file's digest)."""
    directory = temporary() / "www"
    if not directory.exists():
        directory.mkdir()
        (directory / "file").write_bytes(os.urandom(BYTE_COUNT))
    digest = hashlib.md5((directory / "file").read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(directory))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, digest


def exercise(*devices, forwards=True):
    server, digest = serve()
    forwarded = free_port()
    netdev = f"user,id=net0,hostfwd=tcp:127.0.0.1:{forwarded}-:8080"
    with Machine(linux("-smp", "2", "-m", "256", "-netdev", netdev, *devices)) as machine:
        machine.prompt()
        check("eth0" in machine.command("ls /sys/class/net"), "the guest has no eth0")
        output = machine.command("udhcpc -i eth0 -n -q 2>&1", 30)
        check("10.0.2.15" in output, f"DHCP did not give 10.0.2.15: {output!r}")
        check("via 10.0.2.2" in machine.command("ip route"), "there is no default route")
        started = time.monotonic()
        output = machine.command(f"wget -q -O /tmp/file http://10.0.2.2:{server.server_address[1]}/file && md5sum "
                                 "/tmp/file", 60)
        seconds = time.monotonic() - started
        check(digest in output, f"the fetched file differs: {output!r}")
        report(f"fetched {BYTE_COUNT / 1e6 / seconds:.1f} MB/s")
        machine.command("mkdir /tmp/www && cp /tmp/file /tmp/www/ && httpd -p 8080 -h /tmp/www")
        with urllib.request.urlopen(f"http://127.0.0.1:{forwarded}/file", timeout=30) as answer:
            check(hashlib.md5(answer.read()).hexdigest() == digest, "the file served by the guest differs")
        check("0% packet loss" in machine.command("ping -c 2 -W 5 10.0.2.2", 30), "10.0.2.2 does not answer a ping")
        machine.send("poweroff -f\r")
        check(machine.wait(20) == 0, f"poweroff ended with {machine.code}")
    with socket.socket() as probe:
        check(probe.connect_ex(("127.0.0.1", forwarded)) != 0, "the forwarded port is still open after the end")
    server.shutdown()
    server.server_close()


@case("virtio-net-device")
def mmio():
    exercise("-device", "virtio-net-device,netdev=net0")


@case("virtio-net-pci")
def pci():
    exercise("-device", "virtio-net-pci,netdev=net0")


if __name__ == "__main__":
    main()
