"""What the tests of AArch64 machines share: the emulator, the guest, a machine."""
import functools
import os
import pathlib
import subprocess

from harness import Machine as AnyMachine, ROOT


def emulator():
    return os.environ.get("APUS_SYSTEM_AARCH64") or str(ROOT / "bin" / "apus-system-aarch64")


@functools.cache
def guest():
    """The directory with kernel, RAM disk and firmware (see scripts/fetch-guest)."""
    done = subprocess.run([ROOT / "scripts" / "fetch-guest", "aarch64"], check=True, stdout=subprocess.PIPE, text=True)
    return pathlib.Path(done.stdout.strip().splitlines()[-1])


def Machine(arguments, **options):
    return AnyMachine(arguments, program=[emulator()], **options)
