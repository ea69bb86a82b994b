import CApusHost
import Glibc

/// Anonymous or shared memory mapped into this process; unmapped at the end of its life.
public struct HostMapping: ~Copyable, @unchecked Sendable {
  // SAFETY: [base, base + byteCount) stays mapped as long as this owner lives.
  public let base: UnsafeMutableRawPointer
  public let byteCount: Int

  /// Private zeroed memory; untouched pages cost nothing.
  public init(anonymousByteCount byteCount: Int, executable: Bool = false) throws(HostError) {
    let protection = PROT_READ | PROT_WRITE | (executable ? PROT_EXEC : 0)
    let pointer = mmap(nil, byteCount, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let pointer, pointer != MAP_FAILED else { throw .last("map \(byteCount) bytes of memory") }
    (base, self.byteCount) = (pointer, byteCount)
  }

  /// A shared mapping of `descriptor` from its start.
  public init(descriptor: Int32, byteCount: Int, writable: Bool = true, executable: Bool = false)
    throws(HostError)
  {
    let protection = PROT_READ | (writable ? PROT_WRITE : 0) | (executable ? PROT_EXEC : 0)
    let pointer = mmap(nil, byteCount, protection, MAP_SHARED | MAP_NORESERVE, descriptor, 0)
    guard let pointer, pointer != MAP_FAILED else { throw .last("map \(byteCount) bytes of a file") }
    (base, self.byteCount) = (pointer, byteCount)
  }

  deinit { munmap(base, byteCount) }
}

/// Constants that Swift does not import: MFD_CLOEXEC, MADV_REMOVE [Linux uapi].
private let memfdCloseOnExec: UInt32 = 1
private let madviseRemove: Int32 = 9

/// A new memfd of `byteCount` zero bytes. The caller closes it.
public func createMemoryFile(name: String, byteCount: Int) throws(HostError) -> Int32 {
  let descriptor = apus_memfd_create(name, memfdCloseOnExec)
  guard descriptor >= 0 else { throw .last("create memory file", name) }
  guard ftruncate(descriptor, byteCount) == 0 else {
    let error = HostError.last("size memory file to \(byteCount) bytes", name)
    close(descriptor)
    throw error
  }
  return descriptor
}

/// Gives the pages of `[base, base + byteCount)` back to the host; they read as zeros afterwards.
/// Works on shared memfd mappings (the file's blocks are freed) and on private ones.
public func discardPages(_ base: UnsafeMutableRawPointer, _ byteCount: Int) {
  if madvise(base, byteCount, madviseRemove) != 0 { madvise(base, byteCount, MADV_DONTNEED) }
}
