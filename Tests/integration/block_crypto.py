#!/usr/bin/env python3
"""LUKS: in qcow2 and as a disk of its own, both ways with Debian's qemu-img and qemu-io; secrets; what is refused."""
import base64
import json
import random

from block import img, io, output_json, path, peer, peer_img, peer_io, run, sample, tool
from harness import case, check, main

SECRET = ("--object", "secret,id=s0,data=correct horse")
QUICK = "iter-time=10"
CIPHERS = ["", "cipher-alg=aes-128", "cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256", "cipher-mode=cbc,ivgen-alg=plain",
           "cipher-alg=aes-128,cipher-mode=cbc,ivgen-alg=plain64", "hash-alg=sha1"]


def qcow2_options(cipher):
    parts = [QUICK, "key-secret=s0"] + [part for part in cipher.split(",") if part]
    return "encrypt.format=luks," + ",".join("encrypt." + part for part in parts)


def steady(program, *arguments):
    """QEMU's measures of how fast a hash is fail now and then where its time slices are coarse."""
    for _ in range(20 if program is peer_img else 1):
        done = program(*arguments, code=None)
        if "accurate CPU usage" not in done:
            break
    else:
        check(False, f"no luck: {done}")
    program("info", *SECRET, arguments[-1])


def opened(image, format):
    key = "key-secret" if format == "luks" else "encrypt.key-secret"
    return f"driver={format},file.filename={image},{key}=s0"


@case("both-ways")
def both_ways():
    raw = sample("crypto.raw", 5 << 20)
    for number, cipher in enumerate(CIPHERS):
        # Both kinds of disk have the same header: a few are enough for the plain one.
        for format in ("qcow2", "luks")[:2 if number % 2 == 0 else 1]:
            # qemu-img spends seconds on each header, measuring hashes.
            for program in (img, peer_img) if number in (0, 2) and (number, format) != (2, "luks") else (img,):
                image = path("crypto." + format)
                options = qcow2_options(cipher) if format == "qcow2" else ",".join(filter(None, [QUICK, "key-secret=s0", cipher]))
                steady(program, "convert", *SECRET, "-f", "raw", "-O", format, "-o", options, raw, image)
                for reader in (img, peer_img):
                    reader("compare", *SECRET, "--image-opts", opened(image, format), f"driver=raw,file.filename={raw}")
                ours, theirs = (output_json(name, "info", "--output=json", image) for name in (tool("img"), peer("img")))
                theirs.pop("children", None)
                check(ours == theirs, f"info differs ({cipher}): {ours} and {theirs}")
                if format == "qcow2":
                    img("check", image)
                    peer_img("check", *SECRET, "--image-opts", opened(image, format))
                # Nothing of the data stands in the file.
                piece = next(block for block in (open(raw, "rb").read()[at:at + 64] for at in range(0, 5 << 20, 4096)) if any(block))
                check(piece not in open(image, "rb").read(), "the data stands in the file")


@case("random-writes")
def random_writes():
    """Writes, zeros and discards of any alignment by both programs in turn, over a backing file and a snapshot."""
    size = 6 << 20
    base = sample("crypto-base.raw", size)
    for number, options in enumerate(("", "extended_l2=on", "cluster_size=4k,refcount_bits=8", "compat=1.1,lazy_refcounts=on")):
        generator = random.Random(number)
        image = path("crypto-random.qcow2")
        img("create", "-q", *SECRET, "-f", "qcow2", "-b", base, "-F", "raw", "-o", ",".join(filter(None, [qcow2_options(""), options])),
            image)
        model = bytearray(open(base, "rb").read())
        kept = None
        for turn in range(6):
            commands = []
            for _ in range(10):
                offset = generator.randrange(size)
                length = min(generator.choice([1, 100, 512, 5000, 70_000, 300_000]), size - offset)
                if generator.randrange(4):
                    pattern = generator.randrange(1, 256)
                    commands.append(f"write -q -P {pattern} {offset} {length}")
                    model[offset:offset + length] = bytes([pattern]) * length
                else:
                    commands.append(f"write -q -z {offset} {length}")
                    model[offset:offset + length] = bytes(length)
            (io if turn % 2 == 0 else peer_io)(opened(image, "qcow2"), *commands, options=(*SECRET, "--image-opts"))
            if turn == 2:
                img("snapshot", *SECRET, "--image-opts", "-c", "kept", opened(image, "qcow2"))
                kept = bytes(model)
            img("check", image)
            peer_img("check", *SECRET, "--image-opts", opened(image, "qcow2"))
        for state in (bytes(model), kept):
            expected = path("crypto-expected.raw")
            open(expected, "wb").write(state)
            for reader in (img, peer_img):
                reader("compare", *SECRET, "--image-opts", opened(image, "qcow2"), f"driver=raw,file.filename={expected}")
            img("snapshot", *SECRET, "--image-opts", "-a", "kept", opened(image, "qcow2"))


