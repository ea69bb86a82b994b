/// QARMA-64 with five rounds and the S-box sigma 2 [QARMA], as the manual's ComputePAC has it. Cells have four bits; 0 is the highest.
public enum QARMA {
  private static let alpha: UInt64 = 0xc0ac_29b7_c97c_50dd
  private static let substitution: [UInt64] = [11, 6, 8, 15, 12, 0, 9, 14, 3, 7, 4, 5, 13, 2, 1, 10]
  /// Where each cell comes from.
  private static let shuffle = [0, 11, 6, 13, 10, 1, 12, 7, 5, 14, 3, 8, 15, 4, 9, 2]
  private static let tweakShuffle = [6, 5, 14, 15, 0, 1, 2, 3, 7, 12, 13, 4, 8, 9, 10, 11]
  /// The tweak's cells that a shift register steps, after the shuffle.
  private static let steppedCells: [Bool] = (0..<16).map { [0, 1, 3, 4, 8, 11, 13].contains($0) }
  private static let inverseSubstitution = inverse(substitution.map { Int($0) }).map { UInt64($0) }
  private static let inverseShuffle = inverse(shuffle)

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
  private static func nextTweak(_ tweak: UInt64) -> UInt64 {
    let moved = shuffled(tweak, tweakShuffle)
    return cells { steppedCells[$0] ? stepped(cell(moved, $0)) : cell(moved, $0) }
  }

  /// A map of 64 bits as a table for each byte, whose entries are combined by exclusive or: any linear map, and a
  /// substitution cell by cell.
  private struct Map: @unchecked Sendable {
    // SAFETY: written once in init and never freed.
    let table: UnsafeMutablePointer<UInt64>
    init(_ body: (UInt64) -> UInt64, isSubstitution: Bool = false) {
      table = .allocate(capacity: 8 * 256)
      for byte in 0..<8 {
        for value in 0..<256 {
          let shift = UInt64(8 * byte)
          let image = body(UInt64(value) << shift)
          // A substitution changes the cells that are zero, too: those of other bytes are not this one's business.
          table[byte << 8 | value] = isSubstitution ? image & 0xff << shift : image
        }
      }
    }
    @inline(__always)
    func callAsFunction(_ value: UInt64) -> UInt64 {
      var result: UInt64 = 0
      for byte in 0..<8 { result ^= table[byte << 8 | Int(value >> UInt64(8 * byte) & 0xff)] }
      return result
    }
  }
  private struct Maps: Sendable {
    let substitute = Map({ substituted($0, substitution) }, isSubstitution: true)
    let substituteBack = Map({ substituted($0, inverseSubstitution) }, isSubstitution: true)
    let shuffleAndMix = Map { mixed(shuffled($0, shuffle)) }
    let mixAndShuffleBack = Map { shuffled(mixed($0), inverseShuffle) }
    let shuffleBack = Map { shuffled($0, inverseShuffle) }
    let nextTweak = Map(QARMA.nextTweak)
  }
  private static let maps = Maps()

  public static func code(_ data: UInt64, _ modifier: UInt64, key: (low: UInt64, high: UInt64)) -> UInt64 {
    let maps = maps
    let (outer, inner) = (key.high, key.low)
    let last = outer << 63 | (outer >> 2) << 1 | (outer >> 63 ^ outer >> 1 & 1)
    var tweaks: InlineArray<6, UInt64> = [modifier, 0, 0, 0, 0, 0]
    var value = data ^ outer
    for round in 0..<5 {
      value ^= inner ^ tweaks[round] ^ constant(round)
      if round > 0 { value = maps.shuffleAndMix(value) }
      value = maps.substitute(value)
      tweaks[round + 1] = maps.nextTweak(tweaks[round])
    }
    // The middle: forward with the other key, a reflection, and back.
    value = maps.substitute(maps.shuffleAndMix(value ^ last ^ tweaks[5]))
    value = inner ^ maps.shuffleAndMix(value)
    value = maps.mixAndShuffleBack(maps.substituteBack(maps.shuffleBack(value))) ^ outer ^ tweaks[5]
    for round in (0..<5).reversed() {
      value = maps.substituteBack(value)
      if round > 0 { value = maps.mixAndShuffleBack(value) }
      value ^= constant(round) ^ inner ^ tweaks[round] ^ alpha
    }
    return value ^ last
  }

  private static func constant(_ round: Int) -> UInt64 {
    switch round {
    case 0: 0
    case 1: 0x1319_8a2e_0370_7344
    case 2: 0xa409_3822_299f_31d0
    case 3: 0x082e_fa98_ec4e_6c89
    default: 0x4528_21e6_38d0_1377
    }
  }
}
