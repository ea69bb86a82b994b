import CApusHost
import Glibc

/// A Linux tap interface.
public enum HostTap {
  /// Opens (or makes) the interface. The caller owns the descriptor, which is non-blocking.
  /// - Parameters:
  ///   - name: the interface's name, `tap%d` for the next free one.
  ///   - headerByteCount: 0, or the size of the virtio-net header in front of each frame (12).
  public static func open(name: String, headerByteCount: Int) throws(HostError) -> (
    descriptor: Int32, name: String
  ) {
    var buffer = [CChar](repeating: 0, count: 16)
    for (index, byte) in name.utf8.prefix(15).enumerated() { buffer[index] = CChar(bitPattern: byte) }
    let descriptor = apus_tap_open(&buffer, buffer.count, headerByteCount > 0 ? 1 : 0)
    guard descriptor >= 0 else { throw HostError("open the tap interface", name, errno: -descriptor) }
    if headerByteCount > 0 { _ = apus_tap_set_header_size(descriptor, Int32(headerByteCount)) }
    let actual = String(decoding: buffer.prefix { $0 != 0 }.map { UInt8(bitPattern: $0) }, as: UTF8.self)
    return (descriptor, actual)
  }

  public static func hasHeader(_ descriptor: Int32) -> Bool { apus_tap_has_header(descriptor) != 0 }
  public static func setHeaderByteCount(_ descriptor: Int32, _ count: Int) -> Bool {
    apus_tap_set_header_size(descriptor, Int32(count)) == 0
  }

  /// Which unfinished frames the reader of the descriptor takes: TUN_F_CSUM 1, TSO4 2, TSO6 4, ECN 8.
  @discardableResult
  public static func setOffload(_ descriptor: Int32, _ flags: UInt32) -> Bool {
    apus_tap_set_offload(descriptor, flags) == 0
  }
}
