import ApusCPU
import ApusGuest
import ApusGuestAArch64
import ApusISAAArch64
import ApusUserABI

/// AArch64 [AAPCS64; Linux UAPI].
public struct AArch64UserISA: UserISA {
  private var model = AArch64Model.all[0]
  public init() {}

  public var name: String { "aarch64" }
  public var title: String { "AArch64" }
  public var machine: UInt16 { 183 }
  public var elfFlags: UInt32 { 0 }
  public var auditArchitecture: UInt32 { 0xc000_00b7 }
  public var registers: UserRegisters {
    let x = AArch64State.x
    return UserRegisters(
      number: x(8), arguments: (x(0), x(1), x(2), x(3), x(4), x(5)), result: x(0), stackPointer: x(31),
      threadPointer: AArch64State.Field.tpidr.offset, callByteCount: 4)
  }
  public var syscalls: SyscallTable { SyscallTable.generic([]) }
  public var openFlags: GuestOpenFlags { .arm }
  public var hasSignalRestorer: Bool { true }
  public var guardProtection: Int32 { model.features.contains(.bti) ? 0x10 : 0 }
  public var statusLayout: GuestStat.Layout { .generic }

  public var vdso: GuestVDSO {
    /// mov x8, number; svc 0; ret
    func call(_ name: String, _ number: UInt32, returns: Bool = true) -> GuestVDSO.Function {
      GuestVDSO.Function(
        name, words: [0xd280_0008 | number << 5, 0xd400_0001] + (returns ? [0xd65f_03c0] : []))
    }
    return GuestVDSO(
      machine: machine, flags: elfFlags, version: "LINUX_2.6.39",
      functions: [
        call("__kernel_rt_sigreturn", 139, returns: false), call("__kernel_gettimeofday", 169),
        call("__kernel_clock_gettime", 113), call("__kernel_clock_getres", 114),
      ])
  }

  /// The bits of HWCAP, from 64 on those of HWCAP2, and their names in /proc/cpuinfo.
  private var capabilities: [(bit: UInt64, name: String)] {
    let all: [(AArch64Feature, UInt64, String)] = [
      (.base, 0, "fp"), (.base, 1, "asimd"), (.aes, 3, "aes"), (.pmull, 4, "pmull"), (.sha1, 5, "sha1"),
      (.sha256, 6, "sha2"), (.crc32, 7, "crc32"), (.lse, 8, "atomics"), (.fp16, 9, "fphp"),
      (.fp16, 10, "asimdhp"), (.base, 11, "cpuid"), (.rdm, 12, "asimdrdm"), (.jscvt, 13, "jscvt"),
      (.fcma, 14, "fcma"), (.lrcpc, 15, "lrcpc"), (.dpb, 16, "dcpop"), (.sha3, 17, "sha3"), (.sm3, 18, "sm3"),
      (.sm4, 19, "sm4"), (.dotprod, 20, "asimddp"), (.sha512, 21, "sha512"), (.fhm, 23, "asimdfhm"),
      (.dit, 24, "dit"), (.lrcpc2, 26, "ilrcpc"), (.flagm, 27, "flagm"), (.ssbs2, 28, "ssbs"),
      (.sb, 29, "sb"),
      (.pauth, 30, "paca"), (.pauth, 31, "pacg"), (.dpb2, 64, "dcpodp"), (.flagm2, 71, "flagm2"),
      (.frintts, 72, "frint"), (.i8mm, 77, "i8mm"), (.bf16, 78, "bf16"), (.rng, 80, "rng"), (.bti, 81, "bti"),
      (.afp, 84, "afp"), (.rpres, 85, "rpres"),
    ]
    return all.filter { model.features.contains($0.0) }.map { ($0.1, $0.2) }
  }
  private func capabilityWord(_ number: UInt64) -> UInt64 {
    capabilities.filter { $0.bit >> 6 == number }.reduce(0) { $0 | 1 << ($1.bit & 63) }
  }
  public var auxiliaryEntries: [(UInt64, UInt64)] {
    [
      (AuxiliaryKey.hardwareCapabilities, capabilityWord(0)),
      (AuxiliaryKey.hardwareCapabilities2, capabilityWord(1)),
      (AuxiliaryKey.minimumSignalStack, AArch64SignalFrame.byteCount),
    ]
  }
  public var platform: String? { "aarch64" }

  public func processorText(count: Int) -> String {
    let names = capabilities.map(\.name).joined(separator: " ")
    func hex(_ value: UInt64, _ digits: Int) -> String {
      let text = String(value & (1 << UInt64(4 * digits) - 1), radix: 16)
      return String(repeating: "0", count: digits - text.count) + text
    }
    return (0..<count).map {
      """
      processor\t: \($0)
      BogoMIPS\t: 125.00
      Features\t: \(names)
      CPU implementer\t: 0x\(hex(model.mainID >> 24, 2))
      CPU architecture: 8
      CPU variant\t: 0x\(hex(model.mainID >> 20, 1))
      CPU part\t: 0x\(hex(model.mainID >> 4, 3))
      CPU revision\t: \(model.mainID & 15)


      """
    }.joined()
  }

  public mutating func select(_ text: String) throws(ProgramError) {
    guard let model = AArch64Model.named(text == "any" ? "max" : text) else {
      let names = AArch64Model.all.map(\.name).joined(separator: ", ")
      throw ProgramError(
        "-cpu: there is no model '\(text)'; there are \(names), and max takes pauth=on|off and pauth-impdef=on|off",
        code: 1)
    }
    self.model = model
  }

  public func makeCPU(state: UnsafeMutableRawPointer, engine: any GuestEngine, clock: GuestClock)
    -> any UserCPU
  { AArch64CPU(state: state, model: model, clock: clock, engine: engine) }

  public func call(_ number: Int, _ a: CallArguments, _ thread: UserThread) -> Int? { nil }

  // MARK: GDB

  /// x0 to x30, sp, pc, cpsr, v0 to v31, fpsr, fpcr.
  public var debuggerRegisterCount: Int { 68 }

  public var debuggerDescription: String {
    var text = "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>"
    text += "<architecture>aarch64</architecture><osabi>GNU/Linux</osabi>"
    text += "<feature name=\"org.gnu.gdb.aarch64.core\">"
    for number in 0..<31 { text += "<reg name=\"x\(number)\" bitsize=\"64\" regnum=\"\(number)\"/>" }
    text +=
      "<reg name=\"sp\" bitsize=\"64\" type=\"data_ptr\"/><reg name=\"pc\" bitsize=\"64\" type=\"code_ptr\"/>"
    text += "<reg name=\"cpsr\" bitsize=\"32\"/></feature><feature name=\"org.gnu.gdb.aarch64.fpu\">"
    text +=
      "<vector id=\"v2d\" type=\"ieee_double\" count=\"2\"/><vector id=\"v2u\" type=\"uint64\" count=\"2\"/>"
    text +=
      "<vector id=\"v4f\" type=\"ieee_single\" count=\"4\"/><vector id=\"v16u\" type=\"uint8\" count=\"16\"/>"
    text += "<union id=\"vector\"><field name=\"d\" type=\"v2d\"/><field name=\"u\" type=\"v2u\"/>"
    text += "<field name=\"s\" type=\"v4f\"/><field name=\"b\" type=\"v16u\"/></union>"
    for number in 0..<32 { text += "<reg name=\"v\(number)\" bitsize=\"128\" type=\"vector\"/>" }
    return text + "<reg name=\"fpsr\" bitsize=\"32\"/><reg name=\"fpcr\" bitsize=\"32\"/></feature></target>"
  }
}
