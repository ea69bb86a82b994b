import ApusBlock
import ApusHost
import CDeflate
import Synchronization

/// Apple disk images (UDIF): chunks of different kinds, found through a property list that the file's end leads to.
///
/// Any thread; read-only. Big endian. Kinds: zeros, raw and zlib. bzip2, LZFSE, LZMA and ADC are refused by name when a
/// chunk of that kind is met. Not modelled: images with resource forks instead of property lists, segments, encryption.
public final class DMGNode: ImageNode {
  private struct Chunk {
    var type: UInt32
    var sector: UInt64
    var sectorCount: UInt64
    var offset: UInt64
    var byteCount: UInt64
  }
  private enum ChunkType {
    static let zero: UInt32 = 0
    static let raw: UInt32 = 1
    static let ignore: UInt32 = 2
    static let adc: UInt32 = 0x8000_0004
    static let zlib: UInt32 = 0x8000_0005
    static let bzip2: UInt32 = 0x8000_0006
    static let lzfse: UInt32 = 0x8000_0007
    static let lzma: UInt32 = 0x8000_0008
    static let comment: UInt32 = 0x7fff_fffe
    static let end: UInt32 = 0xffff_ffff
  }
  /// The largest chunk that is unpacked, in bytes.
  private static let chunkLimit: UInt64 = 64 << 20

  private let file: any ImageNode
  private let chunks: [Chunk]
  public let byteCount: UInt64
  /// The chunk that was unpacked last.
  private let cache = Mutex<(index: Int, data: HostBuffer)?>(nil)

  public var driverName: String { "dmg" }
  public var isReadOnly: Bool { true }
  public var children: [(role: String, node: any ImageNode)] { [("file", file)] }

  private static func invalid(_ what: String) -> BlockError { BlockError(.invalid, "dmg image: \(what)") }

  public init(_ file: any ImageNode) throws(BlockError) {
    self.file = file
    let size = file.byteCount
    guard size >= 512 else { throw Self.invalid("the file is too short") }
    // A host's file is seen in whole sectors: the trailer may begin a little earlier.
    let tail = HostBuffer(byteCount: 1024)
    let start = size >= 1024 ? size - 1024 : 0
    try file.read(at: start, into: [tail.io(0, Int(size - start))])
    let koly = Array("koly".utf8)
    guard
      let position = stride(from: Int(size - start) - 512, through: max(0, Int(size - start) - 1023), by: -1)
        .first(where: { tail.array($0, 4) == koly && tail.big32($0 + 8) == 512 })
    else { throw Self.invalid("the trailer 'koly' is missing at the file's end") }
    let dataOffset = tail.big64(position + 24)
    let (listOffset, listLength) = (tail.big64(position + 0xd8), tail.big64(position + 0xe0))
    guard listOffset > 0, listLength > 0 else {
      throw BlockError(
        .unsupported, "dmg image: it has a resource fork and no property list, which is not implemented")
    }
    guard listLength <= 64 << 20, listOffset < size, listLength <= size - listOffset else {
      throw Self.invalid("the property list is misplaced")
    }
    let list = try file.bytes(at: listOffset, count: Int(listLength))
    var chunks: [Chunk] = []
    for block in try Self.blockTables(list) { try Self.read(block, dataOffset, size, &chunks) }
    chunks.sort { $0.sector < $1.sector }
    for index in chunks.indices.dropFirst()
    where chunks[index].sector < chunks[index - 1].sector + chunks[index - 1].sectorCount {
      throw Self.invalid("two chunks overlap")
    }
    self.chunks = chunks
    let total = max(tail.big64(position + 492), chunks.last.map { $0.sector + $0.sectorCount } ?? 0)
    guard total < 1 << 50 else { throw Self.invalid("it has \(total) sectors") }
    byteCount = total * 512
  }

  // MARK: Property list