@case("chains-and-commit")
def chains():
    base, overlay = path("luks-base.qcow2"), path("luks-overlay.qcow2")
    other = ("--object", "secret,id=s1,data=battery staple")
    second = qcow2_options("").replace("=s0", "=s1")
    img("create", "-q", *SECRET, "-f", "qcow2", "-o", qcow2_options(""), base, "4M")
    io(opened(base, "qcow2"), "write -q -P 1 0 4M", options=(*SECRET, "--image-opts"))
    img("create", "-q", *SECRET, *other, "-f", "qcow2", "-b", base, "-F", "qcow2", "-o", second, overlay)
    whole = f"driver=qcow2,file.filename={overlay},encrypt.key-secret=s1,backing.driver=qcow2,backing.file.filename={base}," \
            "backing.encrypt.key-secret=s0"
    io(whole, "write -q -P 2 1M 1000", "read -q -P 1 0 1M", options=(*SECRET, *other, "--image-opts"))
    peer_io(whole, "read -q -P 2 1M 1000", "read -q -P 1 2M 1M", options=(*SECRET, *other, "--image-opts"))
    img("commit", "-q", *SECRET, *other, "--image-opts", whole)
    peer_io(opened(base, "qcow2"), "read -q -P 2 1M 1000", "read -q -P 1 2M 2M", options=(*SECRET, "--image-opts"))


@case("secrets-and-refusals")
def refusals():
    image, key = path("luks.qcow2"), path("key")
    img("create", "-q", *SECRET, "-f", "qcow2", "-o", qcow2_options(""), image, "1M")
    open(key, "w").write("correct horse")
    encoded = base64.b64encode(b"correct horse").decode()
    for secret in (f"secret,id=s0,file={key}", f"secret,id=s0,data={encoded},format=base64"):
        io(opened(image, "qcow2"), "read -q -P 0 0 1M", options=("--object", secret, "--image-opts"))
    def fails(word, *arguments):
        output = img(*arguments, code=1)
        check(word in output, f"{arguments}: '{word}' is not in: {output}")
    out = path("luks-out.raw")
    fails("passphrase", "convert", "-O", "raw", image, out)
    fails("opens none", "convert", "--object", "secret,id=s0,data=wrong", "--image-opts", "-O", "raw", opened(image, "qcow2"), out)
    fails("no secret 's0'", "convert", "--image-opts", "-O", "raw", opened(image, "qcow2"), out)
    fails("keyid", "info", "--object", "secret,id=s0,data=x,keyid=k,iv=i", image)
    fails("base64", "info", "--object", "secret,id=s0,data=?,format=base64", image)
    fails("object type", "info", "--object", "magic,id=s0", image)
    fails("serpent", "create", *SECRET, "-f", "luks", "-o", "key-secret=s0,cipher-alg=serpent-256", out, "1M")
    fails("luks", "create", *SECRET, "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s0", out, "1M")
    fails("compat=1.1", "create", *SECRET, "-f", "qcow2", "-o", qcow2_options("") + ",compat=0.10", out, "1M")
    fails("compress", "convert", *SECRET, "-c", "-O", "qcow2", "-o", qcow2_options(""), sample("small.raw", 1 << 20), out)
    # The old kind of encryption is refused by name.
    legacy = path("legacy.qcow2")
    peer_img("create", "-q", *SECRET, "-f", "qcow2", "-o", "encrypt.format=aes,encrypt.key-secret=s0", legacy, "1M")
    fails("legacy AES", "info", legacy)
    # Damaged headers.
    pristine = open(image, "rb").read()
    place = json.loads(json.dumps(pristine.find(b"LUKS\xba\xbe")))
    generator = random.Random(5)
    for _ in range(40):
        data = bytearray(pristine)
        for _ in range(generator.randrange(1, 4)):
            data[place + generator.randrange(592)] = generator.randrange(256)
        # Counts of iterations stay small: they are the author's to choose, and only cost time.
        for offset in [164] + [212 + 48 * slot for slot in range(8)]:
            data[place + offset:place + offset + 2] = bytes(2)
        open(path("damaged.qcow2"), "wb").write(data)
        output = run(tool("io"), *SECRET, "--image-opts", "-c", "read 0 64k", opened(path("damaged.qcow2"), "qcow2"), code=None, timeout=60)
        check("Fatal error" not in output and "crashed" not in output, f"crashed: {output[-300:]}")


