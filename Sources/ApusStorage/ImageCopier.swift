import ApusBlock
import ApusHost
import Synchronization

/// Copies images into another, as `convert` does: holes stay holes, zeros are found, workers share the load.
///
/// Memory: a buffer of `chunkByteCount` for each worker, whatever the images' size.
public final class ImageCopier: Sendable {
  public struct Options: Sendable {
    public var isCompressed = false
    /// Runs of zeros at least this long are not stored; 0: everything is.
    public var sparseByteCount: UInt64 = 4096
    /// The target reads as zeros before the copy.
    public var targetIsZero = false
    /// The target was just made: what is not written reads as its backing file, and as zeros behind that one's end.
    public var isTargetNew = false
    /// The target has a backing file: ranges that the source's front image leaves open are left open.
    public var keepsBackingRanges = false
    /// How many copy at once; `nil`: as many as pay.
    public var workerCount: Int?
    /// The target is written in any order. Otherwise those of this host are written from the front to the back.
    public var isUnordered = false
    /// Let the host copy where it can.
    public var offloadsCopies = false
    /// Unreadable ranges become zeros.
    public var salvages = false
    /// Bytes a second; 0: no limit.
    public var rateLimit: UInt64 = 0
    public init() {}
  }

  private struct Task {
    /// In the order of the target.
    var number: Int
    var source: OpenedImage
    var sourceOffset: UInt64
    var offset: UInt64
    var byteCount: UInt64
    var kind: Kind
  }
  private enum Kind { case data, zero, keep }
  private struct State {
    var position: UInt64 = 0
    /// What the last status said, as far as it is not handed out yet.
    var run: (kind: Kind, end: UInt64)?
    var nextNumber = 0
    /// The task whose turn it is to write.
    var turn = 0
    var done: UInt64 = 0
    var failure: BlockError?
    var start: UInt64 = 0
    var helpers: [HostThread] = []
  }

  private let sources: [(image: OpenedImage, start: UInt64)]
  private let target: any ImageNode
  private let options: Options
  private let byteCount: UInt64
  private let isLocal: Bool
  // Files grow from front to back, and writers of one file only get into each other's way: they take turns while others
  // read. A server is best asked for several things at once.
  private let isOrdered: Bool
  private let chunkByteCount: UInt64
  private let granularity: UInt64
  // Guards `state`; waiting writers sleep on it.
  private let monitor = Monitor()
  private let state = Mutex(State())
  private let progress: @Sendable (Double) -> Void
  private let complain: @Sendable (String) -> Void

  /// - Parameters:
  ///   - sources: copied one behind the other.
  ///   - progress: called with the part that is done, 0 to 1; any thread.
  ///   - complain: takes messages about what could not be read when salvaging.
  public init(
    from sources: [OpenedImage], to target: any ImageNode, _ options: Options,
    progress: @escaping @Sendable (Double) -> Void = { _ in },
    complain: @escaping @Sendable (String) -> Void = { _ in }
  ) {
    var start: UInt64 = 0
    var list: [(image: OpenedImage, start: UInt64)] = []
    for source in sources {
      list.append((source, start))
      start += source.node.byteCount
    }
    (self.sources, byteCount, self.target, self.options) = (list, start, target, options)
    (self.progress, self.complain) = (progress, complain)
    let cluster = max(target.clusterByteCount, 512)
    granularity = target.clusterByteCount > 0 ? cluster : max(512, options.sparseByteCount)
    let isTargetLocal = Self.isLocal(target)
    isLocal = isTargetLocal && sources.allSatisfy { Self.isLocal($0.node) }
    isOrdered = isTargetLocal && !options.isUnordered
    // Small pieces stay in the processor's cache between reading and writing; a network wants large ones.
    chunkByteCount = max(isLocal && !options.isCompressed ? 256 << 10 : 1 << 20, cluster)
  }

  /// Copies everything; blocks.
  public func run() throws(BlockError) {
    state.withLock { $0.start = HostClock.monotonicNanoseconds() }
    // Files in the page cache are copied fastest by one: two only fight for the target's lock.
    startHelpers(options.isCompressed ? HostProcess.processorCount : isLocal ? 1 : 3)
    work()
    while let helper = state.withLock({ $0.helpers.popLast() }) { helper.join() }
    if let failure = state.withLock({ $0.failure }) { throw failure }
  }

