import ApusBlock

/// What a look at an image's tables found.
public struct TableCheck: Sendable, Equatable {
  public var corruptions = 0
  public var totalBlocks: UInt64 = 0
  public var allocatedBlocks: UInt64 = 0
  public var fragmentedBlocks: UInt64 = 0
  /// The end of the last block, in bytes.
  public var imageEndOffset: UInt64 = 0
  /// A sentence for each finding, up to a limit.
  public var messages: [String] = []
  public init() {}

  mutating func report(_ text: String) {
    corruptions += 1
    if messages.count < 1000 { messages.append(text) }
  }
}

/// An image of another format than qcow2 whose tables can be checked.
public protocol CheckedImage: ImageNode {
  /// `nil`: the format has no check.
  func check() throws(BlockError) -> TableCheck?
}

extension BlockTable {
  /// Looks for blocks outside the file, and for places that two blocks share.
  ///
  /// Memory: two words for each block that is there.
  func check(_ file: any ImageNode) throws(BlockError) -> TableCheck {
    var result = TableCheck()
    let size = blockByteCount
    result.totalBlocks = (byteCount + size - 1) / size
    let end = file.byteCount
    var places: [(start: UInt64, block: UInt64)] = []
    var expected: UInt64?
    for block in 0..<result.totalBlocks {
      let start: UInt64
      let length: UInt64
      do throws(BlockError) {
        switch try place(block) {
        case .absent, .zero: continue
        case .at(let offset): (start, length) = (offset, size)
        case .compressed(let offset, let count): (start, length) = (offset, UInt64(count))
        }
      } catch {
        guard error.kind == .io || error.kind == .invalid else { throw error }
        result.report("ERROR block \(block): \(error.description)")
        continue
      }
      // The last block may be cut off.
      guard start < end else {
        result.report("ERROR block \(block) lies behind the file's end at 0x\(String(start, radix: 16))")
        continue
      }
      result.allocatedBlocks += 1
      if let expected, expected != start { result.fragmentedBlocks += 1 }
      expected = start + length
      result.imageEndOffset = max(result.imageEndOffset, start + length)
      places.append((start, block))
    }
    places.sort { $0 < $1 }
    for (first, second) in zip(places, places.dropFirst()) where first.start == second.start {
      result.report(
        "ERROR blocks \(first.block) and \(second.block) share the place 0x\(String(first.start, radix: 16))")
    }
    return result
  }
}
