import ApusCPU
import ApusHost
import ApusMemory
import Testing

/// A little memory, a clock and an event loop that runs while a test waits.
final class Surroundings: Sendable {
  let space: AddressSpace
  let clock = GuestClock()
  let loop: EventLoop

  init() throws {
    space = AddressSpace(ram: [try GuestRAM(name: "ram", base: .init(0), byteCount: 1 << 20)])
    loop = try EventLoop()
    clock.resume()
  }

  /// Runs the loop until `condition` holds; fails after ten seconds.
  func wait(_ what: String, until condition: @escaping @Sendable () -> Bool) {
    let deadline = HostClock.monotonicNanoseconds() + 10_000_000_000
    while !condition() {
      guard HostClock.monotonicNanoseconds() < deadline else {
        Issue.record("\(what) did not happen")
        return
      }
      loop.schedule(at: HostClock.monotonicNanoseconds() + 1_000_000) { [loop] in loop.stop() }
      loop.run()
    }
  }

  func word(_ address: UInt64) -> UInt32 { space.loadInteger(.init(address)) ?? 0 }
  func setWords(_ address: UInt64, _ words: [UInt32]) {
    for (index, word) in words.enumerated() {
      _ = space.storeInteger(.init(address + UInt64(4 * index)), word)
    }
  }
}
