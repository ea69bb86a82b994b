import ApusBlock
import ApusHost
import Synchronization
import Testing

/// A file that goes with the test.
final class TemporaryFile {
  let path: String
  init(byteCount: UInt64) throws {
    path = "/tmp/apus-block-\(HostClock.monotonicNanoseconds())"
    try HostFile(path: path, [.writable, .create]).truncate(byteCount)
  }
  deinit { removeFile(path) }
}

/// Waits for a request's completion.
func finished(_ start: (@escaping BlockNode.Completion) -> Void) -> BlockError? {
  let monitor = Monitor()
  let result = Mutex<BlockError??>(nil)
  start { error in
    monitor.withLock {
      result.withLock { $0 = .some(error) }
      monitor.broadcast()
    }
  }
  return monitor.withLock {
    while true {
      if let done = result.withLock({ $0 }) { return done }
      monitor.wait()
    }
  }
}

@Suite struct BlockNodeTests {
  let pool = WorkerPool("test", threadLimit: 3)

  func write(_ node: any BlockNode, _ offset: UInt64, _ bytes: [UInt8]) -> BlockError? {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 4096)
    defer { memory.deallocate() }
    memory.copyBytes(from: bytes)
    return finished {
      node.write(offset: offset, from: [IOBuffer(memory)], forceUnitAccess: false, completion: $0)
    }
  }
  /// Reads into pieces of odd sizes.
  func read(_ node: any BlockNode, _ offset: UInt64, _ count: Int, pieces: [Int] = []) throws -> [UInt8] {
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
    defer { memory.deallocate() }
    var buffers: [IOBuffer] = []
    var position = 0
    for piece in pieces + [count - pieces.reduce(0, +)] {
      buffers.append(IOBuffer(UnsafeMutableRawBufferPointer(rebasing: memory[position..<(position + piece)])))
      position += piece
    }
    if let error = finished({ node.read(offset: offset, into: buffers, completion: $0) }) { throw error }
    return [UInt8](memory)
  }

  @Test(arguments: BlockCacheMode.allCases) func transfers(cache: BlockCacheMode) throws {
    let file = try TemporaryFile(byteCount: 1 << 20)
    var configuration = FileNode.Configuration(path: file.path)
    configuration.cache = cache
    configuration.unmapsDiscards = true
    let opened = Result { ThreadedBlockNode(try FileNode(configuration), pool: pool) }
    if case .failure(let error as BlockError) = opened, error.kind == .unsupported { return }
    let node = try opened.get()
    #expect(node.byteCount == 1 << 20)
    #expect(node.hasWriteCache == (cache != .writethrough && cache != .directsync))
    let pattern = (0..<8192).map { UInt8(truncatingIfNeeded: $0 &* 13) }
    #expect(write(node, 4096, pattern) == nil)
    #expect(try read(node, 4096, 8192, pieces: [1, 510, 4096]) == pattern)
    // Not aligned to what direct I/O wants.
    #expect(write(node, 512 * 3, Array(pattern.prefix(512))) == nil)
    #expect(try read(node, 512 * 3, 512) == Array(pattern.prefix(512)))
    #expect(
      finished { node.writeZeroes(offset: 4096, byteCount: 4096, mayUnmap: true, completion: $0) } == nil)
    #expect(try read(node, 4096, 8192) == [UInt8](repeating: 0, count: 4096) + pattern[4096...])
    #expect(finished { node.discard(offset: 8192, byteCount: 4096, completion: $0) } == nil)
    #expect(try read(node, 8192, 4096) == [UInt8](repeating: 0, count: 4096))
    #expect(finished { node.flush(completion: $0) } == nil)
    #expect(write(node, (1 << 20) - 512, pattern)?.kind == .outOfRange)
    #expect(throws: BlockError.self) { try read(node, .max - 100, 512) }
    node.close()
  }

  @Test func sizeIsRoundedUp() throws {
    let file = try TemporaryFile(byteCount: 1000)
    let node = ThreadedBlockNode(try FileNode(.init(path: file.path)), pool: pool)
    #expect(node.byteCount == 1024)
    #expect(try read(node, 512, 512) == [UInt8](repeating: 0, count: 512))
  }

  @Test func errors() throws {
    #expect {
      ThreadedBlockNode(try FileNode(.init(path: "/nonexistent/image")), pool: pool)
    } throws: { "\($0)".contains("/nonexistent/image") && "\($0)".contains("No such file") }
    #expect(throws: BlockError.self) { ThreadedBlockNode(try FileNode(.init(path: "/tmp")), pool: pool) }
    #expect(throws: BlockError.self) { ThreadedBlockNode(try FileNode(.init(path: "/dev/null")), pool: pool) }
    let file = try TemporaryFile(byteCount: 4096)
    var configuration = FileNode.Configuration(path: file.path)
    configuration.isReadOnly = true
    let node = ThreadedBlockNode(try FileNode(configuration), pool: pool)
    #expect(write(node, 0, [UInt8](repeating: 1, count: 512))?.kind == .readOnly)
    #expect(finished { node.discard(offset: 0, byteCount: 512, completion: $0) }?.kind == .readOnly)
  }

  @Test func locks() throws {
    let file = try TemporaryFile(byteCount: 4096)
    func open(readOnly: Bool = false, shares: Bool = false, locked: Bool = true) throws -> ThreadedBlockNode {
      var configuration = FileNode.Configuration(path: file.path)
      configuration.isReadOnly = readOnly
      configuration.sharesWrites = shares
      configuration.isLocked = locked
      return ThreadedBlockNode(try FileNode(configuration), pool: pool)
    }
    do {
      let writer = try open()
      defer { writer.close() }
      #expect { try open() } throws: { ($0 as? BlockError)?.kind == .locked }
      #expect { try open(readOnly: true) } throws: { ($0 as? BlockError)?.kind == .locked }
      _ = try open(locked: false)
    }
    // Two readers get along; a writer does not join them.
    do {
      let readers = [try open(readOnly: true), try open(readOnly: true)]
      #expect(throws: BlockError.self) { try open() }
      for reader in readers { reader.close() }
    }
    let sharers = [try open(shares: true), try open(shares: true)]
    #expect(throws: BlockError.self) { try open() }
    for sharer in sharers { sharer.close() }
    // A closed image is free for others, whoever still holds the object.
    _ = try open()
    withExtendedLifetime(sharers) {}
  }

  @Test func nullNode() throws {
    let node = ThreadedBlockNode(NullNode(byteCount: 9728, readsZeroes: true))
    #expect(try read(node, 0, 512) == [UInt8](repeating: 0, count: 512))
    #expect(write(node, 9728, [1])?.kind == .outOfRange)
  }

  @Test func manyRequestsAtOnce() throws {
    let file = try TemporaryFile(byteCount: 1 << 20)
    let node = ThreadedBlockNode(try FileNode(.init(path: file.path)), pool: pool)
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: 512 * 1000, alignment: 512)
    defer { memory.deallocate() }
    let left = InFlightCounter()
    let failures = Atomic<Int>(0)
    for index in 0..<1000 {
      left.enter()
      let part = UnsafeMutableRawBufferPointer(rebasing: memory[(512 * index)..<(512 * index + 512)])
      node.read(offset: UInt64(index) * 512, into: [IOBuffer(part)]) { error in
        if error != nil { failures.add(1, ordering: .relaxed) }
        left.leave()
      }
    }
    left.waitUntilIdle()
    #expect(failures.load(ordering: .relaxed) == 0)
    #expect(memory.allSatisfy { $0 == 0 })
  }
}
