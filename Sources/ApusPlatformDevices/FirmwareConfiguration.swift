import ApusDevice
import ApusMemory
import Synchronization

/// QEMU's firmware configuration device: named blobs for the guest's firmware [QEMU docs/specs/fw_cfg].
///
/// ```
/// 0x00  data, 8 bytes: bytes of the selected item in order     0x08  selector, 16 bits big-endian
/// 0x10  DMA address, 64 bits big-endian; its low half, or all of it, starts the transfer; reads "QEMU CFG"
/// ```
/// Any thread. Items are fixed before the machine starts. Not modelled: writable items (writes by DMA are refused).
public final class FirmwareConfiguration: MMIODevice {
  public static let byteCount: UInt64 = 0x18

  /// Well-known keys.
  public enum Key {
    public static let signature: UInt16 = 0x00
    public static let identifier: UInt16 = 0x01
    public static let uuid: UInt16 = 0x02
    public static let ramSize: UInt16 = 0x03
    public static let cpuCount: UInt16 = 0x05
    public static let kernelAddress: UInt16 = 0x07
    public static let kernelSize: UInt16 = 0x08
    public static let initrdAddress: UInt16 = 0x0a
    public static let initrdSize: UInt16 = 0x0b
    public static let maximumCPUCount: UInt16 = 0x0f
    public static let kernelData: UInt16 = 0x11
    public static let initrdData: UInt16 = 0x12
    public static let commandLineSize: UInt16 = 0x14
    public static let commandLineData: UInt16 = 0x15
    public static let fileDirectory: UInt16 = 0x19
    public static let firstFile: UInt16 = 0x20
  }

  struct State {
    var items: [UInt16: [UInt8]] = [:]
    /// Files, sorted by name when the directory is read.
    var files: [String: [UInt8]] = [:]
    var selected: UInt16 = 0
    var position = 0
    var dmaAddress: UInt64 = 0
  }
  private let state = Mutex(State())
  private let space: AddressSpace

  /// - Parameter space: what DMA goes to.
  public init(_ space: AddressSpace) {
    self.space = space
    set(Key.signature, Array("QEMU".utf8))
    set(Key.identifier, [3, 0, 0, 0])  // the traditional interface and DMA
    rebuildDirectory()
  }

  /// Sets an item by key.
  public func set(_ key: UInt16, _ bytes: [UInt8]) { state.withLock { $0.items[key] = bytes } }

  /// Sets an item to a little-endian integer.
  public func set<T: FixedWidthInteger & UnsignedInteger>(_ key: UInt16, integer: T) {
    set(key, (0..<MemoryLayout<T>.size).map { UInt8(truncatingIfNeeded: integer >> T(8 * $0)) })
  }

  /// Adds or replaces a file; false if its name is longer than 55 bytes or not ASCII.
  @discardableResult
  public func addFile(_ name: String, _ bytes: [UInt8]) -> Bool {
    guard !name.isEmpty, name.utf8.count <= 55, name.utf8.allSatisfy({ $0 > 0x20 && $0 < 0x7f }) else {
      return false
    }
    state.withLock { $0.files[name] = bytes }
    rebuildDirectory()
    return true
  }

  /// Keys go to files in the order of their names.
  private func rebuildDirectory() {
    state.withLock { state in
      let names = state.files.keys.sorted()
      var directory = Self.bigEndian(UInt32(names.count))
      for (index, name) in names.enumerated() {
        let key = Key.firstFile + UInt16(index)
        let bytes = state.files[name] ?? []
        state.items[key] = bytes
        directory += Self.bigEndian(UInt32(bytes.count)) + Self.bigEndian(key) + [0, 0]
        directory += Array(name.utf8) + [UInt8](repeating: 0, count: 56 - name.utf8.count)
      }
      state.items[Key.fileDirectory] = directory
    }
  }