  private func startHelpers(_ count: Int) {
    state.withLock { state in
      while state.helpers.count + 1 < options.workerCount ?? count {
        state.helpers.append(HostThread.spawn("copy-\(state.helpers.count + 1)") { [self] in work() })
      }
    }
  }

  /// Whether a node's bytes come from files of this host.
  public static func isLocal(_ node: any ImageNode) -> Bool {
    let children = node.children
    return children.isEmpty ? node is FileNode : children.allSatisfy { isLocal($0.node) }
  }

  private func work() {
    let buffer = HostBuffer(byteCount: Int(chunkByteCount), isZeroed: false)
    while let task = next() {
      do throws(BlockError) { try carryOut(task, buffer) } catch { fail(error) }
      finish(task)
    }
  }

  private func fail(_ error: BlockError) {
    monitor.withLock {
      state.withLock { if $0.failure == nil { $0.failure = error } }
      monitor.broadcast()
    }
  }

  private func finish(_ task: Task) {
    let part = monitor.withLock {
      let done = state.withLock { state in
        if state.turn == task.number { state.turn += 1 }
        state.done += task.byteCount
        return state.done
      }
      monitor.broadcast()
      return Double(done) / Double(max(1, byteCount))
    }
    progress(part)
    guard options.rateLimit > 0 else { return }
    let (done, start) = state.withLock { ($0.done, $0.start) }
    let due = start + UInt64(Double(done) / Double(options.rateLimit) * 1e9)
    monitor.withLock { while HostClock.monotonicNanoseconds() < due { monitor.wait(until: due) } }
  }

  /// Waits until everything before `task` has been written, if order matters. False if the copy failed.
  private func waitForTurn(_ task: Task) -> Bool {
    monitor.withLock {
      while true {
        let (turn, hasFailed) = state.withLock { ($0.turn, $0.failure != nil) }
        if hasFailed { return false }
        if turn == task.number || !isOrdered { return true }
        monitor.wait()
      }
    }
  }

  // MARK: Handing out

  private func next() -> Task? {
    monitor.withLock {
      do throws(BlockError) { return try nextLocked() } catch {
        state.withLock { if $0.failure == nil { $0.failure = error } }
        monitor.broadcast()
        return nil
      }
    }
  }

  private func nextLocked() throws(BlockError) -> Task? {
    let position = state.withLock { $0.failure == nil ? $0.position : byteCount }
    guard position < byteCount,
      let index = sources.lastIndex(where: { $0.start <= position && $0.image.node.byteCount > 0 })
    else { return nil }
    let (image, start) = sources[index]
    var sourceEnd = start + image.node.byteCount
    if sourceEnd < byteCount, sourceEnd % granularity != 0 {
      // The target's cluster in which this source ends belongs to several: it is copied as a whole.
      let boundary = sourceEnd / granularity * granularity
      if position >= boundary {
        return task(image, start, position, min(byteCount, boundary + granularity), .data)
      }
      sourceEnd = boundary
    }
    let run: (kind: Kind, end: UInt64)
    if let known = state.withLock({ $0.run }), known.end > position {
      run = known
    } else {
      run = try findRun(image, position - start, sourceEnd - position, start)
      state.withLock { $0.run = run }
    }
    var end = run.end
    if run.kind == .data {
      // Whole chunks of the target, so that no cluster is written twice.
      end = min(end, (position / chunkByteCount + 1) * chunkByteCount)
    }
    return task(image, start, position, end, run.kind)
  }

  private func task(_ image: OpenedImage, _ start: UInt64, _ position: UInt64, _ end: UInt64, _ kind: Kind)
    -> Task
  {
    state.withLock { state in
      state.position = end
      state.nextNumber += 1
      return Task(
        number: state.nextNumber - 1, source: image, sourceOffset: position - start, offset: position,
        byteCount: end - position, kind: kind)
    }
  }

