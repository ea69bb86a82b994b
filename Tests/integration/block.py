"""What the tests of the storage tools share: running them and their peers, patterns, checks from both sides."""
import contextlib
import json
import os
import random
import shutil
import subprocess
import time

from harness import Failure, PATIENCE, ROOT, Skip, check, temporary

PEER = {name: shutil.which(f"qemu-{name}") for name in ("img", "io", "nbd")}


def tool(name):
    """The path of apus-NAME."""
    path = os.environ.get(f"APUS_{name.upper()}") or ROOT / "bin" / f"apus-{name}"
    if not os.path.exists(path):
        subprocess.run(["make", "-s", "build"], cwd=ROOT, check=True)
    return str(path)


def peer(name):
    """The path of Debian's qemu-NAME."""
    if not PEER[name]:
        raise Skip(f"qemu-{name} is missing; run scripts/install-deps")
    return PEER[name]


def run(*command, code=0, timeout=120, signals=()):
    """Runs a command and returns its output; its exit code must be `code` (None: any, but no signal except `signals`)."""
    command = [str(word) for word in command]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          timeout=timeout, errors="replace")
    # A signal is never right: release programs die of one where a precondition fails.
    if (done.returncode < 0 and -done.returncode not in signals) or (code is not None and done.returncode != code):
        raise Failure(f"'{' '.join(command)}' ended with {done.returncode} instead of {code}: {done.stdout[-800:]}")
    return done.stdout


def output_json(*command):
    """The JSON that a command prints, whatever its exit code and its messages on standard error."""
    done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, timeout=120, errors="replace")
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise Failure(f"'{' '.join(map(str, command))}' ended with {done.returncode} and printed {done.stdout[-400:]} "
                      f"{done.stderr[-400:]}")


def img(*arguments, code=0):
    return run(tool("img"), *arguments, code=code)


def io(image, *commands, code=0, options=()):
    return run(tool("io"), *options, *(word for command in commands for word in ("-c", command)), image, code=code)


def peer_img(*arguments, code=0):
    return run(peer("img"), *arguments, code=code)


def peer_io(image, *commands, code=0, options=()):
    return run(peer("io"), *options, *(word for command in commands for word in ("-c", command)), image, code=code)


def path(name):
    return str(temporary() / name)


def sample(name, size=8 << 20, seed=1):
    """A raw file with text-like data, random data, zeros and holes."""
    target = path(name)
    generator = random.Random(seed)
    words = [bytes(generator.randrange(97, 123) for _ in range(generator.randrange(3, 12))) for _ in range(500)]
    with open(target, "wb") as file:
        file.truncate(size)
        for _ in range(max(8, size >> 18)):
            offset = generator.randrange(size) & ~511
            length = min(generator.randrange(1, 200_000), size - offset)
            kind = generator.randrange(3)
            if kind == 0:
                data = generator.randbytes(length)
            elif kind == 1:
                data = b" ".join(generator.choice(words) for _ in range(length // 6 + 1))[:length]
            else:
                data = bytes(length)
            file.seek(offset)
            file.write(data)
    return target


def both_check(image, format="qcow2"):
    """Both sides find no fault with the image."""
    run(tool("img"), "check", "-f", format, image)
    run(peer("img"), "check", "-f", format, image)


def same(first, second, *options):
    """Both sides read the same from two images."""
    run(tool("img"), "compare", *options, first, second)
    run(peer("img"), "compare", *options, first, second)


def information(program, image):
    value = output_json(program, "info", "--output=json", image)
    # What differs by version or by moment.
    value.pop("children", None)
    return value


def same_information(image):
    ours, theirs = information(tool("img"), image), information(peer("img"), image)
    check(ours == theirs, f"info differs for {image}: {ours} and {theirs}")


def merged_map(program, image):
    """The map with neighbours that are alike made one: how finely it is cut is nobody's business."""
    entries = []
    for entry in output_json(program, "map", "--output=json", image):
        entry.pop("compressed", None)
        # Whether stored bytes are zeros depends on how closely the file below is looked at; absent ranges have no place.
        entry["zero"] = entry["zero"] and not entry["data"]
        if not entry["present"]:
            entry.pop("offset", None)
        last = entries[-1] if entries else None
        follows = last and last.get("offset") == entry.get("offset", last["length"]) - last["length"] if "offset" in entry \
            else last and "offset" not in last
        if follows and all(last[key] == entry[key] for key in ("depth", "present", "zero", "data")):
            last["length"] += entry["length"]
        else:
            entries.append(entry)
    return entries


def same_map(image):
    ours, theirs = merged_map(tool("img"), image), merged_map(peer("img"), image)
    check(ours == theirs, f"map differs for {image}: {[entry for entry in ours if entry not in theirs][:4]} and "
                         f"{[entry for entry in theirs if entry not in ours][:4]}")


@contextlib.contextmanager
def server(*command, socket=None, port=None):
    """A server that answers; ended with the block."""
    if socket and os.path.exists(socket):
        os.remove(socket)
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 20 * PATIENCE
        while not listens(socket or port):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                raise Failure(f"the server did not start: {process.communicate()[0]}")
            time.sleep(0.01)
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20 * PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
        process.communicate()


def listens(where):
    """Whether someone listens on a TCP port or on a Unix socket's path."""
    if isinstance(where, str):
        with open("/proc/net/unix") as table:
            # Flags 00010000: the socket accepts connections.
            return any(line.split()[3] == "00010000" and line.rstrip().endswith(" " + where) for line in table)
    lines = []
    for name in ("tcp", "tcp6"):
        with open(f"/proc/net/{name}") as table:
            lines += table.readlines()
    return any(f":{where:04X} " in line and " 0A " in line for line in lines)
