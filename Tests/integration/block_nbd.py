#!/usr/bin/env python3
"""apus-nbd and the nbd driver with Debian's tools as the other side: nbdinfo, nbdcopy, nbdsh, qemu-img, qemu-nbd,
nbdkit."""
import json
import os
import shutil
import socket as sockets
import struct
import subprocess
import time

from block import both_check, img, io, output_json, path, peer, peer_img, peer_io, run, same, sample, server, tool
from harness import PATIENCE, Skip, case, check, free_port, main


def need(program):
    found = shutil.which(program)
    if not found:
        raise Skip(f"{program} is missing; run scripts/install-deps")
    return found


@case("peers-of-the-server")
def peers_of_the_server():
    raw = sample("nbd.raw", 6 << 20)
    image = path("nbd.qcow2")
    img("convert", "-O", "qcow2", raw, image)
    socket = path("server.sock")
    uri = f"nbd+unix:///?socket={socket}"
    with server(tool("nbd"), "-t", "-e", "0", "-k", socket, "-f", "qcow2", "-A", image, socket=socket):
        facts = output_json(need("nbdinfo"), "--json", uri)["exports"][0]
        check(facts["export-size"] == 6 << 20 and "base:allocation" in facts["contexts"]
              and "qemu:allocation-depth" in facts["contexts"], f"nbdinfo says {facts}")
        listing = output_json(need("nbdinfo"), "--map", "--json", uri)
        check(sum(entry["length"] for entry in listing) == 6 << 20, f"the map is {listing}")
        copy = path("nbdcopy.raw")
        run(need("nbdcopy"), uri, copy)
        check(open(copy, "rb").read() == open(raw, "rb").read(), "nbdcopy read something else")
        peer_img("compare", "-f", "raw", raw, uri)
        img("compare", "-f", "raw", "-F", "raw", raw, uri)
        peer_io(uri, "write -q -P 7 1M 1M", "write -q -z 3M 64k", "discard -q 4M 1M", "flush", "read -q -P 7 1M 1M",
                "read -q -P 0 3M 64k", options=("-f", "raw"))
        io(uri, "read -q -P 7 1M 1M", "write -q -P 9 2M 3000", "flush", "read -q -P 9 2M 3000", options=("-f", "raw"))
        run(need("nbdcopy"), raw, uri)
        run(tool("nbd"), "-L", "-k", socket)
        run(peer("nbd"), "-L", "-k", socket)
    both_check(image)
    same(raw, image)


@case("tcp-and-readonly")
def tcp_and_readonly():
    raw = sample("nbd-tcp.raw", 2 << 20)
    port = free_port()
    with server(tool("nbd"), "-t", "-r", "-p", port, "-b", "127.0.0.1", "-x", "disk one", "-D", "a disk", "-f", "raw", raw,
                port=port):
        uri = f"nbd://127.0.0.1:{port}/disk%20one"
        facts = output_json(need("nbdinfo"), "--json", uri)["exports"][0]
        check(facts["is_read_only"] and facts["description"] == "a disk", f"nbdinfo says {facts}")
        img("compare", "-f", "raw", "-F", "raw", raw, uri)
        check("read-only" in io(uri, "write 0 512", code=1, options=("-f", "raw")), "a write was not refused")
        run(need("nbdinfo"), f"nbd://127.0.0.1:{port}/other", code=1)


@case("leaves-with-its-client")
def leaves():
    raw = sample("nbd-once.raw", 1 << 20)
    socket, pid = path("once.sock"), path("once.pid")
    run(tool("nbd"), "--fork", "--pid-file", pid, "-k", socket, "-f", "raw", raw)
    check(int(open(pid).read()) > 0, "no process id")
    img("compare", "-U", "-f", "raw", "-F", "raw", raw, f"nbd:unix:{socket}")
    deadline = time.monotonic() + 20 * PATIENCE
    while os.path.exists(f"/proc/{int(open(pid).read())}"):
        check(time.monotonic() < deadline, "the server stays without -t")
        time.sleep(0.02)