  /// The run of like ranges from `offset` on; its end is in the target's offsets.
  private func findRun(_ image: OpenedImage, _ offset: UInt64, _ limit: UInt64, _ start: UInt64)
    throws(BlockError)
    -> (kind: Kind, end: UInt64)
  {
    var position = offset
    var kind: Kind?
    let most = offset + min(limit, 1 << 30)
    while position < most {
      let (next, count) = try rangeKind(image, position, most - position)
      if let kind, next != kind {
        // Data and holes alternate finely: a target's cluster is taken as a whole.
        let boundary = (start + position) % granularity
        if boundary == 0 || kind == .keep { break }
        if kind != .data {
          // The cluster in which data begins belongs to the data.
          let cut = position - min(boundary, position - offset)
          if cut > offset { return (kind, start + cut) }
          position = offset
          return (.data, start + min(most, offset + granularity - (start + offset) % granularity))
        }
        position = min(most, position + granularity - boundary)
        break
      }
      kind = next
      position += count
    }
    return (kind ?? .data, start + position)
  }

  private func rangeKind(_ image: OpenedImage, _ offset: UInt64, _ limit: UInt64) throws(BlockError) -> (
    Kind, UInt64
  ) {
    do throws(BlockError) {
      if options.keepsBackingRanges {
        let status = try image.node.status(at: offset, byteCount: limit)
        if !status.isAllocated {
          // Behind the end of the target's backing file there is nothing to fall back on.
          let size = target.backing?.byteCount ?? .max
          if offset >= size { return (options.isTargetNew ? .keep : .zero, status.byteCount) }
          return (.keep, min(status.byteCount, size - offset))
        }
        return (status.isZero ? .zero : .data, status.byteCount)
      }
      let status = try image.chainStatus(at: offset, byteCount: limit).status
      if status.isCompressed { startHelpers(HostProcess.processorCount) }
      return (status.isZero ? .zero : .data, status.byteCount)
    } catch {
      guard options.salvages else { throw error }
      return (.data, min(limit, 1 << 20))
    }
  }

  // MARK: Copying

  private func carryOut(_ task: Task, _ buffer: HostBuffer) throws(BlockError) {
    switch task.kind {
    case .keep: break
    case .zero:
      guard !options.targetIsZero || options.sparseByteCount == 0 else { break }
      if !waitForTurn(task) { return }
      if options.sparseByteCount == 0 { return try writeExplicitZeroes(task, buffer) }
      try target.writeZeroes(at: task.offset, byteCount: task.byteCount, mayUnmap: true)
      return
    case .data:
      if options.offloadsCopies, task.sourceOffset + task.byteCount <= task.source.node.byteCount {
        if !waitForTurn(task) { return }
        if try offload(task) { return }
      }
      try read(task, buffer)
      if options.isCompressed {
        try compressRuns(task, buffer, waits: true)
      } else {
        try writeData(task, buffer)
      }
      return
    }
    _ = waitForTurn(task)
  }

  /// A task's bytes, which may go on in the sources behind its own.
  private func read(_ task: Task, _ buffer: HostBuffer) throws(BlockError) {
    var task = task
    var filled = 0
    while task.byteCount > 0 {
      let here = min(task.byteCount, task.source.node.byteCount - task.sourceOffset)
      var part = task
      part.byteCount = here
      try readPart(part, buffer, filled)
      filled += Int(here)
      task.offset += here
      task.byteCount -= here
      guard task.byteCount > 0,
        let next = sources.last(where: { $0.start <= task.offset && $0.image.node.byteCount > 0 })
      else { break }
      (task.source, task.sourceOffset) = (next.image, task.offset - next.start)
    }
  }

  private func readPart(_ task: Task, _ buffer: HostBuffer, _ place: Int) throws(BlockError) {
    do throws(BlockError) {
      try task.source.node.read(at: task.sourceOffset, into: [buffer.io(place, Int(task.byteCount))])
    } catch {
      guard options.salvages else { throw error }
      // Sector by sector: only what cannot be read is lost.
      for offset in stride(from: 0, to: task.byteCount, by: 512) {
        let piece = buffer.io(place + Int(offset), Int(min(512, task.byteCount - offset)))
        do throws(BlockError) {
          try task.source.node.read(at: task.sourceOffset + offset, into: [piece])
        } catch {
          complain(
            "warning: cannot read \(piece.byteCount) bytes at 0x\(String(task.sourceOffset + offset, radix: 16)): \(error.description)"
          )
          piece.clear()
        }
      }
    }
  }

