import ApusHost
import CApusHost
import Glibc

/// The ioctl PROCMAP_QUERY on /proc/self/maps: one mapping of the guest's by address [Documentation/filesystems/proc.rst].
///
/// ```
/// struct procmap_query: size, query_flags, query_addr, vma_start, vma_end, vma_flags, vma_page_size, vma_offset, inode: u64;
///   dev_major, dev_minor, vma_name_size, build_id_size: u32; vma_name_addr, build_id_addr: u64
/// ```
enum MapQuery {
  static let request: UInt64 = 0xc068_6611
  private static let byteCount = 104
  // query_flags: permissions that the mapping must have, then how to choose.
  private static let permissions: UInt64 = 0xf
  private static let coveringOrNext: UInt64 = 0x10
  private static let fileBacked: UInt64 = 0x20

  /// The name of the memory file that stands for /proc/self/maps.
  static let fileName: StaticString = "maps"
  static func isMaps(_ descriptor: UInt64) -> Bool {
    let path = ByteString(text: "/proc/self/fd/\(Int32(truncatingIfNeeded: descriptor))")
    return UserProcess.readLink(path)?.hasPrefix("/memfd:maps") ?? false
  }

  /// Answers the query at `address` from the lines of the maps file; 0 or a negative errno.
  static func answer(_ address: UInt64, _ maps: ByteString, _ memory: UserMemory) -> Int {
    guard let size = memory.readWord(address) else { return -Int(EFAULT) }
    guard size <= 4096 else { return -Int(E2BIG) }
    guard size >= 24 else { return -Int(EINVAL) }
    var query = [UInt8](repeating: 0, count: byteCount)
    let known = min(Int(size), byteCount)
    let isRead = query.withUnsafeMutableBytes {
      memory.read(address, into: UnsafeMutableRawBufferPointer(rebasing: $0[..<known]))
    }
    guard isRead else { return -Int(EFAULT) }
    func word(_ offset: Int) -> UInt64 {
      query.withUnsafeBytes { $0.load(fromByteOffset: offset, as: UInt64.self) }
    }
    func half(_ offset: Int) -> UInt32 {
      query.withUnsafeBytes { $0.load(fromByteOffset: offset, as: UInt32.self) }
    }
    let (flags, wanted) = (word(8), word(16))
    guard flags & ~(permissions | coveringOrNext | fileBacked) == 0, (half(80) == 0) == (word(88) == 0),
      (half(84) == 0) == (word(96) == 0)
    else { return -Int(EINVAL) }
    for text in String(decoding: maps, as: UTF8.self).split(separator: "\n") {
      guard let line = Line(text), line.end > wanted else { continue }
      let isCovering = line.start <= wanted
      let isMatching =
        flags & permissions & ~line.flags == 0 && (flags & fileBacked == 0 || line.inode != 0)
      if isCovering || flags & coveringOrNext != 0, isMatching {
        return store(line, query, known, address, memory)
      }
      if flags & coveringOrNext == 0 { break }
    }
    return -Int(ENOENT)
  }

  private static func store(
    _ line: Line, _ query: [UInt8], _ known: Int, _ address: UInt64, _ memory: UserMemory
  ) -> Int {
    var query = query
    let name = line.name.isEmpty ? [] : ByteString(text: line.name) + [0]
    let isNameWanted = query.withUnsafeBytes { $0.load(fromByteOffset: 80, as: UInt32.self) }
    if isNameWanted > 0, name.count > Int(isNameWanted) { return -Int(ENAMETOOLONG) }
    let target = query.withUnsafeMutableBytes { raw -> UInt64 in
      for (index, value) in [line.start, line.end, line.flags, 4096, line.offset, line.inode].enumerated() {
        raw.storeBytes(of: value, toByteOffset: 24 + index * 8, as: UInt64.self)
      }
      raw.storeBytes(of: line.device.major, toByteOffset: 72, as: UInt32.self)
      raw.storeBytes(of: line.device.minor, toByteOffset: 76, as: UInt32.self)
      if isNameWanted > 0 { raw.storeBytes(of: UInt32(name.count), toByteOffset: 80, as: UInt32.self) }
      // Build ids are not looked for.
      raw.storeBytes(of: 0, toByteOffset: 84, as: UInt32.self)
      return raw.load(fromByteOffset: 88, as: UInt64.self)
    }
    if isNameWanted > 0, !name.withUnsafeBytes({ memory.write(target, $0) }) { return -Int(EFAULT) }
    let isStored = query.withUnsafeBytes {
      memory.write(address, UnsafeRawBufferPointer(rebasing: $0[..<known]))
    }
    return isStored ? 0 : -Int(EFAULT)
  }

  /// `start-end rwxp offset major:minor inode name`.
  struct Line {
    var start: UInt64 = 0
    var end: UInt64 = 0
    /// Readable 1, writable 2, executable 4, shared 8.
    var flags: UInt64 = 0
    var offset: UInt64 = 0
    var device: (major: UInt32, minor: UInt32) = (0, 0)
    var inode: UInt64 = 0
    var name: Substring = ""

    init?(_ text: Substring) {
      let words = text.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
      guard words.count >= 5 else { return nil }
      let range = words[0].split(separator: "-").map { UInt64($0, radix: 16) }
      let numbers = words[3].split(separator: ":").map { UInt32($0, radix: 16) }
      guard range.count == 2, let start = range[0], let end = range[1], numbers.count == 2,
        let major = numbers[0],
        let minor = numbers[1], let offset = UInt64(words[2], radix: 16), let inode = UInt64(words[4])
      else { return nil }
      (self.start, self.end, self.offset, device, self.inode) = (start, end, offset, (major, minor), inode)
      for (bit, letter) in "rwxs".enumerated() where words[1].contains(letter) { flags |= 1 << UInt64(bit) }
      if words.count > 5 { name = words[5].drop { $0 == " " } }
    }
  }
}
