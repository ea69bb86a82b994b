import ApusBits
import CZlib

/// A RISC-V or AArch64 Linux kernel as its build leaves it in `arch/*/boot`
/// [Linux Documentation/arch/riscv/boot-image-header.rst, arch/arm64/booting.rst].
public enum LinuxImage {
  /// The header of a flat `Image`.
  public struct Header: Equatable, Sendable {
    /// Where it wants to lie, relative to the start of RAM (2 MiB on 64-bit).
    public var textOffset: UInt64
    /// How much memory it occupies, with what follows the file's end.
    public var imageByteCount: UInt64

    /// `nil` if the bytes are no flat Image.
    public init?(_ bytes: [UInt8]) {
      let magics = ["RSC\u{5}", "ARM\u{64}"]
      guard bytes.count >= 64, magics.contains(where: { bytes[0x38..<0x3c].elementsEqual($0.utf8) }),
        let text: UInt64 = bytes.littleEndian(at: 8), let size: UInt64 = bytes.littleEndian(at: 16)
      else { return nil }
      (textOffset, imageByteCount) = (text, size)
    }
  }

  /// The bytes that an Image which is an EFI application too must have: the end of its sections [PE/COFF §3, §4].
  /// `nil` for others, whose length nothing tells.
  static func fileByteCount(_ bytes: [UInt8]) -> Int? {
    guard bytes.starts(with: [0x4d, 0x5a]), let header: UInt32 = bytes.littleEndian(at: 0x3c),
      let magic: UInt32 = bytes.littleEndian(at: Int(header)), magic == 0x4550,
      let sectionCount: UInt16 = bytes.littleEndian(at: Int(header) + 6),
      let optionalByteCount: UInt16 = bytes.littleEndian(at: Int(header) + 20)
    else { return nil }
    var end = 0
    for index in 0..<Int(sectionCount) {
      let section = Int(header) + 24 + Int(optionalByteCount) + 40 * index
      guard let count: UInt32 = bytes.littleEndian(at: section + 16),
        let offset: UInt32 = bytes.littleEndian(at: section + 20)
      else { return section + 40 }
      end = max(end, Int(offset) + Int(count))
    }
    return end
  }

  /// No kernel is larger than this when unpacked.
  static let unpackedLimit = 1 << 30

  /// The flat image in `bytes`: unpacked if it is a gzip file or an EFI zboot image, else as it is.
  public static func unpack(_ bytes: [UInt8], path: String) throws(LoaderError) -> [UInt8] {
    if bytes.starts(with: [0x1f, 0x8b]) { return try gunzip(bytes[...], path: path) }
    // EFI zboot: "MZ", "zimg" at 4, payload's offset and size at 8 and 12, its compression's name at 24.
    guard bytes.count >= 64, bytes.starts(with: [0x4d, 0x5a]), bytes[4..<8].elementsEqual("zimg".utf8),
      let offset: UInt32 = bytes.littleEndian(at: 8), let count: UInt32 = bytes.littleEndian(at: 12)
    else { return bytes }
    let method = String(decoding: bytes[24..<56].prefix { $0 != 0 }, as: UTF8.self)
    guard method == "gzip" else {
      throw .format(
        path: path, reason: "its EFI zboot payload is packed with '\(method)'; only gzip is understood")
    }
    guard Int(offset) <= bytes.count, Int(count) <= bytes.count - Int(offset) else {
      throw .format(path: path, reason: "its EFI zboot payload lies outside the file")
    }
    return try gunzip(bytes[Int(offset)..<Int(offset) + Int(count)], path: path)
  }

  private static func gunzip(_ bytes: ArraySlice<UInt8>, path: String) throws(LoaderError) -> [UInt8] {
    var stream = z_stream()
    // 15 window bits, + 16: a gzip wrapper.
    guard inflateInit2_(&stream, 31, ZLIB_VERSION, Int32(MemoryLayout<z_stream>.size)) == Z_OK else {
      throw .format(path: path, reason: "zlib could not be started")
    }
    defer { inflateEnd(&stream) }
    var output: [UInt8] = []
    output.reserveCapacity(bytes.count * 4)
    var chunk = [UInt8](repeating: 0, count: 1 << 20)
    var input = Array(bytes)
    var status = Z_OK
    input.withUnsafeMutableBufferPointer { source in
      stream.next_in = source.baseAddress
      stream.avail_in = UInt32(source.count)
      while status == Z_OK && output.count <= unpackedLimit {
        let produced = chunk.withUnsafeMutableBufferPointer { target in
          stream.next_out = target.baseAddress
          stream.avail_out = UInt32(target.count)
          status = inflate(&stream, Z_NO_FLUSH)
          return target.count - Int(stream.avail_out)
        }
        output += chunk[..<produced]
        if produced == 0 && status == Z_OK && stream.avail_in == 0 { break }
      }
    }
    guard status == Z_STREAM_END else {
      throw .format(path: path, reason: "its gzip data is damaged, cut off or larger than 1 GiB")
    }
    return output
  }
}
