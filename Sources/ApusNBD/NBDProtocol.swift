import ApusBlock
import ApusHost

/// Numbers of the network block device protocol [NBD]. All fields are big endian.
enum NBD {
  static let magic: UInt64 = 0x4e42_444d_4147_4943
  static let optionMagic: UInt64 = 0x4948_4156_454f_5054
  static let optionReplyMagic: UInt64 = 0x0003_e889_0455_65a9
  static let requestMagic: UInt32 = 0x2560_9513
  static let extendedRequestMagic: UInt32 = 0x21e4_1c71
  static let simpleReplyMagic: UInt32 = 0x6744_6698
  static let structuredReplyMagic: UInt32 = 0x668e_33ef
  static let extendedReplyMagic: UInt32 = 0x6e8a_278c

  enum Option {
    static let exportName: UInt32 = 1
    static let abort: UInt32 = 2
    static let list: UInt32 = 3
    static let startTLS: UInt32 = 5
    static let info: UInt32 = 6
    static let go: UInt32 = 7
    static let structuredReply: UInt32 = 8
    static let listMetaContext: UInt32 = 9
    static let setMetaContext: UInt32 = 10
    static let extendedHeaders: UInt32 = 11
  }
  enum Reply {
    static let ack: UInt32 = 1
    static let server: UInt32 = 2
    static let info: UInt32 = 3
    static let metaContext: UInt32 = 4
    static let unsupported: UInt32 = 1 << 31 | 1
    static let policy: UInt32 = 1 << 31 | 2
    static let invalid: UInt32 = 1 << 31 | 3
    static let needsTLS: UInt32 = 1 << 31 | 5
    static let unknown: UInt32 = 1 << 31 | 6
    static let tooBig: UInt32 = 1 << 31 | 9
    static let extendedHeadersRequired: UInt32 = 1 << 31 | 10
  }
  enum Info {
    static let export: UInt16 = 0
    static let name: UInt16 = 1
    static let description: UInt16 = 2
    static let blockSize: UInt16 = 3
  }
  enum ExportFlag {
    static let hasFlags: UInt16 = 1 << 0
    static let readOnly: UInt16 = 1 << 1
    static let flush: UInt16 = 1 << 2
    static let forceUnitAccess: UInt16 = 1 << 3
    static let trim: UInt16 = 1 << 5
    static let writeZeroes: UInt16 = 1 << 6
    static let doNotFragment: UInt16 = 1 << 7
    static let multiConnection: UInt16 = 1 << 8
    static let cache: UInt16 = 1 << 10
  }
  enum Command {
    static let read: UInt16 = 0
    static let write: UInt16 = 1
    static let disconnect: UInt16 = 2
    static let flush: UInt16 = 3
    static let trim: UInt16 = 4
    static let cache: UInt16 = 5
    static let writeZeroes: UInt16 = 6
    static let blockStatus: UInt16 = 7
  }
  enum CommandFlag {
    static let forceUnitAccess: UInt16 = 1 << 0
    static let noHole: UInt16 = 1 << 1
    static let doNotFragment: UInt16 = 1 << 2
    static let one: UInt16 = 1 << 3
    static let fastZero: UInt16 = 1 << 4
    static let payload: UInt16 = 1 << 5
  }
  enum Chunk {
    static let done: UInt16 = 1
    static let none: UInt16 = 0
    static let data: UInt16 = 1
    static let hole: UInt16 = 2
    static let blockStatus: UInt16 = 5
    static let blockStatusExtended: UInt16 = 6
    static let error: UInt16 = 1 << 15 | 1
  }
  enum Errno {
    static let notPermitted: UInt32 = 1
    static let io: UInt32 = 5
    static let invalid: UInt32 = 22
    static let noSpace: UInt32 = 28
    static let overflow: UInt32 = 75
    static let unsupported: UInt32 = 95
    static let shutdown: UInt32 = 108
  }
  static let baseAllocation = "base:allocation"
  static let allocationDepth = "qemu:allocation-depth"
  static let dirtyBitmap = "qemu:dirty-bitmap:"

  /// The most that one request may carry, in bytes.
  static let maximumPayload = 32 << 20

  /// The number that a peer gets for a failure.
  static func errorNumber(_ error: BlockError) -> UInt32 {
    switch error.kind {
    case .io, .locked: Errno.io
    case .noSpace: Errno.noSpace
    case .readOnly: Errno.notPermitted
    case .outOfRange, .invalid: Errno.invalid
    case .unsupported: Errno.unsupported
    }
  }
  static func error(_ number: UInt32, _ what: String) -> BlockError {
    let kind: BlockError.Kind =
      number == Errno.noSpace
      ? .noSpace
      : number == Errno.notPermitted
        ? .readOnly
        : number == Errno.unsupported ? .unsupported : .io
    return BlockError(kind, "the NBD server refused to \(what) (error \(number))")
  }
}

/// Bytes of a message in the making or being read.
struct NBDBytes {
  var bytes: [UInt8] = []
  private var position = 0
  init(_ bytes: [UInt8] = []) { self.bytes = bytes }

  mutating func append<T: FixedWidthInteger>(_ value: T) {
    for shift in stride(from: T.bitWidth - 8, through: 0, by: -8) {
      bytes.append(UInt8(truncatingIfNeeded: value >> T(shift)))
    }
  }
  mutating func append(_ text: String) { bytes += Array(text.utf8) }

  /// The next field; `nil` if the message ends before.
  mutating func take<T: FixedWidthInteger>(_ type: T.Type) -> T? {
    let count = T.bitWidth / 8
    guard bytes.count - position >= count else { return nil }
    var value: T = 0
    for byte in bytes[position..<position + count] { value = value << 8 | T(truncatingIfNeeded: byte) }
    position += count
    return value
  }
  mutating func takeText(_ count: Int) -> String? {
    guard count >= 0, bytes.count - position >= count else { return nil }
    defer { position += count }
    return String(decoding: bytes[position..<position + count], as: UTF8.self)
  }
  var isAtEnd: Bool { position == bytes.count }
}
