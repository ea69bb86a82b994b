import ApusHost
import CApusHost
import Glibc

/// A writable page that code was translated from.
///
/// RISC-V asks for a `fence.i`, or the system call for all harts, between a change to code and its execution. Programs
/// that forget it work on most systems, so a page is *watched* at first: read-only on the host, so that a store faults,
/// is carried out (`releaseCode`), and the code that it changed goes. A page that holds data beside the code (the code
/// heaps of Java and JavaScript do) would fault all the time: after a few stores that changed no code it is *compared*
/// instead, that is, a fence looks for differences to what the code was translated from. Memory that others can write is always compared.
enum CodePage {
  /// How many stores faulted and changed no code; while stores are let through, what the page was before them.
  case watched(faults: Int, released: PageCopy?)
  /// The bytes when the last fence was done with the page, and whether code was translated from other bytes since.
  case compared(PageCopy, isMixed: Bool)

  static let faultLimit = 8
}

/// A copy of a page's bytes.
final class PageCopy {
  // SAFETY: 4096 bytes that live as long as self.
  private let bytes = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 64)
  deinit { bytes.deallocate() }

  /// Takes what is at `page` now; `nil` if it cannot be read.
  init?(_ page: UInt64) {
    guard let source = UnsafeRawPointer(bitPattern: UInt(page)), apus_guard_copy(bytes, source, 4096) == 0
    else {
      return nil
    }
  }
  func differs(from page: UInt64) -> Bool {
    withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 64) { now in
      guard let source = UnsafeRawPointer(bitPattern: UInt(page)) else { return true }
      return apus_guard_copy(now.baseAddress, source, 4096) != 0 || memcmp(bytes, now.baseAddress!, 4096) != 0
    }
  }
  /// The first and the end of the changed bytes, as offsets, when compared with a newer copy.
  func difference(_ newer: PageCopy) -> Range<Int>? {
    if memcmp(bytes, newer.bytes, 4096) == 0 { return nil }
    var (low, high) = (0, 4096)
    while bytes.load(fromByteOffset: low, as: UInt64.self)
      == newer.bytes.load(fromByteOffset: low, as: UInt64.self)
    {
      low += 8
    }
    while bytes.load(fromByteOffset: high - 8, as: UInt64.self)
      == newer.bytes.load(fromByteOffset: high - 8, as: UInt64.self)
    {
      high -= 8
    }
    return low..<high
  }
}

extension UserMemory {
  private func setReadOnly(_ page: UInt64) {
    mprotect(UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096, PROT_READ)
  }

  /// Code is about to be translated from the page: changes are to be noticed from now on. Under the cache's lock.
  public func protectCode(_ page: UInt64) {
    lock.withLock {
      switch codePages[page] {
      case .compared(let copy, let isMixed)?:
        if !isMixed, copy.differs(from: page) { codePages[page] = .compared(copy, isMixed: true) }
      case .watched(_, nil)?: break
      case .watched(let faults, .some)?:
        // All of its code had gone.
        codePages[page] = .watched(faults: faults, released: nil)
        setReadOnly(page)
      case nil:
        guard let position = index(page) else { return }
        if regions[position].isShared {
          if let copy = PageCopy(page) { codePages[page] = .compared(copy, isMixed: false) }
        } else if regions[position].protection & PROT_WRITE != 0 {
          codePages[page] = .watched(faults: 0, released: nil)
          setReadOnly(page)
        }
      }
    }
  }

  /// After a fault of a store: if the page is read-only for its code alone, makes it writable and says so. Then the
  /// caller either carries the store out and calls `protectCodeAgain`, or drops all code of the page.
  public func releaseCode(_ address: UInt64) -> Bool {
    let page = address & ~Self.pageMask
    return lock.withLock {
      guard let position = index(page), regions[position].protection & PROT_WRITE != 0 else { return false }
      switch codePages[page] {
      case nil: return false
      // Another thread was faster.
      case .compared?, .watched(_, .some)?: return true
      case .watched(let faults, nil)?:
        guard let copy = PageCopy(page) else { return false }
        codePages[page] = .watched(faults: faults, released: copy)
        mprotect(
          UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096, hostProtection(regions[position].protection))
        return true
      }
    }
  }

  /// The store to a released page was carried out: code that it changed goes; the rest is watched, or compared if many
  /// stores changed none.
  func protectCodeAgain(_ page: UInt64) {
    let changed = lock.withLock { () -> Range<Int>? in
      guard case .watched(let faults, let copy?)? = codePages[page] else { return nil }
      codePages[page] = .watched(faults: faults, released: nil)
      setReadOnly(page)
      return PageCopy(page).map { copy.difference($0) ?? 0..<0 } ?? 0..<4096
    }
    guard let changed, !changed.isEmpty else { return }
    if invalidate(page + UInt64(changed.lowerBound), page + UInt64(changed.upperBound)) { return }
    lock.withLock {
      guard case .watched(let faults, let released)? = codePages[page], let position = index(page) else {
        return
      }
      codePages[page] = .watched(faults: faults + 1, released: released)
      guard faults + 1 >= CodePage.faultLimit, let copy = PageCopy(page) else { return }
      codePages[page] = .compared(copy, isMixed: true)
      mprotect(
        UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096, hostProtection(regions[position].protection))
    }
  }

  /// Makes all pages writable that are read-only for their code, and drops that code: for system calls that store.
  /// Returns whether there were any.
  public func releaseAllCode() -> Bool {
    let pages = lock.withLock {
      codePages.compactMap { page, state -> UInt64? in
        if case .watched = state { page } else { nil }
      }
    }
    for page in pages {
      lock.withLock {
        guard case .watched? = codePages[page], let position = index(page) else { return }
        codePages[page] = nil
        mprotect(
          UnsafeMutableRawPointer(bitPattern: UInt(page)), 4096, hostProtection(regions[position].protection))
      }
      dropCode(page, page + 4096)
    }
    return !pages.isEmpty
  }

  /// A fence: code of compared pages that has changed goes. Any thread, without `lock`.
  public func dropChangedCode() {
    fenceLock.withLock {
      let ranges = lock.withLock { () -> [(UInt64, UInt64)] in
        var result: [(UInt64, UInt64)] = []
        for (page, state) in codePages {
          guard case .compared(let copy, let isMixed) = state, isMixed || copy.differs(from: page) else {
            continue
          }
          let now = PageCopy(page)
          codePages[page] = now.map { .compared($0, isMixed: false) }
          let changed = isMixed ? 0..<4096 : now.map { copy.difference($0) ?? 0..<0 } ?? 0..<4096
          result.append((page + UInt64(changed.lowerBound), page + UInt64(changed.upperBound)))
        }
        return result
      }
      for (start, end) in ranges { dropCode(start, end) }
    }
  }

  /// The range is mapped anew. Under `lock`.
  func forgetCodePages(_ start: UInt64, _ end: UInt64) {
    guard !codePages.isEmpty else { return }
    if (end - start) >> 12 < UInt64(codePages.count) {
      for page in stride(from: start, to: end, by: 4096) { codePages[page] = nil }
    } else {
      codePages = codePages.filter { $0.key < start || $0.key >= end }
    }
  }
}
