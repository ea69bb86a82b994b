import ApusBlock

/// An image that a server offers.
public final class NBDExport: Sendable {
  /// What a range is and at which depth of the backing chain: 0 none, 1 the image itself.
  public typealias StatusQuery =
    @Sendable (_ offset: UInt64, _ byteCount: UInt64) throws(BlockError) -> (
      status: BlockStatus, depth: UInt32
    )
  public struct Bitmap: Sendable {
    public var name: String
    /// Dirty ranges in order.
    public var ranges: [Range<UInt64>]
    public init(name: String, ranges: [Range<UInt64>]) { (self.name, self.ranges) = (name, ranges) }
  }

  public let name: String
  public let description: String
  public let node: any ImageNode
  public let isReadOnly: Bool
  /// Several clients see one image: a flush of one covers all.
  public let allowsMultipleConnections: Bool
  public let bitmaps: [Bitmap]
  public let showsAllocationDepth: Bool
  let status: StatusQuery

  public init(
    _ node: any ImageNode, name: String, description: String = "", isReadOnly: Bool = false,
    allowsMultipleConnections: Bool = false, bitmaps: [Bitmap] = [], showsAllocationDepth: Bool = false,
    status: @escaping StatusQuery
  ) {
    (self.node, self.name, self.description, self.status) = (node, name, description, status)
    self.isReadOnly = isReadOnly || node.isReadOnly
    self.allowsMultipleConnections = allowsMultipleConnections
    (self.bitmaps, self.showsAllocationDepth) = (bitmaps, showsAllocationDepth)
  }

  /// - Parameter mayFragment: whether replies come in chunks, so that a client may want them whole.
  func flags(mayFragment: Bool) -> UInt16 {
    var flags = NBD.ExportFlag.hasFlags | NBD.ExportFlag.flush | NBD.ExportFlag.cache
    if mayFragment { flags |= NBD.ExportFlag.doNotFragment }
    if isReadOnly {
      flags |= NBD.ExportFlag.readOnly
    } else {
      flags |= NBD.ExportFlag.forceUnitAccess | NBD.ExportFlag.trim | NBD.ExportFlag.writeZeroes
    }
    if allowsMultipleConnections || isReadOnly { flags |= NBD.ExportFlag.multiConnection }
    return flags
  }

  /// The contexts that clients may ask for, by number.
  var contexts: [String] {
    [NBD.baseAllocation] + (showsAllocationDepth ? [NBD.allocationDepth] : [])
      + bitmaps.map { NBD.dirtyBitmap + $0.name }
  }

  /// Extents of a context from `offset` on, at most `limit` of them.
  func extents(_ context: Int, _ offset: UInt64, _ byteCount: UInt64, limit: Int) throws(BlockError) -> [(
    UInt64, UInt32
  )] {
    let name = contexts[context]
    if name.hasPrefix(NBD.dirtyBitmap) {
      let ranges = bitmaps.first { NBD.dirtyBitmap + $0.name == name }?.ranges ?? []
      return bitmapExtents(ranges, offset, byteCount, limit: limit)
    }
    var result: [(UInt64, UInt32)] = []
    var position = offset
    while position < offset + byteCount {
      let found = try status(position, offset + byteCount - position)
      let isPresent = found.depth > 0
      let flags: UInt32 =
        name == NBD.allocationDepth
        ? found.depth
        : (found.status.isData || (isPresent && !found.status.isZero) ? 0 : 1) | (found.status.isZero ? 2 : 0)
      if let last = result.last, last.1 == flags {
        result[result.count - 1].0 += found.status.byteCount
      } else {
        if result.count == limit { break }
        result.append((found.status.byteCount, flags))
      }
      position += found.status.byteCount
    }
    return result
  }

  private func bitmapExtents(_ ranges: [Range<UInt64>], _ offset: UInt64, _ byteCount: UInt64, limit: Int)
    -> [(UInt64, UInt32)]
  {
    var (low, high) = (0, ranges.count)
    while low < high {
      let middle = (low + high) / 2
      if ranges[middle].upperBound <= offset { low = middle + 1 } else { high = middle }
    }
    var result: [(UInt64, UInt32)] = []
    var position = offset
    let end = offset + byteCount
    while position < end, result.count < limit {
      let next = low < ranges.count ? ranges[low] : end..<end
      if next.lowerBound <= position, next.upperBound > position {
        let stop = min(end, next.upperBound)
        result.append((stop - position, 1))
        position = stop
        low += 1
      } else {
        let stop = min(end, max(next.lowerBound, position + 1))
        result.append((stop - position, 0))
        position = stop
      }
    }
    return result
  }
}
