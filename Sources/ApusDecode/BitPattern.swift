/// A fixed-bits pattern of one instruction encoding, most significant bit first.
///
/// `0` and `1` are fixed bits; every other character but the space is a bit that the pattern leaves free (letters
/// name the field for the reader). Spaces separate fields. A pattern has 16 or 32 bits.
public struct BitPattern: Hashable, Sendable {
  /// Ones where the encoding fixes a bit.
  public let mask: UInt32
  /// The fixed bits' values; zero elsewhere.
  public let value: UInt32
  public let bitCount: Int

  public init(_ text: StaticString) {
    var mask: UInt32 = 0
    var value: UInt32 = 0
    var count = 0
    text.withUTF8Buffer { bytes in
      for byte in bytes where byte != UInt8(ascii: " ") {
        mask <<= 1
        value <<= 1
        if byte == UInt8(ascii: "0") { mask |= 1 }
        if byte == UInt8(ascii: "1") {
          mask |= 1
          value |= 1
        }
        count += 1
      }
    }
    precondition(count == 16 || count == 32, "a pattern has 16 or 32 bits")
    (self.mask, self.value, self.bitCount) = (mask, value, count)
  }

  @inlinable @inline(__always)
  public func matches(_ word: UInt32) -> Bool { word & mask == value }

  /// Whether some word matches both patterns.
  public func overlaps(_ other: BitPattern) -> Bool {
    bitCount == other.bitCount && (value ^ other.value) & mask & other.mask == 0
  }

  /// Whether every word that matches this pattern matches `other` too.
  public func isSpecialCase(of other: BitPattern) -> Bool {
    bitCount == other.bitCount && other.mask & ~mask == 0 && value & other.mask == other.value
  }
}

/// Finds the row that a word matches, through a table indexed by chosen bits of the word.
///
/// Rows must be ordered so that a special case stands before its general case. Look-ups touch flat memory only.
public struct PatternIndex: @unchecked Sendable {
  // SAFETY: the buffers are written once in init and live as long as the process (one index per ISA).
  @usableFromInline let starts: UnsafeMutablePointer<UInt16>
  @usableFromInline let entries: UnsafeMutablePointer<Entry>
  @usableFromInline let keyShifts: (UInt32, UInt32, UInt32)
  @usableFromInline let keyMasks: (UInt32, UInt32, UInt32)

  @usableFromInline struct Entry {
    @usableFromInline let mask: UInt32
    @usableFromInline let value: UInt32
    @usableFromInline let row: UInt32
  }

  /// - Parameters:
  ///   - fields: up to three bit fields (low bit, width) that make up the key; 16 bits together at most.
  public init(_ patterns: [BitPattern], fields: [(low: Int, width: Int)]) {
    precondition(fields.count == 3 && fields.reduce(0) { $0 + $1.width } <= 16)
    // Field n is moved to lie directly above field n-1.
    var shifts: [UInt32] = []
    var masks: [UInt32] = []
    var keyWidth = 0
    for field in fields {
      shifts.append(UInt32(field.low - keyWidth))
      masks.append(((1 << UInt32(field.width)) - 1) << UInt32(keyWidth))
      keyWidth += field.width
    }
    keyShifts = (shifts[0], shifts[1], shifts[2])
    keyMasks = (masks[0], masks[1], masks[2])
    func key(_ word: UInt32) -> UInt32 {
      (word >> shifts[0]) & masks[0] | (word >> shifts[1]) & masks[1] | (word >> shifts[2]) & masks[2]
    }
    let bucketCount = 1 << keyWidth
    var counts = [UInt16](repeating: 0, count: bucketCount + 1)
    func forEachBucket(_ pattern: BitPattern, _ body: (Int) -> Void) {
      let fixed = key(pattern.mask)
      let free = UInt32(bucketCount - 1) & ~fixed
      var subset: UInt32 = 0
      repeat {
        body(Int(key(pattern.value) | subset))
        subset = (subset &- free) & free
      } while subset != 0
    }
    for pattern in patterns { forEachBucket(pattern) { counts[$0 + 1] += 1 } }
    for index in 1...bucketCount { counts[index] += counts[index - 1] }
    starts = .allocate(capacity: bucketCount + 1)
    starts.initialize(from: counts, count: bucketCount + 1)
    entries = .allocate(capacity: Int(counts[bucketCount]) + 1)
    var next = counts
    for (row, pattern) in patterns.enumerated() {
      forEachBucket(pattern) { bucket in
        (entries + Int(next[bucket])).initialize(
          to: Entry(mask: pattern.mask, value: pattern.value, row: UInt32(row)))
        next[bucket] += 1
      }
    }
  }

  /// The index of the first row that matches `word`, or -1.
  @inlinable
  public func row(_ word: UInt32) -> Int {
    let key =
      (word &>> keyShifts.0) & keyMasks.0 | (word &>> keyShifts.1) & keyMasks.1
      | (word &>> keyShifts.2) & keyMasks.2
    var index = Int(starts[Int(key)])
    let end = Int(starts[Int(key) &+ 1])
    while index < end {
      let entry = entries[index]
      if word & entry.mask == entry.value { return Int(entry.row) }
      index &+= 1
    }
    return -1
  }
}
