import ApusDevice
import ApusHost
import ApusMemory
import Synchronization

/// One bank of NOR flash with the Intel command set [JESD68.01 CFI, Intel 28F128J3 data sheet]: two 16-bit chips side
/// by side, 32 MiB with 256 KiB blocks.
///
/// A ROM device: in array mode loads go to the RAM `array` that lies over this region, so guests execute from it at
/// full speed; a command hides the RAM until the guest returns to array mode. Any thread.
///
/// As QEMU has it, programming replaces bytes instead of clearing bits, and commands go by their low byte to both
/// chips. Not modelled: suspended operations, the protection register, the time that operations take.
public final class CFIFlash: MMIODevice {
  public static let blockByteCount = 256 << 10
  /// Most that one buffered program takes: 2 KiB a chip.
  static let bufferByteCount = 4 << 10
  static let bankWidth = 4

  private enum Mode: Equatable {
    case array, status, identifier, query
    /// Awaiting the second cycle of a command.
    case programSetup, eraseSetup, lockSetup, bufferCount
    case bufferData(remaining: Int)
    case bufferConfirm
  }
  private struct State {
    var mode = Mode.array
    var status = Status.ready
    var locked: [Bool]
    /// What the buffered program in progress has gathered.
    var buffer: [(offset: Int, byteCount: Int, value: UInt64)] = []
  }
  private enum Status {
    static let ready: UInt8 = 0x80
    static let eraseError: UInt8 = 0x20
    static let programError: UInt8 = 0x10
    static let locked: UInt8 = 0x02
  }
  private let state: Mutex<State>
  private let space: AddressSpace
  private let array: GuestRAM
  private let backing: Backing?

  /// The file that the content comes from and goes to.
  public final class Backing: Sendable {
    public let path: String
    let descriptor: Int32
    public let isReadOnly: Bool

    /// Opens `path`; its size must be `byteCount`.
    public init(path: String, isReadOnly: Bool) throws(HostError) {
      (self.path, self.isReadOnly) = (path, isReadOnly)
      descriptor = try HostDescriptor.open(path, isReadOnly ? .read : .readWrite)
    }
    deinit { HostDescriptor.close(descriptor) }
    public func byteCount() throws(HostError) -> UInt64 { try HostDescriptor.byteCount(descriptor) }
  }

  /// - Parameters:
  ///   - array: the bank's content, read-only RAM at the bank's place in `space`, filled by the caller.
  ///   - backing: where changes are written to at once; `nil`: they are lost at the end.
  public init(space: AddressSpace, array: GuestRAM, backing: Backing?) {
    (self.space, self.array, self.backing) = (space, array, backing)
    state = Mutex(State(locked: Array(repeating: false, count: Int(array.byteCount) / Self.blockByteCount)))
  }

  /// Back to array mode; the content stays.
  public func reset() {
    state.withLock { state in
      (state.mode, state.status, state.buffer) = (.array, Status.ready, [])
      for index in state.locked.indices { state.locked[index] = false }
      space.setHidden(array, false)
    }
  }

