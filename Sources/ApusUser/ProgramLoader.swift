import ApusHost
import CApusHost
import Glibc

/// Why a program cannot be run, and the exit code that says so (126: found but not runnable, 127: not found).
public struct ProgramError: Error, CustomStringConvertible {
  public var description: String
  public var code: Int32
  public init(_ description: String, code: Int32 = 126) {
    (self.description, self.code) = (description, code)
  }
}

/// A program in memory: what the start needs to know of it.
public struct LoadedProgram: Sendable {
  /// Of the program itself.
  public var entry: UInt64
  /// Where execution begins: the interpreter's entry, or the program's.
  public var start: UInt64
  public var interpreterBase: UInt64 = 0
  public var headers: UInt64
  public var headerCount: UInt64
  /// End of the highest segment, where the break begins.
  public var end: UInt64
  public var hasExecutableStack: Bool
  /// The segments that may be executed.
  public var codeStart: UInt64 = 0
  public var codeEnd: UInt64 = 0
}

/// Loads ELF64 programs [ELF-64 1.5; gABI ch. 4-5].
public struct ProgramLoader {
  /// x86-64.
  static let machineHost: UInt16 = 62
  private static let maximumHeaderCount = 4096

  let memory: UserMemory
  let isa: any UserISA
  /// Turns a guest path into a host path (`-L`).
  let resolve: (ByteString) -> ByteString

  public init(memory: UserMemory, isa: any UserISA, resolve: @escaping (ByteString) -> ByteString) {
    (self.memory, self.isa, self.resolve) = (memory, isa, resolve)
  }

  /// The machine of an ELF64 little-endian file, or `nil` if it is something else.
  static func machine(ofHeader header: [UInt8]) -> UInt16? {
    guard header.count >= 64, header.starts(with: [0x7f, 0x45, 0x4c, 0x46, 2, 1]) else { return nil }
    return UInt16(header[18]) | UInt16(header[19]) << 8
  }

  struct Segment {
    var type: UInt32
    var flags: UInt32
    var offset: UInt64
    var address: UInt64
    var fileByteCount: UInt64
    var memoryByteCount: UInt64
  }

  private struct Image {
    var bias: UInt64
    var entry: UInt64
    var headers: UInt64
    var headerCount: UInt64
    var end: UInt64
    var interpreter: ByteString?
    var hasExecutableStack = true
    var codeStart: UInt64 = 0
    var codeEnd: UInt64 = 0
  }

  /// - Parameter descriptor: the program's file, if it is open already; closed in any case.
  public func load(_ path: ByteString, descriptor: Int32?) throws(ProgramError) -> LoadedProgram {
    let program = try loadImage(path, descriptor: descriptor, isInterpreter: false)
    var result = LoadedProgram(
      entry: program.entry, start: program.entry, headers: program.headers, headerCount: program.headerCount,
      end: program.end, hasExecutableStack: program.hasExecutableStack, codeStart: program.codeStart,
      codeEnd: program.codeEnd)
    if let interpreter = program.interpreter {
      let image = try loadImage(resolve(interpreter), descriptor: nil, isInterpreter: true)
      result.start = image.entry
      result.interpreterBase = image.bias
    }
    return result
  }

  private func loadImage(_ path: ByteString, descriptor: Int32?, isInterpreter: Bool) throws(ProgramError)
    -> Image
  {
    let what = isInterpreter ? "interpreter '\(path.text)'" : "'\(path.text)'"
    let file = descriptor ?? path.withPointer { apus_open($0, O_RDONLY | O_CLOEXEC, 0) }
    guard file >= 0 else {
      let reason = String(cString: strerror(errno))
      if isInterpreter {
        throw ProgramError(
          "cannot open \(what): \(reason); name the guest's root directory with -L", code: 127)
      }
      throw ProgramError("cannot open \(what): \(reason)", code: errno == ENOENT ? 127 : 126)
    }
    defer { close(file) }
    var status = stat()
    guard fstat(file, &status) == 0 else { throw ProgramError("cannot examine \(what)") }
    guard status.st_mode & S_IFMT == S_IFREG else {
      throw ProgramError("cannot run \(what): it is not a regular file")
    }
    let fileByteCount = UInt64(status.st_size)

    var header = [UInt8](repeating: 0, count: 64)
    guard pread(file, &header, 64, 0) == 64, header.starts(with: [0x7f, 0x45, 0x4c, 0x46]) else {
      throw ProgramError("cannot run \(what): it is not an ELF file")
    }
    guard header[4] == 2, header[5] == 1 else {
      throw ProgramError("cannot run \(what): it is not a 64-bit little-endian ELF file")
    }
    let machine = Self.half(header, 18)
    guard machine == isa.machine else {
      throw ProgramError("cannot run \(what): its machine is \(machine), not \(isa.machine) (\(isa.title))")
    }
    let type = Self.half(header, 16)
    guard type == 2 || type == 3 else {
      throw ProgramError("cannot run \(what): its type is \(type), not an executable's (2 or 3)")
    }
    guard let segments = Self.readSegments(file, header: header, fileByteCount: fileByteCount) else {
      throw ProgramError("cannot run \(what): its program headers are not inside the file")
    }
    return try map(
      file, what, segments, Self.word(header, 32), header: (type, Self.word(header, 24)), fileByteCount,
      isInterpreter: isInterpreter)
  }

