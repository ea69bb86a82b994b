import CApusHost

/// How much of the host CPU's instructions generated code uses. Each level has what those before it have. [SDM 2A, CPUID]
public enum X86HostLevel: Int32, CaseIterable, Comparable, Sendable {
  /// x86-64-v2: SSE up to 4.2, popcnt.
  case sse4 = 1
  /// AVX: vector instructions with a destination of their own.
  case avx = 2
  /// x86-64-v3: AVX2, FMA, BMI1 and BMI2, lzcnt.
  case avx2 = 3
  /// x86-64-v4: AVX-512 F, VL, BW, DQ and CD, on 128 bits.
  case avx512 = 4

  /// The highest that the host has; `nil`: not even x86-64-v2.
  public static let host = X86HostLevel(rawValue: apus_host_level())

  public static func < (a: X86HostLevel, b: X86HostLevel) -> Bool { a.rawValue < b.rawValue }
}

/// What generated code may use beyond x86-64's baseline.
public struct X86HostFeatures: Sendable {
  public let level: X86HostLevel
  public var hasAVX: Bool { level >= .avx }
  public var hasAVX2: Bool { level >= .avx2 }
  /// BMI1, BMI2 and lzcnt: andn, tzcnt, rorx, shlx and relatives.
  public var hasBMI: Bool { level >= .avx2 }
  /// Fused multiply-add.
  public var hasFMA: Bool { level >= .avx2 }
  public var hasAVX512: Bool { level >= .avx512 }
  /// AVX-512's BITALG: bits set by byte.
  public let hasBitCounts: Bool
  public let hasCarrylessMultiply: Bool
  /// AES-NI.
  public let hasCipher: Bool
  /// SHA-1's and SHA-256's instructions.
  public let hasSHA: Bool

  /// - Parameters:
  ///   - level: one that the host has.
  ///   - hasCrypto: whether to use what the host may have beside it for ciphers and products without carries.
  public init(level: X86HostLevel, hasCrypto: Bool) {
    self.level = level
    hasBitCounts = level >= .avx512 && apus_cpu_supports(3)
    hasCarrylessMultiply = hasCrypto && apus_cpu_supports(0)
    hasCipher = hasCrypto && apus_cpu_supports(1)
    hasSHA = apus_cpu_supports(2)
  }
}
