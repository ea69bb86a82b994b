import ApusCPU
import ApusGuest
import ApusGuestAArch64
import ApusISAAArch64
import ApusUserABI

/// AArch64 [AAPCS64; Linux UAPI].
public struct AArch64UserISA: UserISA {
  public var features = AArch64FeatureSet.max
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

  /// HWCAP's bits and their names in /proc/cpuinfo.
  private var capabilities: [(bit: UInt64, name: String)] {
    var result: [(UInt64, String)] = [(0, "fp"), (1, "asimd")]
    for (feature, bit, name) in [
      (AArch64Feature.aes, 3, "aes"), (.pmull, 4, "pmull"), (.sha1, 5, "sha1"), (.sha256, 6, "sha2"),
      (.crc32, 7, "crc32"), (.lse, 8, "atomics"), (.rdm, 12, "asimdrdm"), (.lrcpc, 15, "lrcpc"),
    ] as [(AArch64Feature, UInt64, String)] where features.contains(feature) {
      result.append((bit, name))
    }
    return result
  }
  public var auxiliaryEntries: [(UInt64, UInt64)] {
    [
      (AuxiliaryKey.hardwareCapabilities, capabilities.reduce(0) { $0 | 1 << $1.bit }),
      (AuxiliaryKey.minimumSignalStack, AArch64SignalFrame.byteCount),
    ]
  }
  public var platform: String? { "aarch64" }

  public func processorText(count: Int) -> String {
    let names = capabilities.map(\.name).joined(separator: " ")
    return (0..<count).map {
      """
      processor\t: \($0)
      BogoMIPS\t: 125.00
      Features\t: \(names)
      CPU implementer\t: 0x00
      CPU architecture: 8
      CPU variant\t: 0x0
      CPU part\t: 0x000
      CPU revision\t: 0


      """
    }.joined()
  }

  public mutating func select(_ text: String) throws(ProgramError) {
    guard let model = AArch64Model.named(text == "any" ? "max" : text) else {
      let names = AArch64Model.all.map(\.name).joined(separator: ", ")
      throw ProgramError("-cpu: there is no model '\(text)'; there are \(names)", code: 1)
    }
    features = model.features
  }

  public func makeCPU(state: UnsafeMutableRawPointer, engine: any GuestEngine, clock: GuestClock)
    -> any UserCPU
  { AArch64CPU(state: state, features: features, clock: clock, engine: engine) }

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
