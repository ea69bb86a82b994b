import ApusISAAArch64

/// A CPU's identity.
public struct AArch64Model: Sendable {
  public let name: String
  /// MIDR_EL1.
  public let mainID: UInt64
  public var features: AArch64FeatureSet
  /// How pointers are signed, where they are.
  public var authentication = AArch64PointerAuthentication.Algorithm.implementationDefined

  private static let v8: [AArch64Feature] = [.base, .crc32, .aes, .pmull, .sha1, .sha256]
  /// Armv8.2 with half precision, dot products, RCpc loads and SSBS.
  private static let v82: [AArch64Feature] =
    v8 + [.pan, .lse, .rdm, .dpb, .fp16, .dotprod, .lrcpc, .ssbs]

  public static let all = [
    AArch64Model(name: "max", mainID: 0x000f_0510, features: .max),
    AArch64Model(name: "cortex-a53", mainID: 0x410f_d034, features: AArch64FeatureSet(v8)),
    AArch64Model(name: "cortex-a57", mainID: 0x411f_d070, features: AArch64FeatureSet(v8)),
    AArch64Model(name: "cortex-a72", mainID: 0x410f_d083, features: AArch64FeatureSet(v8)),
    AArch64Model(name: "cortex-a76", mainID: 0x414f_d0b1, features: AArch64FeatureSet(v82)),
    AArch64Model(name: "neoverse-n1", mainID: 0x414f_d0c1, features: AArch64FeatureSet(v82 + [.ssbs2])),
  ]

  /// - Parameter text: a name; for `max`, perhaps followed by `,pauth=on|off` and `,pauth-impdef=on|off`.
  /// - Returns: `nil` for anything else.
  public static func named(_ text: String) -> AArch64Model? {
    let words = text.split(separator: ",", omittingEmptySubsequences: false)
    guard var model = all.first(where: { $0.name == words[0] }) else { return nil }
    for word in words.dropFirst() {
      guard model.name == "max" else { return nil }
      switch word {
      case "pauth=on": model.features.insert(.pauth)
      case "pauth=off": model.features.remove(.pauth)
      case "pauth-impdef=on": model.authentication = .implementationDefined
      case "pauth-impdef=off": model.authentication = .qarma5
      default: return nil
      }
    }
    return model
  }
}