  private static func bigEndian<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
    withUnsafeBytes(of: value.bigEndian) { Array($0) }
  }

  public func reset() {
    state.withLock { state in
      (state.selected, state.position, state.dmaAddress) = (0, 0, 0)
    }
  }

  // MARK: Registers

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    switch offset {
    case 0..<8:
      return state.withLock { state in
        var value: UInt64 = 0
        for index in 0..<byteCount { value |= UInt64(Self.nextByte(&state)) << UInt64(8 * index) }
        return value
      }
    case 0x10..<0x18:
      // "QEMU CFG", first character in the first byte.
      let signature: UInt64 = 0x4746_4320_554d_4551
      let value = signature >> (8 * (offset - 0x10))
      return byteCount == 8 ? value : value & ((1 << UInt64(8 * byteCount)) - 1)
    default: return 0
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    switch (offset, byteCount) {
    case (8, 2):
      state.withLock { state in
        state.selected = UInt16(truncatingIfNeeded: value).byteSwapped
        state.position = 0
      }
    case (0x10, 8): transfer(at: value.byteSwapped)
    case (0x10, 4):
      state.withLock { $0.dmaAddress = UInt64(UInt32(truncatingIfNeeded: value).byteSwapped) << 32 }
    case (0x14, 4):
      let low = UInt64(UInt32(truncatingIfNeeded: value).byteSwapped)
      let address = state.withLock { state in
        defer { state.dmaAddress = 0 }
        return state.dmaAddress | low
      }
      transfer(at: address)
    default:
      GuestErrorTrace.report("fw_cfg", "write of \(byteCount) bytes at offset 0x\(String(offset, radix: 16))")
    }
  }

  /// Past its end, and without an item, there are zeros.
  private static func nextByte(_ state: inout State) -> UInt8 {
    guard let item = state.items[state.selected & 0xbfff], state.position < item.count else { return 0 }
    defer { state.position += 1 }
    return item[state.position]
  }

  // MARK: DMA

  /// Carries out the request at `address`: control, length (32 bits each), address (64 bits), all big-endian.
  private func transfer(at address: UInt64) {
    let request = GuestPhysicalAddress(address)
    guard let control = space.loadInteger(request, as: UInt32.self)?.byteSwapped,
      let length = space.loadInteger(request + 4, as: UInt32.self)?.byteSwapped,
      let target = space.loadInteger(request + 8, as: UInt64.self)?.byteSwapped
    else {
      GuestErrorTrace.report(
        "fw_cfg", "DMA request at 0x\(String(address, radix: 16)), where there is no RAM")
      return
    }
    let succeeded = state.withLock { state in
      if control & 8 != 0 {
        state.selected = UInt16(control >> 16)
        state.position = 0
      }
      if control & 2 != 0 { return read(&state, GuestPhysicalAddress(target), Int(length)) }
      if control & 16 != 0 { return false }
      if control & 4 != 0 {
        let count = state.items[state.selected & 0xbfff]?.count ?? 0
        state.position = min(state.position + Int(length), count)
      }
      return true
    }
    _ = space.storeInteger(request, (succeeded ? UInt32(0) : 1).byteSwapped)
  }

  private func read(_ state: inout State, _ target: GuestPhysicalAddress, _ count: Int) -> Bool {
    guard count > 0 else { return true }
    // All or nothing; a length that no RAM can hold costs nothing.
    guard space.ramPointer(target, UInt64(count)) != nil else { return false }
    let item = state.items[state.selected & 0xbfff] ?? []
    let start = min(state.position, item.count)
    let available = min(count, item.count - start)
    let written = item.withUnsafeBytes {
      space.write(target, from: UnsafeRawBufferPointer(rebasing: $0[start..<start + available]))
    }
    guard written else { return false }
    state.position += available
    let zeros = [UInt8](repeating: 0, count: min(count - available, 65536))
    var done = available
    while done < count {
      let step = min(zeros.count, count - done)
      guard
        zeros.withUnsafeBytes({
          space.write(target + UInt64(done), from: UnsafeRawBufferPointer(rebasing: $0[..<step]))
        })
      else { return false }
      done += step
    }
    return true
  }
}
