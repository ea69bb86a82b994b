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

/// QARMA-64 with five rounds and the S-box sigma 2, as the manual's ComputePAC has it. Cells have four bits; 0 is the highest.
public enum QARMA {
  private static let alpha: UInt64 = 0xc0ac_29b7_c97c_50dd
  private static let constants: [UInt64] = [
    0, 0x1319_8a2e_0370_7344, 0xa409_3822_299f_31d0, 0x082e_fa98_ec4e_6c89, 0x4528_21e6_38d0_1377,
  ]
  private static let substitution: [UInt64] = [11, 6, 8, 15, 12, 0, 9, 14, 3, 7, 4, 5, 13, 2, 1, 10]
  /// Where each cell comes from.
  private static let shuffle = [0, 11, 6, 13, 10, 1, 12, 7, 5, 14, 3, 8, 15, 4, 9, 2]
  private static let tweakShuffle = [6, 5, 14, 15, 0, 1, 2, 3, 7, 12, 13, 4, 8, 9, 10, 11]
  /// The tweak's cells that a shift register steps, after the shuffle.
  private static let steppedCells: [Bool] = (0..<16).map { [0, 1, 3, 4, 8, 11, 13].contains($0) }
  private static let inverseSubstitution = inverse(substitution.map { Int($0) }).map { UInt64($0) }
  private static let inverseShuffle = inverse(shuffle)
  private static let inverseTweakShuffle = inverse(tweakShuffle)

  private static func inverse(_ order: [Int]) -> [Int] {
    var result = [Int](repeating: 0, count: 16)
    for (number, value) in order.enumerated() { result[value] = number }
    return result
  }
  private static func cell(_ value: UInt64, _ number: Int) -> UInt64 { value >> UInt64(60 - 4 * number) & 15 }
  private static func cells(_ body: (Int) -> UInt64) -> UInt64 { (0..<16).reduce(0) { $0 << 4 | body($1) } }
  private static func substituted(_ value: UInt64, _ box: [UInt64]) -> UInt64 {
    cells { box[Int(cell(value, $0))] }
  }
  private static func shuffled(_ value: UInt64, _ order: [Int]) -> UInt64 { cells { cell(value, order[$0]) } }
  /// Each column times the circulant matrix of 0 and rotations by 1, 2 and 1.
  private static func mixed(_ value: UInt64) -> UInt64 {
    cells { number in
      func rotated(_ distance: Int, _ count: UInt64) -> UInt64 {
        let other = cell(value, (number + 4 * distance) & 15)
        return (other << count | other >> (4 - count)) & 15
      }
      return rotated(1, 1) ^ rotated(2, 2) ^ rotated(3, 1)
    }
  }
  private static func stepped(_ value: UInt64) -> UInt64 { (value & 1 ^ value >> 1 & 1) << 3 | value >> 1 }
  private static func steppedBack(_ value: UInt64) -> UInt64 { value << 1 & 14 | (value >> 3 ^ value & 1) }
  private static func nextTweak(_ tweak: UInt64) -> UInt64 {
    let moved = shuffled(tweak, tweakShuffle)
    return cells { steppedCells[$0] ? stepped(cell(moved, $0)) : cell(moved, $0) }
  }
  private static func previousTweak(_ tweak: UInt64) -> UInt64 {
    shuffled(cells { steppedCells[$0] ? steppedBack(cell(tweak, $0)) : cell(tweak, $0) }, inverseTweakShuffle)
  }

