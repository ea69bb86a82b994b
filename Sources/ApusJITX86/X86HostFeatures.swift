import CApusHost

/// What the host CPU offers beyond x86-64's baseline [SDM 2A, CPUID].
public struct X86HostFeatures: Sendable {
  /// BMI1 and BMI2: andn, tzcnt, rorx, shlx and relatives.
  public var hasBMI: Bool
  /// lzcnt and popcnt.
  public var hasBitCounts: Bool
  /// AVX and FMA3: three-operand scalar arithmetic and fused multiply-add.
  public var hasFMA: Bool
  public var hasCarrylessMultiply: Bool
  /// AES-NI and SSE 4.2's crc32, with AVX.
  public var hasCipher: Bool
  /// SHA-1's and SHA-256's instructions, with AVX.
  public var hasSHA: Bool

  public static let current = X86HostFeatures(
    hasBMI: apus_cpu_supports(0), hasBitCounts: apus_cpu_supports(1), hasFMA: apus_cpu_supports(2),
    hasCarrylessMultiply: apus_cpu_supports(3), hasCipher: apus_cpu_supports(4), hasSHA: apus_cpu_supports(5))
}