  // MARK: Reads

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    let offset = Int(offset)
    guard offset + byteCount <= Int(array.byteCount) else { return 0 }
    return state.withLock { state in
      switch state.mode {
      case .array:  // the vCPU was on its way when the mode changed
        var value: UInt64 = 0
        withUnsafeMutableBytes(of: &value) {
          $0.baseAddress!.copyMemory(from: array.host + offset, byteCount: byteCount)
        }
        return value
      case .identifier: return lanes(offset, byteCount) { identifier($0, state) }
      case .query:
        return lanes(offset, byteCount) { UInt8($0 < Self.queryTable.count ? Self.queryTable[$0] : 0) }
      default: return lanes(offset, byteCount) { _ in state.status }
      }
    }
  }

  /// Each chip gives a byte in the low half of its lane, by bank-wide word.
  private func lanes(_ offset: Int, _ byteCount: Int, _ byte: (Int) -> UInt8) -> UInt64 {
    var value: UInt64 = 0
    for index in 0..<byteCount where (offset + index) % 2 == 0 {
      value |= UInt64(byte((offset + index) / Self.bankWidth)) << UInt64(8 * index)
    }
    return value
  }

  private func identifier(_ word: Int, _ state: State) -> UInt8 {
    let wordsPerBlock = Self.blockByteCount / Self.bankWidth
    switch word % wordsPerBlock {
    case 0: return 0x89  // Intel
    case 1: return 0x18
    case 2: return state.locked[word / wordsPerBlock] ? 1 : 0
    default: return 0
    }
  }

  /// The CFI table, by word address, as one 16 MiB chip gives it.
  private static let queryTable: [UInt8] = {
    var table = [UInt8](repeating: 0, count: 0x40)
    let general: [UInt8] = [
      0x51, 0x52, 0x59,  // "QRY"
      0x01, 0x00, 0x31, 0x00,  // Intel command set, its table at 0x31
      0, 0, 0, 0,  // no second command set
      0x45, 0x55, 0x00, 0x00,  // VCC 4.5-5.5 V, no VPP
      0x07, 0x07, 0x0a, 0x00,  // typical times: 2^7 µs word and buffer, 2^10 ms block
      0x04, 0x04, 0x04, 0x00,  // their maxima
      0x18, 0x02, 0x00,  // 2^24 bytes, x8/x16 interface
      0x0b, 0x00,  // 2^11 bytes of buffer
      0x01, 0x7f, 0x00, 0x00, 0x02,  // one region: 128 blocks of 512 * 256 bytes
    ]
    table.replaceSubrange(0x10..<0x10 + general.count, with: general)
    let primary: [UInt8] = [0x50, 0x52, 0x49, 0x31, 0x30]  // "PRI", version 1.0
    table.replaceSubrange(0x31..<0x31 + primary.count, with: primary)
    table[0x3f] = 1  // one protection field
    return table
  }()

  // MARK: Writes

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    let offset = Int(offset)
    guard offset + byteCount <= Int(array.byteCount) else { return }
    state.withLock { state in
      step(&state, offset, byteCount, value)
      space.setHidden(array, state.mode != .array)
    }
  }

  private func step(_ state: inout State, _ offset: Int, _ byteCount: Int, _ value: UInt64) {
    let command = UInt8(truncatingIfNeeded: value)
    switch state.mode {
    case .array, .status, .identifier, .query: begin(&state, command)
    case .programSetup:
      program(&state, [(offset, byteCount, value)])
      state.mode = .status
    case .eraseSetup:
      if command == 0xd0 { erase(&state, offset / Self.blockByteCount) }
      state.mode = command == 0xff ? .array : .status
    case .lockSetup:
      switch command {
      case 0x01: state.locked[offset / Self.blockByteCount] = true
      case 0xd0: state.locked[offset / Self.blockByteCount] = false
      default: break
      }
      state.mode = command == 0x01 || command == 0xd0 ? .status : .array
    case .bufferCount:
      let count = Int(value & 0xffff) + 1
      state.buffer = []
      if count * Self.bankWidth > Self.bufferByteCount {
        state.status |= Status.programError | Status.eraseError
        state.mode = .status
      } else {
        state.mode = .bufferData(remaining: count)
      }
    case .bufferData(let remaining):
      state.buffer.append((offset, byteCount, value))
      state.mode = remaining > 1 ? .bufferData(remaining: remaining - 1) : .bufferConfirm
    case .bufferConfirm:
      if command == 0xd0 {
        program(&state, state.buffer)
      } else {
        state.status |= Status.programError | Status.eraseError
      }
      state.buffer = []
      state.mode = .status
    }
  }

  private func begin(_ state: inout State, _ command: UInt8) {
    switch command {
    case 0x10, 0x40: state.mode = .programSetup
    case 0x20, 0x28: state.mode = .eraseSetup
    case 0x50:
      state.status = Status.ready
      state.mode = .array
    case 0x60: state.mode = .lockSetup
    case 0x70, 0xb0, 0xd0: state.mode = .status
    case 0x90: state.mode = .identifier
    case 0x98: state.mode = .query
    case 0xe8: state.mode = .bufferCount
    case 0x00, 0xff: state.mode = .array
    default:
      GuestErrorTrace.report("pflash", "unknown command 0x\(String(command, radix: 16))")
      state.mode = .array
    }
  }

  private func program(_ state: inout State, _ writes: [(offset: Int, byteCount: Int, value: UInt64)]) {
    guard backing?.isReadOnly != true else {
      state.status |= Status.programError
      return
    }
    for write in writes {
      if state.locked[write.offset / Self.blockByteCount] {
        state.status |= Status.programError | Status.locked
        continue
      }
      withUnsafeBytes(of: write.value) {
        (array.host + write.offset).copyMemory(from: $0.baseAddress!, byteCount: write.byteCount)
      }
      changed(&state, write.offset, write.byteCount, Status.programError)
    }
  }

  private func erase(_ state: inout State, _ block: Int) {
    if state.locked[block] || backing?.isReadOnly == true {
      state.status |= Status.eraseError | (state.locked[block] ? Status.locked : 0)
      return
    }
    let offset = block * Self.blockByteCount
    (array.host + offset).initializeMemory(as: UInt8.self, repeating: 0xff, count: Self.blockByteCount)
    changed(&state, offset, Self.blockByteCount, Status.eraseError)
  }

  /// Translated code is dropped, and the file follows at once.
  private func changed(_ state: inout State, _ offset: Int, _ byteCount: Int, _ errorBit: UInt8) {
    space.noteDMAWrite(array.base + UInt64(offset), UInt64(byteCount))
    guard let backing else { return }
    do throws(HostError) {
      try HostDescriptor.write(
        backing.descriptor, UnsafeRawBufferPointer(start: array.host + offset, count: byteCount),
        at: UInt64(offset))
    } catch { state.status |= errorBit }
  }
}
