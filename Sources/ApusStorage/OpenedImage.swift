import ApusBlock
import ApusConfig
import ApusQcow2

/// A node of the block graph with what users know it by.
public final class OpenedImage: Sendable {
  public let node: any ImageNode
  /// The name it was opened with, as users give it.
  public let filename: String
  /// The format's or protocol's name.
  public let format: String
  /// The image that answers what this one leaves open.
  public let backing: OpenedImage?
  /// The backing file's name as the image has it.
  public let backingFilename: String?

  public init(
    _ node: any ImageNode, filename: String, format: String, backing: OpenedImage? = nil,
    backingFilename: String? = nil
  ) {
    (self.node, self.filename, self.format) = (node, filename, format)
    (self.backing, self.backingFilename) = (backing, backingFilename)
  }

  public var qcow2: Qcow2Image? { ((node as? DetectZeroesNode)?.file ?? node) as? Qcow2Image }

  /// The image with `detect-zeroes=` on top: `on`, `unmap`, or `off` or `nil`, which change nothing.
  public func detectingZeroes(_ mode: String?) -> OpenedImage {
    guard let mode, mode != "off" else { return self }
    return OpenedImage(
      DetectZeroesNode(node, mayUnmap: mode == "unmap"), filename: filename, format: format, backing: backing,
      backingFilename: backingFilename)
  }
  /// This image and those behind it, the front one first.
  public var chain: [OpenedImage] {
    var result = [self]
    while let next = result[result.count - 1].backing { result.append(next) }
    return result
  }

  /// What a range of the chain is.
  public struct ChainStatus: Sendable, Equatable {
    public var status: BlockStatus
    /// Which image of the chain decides: 0 is the front one.
    public var depth: Int
    /// Whether some image has the range allocated.
    public var isPresent: Bool
  }

  /// Describes the range from `offset`, looking through the chain down to `bottom` (not included).
  public func chainStatus(at offset: UInt64, byteCount: UInt64, downTo bottom: OpenedImage? = nil)
    throws(BlockError) -> ChainStatus
  {
    var image = self
    var depth = 0
    var limit = byteCount
    while true {
      if offset >= image.node.byteCount {
        // Behind the end of a shorter backing file.
        let status = BlockStatus(byteCount: limit, isZero: true, isData: false, isAllocated: false)
        return ChainStatus(status: status, depth: 0, isPresent: false)
      }
      let inside = min(limit, image.node.byteCount - offset)
      var status = try image.node.status(at: offset, byteCount: inside)
      limit = min(limit, status.byteCount)
      if status.isAllocated { return ChainStatus(status: status, depth: depth, isPresent: true) }
      guard let next = image.backing, next !== bottom else {
        // What a node that has no backing file leaves open is not known (an NBD server's holes).
        if image.backing == nil, image.node.supportsBacking { status.isZero = true }
        status.byteCount = limit
        return ChainStatus(status: status, depth: depth, isPresent: false)
      }
      image = next
      depth += 1
    }
  }
}

/// A refused option or a failed operation of a tool: a sentence for the user.
public struct StorageError: Error, CustomStringConvertible, Equatable {
  public var description: String
  public init(_ description: String) { self.description = description }
  public init(_ error: BlockError) { description = error.description }
  public init(_ error: ConfigurationError) { description = error.description }
}