@case("dirty-bitmap")
def dirty_bitmap():
    image = path("nbd-bitmap.qcow2")
    img("create", "-q", "-f", "qcow2", image, "4M")
    img("bitmap", "--add", image, "b")
    socket = path("bitmap.sock")
    # What each side recorded and shows, the other one sees, too.
    for program, writer in ((tool("nbd"), io), (peer("nbd"), peer_io), (tool("nbd"), peer_io)):
        writer(image, "write -q -P 1 1M 128k", options=("-f", "qcow2"))
        with server(program, "-t", "-r", "-B", "b", "-k", socket, "-f", "qcow2", image, socket=socket):
            seen(socket)


@case("bitmaps-follow-the-size")
def bitmaps_follow():
    image, socket = path("bitmap-size.qcow2"), path("bitmap-size.sock")
    for start, end, change in ((4, 9, []), (9, 4, ["--shrink"]), (1, 3000, [])):
        for name in ("on", "off"):
            img("create", "-q", "-f", "qcow2", image, f"{start}M")
            img("bitmap", "--add", "-g", "64k", image, "b")
            io(image, "write -q -P 1 0 64k", "write -q -P 1 512k 128k", options=("-f", "qcow2"))
            if start > 5:
                io(image, "write -q -P 1 5M 1M", options=("-f", "qcow2"))
            if name == "off":
                img("bitmap", "--disable", image, "b")
            img("resize", "-q", *change, image, f"{end}M")
            both_check(image)
            if name == "on":
                (io if end > 5 else peer_io)(image, f"write -q -P 2 {end - 1}M 64k", options=("-f", "qcow2"))
            expected = [(0, 65536), (524288, 131072)] + ([((end - 1) << 20, 65536)] if name == "on" else [])
            for program in (tool("nbd"), peer("nbd")):
                with server(program, "-t", "-r", "-B", "b", "-k", socket, "-f", "qcow2", image, socket=socket):
                    entries = output_json(need("nbdinfo"), "--map=qemu:dirty-bitmap:b", "--json",
                                          f"nbd+unix:///?socket={socket}")
                    dirty = [(entry["offset"], entry["length"]) for entry in entries if entry["type"] & 1]
                    check(dirty == expected, f"from {start}M to {end}M: {dirty} instead of {expected}")


def seen(socket):
    uri = f"nbd+unix:///?socket={socket}"
    entries = output_json(need("nbdinfo"), "--map=qemu:dirty-bitmap:b", "--json", uri)
    dirty = [(entry["offset"], entry["length"]) for entry in entries if entry["type"] & 1]
    check(dirty == [(1 << 20, 128 << 10)], f"the dirty ranges are {entries}")


@case("concurrent-writers")
def concurrent_writers():
    """Two clients with many requests each, and discards, over a snapshot: the image stays consistent, the snapshot too."""
    image, socket = path("nbd-writers.qcow2"), path("writers.sock")
    uri = f"nbd+unix:///?socket={socket}"
    for options in ([], ["-o", "extended_l2=on"], ["-o", "cluster_size=4k,lazy_refcounts=on"]):
        img("create", "-q", "-f", "qcow2", *options, image, "128M")
        io(image, "write -q -P 1 0 50M")
        img("snapshot", "-c", "before", image)
        with server(tool("nbd"), "-t", "-e", "0", "-k", socket, "-f", "qcow2", image, socket=socket):
            clients = [subprocess.Popen([peer("img"), "bench", "-q", "-w", "-d", depth, "-c", count, "-s", size, "-S", step, "-f", "raw", uri],
                                        stdout=subprocess.DEVNULL)
                       for depth, count, size, step in (("32", "3000", "4096", "69632"), ("16", "1500", "65536", "200704"))]
            for number in range(6):
                peer_io(uri, f"discard -q {number * 10}M 5M", f"write -q -z -u {number * 15}M 3M", "flush", options=("-f", "raw"))
            for client in clients:
                check(client.wait(60 * PATIENCE) == 0, "a client failed")
        both_check(image)
        img("snapshot", "-a", "before", image)
        io(image, "read -q -P 1 0 50M", "read -q -P 0 50M 78M")
        both_check(image)


