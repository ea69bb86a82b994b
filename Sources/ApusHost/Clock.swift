import Glibc

/// The host's clocks, in nanoseconds.
public enum HostClock {
  /// Monotonic time since an arbitrary start (`CLOCK_MONOTONIC`).
  @inlinable
  public static func monotonicNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_MONOTONIC, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }

  /// Wall-clock time since 1970-01-01 00:00 UTC.
  public static func realtimeNanoseconds() -> UInt64 {
    var time = timespec()
    clock_gettime(CLOCK_REALTIME, &time)
    return UInt64(time.tv_sec) &* 1_000_000_000 &+ UInt64(time.tv_nsec)
  }
}
