import CApusHost
import Glibc

/// Random bytes of the host's kernel, good enough for keys.
public enum HostRandom {
  /// Fills `buffer`. Never waits once the host's pool has been seeded, early in its boot.
  public static func fill(_ buffer: UnsafeMutableRawBufferPointer) {
    var done = 0
    while done < buffer.count {
      let count = getrandom(buffer.baseAddress.unsafelyUnwrapped + done, buffer.count - done, 0)
      if count > 0 { done += count } else if errno != EINTR { return }
    }
  }
}