  /// The `<data>` elements in the array behind `<key>blkx</key>`.
  private static func blockTables(_ list: [UInt8]) throws(BlockError) -> [[UInt8]] {
    func find(_ text: String, _ from: Int) -> Int? {
      let pattern = Array(text.utf8)
      guard list.count >= pattern.count else { return nil }
      var index = from
      while index <= list.count - pattern.count {
        if list[index] == pattern[0], list[index..<index + pattern.count].elementsEqual(pattern) {
          return index
        }
        index += 1
      }
      return nil
    }
    guard let key = find("<key>blkx</key>", 0), let begin = find("<array>", key),
      let end = find("</array>", begin)
    else { throw invalid("the property list has no block tables (blkx)") }
    var result: [[UInt8]] = []
    var position = begin
    while let open = find("<data>", position), open < end, let close = find("</data>", open) {
      guard let bytes = base64(list[(open + 6)..<close]) else {
        throw invalid("a block table is no base64 text")
      }
      result.append(bytes)
      position = close
    }
    return result
  }

  private static func base64(_ text: ArraySlice<UInt8>) -> [UInt8]? {
    var result: [UInt8] = []
    result.reserveCapacity(text.count * 3 / 4)
    var value: UInt32 = 0
    var bits: UInt32 = 0
    for byte in text {
      let digit: UInt32
      switch byte {
      case UInt8(ascii: "A")...UInt8(ascii: "Z"): digit = UInt32(byte - 65)
      case UInt8(ascii: "a")...UInt8(ascii: "z"): digit = UInt32(byte - 71)
      case UInt8(ascii: "0")...UInt8(ascii: "9"): digit = UInt32(byte) + 4
      case UInt8(ascii: "+"): digit = 62
      case UInt8(ascii: "/"): digit = 63
      case UInt8(ascii: "="), 9, 10, 13, 32: continue
      default: return nil
      }
      value = value << 6 | digit
      bits += 6
      if bits >= 8 {
        bits -= 8
        result.append(UInt8(truncatingIfNeeded: value >> bits))
      }
    }
    return result
  }

  private static func read(_ block: [UInt8], _ dataOffset: UInt64, _ size: UInt64, _ chunks: inout [Chunk])
    throws(BlockError)
  {
    guard block.count >= 204, block.starts(with: Array("mish".utf8)) else {
      throw invalid("a block table does not begin with 'mish'")
    }
    let buffer = HostBuffer(block)
    let (first, offset) = (buffer.big64(8), buffer.big64(24))
    let count = Int(buffer.big32(200))
    guard count <= (block.count - 204) / 40, first < 1 << 50, chunks.count + count < 1 << 24 else {
      throw invalid("a block table is cut off")
    }
    for number in 0..<count {
      let base = 204 + 40 * number
      var chunk = Chunk(
        type: buffer.big32(base), sector: buffer.big64(base + 8), sectorCount: buffer.big64(base + 16),
        offset: buffer.big64(base + 24), byteCount: buffer.big64(base + 32))
      if chunk.type == ChunkType.comment || chunk.type == ChunkType.end || chunk.sectorCount == 0 { continue }
      guard chunk.sector < 1 << 50, chunk.sectorCount < 1 << 50 else { throw invalid("a chunk is misplaced") }
      chunk.sector += first
      let isStored = chunk.type != ChunkType.zero && chunk.type != ChunkType.ignore
      if isStored {
        guard chunk.offset < 1 << 62, dataOffset < 1 << 62, offset < 1 << 62, chunk.byteCount <= size else {
          throw invalid("a chunk is misplaced")
        }
        chunk.offset += dataOffset + offset
        guard chunk.offset <= size - chunk.byteCount else {
          throw invalid("a chunk lies behind the file's end")
        }
        if chunk.type == ChunkType.raw {
          guard chunk.byteCount >= chunk.sectorCount * 512 else { throw invalid("a raw chunk is cut off") }
        } else if chunk.sectorCount * 512 > chunkLimit || chunk.byteCount > chunkLimit {
          throw BlockError(.unsupported, "dmg image: a compressed chunk has more than 64 MiB")
        }
      }
      chunks.append(chunk)
    }
  }

  // MARK: Requests

  /// The first chunk that ends behind a sector.
  private func index(_ sector: UInt64) -> Int {
    var (low, high) = (0, chunks.count)
    while low < high {
      let middle = (low + high) / 2
      if chunks[middle].sector + chunks[middle].sectorCount <= sector {
        low = middle + 1
      } else {
        high = middle
      }
    }
    return low
  }

