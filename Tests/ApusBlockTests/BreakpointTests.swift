import ApusBlock
import ApusHost
import Synchronization
import Testing

@Suite struct BreakpointTests {
  @Test func requestsStandStillUntilResumed() throws {
    let node = FaultNode(try MemoryNode([UInt8](repeating: 1, count: 8192)), [])
    node.addBreakpoint("pwritev", tag: "a")
    let state = Mutex(false)
    let writer = HostThread.spawn("writer") {
      do throws(BlockError) { try node.write([2, 2], at: 0) } catch { return }
      state.withLock { $0 = true }
    }
    #expect(node.waitForBreakpoint(tag: "a"))
    #expect(!state.withLock { $0 })
    // Others pass: a breakpoint counts once.
    try node.write([3], at: 4096)
    #expect(try node.bytes(at: 0, count: 1) == [1])
    #expect(!node.resume(tag: "b"))
    #expect(node.resume(tag: "a"))
    writer.join()
    #expect(state.withLock { $0 })
    #expect(try node.bytes(at: 0, count: 2) == [2, 2])
    node.addBreakpoint("pwritev", tag: "c")
    #expect(node.removeBreakpoint(tag: "c") && !node.removeBreakpoint(tag: "c"))
    try node.write([4], at: 0)
  }

  /// Writers of parts of one block take turns; nobody's bytes are lost.
  @Test func mergesOfOneBlockTakeTurns() throws {
    var limits = FaultNode.Limits()
    limits.alignment = 4096
    let node = FaultNode(try MemoryNode([UInt8](repeating: 0, count: 8192)), [], limits: limits)
    let writers = (0..<8).map { number in
      HostThread.spawn("writer") {
        for _ in 0..<50 {
          do throws(BlockError) {
            try node.write([UInt8](repeating: UInt8(number + 1), count: 512), at: UInt64(number) * 512)
          } catch { return }
        }
      }
    }
    for writer in writers { writer.join() }
    for number in 0..<8 {
      #expect(
        try node.bytes(at: UInt64(number) * 512, count: 512)
          == [UInt8](repeating: UInt8(number + 1), count: 512))
    }
  }
}