@case("client-of-peers")
def client_of_peers():
    raw = sample("nbd-peer.raw", 4 << 20)
    socket = path("peer.sock")
    uri = f"nbd+unix:///?socket={socket}"
    with server(peer("nbd"), "-t", "-k", socket, "-f", "raw", raw, socket=socket):
        img("compare", "-U", "-f", "raw", "-F", "raw", raw, uri)
        io(uri, "write -q -P 3 12345 54321", "write -q -z 2M 1M", "discard -q 3M 64k", "flush", "read -q -P 3 12345 54321",
           "read -q -P 0 2M 1M", options=("-f", "raw"))
        copy = path("nbd-peer.qcow2")
        img("convert", "-f", "raw", "-O", "qcow2", uri, copy)
        both_check(copy)
        # qcow2 on top of the network.
        img("convert", "-n", "-f", "qcow2", "-O", "raw", copy, uri)
        run(tool("nbd"), "-L", "-k", socket)
    same(copy, raw)
    socket = path("nbdkit.sock")
    with server(need("nbdkit"), "-f", "-U", socket, "memory", "16M", socket=socket):
        uri = f"nbd+unix:///?socket={socket}"
        io(uri, "write -q -P 5 1M 3M", "read -q -P 5 1M 3M", "read -q -P 0 8M 1M", options=("-f", "raw"))
        img("info", uri)


def certificates():
    """A folder with an authority, a server's and a client's certificate, shared keys, and another authority's client."""
    folder = path("tls")
    if os.path.exists(folder):
        return folder
    os.mkdir(folder)
    os.mkdir(f"{folder}/stranger")
    openssl = need("openssl")
    for place, who in ((folder, ("server", "client")), (f"{folder}/stranger", ("client",))):
        ca = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run(openssl, "req", "-x509", *ca, "-days", "7", "-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", f"{place}/ca-key.pem", "-out", f"{place}/ca-cert.pem")
        for name in who:
            run(openssl, "req", *ca, "-subj", f"/CN={name}", "-keyout", f"{place}/{name}-key.pem", "-out", f"{place}/{name}.csr")
            open(f"{place}/{name}.ext", "w").write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
            run(openssl, "x509", "-req", "-days", "7", "-in", f"{place}/{name}.csr", "-CA", f"{place}/ca-cert.pem", "-CAkey",
                f"{place}/ca-key.pem", "-CAcreateserial", "-extfile", f"{place}/{name}.ext", "-out", f"{place}/{name}-cert.pem")
    # The stranger trusts the server, which does not trust the stranger.
    shutil.copy(f"{folder}/ca-cert.pem", f"{folder}/stranger/ca-cert.pem")
    open(f"{folder}/keys.psk", "w").write("qemu:0123456789abcdef0123456789abcdef\nalice:fedcba9876543210fedcba9876543210\n")
    return folder


@case("tls-certificates")
def tls_certificates():
    folder = certificates()
    raw = sample("tls.raw", 3 << 20)
    server_object = f"tls-creds-x509,id=tls0,dir={folder},endpoint=server,verify-peer=yes"
    client_object = f"tls-creds-x509,id=tls0,dir={folder},endpoint=client"
    stranger = f"tls-creds-x509,id=tls0,dir={folder}/stranger,endpoint=client"
    for program in (tool("nbd"), peer("nbd")):
        port = free_port()
        image = f"driver=raw,file.driver=nbd,file.host=localhost,file.port={port},file.tls-creds=tls0"
        with server(program, "-t", "-e", "4", "--object", server_object, "--tls-creds", "tls0", "-p", port, "-b", "127.0.0.1", "-f",
                    "raw", raw, port=port):
            for reader in (img, peer_img):
                reader("compare", "-U", "--object", client_object, "--image-opts", image, f"driver=raw,file.filename={raw}")
            io(image, "write -q -P 7 1M 64k", "flush", "read -q -P 7 1M 64k", options=("--object", client_object, "--image-opts"))
            run(tool("nbd"), "-L", "--object", client_object, "--tls-creds", "tls0", "-b", "localhost", "-p", port)
            # Without TLS, and with a certificate that nobody trusts.
            img("info", f"nbd://localhost:{port}", code=1)
            img("info", "--object", stranger, "--image-opts", image, code=1)
            facts = run(need("nbdinfo"), f"nbds://localhost:{port}/?tls-certificates={folder}")
            check("protocol: newstyle-fixed with TLS" in facts, f"nbdinfo says {facts}")
            run(need("nbdcopy"), f"nbds://localhost:{port}/?tls-certificates={folder}", path("tls-copy.raw"))
            check(open(raw, "rb").read() == open(path("tls-copy.raw"), "rb").read(), "nbdcopy read something else")


