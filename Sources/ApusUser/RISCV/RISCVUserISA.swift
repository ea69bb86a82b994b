import ApusCPU
import ApusGuest
import ApusGuestRISCV
import ApusISARISCV
import ApusUserABI

/// 64-bit RISC-V [RISC-V ELF psABI; Linux UAPI].
public struct RISCVUserISA: UserISA {
  public var extensions = RISCVExtensionSet.default
  public init() {}

  public var name: String { "riscv64" }
  public var title: String { "RISC-V" }
  public var machine: UInt16 { 243 }
  /// Compressed instructions, double-precision arguments.
  public var elfFlags: UInt32 { 5 }
  public var auditArchitecture: UInt32 { 0xc000_00f3 }
  public var registers: UserRegisters {
    let x = RISCVState.x
    return UserRegisters(
      number: x(17), arguments: (x(10), x(11), x(12), x(13), x(14), x(15)), result: x(10), stackPointer: x(2),
      threadPointer: x(4), callByteCount: 4)
  }
  public var syscalls: SyscallTable { SyscallTable.generic(riscvSyscalls) }
  public var statusLayout: GuestStat.Layout { .generic }
  public var openFlags: GuestOpenFlags { .generic }
  public var hasSignalRestorer: Bool { false }

  public var vdso: GuestVDSO {
    /// `li a7, number` is `addi a7, zero, number`.
    func call(_ name: String, _ number: UInt32, returns: Bool = true) -> GuestVDSO.Function {
      GuestVDSO.Function(name, words: [number << 20 | 17 << 7 | 0x13, 0x73] + (returns ? [0x8067] : []))
    }
    return GuestVDSO(
      machine: machine, flags: elfFlags, version: "LINUX_4.15",
      functions: [
        call("__vdso_rt_sigreturn", 139, returns: false), call("__vdso_gettimeofday", 169),
        call("__vdso_clock_gettime", 113), call("__vdso_clock_getres", 114), call("__vdso_getcpu", 168),
        call("__vdso_flush_icache", 259),
      ])
  }

  /// AT_HWCAP has one bit for each single-letter extension.
  public var auxiliaryEntries: [(UInt64, UInt64)] {
    var bits: UInt64 = 0
    for (letter, one) in [("i", RISCVExtension.i), ("m", .m), ("a", .a), ("f", .f), ("d", .d), ("c", .c)]
      as [(Unicode.Scalar, RISCVExtension)] where extensions.contains(one)
    {
      bits |= 1 << UInt64(letter.value - 97)
    }
    return [
      (AuxiliaryKey.hardwareCapabilities, bits),
      (AuxiliaryKey.minimumSignalStack, RISCVSignalFrame.byteCount),
    ]
  }
  public var platform: String? { nil }

  public func processorText(count: Int) -> String {
    var text = ""
    for number in 0..<count {
      text +=
        "processor\t: \(number)\nhart\t\t: \(number)\nisa\t\t: \(extensions.officialText)\nmmu\t\t: sv48\n"
      text += "mvendorid\t: 0x0\nmarchid\t\t: 0x0\nmimpid\t\t: 0x0\n\n"
    }
    return text
  }

  public mutating func select(_ text: String) throws(ProgramError) {
    let words = text.split(separator: ",")
    for (index, word) in words.enumerated() {
      if index == 0, !word.contains("=") {
        guard ["rv64", "max", "any"].contains(word) else {
          throw ProgramError("-cpu: there is no model '\(word)'; there are rv64 and max", code: 1)
        }
        continue
      }
      let parts = word.split(separator: "=", maxSplits: 1)
      let name = parts[0].lowercased()
      guard let one = RISCVExtension.allCases.first(where: { "\($0)" == name }), parts.count == 2,
        let on = ["on": true, "true": true, "off": false, "false": false][parts[1]]
      else { throw ProgramError("-cpu: '\(word)' is no property; they look like zba=off", code: 1) }
      extensions.set(one, on)
    }
  }

  public func makeCPU(state: UnsafeMutableRawPointer, engine: any GuestEngine, clock: GuestClock)
    -> any UserCPU
  {
    RISCVCPU(
      state: state, hartID: 0, extensions: extensions, clock: clock, eventLoop: nil, engine: engine)
  }

  public func call(_ number: Int, _ a: CallArguments, _ thread: UserThread) -> Int? {
    switch number {
    case 258: return probeHardware(a, thread.process.memory)
    case 259:
      if a.a < a.b { thread.process.memory.dropCode(a.a, a.b) }
      thread.process.memory.dropChangedCode()
      return 0
    default: return nil
    }
  }

  /// riscv_hwprobe: pairs of key and value.
  private func probeHardware(_ a: CallArguments, _ memory: UserMemory) -> Int {
    for index in 0..<a.b {
      let pair = a.a &+ 16 &* index
      guard let key = memory.read(pair, as: Int64.self, default: 0) else { return -14 }
      var value: UInt64 = 0
      var result = key
      switch key {
      case 0, 1, 2: value = 0  // vendor, architecture, implementation
      case 3: value = 1  // base behaviour: IMA
      case 4:
        value =
          (extensions.contains(.f) && extensions.contains(.d) ? 1 : 0) | (extensions.contains(.c) ? 2 : 0)
        if extensions.contains(.zba) { value |= 1 << 3 }
        if extensions.contains(.zbb) { value |= 1 << 4 }
        if extensions.contains(.zbs) { value |= 1 << 5 }
      case 5: value = 3  // misaligned accesses are fast
      default: result = -1
      }
      guard memory.write(pair, (result, value)) else { return -14 }
    }
    return 0
  }

  // MARK: GDB

  /// x0 to x31, pc, f0 to f31, fflags, frm, fcsr.
  public var debuggerRegisterCount: Int { 68 }

  public var debuggerDescription: String {
    var text = "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>"
    text +=
      "<architecture>riscv:rv64</architecture><osabi>GNU/Linux</osabi><feature name=\"org.gnu.gdb.riscv.cpu\">"
    let names =
      ["zero", "ra", "sp", "gp", "tp", "t0", "t1", "t2", "fp", "s1"]
      + (0..<8).map { "a\($0)" } + (2..<12).map { "s\($0)" } + (3..<7).map { "t\($0)" }
    for (number, name) in names.enumerated() {
      text += "<reg name=\"\(name)\" bitsize=\"64\" regnum=\"\(number)\"/>"
    }
    text +=
      "<reg name=\"pc\" bitsize=\"64\" type=\"code_ptr\"/></feature><feature name=\"org.gnu.gdb.riscv.fpu\">"
    let floats =
      (0..<8).map { "ft\($0)" } + ["fs0", "fs1"] + (0..<8).map { "fa\($0)" }
      + (2..<12).map { "fs\($0)" } + (8..<12).map { "ft\($0)" }
    for name in floats { text += "<reg name=\"\(name)\" bitsize=\"64\" type=\"ieee_double\"/>" }
    for name in ["fflags", "frm", "fcsr"] { text += "<reg name=\"\(name)\" bitsize=\"32\" type=\"int\"/>" }
    return text + "</feature></target>"
  }
}
