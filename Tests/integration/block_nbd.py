#!/usr/bin/env python3
"""apus-nbd and the nbd driver with Debian's tools as the other side: nbdinfo, nbdcopy, qemu-img, qemu-nbd, nbdkit."""
import json
import os
import shutil
import subprocess
import time

from block import both_check, img, io, path, peer, peer_img, peer_io, run, same, sample, server, tool
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
        facts = json.loads(run(need("nbdinfo"), "--json", uri))["exports"][0]
        check(facts["export-size"] == 6 << 20 and "base:allocation" in facts["contexts"]
              and "qemu:allocation-depth" in facts["contexts"], f"nbdinfo says {facts}")
        listing = json.loads(run(need("nbdinfo"), "--map", "--json", uri))
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
        facts = json.loads(run(need("nbdinfo"), "--json", uri))["exports"][0]
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


def seen(socket):
    uri = f"nbd+unix:///?socket={socket}"
    entries = json.loads(run(need("nbdinfo"), "--map=qemu:dirty-bitmap:b", "--json", uri))
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


if __name__ == "__main__":
    main()