@case("key-slots")
def key_slots():
    """Passphrases added and taken away by amend; what opens the image afterwards, for both sides."""
    secrets = [word for number in range(4) for word in ("--object", f"secret,id=s{number},data=passphrase {number}")]
    for format in ("luks", "qcow2"):
        prefix = "encrypt." if format == "qcow2" else ""
        image = path("slots." + format)

        def opened_by(number):
            return f"driver={format},file.filename={image},{prefix}key-secret=s{number}"

        def amend(number, text, program=img, code=0):
            text = ",".join(prefix + part for part in text.split(","))
            return program("amend", *secrets, *(("--force",) if text.endswith("!") else ()), "-o", text.rstrip("!"), "--image-opts",
                           opened_by(number), code=code)

        def check_keys(*numbers):
            for number in range(4):
                for reader in (io, peer_io):
                    reader(opened_by(number), "read -q -P 9 0 64k", code=0 if number in numbers else 1, options=(*secrets, "--image-opts"))

        img("create", "-q", *secrets, "-f", format, "-o", ("encrypt.format=luks," if prefix else "") + f"{prefix}key-secret=s0,{prefix}{QUICK}",
            image, "4M")
        io(opened_by(0), "write -q -P 9 0 64k", options=(*secrets, "--image-opts"))
        amend(0, f"state=active,new-secret=s1,{QUICK}")
        amend(1, f"state=active,new-secret=s2,keyslot=5,{QUICK}")
        check_keys(0, 1, 2)
        check("in use" in amend(1, f"state=active,new-secret=s3,keyslot=5,{QUICK}", code=1), "a slot in use was overwritten")
        amend(1, f"state=active,new-secret=s3,keyslot=5,{QUICK}!")
        check_keys(0, 1, 3)
        amend(1, "state=inactive,old-secret=s0")
        amend(1, "state=inactive,keyslot=5", program=peer_img)
        check_keys(1)
        check("all data is lost" in amend(1, "state=inactive,keyslot=1", code=1), "the last slot was erased")
        check("all data is lost" in amend(1, "state=inactive,old-secret=s1", code=1), "the last slot was erased")
        check("none of the key slots" in amend(1, "state=inactive,old-secret=s2", code=1), "an unknown passphrase was erased")
        check("not in use" in amend(1, "state=inactive,keyslot=7", code=1), "an empty slot was erased")
        check("state=" in amend(1, "keyslot=7", code=1), "a change without a state")
        for _ in range(7):
            amend(1, f"state=active,new-secret=s2,{QUICK}")
        check("all key slots" in amend(1, f"state=active,new-secret=s3,{QUICK}", code=1), "a ninth slot")
        amend(1, "state=inactive,old-secret=s1")
        check_keys(2)
        amend(2, "state=inactive,old-secret=s2!")
        check_keys()


if __name__ == "__main__":
    main()
