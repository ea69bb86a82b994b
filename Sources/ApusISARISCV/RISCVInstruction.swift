import ApusDecode

/// An extension that gates rows; the raw value is its bit in `RISCVExtensionSet`.
public enum RISCVExtension: UInt8, CaseIterable, Sendable {
  case i, m, a, f, d, c, s, u, zicsr, zifencei, zba, zbb, zbc, zbs, zicond, zicbom, zicboz, zicntr, zihpm, zfh
  case zfhmin, zawrs, zacas, zihintpause, sstc, svinval, svnapot, svpbmt, svadu, v
}

/// A set of extensions.
public struct RISCVExtensionSet: OptionSet, Sendable, Hashable {
  public let rawValue: UInt64
  public init(rawValue: UInt64) { self.rawValue = rawValue }
  public init(_ extensions: [RISCVExtension]) {
    rawValue = extensions.reduce(0) { $0 | 1 << UInt64($1.rawValue) }
  }
  @inlinable @inline(__always)
  public func contains(_ one: RISCVExtension) -> Bool { rawValue & (1 &<< UInt64(one.rawValue)) != 0 }
  public mutating func set(_ one: RISCVExtension, _ on: Bool) {
    self = RISCVExtensionSet(
      rawValue: on ? rawValue | 1 << UInt64(one.rawValue) : rawValue & ~(1 << UInt64(one.rawValue)))
  }
  /// As in /proc/cpuinfo: `rv64imafdc_zicsr_zba`.
  public var officialText: String {
    let all = RISCVExtension.allCases.filter { contains($0) && $0 != .s && $0 != .u }.map { "\($0)" }
    let letters = all.filter { $0.utf8.count == 1 }.joined()
    return "rv64" + letters + all.filter { $0.utf8.count > 1 }.map { "_" + $0 }.joined()
  }
  /// What `-cpu rv64` has unless told otherwise: all that is implemented.
  public static let `default` = RISCVExtensionSet(RISCVExtension.allCases.filter { $0 != .v })
}

/// Where an encoding keeps its operands, and how the assembler writes them.
public enum RISCVFormat: UInt8, Sendable {
  case r, r1, i, jalr, load, store, b, u, j, shift5, shift6, fence, csr, csri, none, amo, lr, cbo, fencevma
  /// Floating point: loads, stores, fused (r4), two sources with and without rounding mode, one source,
  /// compares (integer result), FP to integer, integer to FP.
  case fload, fstore, fr4, frrm, frr, fr1rm, fcmp, fxr, fxrm, ffx, ffxrm
}

/// One encoding.
public struct RISCVRow: Sendable {
  public let pattern: BitPattern
  public let opcode: RISCVOpcode
  public let name: StaticString
  public let format: RISCVFormat
  public let `extension`: RISCVExtension
  init(
    _ pattern: StaticString, _ opcode: RISCVOpcode, _ name: StaticString, _ format: RISCVFormat,
    _ ext: RISCVExtension
  ) {
    self.pattern = BitPattern(pattern)
    (self.opcode, self.name, self.format, self.extension) = (opcode, name, format, ext)
  }
}

/// A decoded instruction. Fields that the format lacks are zero.
public struct RISCVInstruction: Sendable {
  public var opcode: RISCVOpcode
  /// Bytes in memory: 2 or 4.
  public var length: UInt8
  public var rd: UInt8
  public var rs1: UInt8
  public var rs2: UInt8
  public var rs3: UInt8
  /// Rounding mode field; 7 is dynamic.
  public var roundingMode: UInt8
  public var format: RISCVFormat
  /// Sign-extended immediate: offset, shift amount, CSR number (`csr`, `csri`; the 5-bit value is in `rs1`).
  public var immediate: Int32
  /// The 32-bit encoding (of the expanded form for compressed instructions).
  public var word: UInt32

  /// What a word of no row decodes to.
  public static func illegal(_ word: UInt32, length: UInt8) -> RISCVInstruction {
    RISCVInstruction(
      opcode: .illegal, length: length, rd: 0, rs1: 0, rs2: 0, rs3: 0, roundingMode: 0, format: .none,
      immediate: 0, word: word)
  }
}
