import ApusHost
import CApusHost
import Glibc

// Robust futexes: locks whose owner may end with them [Documentation/locking/robust-futex-ABI].
//
// The kernel looks after them when the host's thread ends. That is too late: whoever waits for the guest's thread may
// have unmapped the list by then. So the list is gone through when the guest's thread ends; the kernel knows it for the
// cases where the whole process does.

extension UserThread {
  /// `struct robust_list_head`: the first entry, the futex's offset from an entry, the entry being worked on.
  static let robustListByteCount: UInt64 = 24
  private static let maximumCount = 2048
  private static let (ownerDied, waiters, owner): (UInt32, UInt32, UInt32) = (
    0x4000_0000, 0x8000_0000, 0x3fff_ffff
  )

  func setRobustList(_ head: UInt64, _ byteCount: UInt64) -> Int {
    guard byteCount == Self.robustListByteCount else { return -Int(EINVAL) }
    robustList = head
    return direct(273, CallArguments(a: head, b: byteCount, c: 0, d: 0, e: 0, f: 0))
  }

  /// Hands the thread's locks on.
  func releaseRobustList() {
    let head = robustList
    guard head != 0,
      let words = process.memory.read(head, as: (UInt64, UInt64, UInt64).self, default: (0, 0, 0))
    else { return }
    let (first, offset, pending) = words
    var entry = first
    for _ in 0..<Self.maximumCount where entry & ~1 != head {
      // The lowest bit says that the futex hands priority on, which is the kernel's to end.
      let next = process.memory.readWord(entry & ~1)
      if entry & ~1 != pending & ~1, entry & 1 == 0 { release(entry &+ offset, isPending: false) }
      guard let next else { break }
      entry = next
    }
    if pending & ~1 != 0, pending & 1 == 0 { release(pending &+ offset, isPending: true) }
  }

  private func release(_ futex: UInt64, isPending: Bool) {
    guard futex & 3 == 0, let pointer = UnsafeMutableRawPointer(bitPattern: UInt(futex)),
      apus_guard_probe(pointer) == 0
    else { return }
    var value = apus_load_acquire32(pointer)
    if isPending, value == 0 {
      _ = apus_syscall(202, futex, 1, 1, 0, 0, 0)
      return
    }
    while value & Self.owner == UInt32(truncatingIfNeeded: apus_gettid()) {
      let new = value & Self.waiters | Self.ownerDied
      if apus_compare_exchange32(pointer, &value, new) {
        if value & Self.waiters != 0 { _ = apus_syscall(202, futex, 1, 1, 0, 0, 0) }
        return
      }
    }
  }
}