@case("tls-authorization")
def tls_authorization():
    """Clients are let in by the names in their certificates, as by qemu-nbd."""
    folder = certificates()
    raw = sample("authz.raw", 1 << 20)
    client_object = f"tls-creds-x509,id=tls0,dir={folder},endpoint=client"
    for rules, is_let_in in (
            ("authz-simple,id=who,identity=CN=client", True), ("authz-simple,id=who,identity=CN=other", False),
            ("authz-list,id=who,policy=deny,rules.0.match=CN=x*,rules.0.policy=allow,rules.0.format=glob,"
             "rules.1.match=CN=cl*t,rules.1.policy=allow,rules.1.format=glob", True),
            ("authz-list,id=who,policy=allow,rules.0.match=CN=client,rules.0.policy=deny,rules.0.format=exact", False),
            ("authz-list,id=who,policy=deny,rules.0.match=CN=cl*,rules.0.policy=allow,rules.0.format=exact", False)):
        for program in (tool("nbd"), peer("nbd")):
            port = free_port()
            image = f"driver=raw,file.driver=nbd,file.host=localhost,file.port={port},file.tls-creds=tls0"
            with server(program, "-t", "--object", f"tls-creds-x509,id=tls0,dir={folder},endpoint=server,verify-peer=yes", "--object",
                        rules, "--tls-creds", "tls0", "--tls-authz", "who", "-p", port, "-b", "127.0.0.1", "-f", "raw", raw, port=port):
                for reader in (img, peer_img):
                    reader("compare", "-U", "--object", client_object, "--image-opts", image, f"driver=raw,file.filename={raw}",
                           code=0 if is_let_in else 2)
    for words, what in ((["--tls-authz", "who"], "--tls-creds"),
                        (["--tls-authz", "who", "--tls-creds", "tls0", "--object", f"tls-creds-x509,id=tls0,dir={folder},endpoint=server"],
                         "'who'")):
        check(what in run(tool("nbd"), *words, "-k", path("authz.sock"), "-f", "raw", raw, code=1), f"{words} was not refused")


@case("tls-shared-keys")
def tls_shared_keys():
    folder = certificates()
    raw = sample("psk.raw", 2 << 20)
    socket = path("psk.sock")
    keys = f"{folder}/keys.psk"
    client_object = f"tls-creds-psk,id=tls0,dir={folder},endpoint=client,username=alice"
    image = f"driver=raw,file.driver=nbd,file.path={socket},file.tls-creds=tls0"
    servers = [[program, "-t", "-e", "4", "--object", f"tls-creds-psk,id=tls0,dir={folder},endpoint=server", "--tls-creds", "tls0",
                "-k", socket, "-f", "raw", raw] for program in (tool("nbd"), peer("nbd"))]
    servers.append([need("nbdkit"), "-f", "-U", socket, "--tls=require", f"--tls-psk={keys}", "file", raw])
    for command in servers:
        with server(*command, socket=socket):
            for reader in (img, peer_img):
                reader("compare", "-U", "--object", client_object, "--image-opts", image, f"driver=raw,file.filename={raw}")
            facts = run(need("nbdinfo"), f"nbds+unix://alice@/?socket={socket}&tls-psk-file={keys}")
            check("with TLS" in facts, f"nbdinfo says {facts}")
            img("info", "--object", client_object.replace("alice", "bob"), "--image-opts", image, code=1)
            img("info", f"nbd+unix:///?socket={socket}", code=1)


