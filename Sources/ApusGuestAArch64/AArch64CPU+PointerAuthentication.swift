import ApusISAAArch64

// Pointer authentication [Arm ARM D8.9]: FEAT_PAuth without its later variants.

/// How codes are computed and asked for.
public enum AArch64PointerAuthentication {
  /// What signs pointers.
  public enum Algorithm: Sendable {
    /// A few multiplications: fast, and no protection against somebody who sees codes.
    case implementationDefined
    /// [Arm ARM ComputePAC].
    case qarma5
  }

  enum Key: UInt8 { case instructionA, instructionB, dataA, dataB, generic }

  /// What to do with which key: bits 0 to 2 the key, from bit 4 the action.
  struct Request: Equatable {
    let rawValue: UInt8
    init(rawValue: UInt8) { self.rawValue = rawValue }
    static func sign(_ key: Key) -> Self { .init(rawValue: key.rawValue) }
    static func check(_ key: Key) -> Self { .init(rawValue: 0x10 | key.rawValue) }
    static func strip(_ key: Key) -> Self { .init(rawValue: 0x20 | key.rawValue) }
    static let generic = Self(rawValue: 0x30 | Key.generic.rawValue)
    var key: Key { Key(rawValue: rawValue & 7).unsafelyUnwrapped }
    var action: UInt8 { rawValue >> 4 }
  }

  static func code(
    _ algorithm: Algorithm, _ data: UInt64, _ modifier: UInt64, key: (low: UInt64, high: UInt64)
  ) -> UInt64 {
    switch algorithm {
    case .implementationDefined:
      var hash = (data ^ key.low) &* 0x9e37_79b9_7f4a_7c15
      hash ^= hash >> 32 ^ modifier ^ key.high
      hash = hash &* 0xbf58_476d_1ce4_e5b9
      hash ^= hash >> 29
      hash = hash &* 0x94d0_49bb_1331_11eb
      return hash ^ hash >> 32
    case .qarma5: return QARMA.code(data, modifier, key: key)
    }
  }
}

extension AArch64CPU {
  /// All threads of a process have the same keys, and so have the processes that it forks.
  private static let processKeys = (0..<10).map { _ in UInt64.random(in: .min ... .max) }
  func setProcessKeys() {
    guard system == nil else { return }
    let slots: [AArch64SystemSlot] = [
      .apiaLow, .apiaHigh, .apibLow, .apibHigh, .apdaLow, .apdaHigh, .apdbLow, .apdbHigh, .apgaLow, .apgaHigh,
    ]
    for (slot, value) in zip(slots, Self.processKeys) { s[slot] = value }
  }

  @inline(__always)
  private func keyValue(_ key: AArch64PointerAuthentication.Key) -> (low: UInt64, high: UInt64) {
    // The slots stand in the order of the keys.
    let offset = AArch64SystemSlot.apiaLow.offset + 16 * Int(key.rawValue)
    return (
      state.load(fromByteOffset: offset, as: UInt64.self),
      state.load(fromByteOffset: offset + 8, as: UInt64.self)
    )
  }

  /// Whose controls hold for the current level, EL0's being those of the level above it.
  private var controllingLevel: UInt64 {
    let level = s[.exceptionLevel]
    return level == 0 ? isHost ? 2 : 1 : level
  }

  /// SCTLR_ELx.EnIA, EnIB, EnDA and EnDB; processes have all.
  func isEnabled(_ key: AArch64PointerAuthentication.Key) -> Bool {
    guard system != nil else { return true }
    let bit: UInt64 =
      switch key {
      case .instructionA: 31
      case .instructionB: 30
      case .dataA: 27
      case .dataB: 13
      case .generic: 64  // always
      }
    return bit == 64 || s[ExceptionRegisters(level: controllingLevel).control] >> bit & 1 != 0
  }

  /// Carries a request out; the new pointer.
  func authenticate(
    _ pointer: UInt64, _ modifier: UInt64, _ request: AArch64PointerAuthentication.Request
  ) -> UInt64 {
    let key = request.key
    if request == .generic { return code(pointer, modifier, key) & ~0xffff_ffff }
    guard isEnabled(key) || request.action == 2 else { return pointer }
    // Linux: 48 bits and the top byte ignored for processes, whatever they point to.
    let tcr: UInt64 =
      switch controllingLevel {
      case _ where system == nil: 16 | 16 << 16 | 1 << 37
      case 3: regime(8).control
      case 2: regime(3).control
      default: s[.tcr]
      }
    let isData = key == .dataA || key == .dataB
    func ignoresTop(_ isUpper: Bool) -> Bool {
      // TBI0 and TBI1; TBID0 and TBID1 take instructions out.
      let shift: UInt64 = isUpper ? 1 : 0
      return tcr >> (37 + shift) & 1 != 0 && (isData || tcr >> (51 + shift) & 1 == 0)
    }
    let isUpper = pointer >> 55 & 1 != 0
    let ignoresTop = ignoresTop(isUpper)
    /// The extension's bits for an address of the upper or the lower half; bit 55 says which one it is.
    func extensionField(_ isUpper: Bool) -> UInt64 {
      let control = TranslationControl(value: tcr, isUpper: isUpper)
      let bottom = 64 - min(max(control.sizeOffset, control.smallestSizeOffset(hasLargeAddresses)), 39)
      return (ignoresTop ? (1 << 56) - 1 : UInt64.max) & ~((1 << bottom) - 1)
    }
    switch request.action {
    case 0:
      // Where the top byte counts in both halves, bit 63 tells them apart.
      let selects = ignoresTopAnywhere(tcr, isData) ? isUpper : pointer >> 63 != 0
      let field = extensionField(selects)
      let original = selects ? pointer | field : pointer & ~field
      var sum = code(original, modifier, key)
      // A pointer that is no good already becomes one that does not authenticate.
      let extensionBits = pointer & field
      if extensionBits != 0, extensionBits != field { sum ^= ignoresTop ? 1 << 54 : 1 << 62 }
      return original & ~field | sum & field & ~(1 << 55) | (selects ? 1 << 55 : 0)
    case 1:
      let field = extensionField(isUpper)
      let original = isUpper ? pointer | field : pointer & ~field
      if (code(original, modifier, key) ^ pointer) & field & ~(1 << 55) == 0 { return original }
      let error: UInt64 = key == .instructionA || key == .dataA ? 1 : 2
      return ignoresTop
        ? original & ~(3 << 53) | error << 53 : original & ~(3 << 61) | error << 61
    default:
      let field = extensionField(isUpper)
      return isUpper ? pointer | field : pointer & ~field
    }
  }

  private func ignoresTopAnywhere(_ tcr: UInt64, _ isData: Bool) -> Bool {
    let both = tcr >> 37 & 3
    return (isData ? both : both & ~(tcr >> 51 & 3)) != 0
  }
  private func code(
    _ data: UInt64, _ modifier: UInt64, _ key: AArch64PointerAuthentication.Key
  ) -> UInt64 {
    AArch64PointerAuthentication.code(authentication, data, modifier, key: keyValue(key))
  }
}
