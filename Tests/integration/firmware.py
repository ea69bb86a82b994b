#!/usr/bin/env python3
"""Firmware: OpenSBI, U-Boot in machine and supervisor mode, and programs that need none."""
from harness import Failure, Machine, bare_metal, case, check, guest, main, run

HELLO = """
    .globl _start
_start:
    csrr  a0, mhartid
    bnez  a0, sleep
    li    s0, 0x10000000          # UART
    la    s1, text
1:  lbu   a0, 0(s1)
    beqz  a0, 3f
2:  lbu   a1, 5(s0)               # line status: transmitter empty?
    andi  a1, a1, 0x20
    beqz  a1, 2b
    sb    a0, 0(s0)
    addi  s1, s1, 1
    j     1b
3:  li    s0, 0x100000            # test finisher
    li    a0, CODE
    sw    a0, 0(s0)
sleep:
    wfi
    j     sleep
    .section .rodata
text: .asciz "bare metal says hello\\n"
"""


@case("bare-metal")
def bare_metal_hello():
    """A program without firmware prints on the UART and powers off; its failure code is the emulator's exit code."""
    for words, expected in [("0x5555", 0), ("(7 << 16) + 0x3333", 7), ("(255 << 16) + 0x3333", 255)]:
        program = bare_metal("hello", HELLO.replace("CODE", words))
        for options in [[], ["-smp", "4"], ["-accel", "interpreter"]]:
            code, output = run("-M", "virt", "-bios", "none", "-kernel", program, "-nographic", *options)
            check(output == "bare metal says hello\n", f"it printed {output!r} with {options}")
            check(code == expected, f"the finisher's {words} gave exit code {code}, not {expected}")


@case("bare-metal-as-bios")
def bare_metal_bios():
    code, output = run("-bios", bare_metal("bios", HELLO.replace("CODE", "0x5555")), "-nographic")
    check((code, output) == (0, "bare metal says hello\n"), f"code {code}, output {output!r}")


@case("bare-metal-reset")
def bare_metal_reset():
    """The finisher's reset starts the program again, from memory as it was loaded."""
    source = HELLO.replace("CODE", "0x7777")
    with Machine(["-bios", "none", "-kernel", bare_metal("reset", source), "-nographic"]) as machine:
        for _ in range(5):
            machine.expect("bare metal says hello", 10)
    code, output = run("-bios", "none", "-kernel", bare_metal("reset", source), "-nographic", "-no-reboot")
    check((code, output) == (0, "bare metal says hello\n"), f"-no-reboot: code {code}, output {output!r}")


USER_ACCESS = """
.globl _start
_start:
  la t0, trap
  csrw mtvec, t0
  # U-mode without any PMP entry: allowed only without PMP.
  li t0, 0x1800
  csrc mstatus, t0
  la t0, user
  csrw mepc, t0
  mret
.align 4
user:
  la a1, word
  lw a2, 0(a1)
  ecall
.align 4
trap:
  csrr a0, mcause
  li t1, 8
  li t2, 0x100000
  beq a0, t1, ok
  li t3, 0x13333
  sw t3, 0(t2)
1: j 1b
ok:
  li t3, 0x5555
  sw t3, 0(t2)
1: j 1b
.align 4
word: .word 1
"""


@case("pmp")
def memory_protection():
    """Without a PMP entry user mode reaches no memory; without PMP it reaches all, and the registers are not there."""
    program = bare_metal("user", USER_ACCESS)
    for options, expected in [([], 1), (["-cpu", "rv64,pmp=off"], 0), (["-cpu", "rv64,pmp=on"], 1)]:
        for engine in ["jit", "interpreter"]:
            code, _ = run("-bios", "none", "-kernel", program, "-nographic", "-accel", engine, *options)
            check(code == expected, f"it ended with {code}, not {expected}, with {options} on {engine}")
    probe = bare_metal("probe", USER_ACCESS.replace("la t0, user", "la t0, user; csrr t1, pmpaddr0"))
    code, _ = run("-bios", "none", "-kernel", probe, "-nographic", "-cpu", "rv64,pmp=off")
    check(code == 1, f"reading pmpaddr0 without PMP ended with {code}")


MANY_PAGES = """
    .globl _start
_start:
    li    s0, 0x81000000
    li    s1, 13000               # pages
    li    s2, 0x00008067          # ret
1:  sw    s2, 0(s0)
    fence.i
    jalr  s0
    jalr  s0
    li    a0, 4096
    add   s0, s0, a0
    addi  s1, s1, -1
    bnez  s1, 1b
    li    s0, 0x100000
    li    a0, 0x5555
    sw    a0, 0(s0)
2:  j     2b
"""


@case("many-code-pages")
def many_code_pages():
    """Code in more pages than the engine keeps apart."""
    program = bare_metal("pages", MANY_PAGES)
    for options in [[], ["-accel", "jit,jump-cache=off"]]:
        code, output = run("-bios", "none", "-kernel", program, "-nographic", *options)
        check((code, output) == (0, ""), f"it ended with {code}, printing {output!r}, with {options}")


@case("opensbi")
def opensbi():
    """OpenSBI, Debian's and the default one, shows its banner and the machine it found."""
    for options in [["-bios", guest() / "opensbi" / "fw_dynamic.bin"], ["-bios", guest() / "opensbi" / "fw_jump.bin"], []]:
        with Machine(["-M", "virt", "-smp", "3", "-nographic", *options]) as machine:
            try:
                machine.expect("OpenSBI v", 20)
            except Failure as failure:
                if not options and "there is no firmware" in str(failure):
                    continue  # a host without the package opensbi
                raise
            machine.expect(r"Platform Name\s+: riscv-virtio", 10)
            machine.expect(r"Platform HART Count\s+: 3", 10)
            machine.expect(r"Platform Console Device\s+: uart8250", 10)
            machine.send(b"\x01x")
            check(machine.wait(10) == 0, f"Ctrl-a x ended with {machine.code}")


def u_boot(*options):
    with Machine(["-M", "virt", "-m", "256", "-nographic", *options]) as machine:
        machine.expect(r"U-Boot 20\d\d\.", 30)
        machine.expect(r"DRAM:\s+256 MiB", 30)
        machine.expect("Hit any key to stop autoboot", 30)
        machine.send(" ")
        machine.expect("=> ", 30)
        machine.send("version\r")
        machine.expect("U-Boot 20", 10)
        machine.send("mw.l 0x82000000 0x12345678 4; md.l 0x82000000 4\r")
        machine.expect("82000000: 12345678 12345678 12345678 12345678", 10)
        machine.send("poweroff\r")
        check(machine.wait(20) == 0, f"poweroff ended with {machine.code}")


@case("u-boot-machine-mode")
def u_boot_machine():
    u_boot("-bios", guest() / "u-boot" / "qemu-riscv64" / "u-boot.bin")


@case("u-boot-supervisor-mode")
def u_boot_supervisor():
    u_boot("-bios", guest() / "opensbi" / "fw_dynamic.bin", "-kernel",
           guest() / "u-boot" / "qemu-riscv64_smode" / "u-boot.bin")


if __name__ == "__main__":
    main()
