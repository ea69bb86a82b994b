import ApusBits
import ApusMemory

/// Why a file cannot be loaded into the guest.
public enum LoaderError: Error, Equatable, CustomStringConvertible {
  /// The file is damaged or of another kind.
  case format(path: String, reason: String)
  /// The file does not fit where it has to go.
  case noRoom(path: String, byteCount: UInt64, address: UInt64, reason: String)

  public var description: String {
    switch self {
    case .format(let path, let reason): "cannot load '\(path)': \(reason)"
    case .noRoom(let path, let byteCount, let address, let reason):
      "cannot load '\(path)' (\(byteCount) bytes) at 0x\(String(address, radix: 16)): \(reason)"
    }
  }
}

/// Where something was loaded.
public struct LoadedImage: Equatable, Sendable {
  public var entry: UInt64
  /// The lowest and the first address past the highest byte that it occupies.
  public var low: UInt64
  public var high: UInt64
  public init(entry: UInt64, low: UInt64, high: UInt64) {
    (self.entry, self.low, self.high) = (entry, low, high)
  }
}

/// A 64-bit little-endian ELF executable [ELF-64 1.5].
public struct ELFImage: Equatable, Sendable {
  /// The machine number of RISC-V.
  public static let machineRISCV: UInt16 = 243
  public static let machineAArch64: UInt16 = 183

  /// A loadable segment; bytes past the file's are zeros.
  public struct Segment: Equatable, Sendable {
    public var virtualAddress: UInt64
    public var physicalAddress: UInt64
    public var fileRange: Range<Int>
    public var memoryByteCount: UInt64
  }
  /// As the header has it: a virtual address in kernels.
  public var entry: UInt64
  public var segments: [Segment] = []

  public static func hasMagic(_ bytes: [UInt8]) -> Bool { bytes.starts(with: [0x7f, 0x45, 0x4c, 0x46]) }

  /// Reads the headers. `path` is for messages.
  public init(parsing bytes: [UInt8], machine: UInt16, path: String) throws(LoaderError) {
    func refuse(_ reason: String) -> LoaderError { .format(path: path, reason: reason) }
    guard Self.hasMagic(bytes) else { throw refuse("it is no ELF file") }
    guard bytes.count >= 64 else { throw refuse("it ends inside the ELF header") }
    guard bytes[4] == 2 else { throw refuse("it is a 32-bit ELF file, and the machine is 64-bit") }
    guard bytes[5] == 1 else { throw refuse("it is a big-endian ELF file, and the machine is little-endian") }
    // All of these lie inside the 64 bytes.
    func half(_ offset: Int) -> UInt16 { bytes.littleEndian(at: offset) ?? 0 }
    func wide(_ offset: Int) -> UInt64 { bytes.littleEndian(at: offset) ?? 0 }
    let type = half(16)
    guard type == 2 || type == 3 else {
      throw refuse("its ELF type is \(type), not an executable's (2 or 3)")
    }
    guard half(18) == machine else {
      throw refuse("it is for ELF machine \(half(18)), and this machine needs \(machine)")
    }
    entry = wide(24)
    let tableOffset = wide(32)
    let entrySize = Int(half(54))
    let entryCount = Int(half(56))
    guard entryCount > 0 else { throw refuse("it has no program headers") }
    guard entrySize >= 56 else { throw refuse("its program headers have \(entrySize) bytes, not 56") }
    guard tableOffset <= UInt64(bytes.count), entryCount * entrySize <= bytes.count - Int(tableOffset) else {
      throw refuse("its program headers lie outside the file")
    }
    for index in 0..<entryCount {
      let header = Int(tableOffset) + index * entrySize
      guard (bytes.littleEndian(at: header) ?? 0 as UInt32) == 1 else { continue }
      let offset = wide(header + 8)
      let fileCount = wide(header + 32)
      let memoryCount = wide(header + 40)
      let physical = wide(header + 24)
      guard offset <= UInt64(bytes.count), fileCount <= UInt64(bytes.count) - offset else {
        throw refuse("segment \(index) lies outside the file")
      }
      guard fileCount <= memoryCount, !physical.addingReportingOverflow(memoryCount).overflow else {
        throw refuse("segment \(index) has absurd sizes")
      }
      if memoryCount == 0 { continue }
      segments.append(
        .init(
          virtualAddress: wide(header + 16), physicalAddress: physical,
          fileRange: Int(offset)..<Int(offset + fileCount), memoryByteCount: memoryCount))
    }
    guard !segments.isEmpty else { throw refuse("it has no loadable segment") }
  }

  /// The entry as a physical address: a virtual one is carried over by the segment that holds it.
  public var physicalEntry: UInt64 {
    for segment in segments where entry >= segment.virtualAddress {
      let offset = entry - segment.virtualAddress
      if offset < segment.memoryByteCount { return segment.physicalAddress &+ offset }
    }
    return entry
  }

  /// Linkers put the file's headers in front of the first segment, often in the page below RAM's start: nobody needs
  /// them there. A segment that begins with them and reaches into RAM is cut to the part in RAM.
  private func withoutHeaders(_ segment: Segment, _ space: AddressSpace) -> Segment {
    guard segment.fileRange.lowerBound == 0,
      let region = space.ram.first(where: {
        $0.base.rawValue > segment.physicalAddress
          && $0.base.rawValue - segment.physicalAddress < UInt64(segment.fileRange.count)
      })
    else { return segment }
    let cut = region.base.rawValue - segment.physicalAddress
    return .init(
      virtualAddress: segment.virtualAddress &+ cut, physicalAddress: region.base.rawValue,
      fileRange: Int(cut)..<segment.fileRange.upperBound, memoryByteCount: segment.memoryByteCount - cut)
  }

  /// Copies the segments of the file that this was parsed from into RAM.
  public func load(_ bytes: [UInt8], into space: AddressSpace, path: String) throws(LoaderError)
    -> LoadedImage
  {
    var low = UInt64.max
    var high: UInt64 = 0
    for segment in segments.map({ withoutHeaders($0, space) }) {
      let address = GuestPhysicalAddress(segment.physicalAddress)
      guard let target = space.ramPointer(address, segment.memoryByteCount) else {
        throw .noRoom(
          path: path, byteCount: segment.memoryByteCount, address: segment.physicalAddress,
          reason: "there is no RAM for this segment")
      }
      let fileCount = segment.fileRange.count
      bytes.withUnsafeBytes { file in
        if fileCount > 0 {
          target.copyMemory(from: file.baseAddress! + segment.fileRange.lowerBound, byteCount: fileCount)
        }
      }
      (target + fileCount).initializeMemory(
        as: UInt8.self, repeating: 0, count: Int(segment.memoryByteCount) - fileCount)
      space.noteDMAWrite(address, segment.memoryByteCount)
      low = min(low, segment.physicalAddress)
      high = max(high, segment.physicalAddress + segment.memoryByteCount)
    }
    return LoadedImage(entry: physicalEntry, low: low, high: high)
  }
}