  private func writeExplicitZeroes(_ task: Task, _ buffer: HostBuffer) throws(BlockError) {
    buffer.clear()
    var done: UInt64 = 0
    while done < task.byteCount {
      let count = min(task.byteCount - done, UInt64(buffer.byteCount))
      var part = task
      (part.offset, part.byteCount) = (task.offset + done, count)
      if options.isCompressed {
        try compressRuns(part, buffer)
      } else {
        try target.write(at: part.offset, from: [buffer.io(0, Int(count))])
      }
      done += count
    }
  }

  /// Calls `body` for the runs of zero and other granules in the buffer.
  private func forEachRun(
    _ task: Task, _ buffer: HostBuffer,
    _ body: (_ isZero: Bool, _ start: UInt64, _ count: UInt64) throws(BlockError) -> Void
  ) throws(BlockError) {
    if options.sparseByteCount == 0 { return try body(false, 0, task.byteCount) }
    var runStart: UInt64 = 0
    var isRunZero: Bool?
    var position: UInt64 = 0
    while position < task.byteCount {
      let left = granularity - (task.offset + position) % granularity
      let count = min(left, task.byteCount - position)
      let isZero = HostBytes.isZero(buffer.base + Int(position), Int(count))
      if let known = isRunZero, known != isZero {
        try body(known, runStart, position - runStart)
        runStart = position
      }
      isRunZero = isZero
      position += count
    }
    if let isRunZero { try body(isRunZero, runStart, task.byteCount - runStart) }
  }

  private func writeData(_ task: Task, _ buffer: HostBuffer) throws(BlockError) {
    var runs: [(isZero: Bool, start: UInt64, count: UInt64)] = []
    try forEachRun(task, buffer) { (isZero, start, count) throws(BlockError) in
      runs.append((isZero, start, count))
    }
    if !waitForTurn(task) { return }
    for run in runs {
      if !run.isZero {
        try target.write(at: task.offset + run.start, from: [buffer.io(Int(run.start), Int(run.count))])
      } else if !options.targetIsZero {
        try target.writeZeroes(at: task.offset + run.start, byteCount: run.count, mayUnmap: true)
      }
    }
  }

  private func compressRuns(_ task: Task, _ buffer: HostBuffer, waits: Bool = false) throws(BlockError) {
    var pieces: [(start: UInt64, count: UInt64, isZero: Bool, bytes: [UInt8]?)] = []
    let cluster = max(target.clusterByteCount, 512)
    try forEachRun(task, buffer) { (isZero, start, count) throws(BlockError) in
      if isZero {
        pieces.append((start, count, true, nil))
        return
      }
      var position = start
      while position < start + count {
        let length = min(cluster, start + count - position)
        pieces.append((position, length, false, try target.compress(buffer.io(Int(position), Int(length)))))
        position += length
      }
    }
    if waits, !waitForTurn(task) { return }
    for piece in pieces {
      if piece.isZero {
        if !options.targetIsZero {
          try target.writeZeroes(at: task.offset + piece.start, byteCount: piece.count, mayUnmap: true)
        }
        continue
      }
      try target.writeCompressed(
        at: task.offset + piece.start, original: buffer.io(Int(piece.start), Int(piece.count)),
        compressed: piece.bytes)
    }
  }

  /// Has the host copy plain files' ranges. False if it cannot.
  private func offload(_ task: Task) throws(BlockError) -> Bool {
    guard let output = Self.plainFile(target), let input = Self.plainFile(task.source.node) else {
      return false
    }
    var done: UInt64 = 0
    while done < task.byteCount {
      let count: Int
      do throws(HostError) {
        count = try output.file.file.copyRange(
          from: input.file.file, at: input.offset + task.sourceOffset + done,
          to: output.offset + task.offset + done, byteCount: Int(task.byteCount - done))
      } catch { throw BlockError(error) }
      if count == 0 { return false }
      done += UInt64(count)
    }
    return true
  }

  private static func plainFile(_ node: any ImageNode) -> (file: FileNode, offset: UInt64)? {
    if let file = node as? FileNode { return (file, 0) }
    if let raw = node as? RawNode, let file = raw.file as? FileNode { return (file, raw.offset) }
    return nil
  }
}
