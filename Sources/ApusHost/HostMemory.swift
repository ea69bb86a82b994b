import Glibc

/// Memory from C: zeroed tables, and what C libraries hand over.
public enum HostMemory {
  /// Room for `count` elements that are all zero bits; large ones cost nothing until touched. `deallocate` frees it.
  public static func zeroed<T: BitwiseCopyable>(_ type: T.Type, count: Int) -> UnsafeMutablePointer<T> {
    guard let memory = calloc(count, MemoryLayout<T>.stride) else {
      preconditionFailure("the host has no memory for \(count) elements")
    }
    return memory.bindMemory(to: T.self, capacity: count)
  }
  /// Frees what a C library allocated with malloc for its caller.
  public static func free(_ pointer: UnsafeMutableRawPointer?) { Glibc.free(pointer) }
}
