/// The ones' complement checksum of IP, TCP and UDP [RFC 1071].
enum InternetChecksum {
  /// The folded sum of big-endian 16-bit words, not complemented.
  static func sum(_ bytes: UnsafeRawBufferPointer) -> UInt16 {
    // Sums are the same in either byte order, up to a swap of the result: add little-endian words of 32 bits.
    var sum: UInt64 = 0
    var position = 0
    while position + 4 <= bytes.count {
      sum += UInt64(bytes.loadUnaligned(fromByteOffset: position, as: UInt32.self).littleEndian)
      position += 4
    }
    for shift in 0..<(bytes.count - position) { sum += UInt64(bytes[position + shift]) << UInt64(8 * shift) }
    while sum >> 16 != 0 { sum = sum & 0xffff + sum >> 16 }
    return UInt16(sum).byteSwapped
  }

  /// Replaces the partial sum at `start + offset` by the checksum from `start` to the frame's end; what does not fit
  /// inside the frame is left alone.
  static func finish(_ frame: UnsafeMutableRawBufferPointer, start: Int, offset: Int) {
    guard start + offset + 2 <= frame.count, start < frame.count else { return }
    var value = ~sum(UnsafeRawBufferPointer(rebasing: frame[start...]))
    // UDP writes a sum of zero as all ones; TCP cannot tell the two apart.
    if value == 0 { value = 0xffff }
    frame[start + offset] = UInt8(value >> 8)
    frame[start + offset + 1] = UInt8(value & 0xff)
  }
}
