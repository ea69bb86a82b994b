import ApusBlock
import ApusHost

/// Compares what two images read as.
public struct ImageComparison {
  public enum Result: Sendable, Equatable {
    case equal
    case sizesDiffer
    case statusDiffers(UInt64)
    case contentDiffers(UInt64)
  }
  private let first: OpenedImage
  private let second: OpenedImage
  /// Sizes and allocations must agree, too.
  public var isStrict = false
  public var progress: (Double) -> Void = { _ in }

  public init(_ first: OpenedImage, _ second: OpenedImage) { (self.first, self.second) = (first, second) }

  public func run() throws(BlockError) -> Result {
    let sizes = (first.node.byteCount, second.node.byteCount)
    if isStrict, sizes.0 != sizes.1 { return .sizesDiffer }
    let common = min(sizes.0, sizes.1)
    let buffers = (
      HostBuffer(byteCount: 256 << 10, isZeroed: false), HostBuffer(byteCount: 256 << 10, isZeroed: false)
    )
    defer { withExtendedLifetime(buffers) {} }
    var position: UInt64 = 0
    while position < common {
      let a = try first.chainStatus(at: position, byteCount: common - position)
      let b = try second.chainStatus(at: position, byteCount: common - position)
      var count = min(a.status.byteCount, b.status.byteCount)
      if isStrict, a.isPresent != b.isPresent || a.status.isZero != b.status.isZero {
        return .statusDiffers(position)
      }
      if !(a.status.isZero && b.status.isZero) {
        count = min(count, UInt64(buffers.0.byteCount))
        try read(first, a, position, count, buffers.0)
        try read(second, b, position, count, buffers.1)
        if let difference = HostBytes.firstDifference(buffers.0.base, buffers.1.base, Int(count)) {
          return .contentDiffers(position + UInt64(difference))
        }
      }
      position += count
      progress(Double(position) / Double(max(sizes.0, sizes.1)))
    }
    // What one image has more must be zeros.
    let longer = sizes.0 > sizes.1 ? first : second
    while position < max(sizes.0, sizes.1) {
      let status = try longer.chainStatus(at: position, byteCount: longer.node.byteCount - position)
      var count = status.status.byteCount
      if !status.status.isZero {
        count = min(count, UInt64(buffers.0.byteCount))
        try longer.node.read(at: position, into: [buffers.0.io(0, Int(count))])
        if !HostBytes.isZero(buffers.0.base, Int(count)) {
          let offset = buffers.0.bytes.firstIndex { $0 != 0 } ?? 0
          return .contentDiffers(position + UInt64(offset))
        }
      }
      position += count
      progress(Double(position) / Double(max(sizes.0, sizes.1)))
    }
    return .equal
  }

  private func read(
    _ image: OpenedImage, _ status: OpenedImage.ChainStatus, _ offset: UInt64, _ count: UInt64,
    _ buffer: HostBuffer
  )
    throws(BlockError)
  {
    if status.status.isZero { return buffer.io(0, Int(count)).clear() }
    try image.node.read(at: offset, into: [buffer.io(0, Int(count))])
  }
}
