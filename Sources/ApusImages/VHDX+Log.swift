import ApusBlock
import ApusHost

/// The log of a VHDX [VHDX 1.0 §2.3]: changes of metadata that the last writer had not carried out everywhere yet.
///
/// ```
/// entry:      0 "loge"  4 CRC-32C  8 length  12 tail  16 sequence number  24 descriptors  32 the log's identifier
///             48 what was flushed  56 the file's length    64 descriptors of 32 bytes, then sectors of 4 KiB
/// descriptor: "desc" 4 last 4 bytes  8 first 8 bytes  16 file offset  24 sequence number
///             "zero" 8 length        16 file offset   24 sequence number
/// sector:     "data" 4 high half of the number  8 4084 bytes  4092 low half
/// ```
extension VHDX {
  private struct Entry {
    var position: UInt64
    var sequence: UInt64
    var tail: UInt64
    var buffer: HostBuffer
    var byteCount: UInt64 { UInt64(buffer.byteCount) }
  }

  /// Carries the log out and flushes; the caller then writes headers without a log.
  static func replayLog(_ file: any ImageNode, _ header: HostBuffer) throws(BlockError) {
    func refuse(_ text: String) -> BlockError { BlockError(.invalid, "vhdx image: the log \(text)") }
    let (offset, length) = (header.little64(72), UInt64(header.little32(68)))
    guard offset & (megabyte - 1) == 0, offset >= megabyte, length & (megabyte - 1) == 0, length > 0,
      length <= 1 << 30, offset < 1 << 56
    else { throw refuse("is misplaced") }
    let identifier = header.array(48, 16)
    let log = HostBuffer(byteCount: Int(length))
    try file.read(at: offset, into: log.io)
    var entries: [UInt64: Entry] = [:]
    for position in stride(from: UInt64(0), to: length, by: 4096) {
      if let entry = entry(log, position, length, identifier) { entries[position] = entry }
    }
    // The newest run of entries whose numbers follow each other, from the tail that its head names.
    var best: [Entry] = []
    for first in entries.values {
      var run = [first]
      var size = first.byteCount
      while let last = run.last, size < length,
        let next = entries[(last.position + last.byteCount) % length], next.sequence == last.sequence + 1
      {
        run.append(next)
        size += next.byteCount
      }
      guard let head = run.last, let start = run.firstIndex(where: { $0.position == head.tail }) else {
        continue
      }
      if best.last == nil || head.sequence > best.last?.sequence ?? 0 { best = Array(run[start...]) }
    }
    guard let head = best.last else { throw refuse("has no entry that is whole") }
    guard head.buffer.little64(48) <= file.byteCount else {
      throw refuse("belongs to a longer file: this one was cut")
    }
    for entry in best { try carryOut(entry, file) }
    let end = head.buffer.little64(56)
    if end > file.byteCount, end < 1 << 56 { try file.truncate(end, preallocation: .off) }
    try file.flush()
  }

  /// The entry that begins at `position`, put together where it goes around the log's end; `nil` if there is none.
  private static func entry(_ log: HostBuffer, _ position: UInt64, _ length: UInt64, _ identifier: [UInt8])
    -> Entry?
  {
    let base = Int(position)
    guard log.little32(base) == 0x6567_6f6c, log.array(base + 32, 16) == identifier else { return nil }
    let count = UInt64(log.little32(base + 8))
    let (tail, sequence) = (UInt64(log.little32(base + 12)), log.little64(base + 16))
    guard count > 0, count <= length, count & 4095 == 0, tail < length, tail & 4095 == 0, sequence > 0 else {
      return nil
    }
    let buffer = HostBuffer(byteCount: Int(count))
    let straight = min(count, length - position)
    HostBytes.copy(buffer.base, log.base + base, Int(straight))
    if straight < count { HostBytes.copy(buffer.base + Int(straight), log.base, Int(count - straight)) }
    guard buffer.little32(4) == checksum(buffer, at: 4) else { return nil }
    return Entry(position: position, sequence: sequence, tail: tail, buffer: buffer)
  }

  private static func carryOut(_ entry: Entry, _ file: any ImageNode) throws(BlockError) {
    func refuse(_ text: String) -> BlockError {
      BlockError(.invalid, "vhdx image: an entry of the log \(text)")
    }
    let buffer = entry.buffer
    let count = Int(buffer.little32(24))
    let descriptorSectors = (64 + count * 32 + 4095) / 4096
    guard count < 1 << 20, descriptorSectors * 4096 <= buffer.byteCount else { throw refuse("is cut off") }
    var sector = descriptorSectors * 4096
    for number in 0..<count {
      let base = 64 + 32 * number
      let place = buffer.little64(base + 16)
      guard buffer.little64(base + 24) == entry.sequence, place & 4095 == 0, place < 1 << 56 else {
        throw refuse("has a damaged descriptor")
      }
      switch buffer.little32(base) {
      case 0x6f72_657a:
        let length = buffer.little64(base + 8)
        guard length & 4095 == 0, length < 1 << 40 else { throw refuse("clears \(length) bytes") }
        try file.writeZeroes(at: place, byteCount: length, mayUnmap: false)
      case 0x6373_6564:
        guard sector + 4096 <= buffer.byteCount, buffer.little32(sector) == 0x6174_6164,
          UInt64(buffer.little32(sector + 4)) << 32 | UInt64(buffer.little32(sector + 4092)) == entry.sequence
        else { throw refuse("has a damaged sector") }
        let data = HostBuffer(byteCount: 4096)
        HostBytes.copy(data.base, buffer.base + base + 8, 8)
        HostBytes.copy(data.base + 8, buffer.base + sector + 8, 4084)
        HostBytes.copy(data.base + 4092, buffer.base + base + 4, 4)
        try file.write(at: place, from: [data.io])
        sector += 4096
      default: throw refuse("has an unknown descriptor")
      }
    }
  }
}
