import ApusBlock
import ApusDevice
import ApusHost
import Synchronization

/// A memory card on an SD bus, over a `BlockNode` [SD-Phys 9.00].
///
/// Its host calls it from one thread at a time; completions come on the node's threads. Requests to the node go one after the
/// other. Cards up to 2 GiB are SDSC, larger ones SDHC or SDXC. Not modelled: SPI mode, UHS modes and 1.8 V, write protection
/// by groups, locking, block lengths other than 512, CRCs of data.
public final class SDCard: Sendable {
  public static let blockByteCount = 512

  /// What a command brings on the command line.
  enum Response: Equatable {
    /// No answer: the host times out.
    case none
    /// R1, R3, R6, R7: a word. R1b is one too: the card is busy while `isBusy`.
    case short(UInt32)
    /// R2: 128 bits, the highest word first.
    case long([UInt32])
  }
  /// The states of CURRENT_STATE [§4.10.1]. Programming is `transfer` with a request under way.
  enum Phase: UInt32, Equatable {
    case idle = 0
    case ready, identification, standby, transfer, data, receive
    case inactive = 15
  }
  /// What the data lines are about to carry.
  enum Transfer: Equatable {
    case none
    /// A register's bytes.
    case register([UInt8])
    /// Blocks from a byte offset on.
    case read(UInt64)
    case write(UInt64)
  }

  struct State {
    var phase = Phase.idle
    var address: UInt16 = 0
    /// Bits of the card status that were set and not reported yet.
    var status: UInt32 = 0
    var expectsApplicationCommand = false
    var transfer = Transfer.none
    /// The transfer goes on until CMD12, or for as many blocks as CMD23 announced.
    var isMultiple = false
    var announcedBlocks: UInt32 = 0
    var writtenBlocks: UInt32 = 0
    var erase: (start: UInt64?, end: UInt64?) = (nil, nil)
    var isWide = false
    var isHighSpeed = false
    /// Requests to the node, the first of them under way.
    var requests: [@Sendable () -> Void] = []
  }
  let state = Mutex(State())
  let node: any BlockNode
  private let becameReady = Mutex<[@Sendable () -> Void]>([])

  /// `nil` if the node's size is none that a card can have: a power of two from 1 MiB to 2 TiB.
  public init?(_ node: any BlockNode) {
    let size = node.byteCount
    guard size >= 1 << 20, size <= 2 << 40, size & (size - 1) == 0 else { return nil }
    self.node = node
  }

  /// Adds to what is called, on the node's thread, when the card is not busy any more.
  func onReady(_ body: @escaping @Sendable () -> Void) { becameReady.withLock { $0.append(body) } }

  /// Power off and on.
  public func reset() {
    state.withLock { state in
      let requests = state.requests
      state = State()
      state.requests = requests
    }
  }

  /// Addresses count blocks instead of bytes [§4.3.14].
  var isHighCapacity: Bool { node.byteCount > 2 << 30 }

  /// A request to the node is under way.
  var isBusy: Bool { state.withLock { !$0.requests.isEmpty } }

  // MARK: Requests to the node

  /// Runs `body` behind the requests before it; it ends with `finished`.
  private func enqueue(_ body: @escaping @Sendable () -> Void) {
    let isFirst = state.withLock { state in
      state.requests.append(body)
      return state.requests.count == 1
    }
    if isFirst { body() }
  }

  private func finished() {
    let next = state.withLock { state in
      state.requests.removeFirst()
      return state.requests.first
    }
    guard next == nil else { return next?() ?? () }
    for body in becameReady.withLock({ $0 }) { body() }
  }

  func note(_ bit: UInt32) { state.withLock { $0.status |= bit } }

  /// Reads the next `count` bytes of the transfer at hand; `nil` for an error.
  func readData(_ count: Int, _ completion: @escaping @Sendable ([UInt8]?) -> Void) {
    let transfer = state.withLock { state -> Transfer in
      let transfer = state.transfer
      switch transfer {
      case .read(let offset): state.transfer = .read(offset + UInt64(count))
      case .register(let bytes): state.transfer = .register(Array(bytes.dropFirst(count)))
      case .write, .none: break
      }
      return transfer
    }
    switch transfer {
    case .register(let bytes):
      completion(Array(bytes.prefix(count)) + [UInt8](repeating: 0, count: max(0, count - bytes.count)))
    case .read(let offset):
      guard count > 0, node.contains(offset: offset, count: UInt64(count)) else {
        note(Status.outOfRange)
        return completion(nil)
      }
      let buffer = HostBuffer(byteCount: count, isZeroed: false)
      enqueue { [self] in
        node.read(offset: offset, into: [buffer.io]) { [self] error in
          if error != nil { note(Status.error) }
          completion(error == nil ? buffer.array() : nil)
          finished()
        }
      }
    case .write, .none: completion(nil)
    }
  }

  /// Takes the next blocks of the transfer at hand; false where they cannot be written.
  func writeData(_ bytes: [UInt8], _ completion: @escaping @Sendable (Bool) -> Void) {
    let offset = state.withLock { state -> UInt64? in
      guard case .write(let offset) = state.transfer else { return nil }
      state.transfer = .write(offset + UInt64(bytes.count))
      state.writtenBlocks &+= UInt32(bytes.count / Self.blockByteCount)
      return offset
    }
    guard let offset, !bytes.isEmpty, !node.isReadOnly,
      node.contains(offset: offset, count: UInt64(bytes.count))
    else {
      note(offset == nil ? Status.error : node.isReadOnly ? Status.writeProtected : Status.outOfRange)
      return completion(false)
    }
    let buffer = HostBuffer(bytes)
    enqueue { [self] in
      node.write(offset: offset, from: [buffer.io], forceUnitAccess: !node.hasWriteCache) { [self] error in
        if error != nil { note(Status.error) }
        withExtendedLifetime(buffer) {}
        completion(error == nil)
        finished()
      }
    }
  }

  /// Makes a range read as zeros.
  func eraseData(_ offset: UInt64, _ count: UInt64) {
    enqueue { [self] in
      node.writeZeroes(offset: offset, byteCount: count, mayUnmap: true) { [self] error in
        if error != nil { note(Status.error) }
        finished()
      }
    }
  }

  /// The host has moved `blockCount` blocks. A transfer of known length ends by itself.
  func endTransfer(blockCount: Int) {
    state.withLock { state in
      guard state.phase == .data || state.phase == .receive else { return }
      guard !state.isMultiple || state.announcedBlocks > 0 && blockCount >= Int(state.announcedBlocks) else {
        return
      }
      (state.phase, state.transfer, state.announcedBlocks) = (.transfer, .none, 0)
    }
  }

  /// Card status [§4.10.1].
  enum Status {
    static let outOfRange: UInt32 = 1 << 31
    static let addressError: UInt32 = 1 << 30
    static let blockLengthError: UInt32 = 1 << 29
    static let eraseSequenceError: UInt32 = 1 << 28
    static let eraseParameter: UInt32 = 1 << 27
    static let writeProtected: UInt32 = 1 << 26
    static let illegalCommand: UInt32 = 1 << 22
    static let error: UInt32 = 1 << 19
    static let readyForData: UInt32 = 1 << 8
    static let applicationCommand: UInt32 = 1 << 5
  }
}