  /// A run of bytes from `offset` on that are alike.
  private func run(_ offset: UInt64, _ limit: UInt64) -> (chunk: Int?, byteCount: UInt64) {
    let number = index(offset / 512)
    guard number < chunks.count else { return (nil, limit) }
    let start = chunks[number].sector * 512
    if offset < start { return (nil, min(limit, start - offset)) }
    let end = start + chunks[number].sectorCount * 512
    let type = chunks[number].type
    return (type == ChunkType.zero || type == ChunkType.ignore ? nil : number, min(limit, end - offset))
  }

  public func read(at offset: UInt64, into buffers: [IOBuffer]) throws(BlockError) {
    let total = UInt64(buffers.totalByteCount)
    if let error = rangeError(offset, total) { throw error }
    var done: UInt64 = 0
    while done < total {
      let (number, count) = run(offset + done, total - done)
      let part = buffers.slice(offset: Int(done), count: Int(count))
      if let number {
        let within = offset + done - chunks[number].sector * 512
        if chunks[number].type == ChunkType.raw {
          try file.read(at: chunks[number].offset + within, into: part)
        } else {
          let data = try unpacked(number)
          var position = Int(within)
          for buffer in part {
            HostBytes.copy(buffer.base, data.base + position, buffer.byteCount)
            position += buffer.byteCount
          }
          withExtendedLifetime(data) {}
        }
      } else {
        for buffer in part { buffer.clear() }
      }
      done += count
    }
  }

  private func unpacked(_ number: Int) throws(BlockError) -> HostBuffer {
    if let known = cache.withLock({ $0?.index == number ? $0?.data : nil }) { return known }
    let chunk = chunks[number]
    guard chunk.type == ChunkType.zlib else {
      let names: [UInt32: String] = [
        ChunkType.adc: "ADC", ChunkType.bzip2: "bzip2", ChunkType.lzfse: "LZFSE", ChunkType.lzma: "LZMA",
      ]
      throw BlockError(
        .unsupported,
        "dmg image: a chunk is compressed with \(names[chunk.type] ?? "method 0x\(String(chunk.type, radix: 16))"), which "
          + "is not implemented; zlib is")
    }
    let source = HostBuffer(byteCount: max(1, Int(chunk.byteCount)))
    try file.read(at: chunk.offset, into: [source.io(0, Int(chunk.byteCount))])
    let data = HostBuffer(byteCount: Int(chunk.sectorCount * 512))
    guard let codec = libdeflate_alloc_decompressor() else { throw BlockError(.io, "no memory") }
    defer { libdeflate_free_decompressor(codec) }
    var made = 0
    let result = libdeflate_zlib_decompress(
      codec, source.base, Int(chunk.byteCount), data.base, data.byteCount, &made)
    withExtendedLifetime(source) {}
    guard result == LIBDEFLATE_SUCCESS, made == data.byteCount else {
      throw BlockError(.io, "dmg image: a compressed chunk is damaged")
    }
    cache.withLock { $0 = (number, data) }
    return data
  }

  public func write(at offset: UInt64, from buffers: [IOBuffer]) throws(BlockError) { throw readOnly }
  public func flush() {}
  public func discard(at offset: UInt64, byteCount: UInt64) throws(BlockError) { throw readOnly }
  public func writeZeroes(at offset: UInt64, byteCount: UInt64, mayUnmap: Bool) throws(BlockError) {
    throw readOnly
  }
  private var readOnly: BlockError { BlockError(.readOnly, "dmg images are read-only") }

  public func status(at offset: UInt64, byteCount: UInt64) throws(BlockError) -> BlockStatus {
    if let error = rangeError(offset, byteCount) { throw error }
    let (number, count) = run(offset, byteCount)
    guard let number else {
      return BlockStatus(byteCount: count, isZero: true, isData: false, isAllocated: true)
    }
    var status = BlockStatus(byteCount: count, isZero: false, isData: true, isAllocated: true)
    if chunks[number].type == ChunkType.raw {
      status.hostOffset = chunks[number].offset + offset - chunks[number].sector * 512
    } else {
      status.isCompressed = true
    }
    return status
  }
  public func close() throws(BlockError) { try file.close() }
}
