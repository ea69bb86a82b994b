import ApusHost
import CApusHost
import Glibc

// The contents of files below /proc as the guest must see them.

extension UserProcess {
  /// A descriptor of a file with the contents, or a negative errno.
  func open(_ file: ProcessFile, flags: Int32) -> Int {
    guard flags & O_ACCMODE == O_RDONLY else { return -Int(EACCES) }
    let contents: ByteString
    switch file {
    case .program:
      let result = programPath.withPointer { apus_open($0, flags, 0) }
      return result < 0 ? -Int(errno) : Int(result)
    case .maps: contents = mapsText(detailed: false)
    case .detailedMaps: contents = mapsText(detailed: true)
    case .commandLine: contents = options.arguments.reduce(into: []) { $0 += $1 + [0] }
    case .auxiliaryVector:
      contents = auxiliaryVector.flatMap { word in withUnsafeBytes(of: word) { Array($0) } }
    case .statistics: contents = statisticsText()
    case .processors: contents = ByteString(text: isa.processorText(count: HostProcess.processorCount))
    }
    let name = file == .maps ? MapQuery.fileName : "proc"
    let descriptor = name.withUTF8Buffer { bytes in
      apus_memfd_create(
        UnsafeRawPointer(bytes.baseAddress!).assumingMemoryBound(to: CChar.self),
        flags & O_CLOEXEC != 0 ? 1 : 0)
    }
    guard descriptor >= 0 else { return -Int(errno) }
    _ = contents.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
    // Not to be written to, as the kernel's file.
    let link = ByteString(text: "/proc/self/fd/\(descriptor)")
    let readable = link.withPointer { apus_open($0, O_RDONLY | flags & (O_CLOEXEC | O_NONBLOCK), 0) }
    guard readable < 0 else {
      close(descriptor)
      return Int(readable)
    }
    lseek(descriptor, 0, SEEK_SET)
    return Int(descriptor)
  }

  /// PROCMAP_QUERY.
  func answerMapQuery(_ address: UInt64) -> Int {
    MapQuery.answer(address, mapsText(detailed: false), memory)
  }

  /// All of a small host file.
  private func hostFile(_ path: StaticString) -> ByteString {
    let file = ByteString(path).withPointer { apus_open($0, O_RDONLY | O_CLOEXEC, 0) }
    guard file >= 0 else { return [] }
    defer { close(file) }
    var result: ByteString = []
    var part = [UInt8](repeating: 0, count: 65536)
    while true {
      let count = read(file, &part, part.count)
      if count <= 0 { return result }
      result += part[..<count]
    }
  }

  // MARK: Maps

  /// A line of the kernel's /proc/self/maps: `start-end rwxp offset device inode  name`.
  private struct MapLine {
    var start: UInt64
    var end: UInt64
    var offset: UInt64
    /// From the device on, as it stands.
    var rest: Substring

    init?(_ line: Substring) {
      let words = line.split(separator: " ", maxSplits: 3, omittingEmptySubsequences: true)
      guard words.count == 4, let dash = words[0].firstIndex(of: "-"),
        let start = UInt64(words[0][..<dash], radix: 16),
        let end = UInt64(words[0][words[0].index(after: dash)...], radix: 16),
        let offset = UInt64(words[2], radix: 16)
      else { return nil }
      (self.start, self.end, self.offset, rest) = (start, end, offset, words[3])
    }
    /// A name that the kernel would not know, since the mapping is the emulator's.
    mutating func name(_ text: Substring) { rest = "00:00 0 \(text)" }
    var isAnonymous: Bool { rest.hasPrefix("00:00 0") }
  }

  /// The kernel's table, cut to the guest's regions and with the guest's protections.
  private func mapsText(detailed: Bool) -> ByteString {
    let table = String(
      decoding: hostFile(detailed ? "/proc/self/smaps" : "/proc/self/maps"), as: UTF8.self)
    let regions = memory.all
    var result = ""
    var pending: (line: MapLine, letters: String)?
    func flush() {
      if let (line, letters) = pending { result += text(line, letters) }
      pending = nil
    }
    var isInside = false
    for line in table.split(separator: "\n") {
      guard let whole = MapLine(line) else {
        if isInside, detailed { result += line + "\n" }
        continue
      }
      isInside = false
      var first = regions.partitioningIndex { $0.end > whole.start }
      while first < regions.count, regions[first].start < whole.end {
        let region = regions[first]
        first += 1
        var part = whole
        part.start = max(region.start, whole.start)
        part.end = min(region.end, whole.end)
        if !part.isAnonymous || whole.offset != 0 { part.offset = whole.offset + part.start - whole.start }
        if let name = memory.name(of: region), part.isAnonymous { part.name(name) }
        let letters = region.letters
        if detailed {
          result += text(part, letters)
          isInside = true
        } else if let (previous, same) = pending, previous.end == part.start, same == letters,
          previous.rest == part.rest,
          part.isAnonymous || previous.offset + previous.end - previous.start == part.offset
        {
          pending?.line.end = part.end
        } else {
          flush()
          pending = (part, letters)
        }
      }
    }
    flush()
    return ByteString(text: result)
  }

  private func text(_ line: MapLine, _ letters: String) -> String {
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: max(0, 8 - digits.count)) + digits
    }
    return "\(hex(line.start))-\(hex(line.end)) \(letters) \(hex(line.offset)) \(line.rest)\n"
  }

  // MARK: The others

  /// The host's line with the guest's addresses: code 26 and 27, stack 28, data 45 to 47, arguments 48 and 49,
  /// environment 50 and 51.
  private func statisticsText() -> ByteString {
    let line = String(decoding: hostFile("/proc/self/stat"), as: UTF8.self)
    // The name is in parentheses and may contain anything.
    guard let close = line.lastIndex(of: ")") else { return ByteString(text: line) }
    var words = line[line.index(after: close)...].split(separator: " ").map(String.init)
    func set(_ field: Int, _ value: UInt64) { if field - 3 < words.count { words[field - 3] = "\(value)" } }
    set(26, layout.codeStart)
    set(27, layout.codeEnd)
    set(28, layout.stackPointer)
    set(47, memory.currentBreak)
    set(48, layout.argumentsStart)
    set(49, layout.argumentsEnd)
    set(50, layout.argumentsEnd)
    set(51, layout.environmentEnd)
    return ByteString(
      text: line[...close] + " " + words.joined(separator: " ") + (words.last == "\n" ? "" : ""))
  }
}

extension UserMemory.Region {
  /// As in /proc/self/maps.
  var letters: String {
    (protection & PROT_READ != 0 ? "r" : "-") + (protection & PROT_WRITE != 0 ? "w" : "-")
      + (protection & PROT_EXEC != 0 ? "x" : "-") + (isShared ? "s" : "p")
  }
}

extension Array {
  /// The first index whose element satisfies a condition that holds for all elements behind it.
  func partitioningIndex(_ isBehind: (Element) -> Bool) -> Int {
    var (low, high) = (0, count)
    while low < high {
      let middle = (low + high) / 2
      if isBehind(self[middle]) { high = middle } else { low = middle + 1 }
    }
    return low
  }
}
