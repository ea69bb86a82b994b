import ApusMemory

/// A program's memory, as a semihosting call sees it: virtual addresses of the caller.
struct SemihostingMemory {
  let space: AddressSpace
  let translate: (UInt64, Bool) -> UInt64?

  /// The longest string that a call may name: paths, commands.
  static let longestString = 4096

  /// Calls `body` for the part of each page; false as soon as one cannot be reached or `body` says so.
  private func forEachPage(
    _ address: UInt64, _ count: Int, isWrite: Bool, _ body: (GuestPhysicalAddress, Range<Int>) -> Bool
  ) -> Bool {
    var done = 0
    while done < count {
      let next = address &+ UInt64(done)
      let step = min(count - done, Int(guestPageByteCount - next % guestPageByteCount))
      guard let physical = translate(next, isWrite), body(.init(physical), done..<done + step) else {
        return false
      }
      done += step
    }
    return true
  }

  func read(_ address: UInt64, _ count: Int) -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    let isRead = bytes.withUnsafeMutableBytes { buffer in
      forEachPage(address, count, isWrite: false) { physical, range in
        space.read(physical, into: UnsafeMutableRawBufferPointer(rebasing: buffer[range]), forCPU: true)
      }
    }
    return isRead ? bytes : nil
  }

  func write(_ address: UInt64, _ bytes: [UInt8]) -> Bool {
    bytes.withUnsafeBytes { buffer in
      forEachPage(address, bytes.count, isWrite: true) { physical, range in
        space.write(physical, from: UnsafeRawBufferPointer(rebasing: buffer[range]), forCPU: true)
      }
    }
  }

  /// A field of the parameter block.
  func field(_ block: UInt64, _ index: UInt64) -> UInt64? {
    read(block &+ 8 * index, 8).map { bytes in
      bytes.enumerated().reduce(0) { $0 | UInt64($1.element) << UInt64(8 * $1.offset) }
    }
  }
  func setField(_ block: UInt64, _ index: UInt64, _ value: UInt64) -> Bool {
    write(block &+ 8 * index, (0..<8).map { UInt8(truncatingIfNeeded: value >> UInt64(8 * $0)) })
  }

  /// A string of a known length.
  func string(_ address: UInt64, _ count: UInt64) -> String? {
    guard count <= UInt64(Self.longestString), let bytes = read(address, Int(count)) else { return nil }
    return String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
  }

  /// The bytes up to a NUL, at most `limit`.
  func terminated(_ address: UInt64, limit: Int) -> [UInt8]? {
    var result: [UInt8] = []
    while result.count < limit {
      let next = address &+ UInt64(result.count)
      let step = Int(guestPageByteCount - next % guestPageByteCount)
      guard let bytes = read(next, step) else { return nil }
      if let end = bytes.firstIndex(of: 0) { return result + bytes[..<end] }
      result += bytes
    }
    return Array(result.prefix(limit))
  }
}