  private static func half(_ header: [UInt8], _ offset: Int) -> UInt16 {
    UInt16(header[offset]) | UInt16(header[offset + 1]) << 8
  }
  private static func word(_ header: [UInt8], _ offset: Int) -> UInt64 {
    header.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt64.self) }
  }

  /// The program headers that a 64-byte file header tells of; `nil` if they are not in the file.
  static func readSegments(_ file: Int32, header: [UInt8], fileByteCount: UInt64) -> [Segment]? {
    let (offset, entrySize, count) = (word(header, 32), half(header, 54), Int(half(header, 56)))
    guard entrySize == 56, count > 0, count <= maximumHeaderCount, offset <= fileByteCount,
      fileByteCount - offset >= UInt64(count * 56)
    else { return nil }
    var bytes = [UInt8](repeating: 0, count: count * 56)
    guard pread(file, &bytes, bytes.count, Int(offset)) == bytes.count else { return nil }
    return bytes.withUnsafeBytes { raw in
      (0..<count).map { number in
        func word(_ offset: Int) -> UInt64 {
          raw.loadUnaligned(fromByteOffset: number * 56 + offset, as: UInt64.self)
        }
        func half(_ offset: Int) -> UInt32 {
          raw.loadUnaligned(fromByteOffset: number * 56 + offset, as: UInt32.self)
        }
        return Segment(
          type: half(0), flags: half(4), offset: word(8), address: word(16), fileByteCount: word(32),
          memoryByteCount: word(40))
      }
    }
  }

  private func map(
    _ file: Int32, _ what: String, _ segments: [Segment], _ tableOffset: UInt64,
    header: (type: UInt16, entry: UInt64),
    _ fileByteCount: UInt64, isInterpreter: Bool
  ) throws(ProgramError) -> Image {
    let loads = segments.filter { $0.type == 1 && $0.memoryByteCount > 0 }
    var low = UInt64.max
    var high: UInt64 = 0
    for segment in loads {
      let (end, overflow) = segment.address.addingReportingOverflow(segment.memoryByteCount)
      guard !overflow, end <= UserMemory.limit, segment.fileByteCount <= segment.memoryByteCount,
        segment.offset <= fileByteCount, fileByteCount - segment.offset >= segment.fileByteCount,
        segment.offset & 4095 == segment.address & 4095
      else {
        throw ProgramError(
          "cannot run \(what): its segment at 0x\(String(segment.address, radix: 16)) does not fit the file or memory"
        )
      }
      low = min(low, segment.address & ~4095)
      high = max(high, (end + 4095) & ~4095)
    }
    guard low < high else { throw ProgramError("cannot run \(what): it has no loadable segment") }
    var bias: UInt64 = 0
    if header.type == 3 {
      let wish = isInterpreter ? 0 : memory.addresses.program
      let place = memory.map(wish, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
      guard place > 0 else {
        throw ProgramError("cannot run \(what): there is no room for its \(high - low) bytes")
      }
      bias = UInt64(place) &- low
    }
    var image = Image(
      bias: bias, entry: header.entry &+ bias, headers: 0, headerCount: UInt64(segments.count),
      end: high &+ bias)
    // Programs with an interpreter leave it to that.
    let isOwn = isInterpreter || !segments.contains { $0.type == 3 }
    let guardProtection = isOwn && wantsGuardedPages(file, segments) ? memory.guardProtection : 0
    var end: UInt64 = 0
    for segment in loads {
      try mapSegment(
        file, what, segment, bias, isReserved: header.type == 3,
        protection: Self.protection(segment) | (segment.flags & 1 != 0 ? guardProtection : 0))
      end = max(end, segment.address &+ segment.memoryByteCount &+ bias)
      if segment.flags & 1 != 0, image.codeEnd == 0 {
        image.codeStart = segment.address &+ bias
        image.codeEnd = image.codeStart &+ segment.fileByteCount
      }
      if tableOffset >= segment.offset, tableOffset < segment.offset + segment.fileByteCount {
        image.headers = segment.address &+ (tableOffset - segment.offset) &+ bias
      }
    }
    image.end = end
    for segment in segments {
      if segment.type == 6 { image.headers = segment.address &+ bias }
      if segment.type == 0x6474_e551 { image.hasExecutableStack = segment.flags & 1 != 0 }
      if segment.type == 3, !isInterpreter {
        var name = [UInt8](repeating: 0, count: Int(min(segment.fileByteCount, 4096)))
        guard pread(file, &name, name.count, Int(segment.offset)) == name.count,
          let terminator = name.firstIndex(of: 0)
        else { throw ProgramError("cannot run \(what): the name of its interpreter is not in the file") }
        image.interpreter = ByteString(name[..<terminator])
      }
    }
    return image
  }

  /// Whether the image's properties (PT_GNU_PROPERTY) say that all of its code has landing pads: GNU_PROPERTY_AARCH64_FEATURE_1_AND
  /// with its bit 0 [AAELF64 §6].
  private func wantsGuardedPages(_ file: Int32, _ segments: [Segment]) -> Bool {
    guard memory.guardProtection != 0, let note = segments.first(where: { $0.type == 0x6474_e553 }),
      note.fileByteCount >= 16, note.fileByteCount <= 4096
    else { return false }
    var bytes = [UInt8](repeating: 0, count: Int(note.fileByteCount))
    guard pread(file, &bytes, bytes.count, Int(note.offset)) == bytes.count else { return false }
    func word(_ offset: Int) -> Int {
      Int(bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: offset, as: UInt32.self) })
    }
    // Sizes of name and description, type 5, "GNU"; then properties, each with type and size, padded to 8 bytes.
    guard word(0) == 4, word(8) == 5, bytes[12..<16].elementsEqual([0x47, 0x4e, 0x55, 0]) else {
      return false
    }
    var offset = 16
    let end = min(bytes.count, 16 + word(4))
    while offset + 8 <= end {
      let (type, size) = (word(offset), word(offset + 4))
      if type == 0xc000_0000, size >= 4, offset + 12 <= end { return word(offset + 8) & 1 != 0 }
      offset += 8 + ((size + 7) & ~7)
    }
    return false
  }

  private static func protection(_ segment: Segment) -> Int32 {
    (segment.flags & 4 != 0 ? PROT_READ : 0) | (segment.flags & 2 != 0 ? PROT_WRITE : 0)
      | (segment.flags & 1 != 0 ? PROT_EXEC : 0)
  }

  private func mapSegment(
    _ file: Int32, _ what: String, _ segment: Segment, _ bias: UInt64, isReserved: Bool, protection: Int32
  ) throws(ProgramError) {
    let address = segment.address &+ bias
    let page = address & ~4095
    let fileEnd = address + segment.fileByteCount
    let memoryEnd = address + segment.memoryByteCount
    let fixed = MAP_PRIVATE | MAP_FIXED
    func failed() -> ProgramError {
      ProgramError(
        "cannot run \(what): its segment at 0x\(String(address, radix: 16)) cannot be mapped; the address may be in use"
      )
    }
    let filePages = segment.fileByteCount == 0 ? page : (fileEnd + 4095) & ~4095
    if segment.fileByteCount > 0 {
      // Writable while its last page is cleared behind the file's bytes.
      let needsClearing = memoryEnd > fileEnd && fileEnd & 4095 != 0
      let during = needsClearing ? protection | PROT_READ | PROT_WRITE : protection
      let result = memory.map(
        page, filePages - page, during, fixed, file, Int(segment.offset & ~4095))
      guard result == Int(page) else { throw failed() }
      if needsClearing {
        let zeros = [UInt8](repeating: 0, count: Int(filePages - fileEnd))
        _ = zeros.withUnsafeBytes { memory.write(fileEnd, $0) }
        if during != protection { _ = memory.protect(page, filePages - page, protection) }
      }
    }
    let memoryPages = (memoryEnd + 4095) & ~4095
    if memoryPages > filePages {
      let result = memory.map(filePages, memoryPages - filePages, protection, fixed | MAP_ANONYMOUS, -1, 0)
      guard result == Int(filePages) else { throw failed() }
    }
  }
}