@case("reconnects")
def reconnects():
    """A server that goes and comes back: requests wait for it, and none is lost."""
    raw = path("reconnect.raw")
    img("create", "-q", "-f", "raw", raw, "8M")
    socket = path("reconnect.sock")
    image = f"driver=raw,file.driver=nbd,file.path={socket},file.reconnect-delay=60"
    words = [word for number in range(40) for word in ("-c", f"write -q -P {number + 1} {number * 100}k 100k", "-c", "sleep 25")]
    command = [tool("nbd"), "-t", "-k", socket, "-f", "raw", raw]
    with server(*command, socket=socket) as first:
        client = subprocess.Popen([tool("io"), "--image-opts", *words, "-c", "flush", image], stdout=subprocess.PIPE,
                                  stderr=subprocess.STDOUT)
        time.sleep(0.3)
        first.kill()
        first.wait()
    with server(*command, socket=socket):
        output = client.communicate(timeout=60 * PATIENCE)[0]
        check(client.returncode == 0, f"the client ended with {client.returncode}: {output}")
    io(raw, *(f"read -q -P {number + 1} {number * 100}k 100k" for number in range(40)), options=("-f", "raw"))
    # Without the option it fails, and soon.
    img("info", f"nbd+unix:///?socket={socket}", code=1)
    started = time.monotonic()
    io(f"driver=raw,file.driver=nbd,file.path={socket},file.open-timeout=1", "quit", code=1, options=("--image-opts",))
    check(time.monotonic() - started >= 1, "opening did not wait")


@case("several-connections")
def several_connections():
    raw = sample("multi.raw", 4 << 20)
    socket = path("multi.sock")
    image = f"driver=raw,file.driver=nbd,file.path={socket},file.multi-conn=4"
    for command in ([tool("nbd"), "-t", "-e", "8", "-k", socket, "-f", "raw", raw],
                    [need("nbdkit"), "-f", "-U", socket, "file", raw]):
        with server(*command, socket=socket) as process:
            client = subprocess.Popen([tool("io"), "--image-opts", image, "-c", "write -q -P 9 1M 1M", "-c", "flush", "-c", "sleep 1500"])
            deadline = time.monotonic() + 20 * PATIENCE
            while True:
                with open("/proc/net/unix") as table:
                    count = sum(line.rstrip().endswith(" " + socket) and line.split()[3] != "00010000" for line in table)
                if count >= 4:
                    break
                check(time.monotonic() < deadline and client.poll() is None, f"{count} connections")
                time.sleep(0.02)
            check(client.wait(30 * PATIENCE) == 0, "the client failed")
            io(image, "read -q -P 9 1M 1M", options=("--image-opts",))


class ExtendedClient:
    """Speaks the protocol's extended headers, message by message (Debian's libnbd is too old for them)."""

    def __init__(self, path):
        self.stream = sockets.socket(sockets.AF_UNIX)
        self.stream.settimeout(20 * PATIENCE)
        self.stream.connect(path)
        check(self.take(">QQH") == (0x4e42444d41474943, 0x49484156454f5054, 3), "no greeting")
        self.stream.sendall(struct.pack(">I", 3))
        self.cookie = 0

    def take(self, layout):
        return struct.unpack(layout, self.bytes(struct.calcsize(layout)))

    def bytes(self, count):
        data = b""
        while len(data) < count:
            part = self.stream.recv(count - len(data))
            check(part, "the server closed the connection")
            data += part
        return data

    def option(self, number, data=b""):
        """The replies to an option, up to the last."""
        self.stream.sendall(struct.pack(">QII", 0x49484156454f5054, number, len(data)) + data)
        replies = []
        while True:
            magic, option, kind, length = self.take(">QIII")
            check((magic, option) == (0x3e889045565a9, number), "a reply to something else")
            replies.append((kind, self.bytes(length)))
            if kind == 1 or kind >> 31:
                return replies

    def request(self, kind, offset, length, flags=0, payload=b""):
        """The chunks of an answer: type and payload."""
        self.cookie += 1
        self.stream.sendall(struct.pack(">IHHQQQ", 0x21e41c71, flags, kind, self.cookie, offset, length) + payload)
        chunks = []
        while True:
            magic, reply_flags, chunk, cookie, start, size = self.take(">IHHQQQ")
            check((magic, cookie, start) == (0x6e8a278c, self.cookie, offset), f"a wrong reply head: {magic:x} {cookie} {start}")
            chunks.append((chunk, self.bytes(size)))
            if reply_flags & 1:
                return chunks


