import ApusHost

/// The files that a program has open by handle, and what it does with them [Arm Semihosting 2.0 §6.1 to §6.19].
struct SemihostingFiles {
  private enum File {
    /// Standard input, output or error.
    case console(SequentialFile, isOutput: Bool)
    case host(SequentialFile)
    /// The features, with the position.
    case features(Int)
  }
  /// Whether a read of the console may wait on.
  private let goesOn: @Sendable () -> Bool
  init(goesOn: @escaping @Sendable () -> Bool) { self.goesOn = goesOn }

  /// Handle 1 is the first.
  private var files: [File?] = []
  private static let limit = 256
  /// The longest transfer of one call; programs come back for the rest.
  private static let longestTransfer: UInt64 = 256 << 20
  private static let piece = 64 << 10
  /// `:semihosting-features` [§5]: SYS_EXIT_EXTENDED, and separate standard output and error.
  static let features: [UInt8] = [0x53, 0x48, 0x46, 0x42, 0x03]

  /// fopen's modes r, rb, r+, r+b, w, ... by number.
  private static let modes: [SequentialFile.Access] = [
    [.read], [.read], [.read, .write], [.read, .write],
    [.write, .create, .truncate], [.write, .create, .truncate], [.read, .write, .create, .truncate],
    [.read, .write, .create, .truncate],
    [.write, .create, .append], [.write, .create, .append], [.read, .write, .create, .append],
    [.read, .write, .create, .append],
  ]

  mutating func perform(_ operation: Semihosting.Operation, _ block: UInt64, _ memory: SemihostingMemory)
    throws(HostError) -> UInt64
  {
    func field(_ index: UInt64) throws(HostError) -> UInt64 {
      guard let value = memory.field(block, index) else { throw .badAddress }
      return value
    }
    func name(_ index: UInt64, length: UInt64) throws(HostError) -> String {
      guard let text = memory.string(try field(index), try field(length)) else { throw .badAddress }
      return text
    }
    switch operation {
    case .open: return try open(try name(0, length: 2), mode: try field(1))
    case .close:
      _ = try file(try field(0))
      files[Int(try field(0)) - 1] = nil
      return 0
    case .write: return try write(try field(0), try field(1), try field(2), memory)
    case .read: return try read(try field(0), try field(1), try field(2), memory)
    case .isTerminal:
      switch try file(try field(0)) {
      case .console(let file, _), .host(let file): return file.isTerminal ? 1 : 0
      case .features: return 0
      }
    case .seek: return try seek(try field(0), try field(1))
    case .fileLength:
      switch try file(try field(0)) {
      case .console: throw .invalid
      case .host(let file): return try file.byteCount()
      case .features: return UInt64(Self.features.count)
      }
    case .remove:
      try SequentialFile.remove(try name(0, length: 1))
      return 0
    case .rename:
      try SequentialFile.rename(try name(0, length: 1), to: try name(2, length: 3))
      return 0
    case .temporaryName:
      let path = Array("/tmp/apus-\(HostProcess.identifier)-\(try field(1) & 0xff)".utf8) + [0]
      guard UInt64(path.count) <= (try field(2)) else { throw .tooLong }
      guard memory.write(try field(0), path) else { throw .badAddress }
      return 0
    default: preconditionFailure("an operation on no file")
    }
  }

  private func file(_ handle: UInt64) throws(HostError) -> File {
    guard handle > 0, handle <= UInt64(files.count), let file = files[Int(handle) - 1] else {
      throw .badHandle
    }
    return file
  }

  private mutating func open(_ path: String, mode: UInt64) throws(HostError) -> UInt64 {
    guard mode < UInt64(Self.modes.count) else { throw .invalid }
    let file: File
    switch path {
    case ":tt": file = .console(SequentialFile(standard: Int32(mode / 4)), isOutput: mode >= 4)
    case ":semihosting-features":
      guard mode < 2 else { throw HostError("open", path, errno: 13) }
      file = .features(0)
    default: file = .host(try SequentialFile(path: path, Self.modes[Int(mode)]))
    }
    if let free = files.firstIndex(where: { $0 == nil }) {
      files[free] = file
      return UInt64(free) + 1
    }
    guard files.count < Self.limit else { throw .tooManyFiles }
    files.append(file)
    return UInt64(files.count)
  }

  /// Returns how many bytes were not written.
  private func write(_ handle: UInt64, _ address: UInt64, _ count: UInt64, _ memory: SemihostingMemory)
    throws(HostError) -> UInt64
  {
    let file = try file(handle)
    var done: UInt64 = 0
    while done < min(count, Self.longestTransfer) {
      let step = Int(min(UInt64(Self.piece), count - done))
      guard let bytes = memory.read(address &+ done, step) else { throw .badAddress }
      let target: SequentialFile
      switch file {
      case .console(let file, true), .host(let file): target = file
      case .console, .features: throw .badHandle
      }
      let written = try target.write(bytes)
      done += UInt64(written)
      if written < step { break }
    }
    return count - done
  }

  /// Returns how many bytes were not read: all of them at the file's end.
  private mutating func read(
    _ handle: UInt64, _ address: UInt64, _ count: UInt64, _ memory: SemihostingMemory
  )
    throws(HostError) -> UInt64
  {
    let file = try file(handle)
    var done: UInt64 = 0
    while done < min(count, Self.longestTransfer) {
      let step = Int(min(UInt64(Self.piece), count - done))
      let bytes: [UInt8]
      switch file {
      case .console(let file, let isOutput):
        guard !isOutput else { throw .badHandle }
        bytes = try file.read(step, while: goesOn)
      case .host(let file): bytes = try file.read(step)
      case .features(let position):
        bytes = Array(Self.features.dropFirst(position).prefix(step))
        files[Int(handle) - 1] = .features(position + bytes.count)
      }
      guard memory.write(address &+ done, bytes) else { throw .badAddress }
      done += UInt64(bytes.count)
      if bytes.count < step { break }
    }
    return count - done
  }

  private mutating func seek(_ handle: UInt64, _ position: UInt64) throws(HostError) -> UInt64 {
    switch try file(handle) {
    case .console: throw HostError("seek", errno: 29)
    case .host(let file): try file.seek(Int64(bitPattern: position))
    case .features:
      guard position <= UInt64(Self.features.count) else { throw .invalid }
      files[Int(handle) - 1] = .features(Int(position))
    }
    return 0
  }
}
