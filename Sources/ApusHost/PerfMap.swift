import Glibc

/// Symbols of generated code for `perf`: lines of "address size name" in /tmp/perf-PID.map.
///
/// One thread at a time.
public final class PerfMap {
  private let file: UnsafeMutablePointer<FILE>?
  public init() { file = fopen("/tmp/perf-\(getpid()).map", "w") }
  deinit { if let file { fclose(file) } }
  public func add(_ address: UInt64, _ byteCount: Int, _ pc: UInt64) {
    guard let file else { return }
    fputs(
      "\(String(address, radix: 16)) \(String(byteCount, radix: 16)) guest_\(String(pc, radix: 16))\n", file)
    fflush(file)
  }
}