@case("extended-headers")
def extended_headers():
    image, socket = path("extended.qcow2"), path("extended.sock")
    img("create", "-q", "-f", "qcow2", image, "20G")
    with server(tool("nbd"), "-t", "-e", "4", "-k", socket, "-f", "qcow2", image, socket=socket):
        client = ExtendedClient(socket)
        check(client.option(11)[-1][0] == 1, "extended headers were refused")
        check(client.option(8)[-1][0] == 1 << 31 | 10, "structured replies after extended headers")
        query = b"base:allocation"
        replies = client.option(10, struct.pack(">III", 0, 1, len(query)) + query)
        context = struct.unpack(">I", replies[0][1][:4])[0]
        check(replies[0][0] == 4 and replies[-1][0] == 1, f"the contexts are {replies}")
        check(client.option(7, struct.pack(">IH", 0, 0))[-1][0] == 1, "GO was refused")
        payload = b"7" * 65536
        check(client.request(1, 5 << 30, len(payload), flags=1 << 5, payload=payload) == [(0, b"")], "a write failed")
        (kind, data), = client.request(0, (5 << 30) + 4096, 8192)
        check((kind, data) == (1, struct.pack(">Q", (5 << 30) + 4096) + b"7" * 8192), "a read failed")
        # More than 32 bits at once: one reply tells of all 20 GiB.
        (kind, data), = client.request(7, 0, 20 << 30)
        number, count = struct.unpack(">II", data[:8])
        extents = [struct.unpack(">QQ", data[at:at + 16]) for at in range(8, len(data), 16)]
        check((kind, number, count) == (6, context, len(extents)) and extents == [(5 << 30, 3), (65536, 0), ((15 << 30) - 65536, 3)],
              f"the status is {kind} {number} {count} {extents}")
        check(client.request(6, 0, 20 << 30) == [(0, b"")], "zeros over 20 GiB failed")
        (kind, data), = client.request(7, 5 << 30, 65536, flags=1 << 3)
        check(struct.unpack(">QQ", data[8:])[1] & 2, "the zeros are not there")
        # What the protocol forbids is answered with EINVAL, and the connection goes on.
        for answer in (client.request(1, 0, 512), client.request(3, 0, 4, flags=1 << 5, payload=b"1234"),
                       client.request(7, 0, 12, flags=1 << 5, payload=bytes(12))):
            check(answer[0][0] >> 15 and struct.unpack(">I", answer[0][1][:4])[0] == 22, f"the answer is {answer}")
        check(client.request(3, 0, 0) == [(0, b"")], "a flush failed")
        # Our own client, which asks for extended headers by itself.
        uri = f"nbd+unix:///?socket={socket}"
        io(uri, "write -q -P 3 6G 1M", "read -q -P 3 6G 1M", "write -q -z 7G 1G", "discard -q 8G 1G", "flush",
           options=("-f", "raw"))
        entries = json.loads(img("map", "--output=json", "-f", "raw", uri))
        check(sum(entry["length"] for entry in entries) == 20 << 30, f"the map is {entries}")
    both_check(image)


