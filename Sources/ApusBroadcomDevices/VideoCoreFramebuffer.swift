/// The geometry of the VideoCore's framebuffer, in its memory [RPi-Firmware "Mailbox framebuffer interface"].
struct VideoCoreFramebuffer: Equatable {
  var width: UInt32 = 640
  var height: UInt32 = 480
  var virtualWidth: UInt32 = 640
  var virtualHeight: UInt32 = 480
  var xOffset: UInt32 = 0
  var yOffset: UInt32 = 0
  var depth: UInt32 = 16
  /// 1: red in the lowest bits.
  var pixelOrder: UInt32 = 1
  var alphaMode: UInt32 = 2
  var overscan: [UInt32] = [0, 0, 0, 0]
  var palette = [UInt32](repeating: 0, count: 256)

  /// Bytes from one row to the next.
  var pitch: UInt32 { UInt32(truncatingIfNeeded: (UInt64(virtualWidth) * UInt64(depth) + 7) / 8) }
  var byteCount: UInt64 { UInt64(pitch) * UInt64(virtualHeight) }

  static let largestSide: UInt32 = 8192
  static func isValid(width: UInt32, height: UInt32) -> Bool {
    width > 0 && height > 0 && width <= largestSide && height <= largestSide
  }
  static func isValid(depth: UInt32) -> Bool { [8, 16, 24, 32].contains(depth) }
}
