import ApusHost

/// Keeps two emulators from writing to one image, by open file description locks that QEMU understands too.
///
/// Byte 100 + p is locked (shared) by who uses permission p, byte 200 + p by who does not let others have it; both as
/// `/proc/locks` shows them for a running QEMU. p: 0 consistent reads, 1 writes. Locks end with the file.
enum ImageLock {
  private static let read: Int64 = 0
  private static let write: Int64 = 1
  private static let usedBase: Int64 = 100
  private static let unsharedBase: Int64 = 200

  /// - Parameter sharesWrites: others may write as well (`share-rw=on`).
  static func acquire(_ file: HostFile, writable: Bool, sharesWrites: Bool) throws(BlockError) {
    let used = writable ? [read, write] : [read]
    let unshared = sharesWrites ? [] : [write]
    do throws(HostError) {
      for permission in used { try file.lockShared(byte: usedBase + permission) }
      for permission in unshared { try file.lockShared(byte: unsharedBase + permission) }
    } catch {
      // A file system without locks: nothing to protect with.
      if error.errno == 11 || error.errno == 13 { throw conflict(file, writable) }
      return
    }
    let isTaken =
      used.contains { file.isLockedByOther(byte: unsharedBase + $0) }
      || unshared.contains { file.isLockedByOther(byte: usedBase + $0) }
    if isTaken {
      for permission in used { file.unlock(byte: usedBase + permission) }
      for permission in unshared { file.unlock(byte: unsharedBase + permission) }
      throw conflict(file, writable)
    }
  }

  /// Lets go of everything that `acquire` may have taken.
  static func release(_ file: HostFile) {
    for permission in [read, write] {
      file.unlock(byte: usedBase + permission)
      file.unlock(byte: unsharedBase + permission)
    }
  }

  /// Fails if anyone uses the file at all: it is about to be emptied.
  static func acquireForCreation(_ file: HostFile) throws(HostError) {
    for permission in [read, write] where file.isLockedByOther(byte: unsharedBase + permission) {
      throw HostError("create: another process uses", file.path, errno: 11)
    }
    if file.isLockedByOther(byte: usedBase + write) {
      throw HostError("create: another process uses", file.path, errno: 11)
    }
  }

  private static func conflict(_ file: HostFile, _ writable: Bool) -> BlockError {
    BlockError(
      .locked,
      "cannot open '\(file.path)' for \(writable ? "writing" : "reading"): another process is using the image in a way "
        + "that excludes it; end that process or open the image with locking=off")
  }
}