@case("nbdsh")
def shell():
    """libnbd's own calls from Python: contexts, flags, asynchronous requests out of order, errors."""
    image, socket = path("nbdsh.qcow2"), path("nbdsh.sock")
    need("nbdsh")
    # Debian's Python has the module, whatever `python3` is here.
    program = ["/usr/bin/python3", "-m", "nbd"]
    if subprocess.run([program[0], "-c", "import nbd"], stderr=subprocess.DEVNULL).returncode != 0:
        raise Skip("python3-libnbd is missing; run scripts/install-deps")
    img("create", "-q", "-f", "qcow2", image, "64M")
    script = """
h.add_meta_context("base:allocation")
h.add_meta_context("qemu:allocation-depth")
h.set_handshake_flags(nbd.HANDSHAKE_FLAG_FIXED_NEWSTYLE | nbd.HANDSHAKE_FLAG_NO_ZEROES)
h.connect_uri("nbd+unix:///?socket=%s")
assert h.get_size() == 64 << 20 and h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation") and h.can_meta_context("qemu:allocation-depth")
assert h.can_flush() and h.can_fua() and h.can_trim() and h.can_zero() and h.can_df() and h.can_multi_conn() and h.can_cache()
h.pwrite(b"a" * 65536, 1 << 20, nbd.CMD_FLAG_FUA)
assert h.pread(65536, 1 << 20) == b"a" * 65536
chunks = []
assert h.pread_structured(1 << 20, 0, lambda data, offset, kind, error: chunks.append((offset, len(data), kind))) == bytes(1 << 20)
assert sum(length for _, length, _ in chunks) == 1 << 20, chunks
found = {}
h.block_status(4 << 20, 0, lambda name, offset, extents, error: found.setdefault(name, extents))
assert found["base:allocation"] == [1 << 20, 3, 65536, 0, (3 << 20) - 65536, 3], found
assert found["qemu:allocation-depth"][1] == 0 and found["qemu:allocation-depth"][3] == 1, found
buffers = []
for number in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([number + 1]) * 4096), number * 20480)
while h.aio_in_flight():
    h.poll(-1)
for number in range(64):
    buffers.append(nbd.Buffer(4096))
    h.aio_pread(buffers[-1], number * 20480)
while h.aio_in_flight():
    h.poll(-1)
assert all(buffer.to_bytearray() == bytearray([number + 1]) * 4096 for number, buffer in enumerate(buffers))
h.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE)
h.trim(1 << 20, 2 << 20)
h.cache(65536, 0)
h.flush()
h.set_strict_mode(0)
for call in (lambda: h.pread(512, 64 << 20), lambda: h.pwrite(bytes(512), (64 << 20) - 256), lambda: h.zero(65536, 0, nbd.CMD_FLAG_FAST_ZERO)):
    try:
        call()
        assert False, "a wrong request was carried out"
    except nbd.Error:
        pass
assert h.pread(512, 0) == bytes(512)
h.shutdown()
""" % socket
    with server(tool("nbd"), "-t", "-e", "0", "-A", "-k", socket, "-f", "qcow2", image, socket=socket):
        run(*program, "-c", script)
    both_check(image)


@case("temporary-writes")
def temporary_writes():
    raw = sample("snapshot.raw", 2 << 20)
    before = open(raw, "rb").read()
    socket = path("snapshot.sock")
    uri = f"nbd+unix:///?socket={socket}"
    with server(tool("nbd"), "-t", "-s", "-k", socket, "-f", "raw", raw, socket=socket):
        peer_io(uri, "write -q -P 7 0 1M", "flush", "read -q -P 7 0 1M", options=("-f", "raw"))
        peer_io(uri, "read -q -P 7 0 1M", options=("-f", "raw"))
    check(open(raw, "rb").read() == before, "the image has changed")


@case("zero-detection")
def zero_detection():
    image, socket = path("zeroes.qcow2"), path("zeroes.sock")
    img("create", "-q", "-f", "qcow2", image, "8M")
    io(image, "write -q -P 1 0 4M")
    with server(tool("nbd"), "-t", "--detect-zeroes=unmap", "-k", socket, "-f", "qcow2", image, socket=socket):
        peer_io(f"nbd+unix:///?socket={socket}", "write -q -P 0 1M 2M", "write -q -P 3 5M 64k", "flush", options=("-f", "raw"))
    both_check(image)
    io(image, "read -q -P 1 0 1M", "read -q -P 0 1M 2M", "read -q -P 1 3M 1M", "read -q -P 3 5M 64k")
    data = sum(entry["length"] for entry in json.loads(img("map", "--output=json", image)) if entry["data"])
    check(data == (2 << 20) + 65536, f"{data} bytes are stored")
    run(tool("nbd"), "--detect-zeroes=maybe", "-k", socket, image, code=1)


if __name__ == "__main__":
    main()