  public static func code(_ data: UInt64, _ modifier: UInt64, key: (low: UInt64, high: UInt64)) -> UInt64 {
    let (outer, inner) = (key.high, key.low)
    let last = outer << 63 | (outer >> 2) << 1 | (outer >> 63 ^ outer >> 1 & 1)
    var tweak = modifier
    var value = data ^ outer
    for round in 0..<5 {
      value ^= inner ^ tweak ^ constants[round]
      if round > 0 { value = mixed(shuffled(value, shuffle)) }
      value = substituted(value, substitution)
      tweak = nextTweak(tweak)
    }
    // The middle: forward with the other key, a reflection, and back.
    value = substituted(mixed(shuffled(value ^ last ^ tweak, shuffle)), substitution)
    value = inner ^ mixed(shuffled(value, shuffle))
    value = mixed(substituted(shuffled(value, inverseShuffle), inverseSubstitution))
    value = shuffled(value, inverseShuffle) ^ outer ^ tweak
    for round in (0..<5).reversed() {
      value = substituted(value, inverseSubstitution)
      if round > 0 { value = shuffled(mixed(value), inverseShuffle) }
      tweak = previousTweak(tweak)
      value ^= constants[round] ^ inner ^ tweak ^ alpha
    }
    return value ^ last
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

  /// SCTLR_EL1.EnIA, EnIB, EnDA and EnDB; processes have all.
  private func isEnabled(_ key: AArch64PointerAuthentication.Key) -> Bool {
    guard system != nil else { return true }
    let bit: UInt64 =
      switch key {
      case .instructionA: 31
      case .instructionB: 30
      case .dataA: 27
      case .dataB: 13
      case .generic: 64  // always
      }
    return bit == 64 || s[.sctlr] >> bit & 1 != 0
  }

  /// Carries a request out; the new pointer.
  func authenticate(
    _ pointer: UInt64, _ modifier: UInt64, _ request: AArch64PointerAuthentication.Request
  ) -> UInt64 {
    let key = request.key
    if request == .generic { return code(pointer, modifier, key) & ~0xffff_ffff }
    guard isEnabled(key) || request.action == 2 else { return pointer }
    // Linux: 48 bits and the top byte ignored for processes, whatever they point to.
    let tcr = system == nil ? 16 | 16 << 16 | 1 << 37 : s[.tcr]
    let isData = key == .dataA || key == .dataB
    func ignoresTop(_ isUpper: Bool) -> Bool {
      // TBI0 and TBI1; TBID0 and TBID1 take instructions out.
      let shift: UInt64 = isUpper ? 1 : 0
      return tcr >> (37 + shift) & 1 != 0 && (isData || tcr >> (51 + shift) & 1 == 0)
    }
    let isUpper = pointer >> 55 & 1 != 0
    let ignoresTop = ignoresTop(isUpper)
    let bottom = 64 - min(max(tcr >> (isUpper ? 16 : 0) & 63, 16), 39)
    let topBit: UInt64 = ignoresTop ? 55 : 63
    /// Bits `bottom` to `topBit` are the pointer's extension; bit 55 says which half it belongs to.
    let field = (ignoresTop ? (1 << 56) - 1 : UInt64.max) & ~((1 << bottom) - 1)
    let codeField = field & ~(1 << 55)
    func extended(_ isSet: Bool) -> UInt64 { isSet ? pointer | field : pointer & ~field }
    switch request.action {
    case 0:
      // With a top byte that counts nowhere, bit 63 tells the halves apart.
      let selects = self.ignoresTopAnywhere(tcr, isData) ? isUpper : pointer >> 63 != 0
      let original = extended(selects)
      var sum = code(original, modifier, key)
      // A pointer that is no good already becomes one that does not authenticate.
      let extensionBits = pointer & field & ((1 << topBit) | ((1 << topBit) - 1))
      if extensionBits != 0, extensionBits != field { sum ^= 1 << (topBit - 1) }
      return original & ~codeField & ~(1 << 55) | sum & codeField | (selects ? 1 << 55 : 0)
    case 1:
      let original = extended(isUpper)
      if (code(original, modifier, key) ^ pointer) & codeField == 0 { return original }
      let error: UInt64 = key == .instructionA || key == .dataA ? 1 : 2
      return ignoresTop
        ? original & ~(3 << 53) | error << 53 : original & ~(3 << 61) | error << 61
    default: return extended(isUpper)
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
