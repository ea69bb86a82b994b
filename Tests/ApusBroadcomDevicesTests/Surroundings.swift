import ApusCPU
import ApusHost
import ApusMemory
import Glibc
import Testing

/// A little memory, a clock and an event loop on a thread of its own.
final class Surroundings: Sendable {
  let space: AddressSpace
  let clock = GuestClock()
  let loop: EventLoop
  private let thread: HostThread

  init() throws {
    space = AddressSpace(ram: [try GuestRAM(name: "ram", base: .init(0), byteCount: 1 << 20)])
    let loop = try EventLoop()
    self.loop = loop
    thread = HostThread.spawn("loop", stackByteCount: 1 << 20) { loop.run() }
    clock.resume()
  }

  deinit {
    loop.stop()
    thread.join()
  }

  /// Waits until `condition` holds; fails after ten seconds.
  func wait(_ what: String, until condition: () -> Bool) {
    let deadline = HostClock.monotonicNanoseconds() + 10_000_000_000
    while !condition() {
      guard HostClock.monotonicNanoseconds() < deadline else {
        Issue.record("\(what) did not happen")
        return
      }
      usleep(200)
    }
  }

  func word(_ address: UInt64) -> UInt32 { space.loadInteger(.init(address)) ?? 0 }
  func setWords(_ address: UInt64, _ words: [UInt32]) {
    for (index, word) in words.enumerated() {
      _ = space.storeInteger(.init(address + UInt64(4 * index)), word)
    }
  }
}
