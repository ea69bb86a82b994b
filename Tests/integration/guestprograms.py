"""The user-mode emulator and small riscv64 programs for it, for the tests of user mode."""
import os
import pathlib
import shutil
import subprocess

from harness import PATIENCE, ROOT, Skip, temporary

LIBRARIES = pathlib.Path("/usr/riscv64-linux-gnu")
NAMESPACE = ROOT / "Tests" / "integration" / "namespace.py"


def emulator():
    return os.environ.get("APUS_USER") or str(ROOT / "bin" / "apus-riscv64")


def run(*words, program=None, timeout=60, **options):
    command = [str(word) for word in ([emulator()] if program is None else program) + list(words)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True, errors="replace", timeout=timeout * PATIENCE, **options)


def build(name, source, *flags, target="riscv64"):
    """Compiles a program for the target; `source` is C, or a file under Tests/Guests/TARGET."""
    compiler = shutil.which(f"{target}-linux-gnu-gcc")
    if not compiler or not pathlib.Path(f"/usr/{target}-linux-gnu/include/stdio.h").exists():
        raise Skip("the cross compiler or its C library is missing; run scripts/install-deps")
    output = temporary() / name
    if output.exists():
        return output
    path = ROOT / "Tests" / "Guests" / target / source
    if "\n" in source:
        path = temporary() / (name + ".c")
        path.write_text(source)
    subprocess.run([compiler, "-O1", "-w", *flags, "-o", output, path, "-lpthread", "-lm"], check=True)
    return output


HELLO = r"""
#include <stdio.h>
#include <stdlib.h>
#include <sys/auxv.h>
int main(int argc, char **argv) {
  printf("%s", argv[0]);
  for (int i = 1; i < argc; i++) printf(" [%s]", argv[i]);
  const char *value = getenv("SHOWN");
  printf(" %s %d\n", value ? value : "-", getauxval(AT_PAGESZ) == 4096);
  return argc > 1 ? atoi(argv[1]) : 0;
}
"""
