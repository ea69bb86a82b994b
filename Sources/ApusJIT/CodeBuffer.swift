import ApusHost
import Glibc

/// Memory for generated code, mapped twice: written through one view, executed through the other, so that no page
/// is ever both (W^X). Filled from the front; emptied as a whole. A process that forks asks for a private buffer,
/// one view that is both: a child's code is its own then, at no cost.
///
/// Guarded by the translation cache's lock; execution needs none.
public final class CodeBuffer: @unchecked Sendable {
  // SAFETY: both views map the same `byteCount` bytes as long as self lives.
  public let writable: UnsafeMutablePointer<UInt8>
  public let executable: UnsafeMutablePointer<UInt8>
  public let byteCount: Int
  /// Bytes in use.
  public var used = 0

  public init(byteCount: Int, isPrivate: Bool = false) throws(HostError) {
    self.byteCount = byteCount
    if isPrivate {
      let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE
      let pointer = mmap(nil, byteCount, PROT_READ | PROT_WRITE | PROT_EXEC, flags, -1, 0)
      guard let pointer, pointer != MAP_FAILED else {
        throw .last("map \(byteCount) bytes for generated code")
      }
      writable = pointer.assumingMemoryBound(to: UInt8.self)
      executable = writable
      return
    }
    let descriptor = try createMemoryFile(name: "apus-code", byteCount: byteCount)
    defer { close(descriptor) }
    func map(_ protection: Int32) throws(HostError) -> UnsafeMutablePointer<UInt8> {
      let pointer = mmap(nil, byteCount, protection, MAP_SHARED | MAP_NORESERVE, descriptor, 0)
      guard let pointer, pointer != MAP_FAILED else {
        throw .last("map \(byteCount) bytes for generated code")
      }
      return pointer.assumingMemoryBound(to: UInt8.self)
    }
    writable = try map(PROT_READ | PROT_WRITE)
    executable = try map(PROT_READ | PROT_EXEC)
  }
  deinit {
    munmap(writable, byteCount)
    if executable != writable { munmap(executable, byteCount) }
  }

  private var released = 0
  private static let releasedPiece = 256 << 10

  /// Takes the finished part of the writable view out of the process's resident memory, once a piece: the executable
  /// view holds the same pages. Patching a link brings a page back, until the next time.
  public func releaseWritten() {
    if used < released { released = 0 }
    let end = used & ~(Self.releasedPiece - 1)
    guard executable != writable, end > released else { return }
    madvise(writable, end, MADV_DONTNEED)
    released = end
  }

  public var free: Int { byteCount - used }
  /// The executable address of an offset.
  @inlinable public func address(_ offset: Int) -> UInt64 { UInt64(UInt(bitPattern: executable + offset)) }
}
