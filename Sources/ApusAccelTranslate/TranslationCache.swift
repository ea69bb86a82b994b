import ApusGuest
import ApusHost
import ApusIR
import ApusIREval
import ApusJIT
import ApusJITX86
import ApusMemory
import CApusHost

/// The translated blocks of a machine, shared by its vCPUs, and the lock that guards them.
///
/// Any thread. Translating, patching and invalidating happen under `lock`; running code needs no lock. Dropping
/// all code happens in `dropAll`, while no vCPU is inside generated code.
public final class TranslationCache: @unchecked Sendable {
  public let memory: AddressSpace?
  public let options: TranslateOptions
  let lock = Monitor()
  // Guarded by `lock`.
  private var table: BlockTable
  private let block = IRBlock()
  var emitter: X86Emitter?
  private let features: X86HostFeatures
  let buffer: CodeBuffer?
  private var emptyBufferOffset = 0
  private let sites: SlowSiteTable
  var vcpus: [TranslatedVCPU] = []
  private var perfMap: PerfMap?
  /// Physical page numbers and the vCPUs, a bit each, that may still store to them unseen.
  private var unsettledPages: [(page: UInt64, waiting: UInt64)] = []
  public private(set) var counters = TranslateCounters()

  /// Flat memory: called with the address of each page that code is about to be translated from, so that the owner
  /// of the memory can see to it that stores are noticed. Under `lock`. Set before the first vCPU runs.
  public var onCodePage: ((UInt64) -> Void)?

  // The gate that vCPUs pass to run code. Guarded by `gate`.
  let gate = Monitor()
  var runningCount = 0
  var isExclusive = false
  /// The vCPU that may run code although `isExclusive`: a debugger lets it run alone.
  weak var soleVCPU: TranslatedVCPU?

  /// - Parameter memory: the guest's physical memory, or `nil` where guest addresses are host addresses.
  public init(memory: AddressSpace?, options: TranslateOptions) throws(HostError) {
    (self.memory, self.options) = (memory, options)
    table = try BlockTable()
    sites = try SlowSiteTable()
    buffer =
      options.engine == .jit
      ? try CodeBuffer(byteCount: options.codeBufferByteCount, isPrivate: options.forks) : nil
    block.optimisations = options.optimisations
    features = X86HostFeatures(
      level: options.hostLevel, hasCrypto: options.optimisations.contains(.hostCrypto))
    if options.engine == .jit {
      precondition(X86HostLevel.host != nil, "adaptToHost would have chosen the interpreter")
      if !features.hasCipher || !features.hasCarrylessMultiply { block.optimisations.remove(.hostCrypto) }
      if !features.hasSHA { block.optimisations.remove(.hostSHA) }
      if !features.hasAVX512 { block.optimisations.remove(.hostWideLanes) }
      if !features.hasAVX2 { block.optimisations.remove(.hostLaneShifts) }
    }
    if options.writesPerfMap { perfMap = PerfMap() }
    memory?.onMapChange { [unowned self] in lock.withLock { for vcpu in vcpus { vcpu.mappingsChanged() } } }
    memory?.onCodeWrite { [unowned self] address, count in invalidate(address.rawValue, count) }
  }

  func attach(_ vcpu: TranslatedVCPU) {
    lock.withLock {
      vcpus.append(vcpu)
      if let buffer, emitter == nil {
        emitter = X86Emitter(
          buffer: buffer, layout: vcpu.guest.layout, helpers: vcpu.guest.helpers,
          optimisations: options.optimisations, features: features, runtime: TranslatedVCPU.runtime,
          sites: sites)
        emptyBufferOffset = buffer.used
      }
    }
  }

  /// The routine that enters generated code.
  var entry: UInt64 { emitter!.entry }

  // MARK: The gate

  /// Blocks while all code is being dropped; afterwards the caller counts as running code.
  func beginRunning(_ vcpu: TranslatedVCPU) {
    gate.lock()
    while isExclusive, soleVCPU !== vcpu { gate.wait() }
    runningCount += 1
    gate.unlock()
  }
  func endRunning() {
    gate.lock()
    runningCount -= 1
    // Only `dropAll` waits for the count.
    if isExclusive { gate.broadcast() }
    gate.unlock()
  }

  /// Drops all translated code. The caller is a vCPU's thread outside generated code and not counted as running.
  func dropAll(_ caller: TranslatedVCPU) {
    gate.lock()
    while isExclusive, soleVCPU !== caller { gate.wait() }
    // It may have been so for the caller.
    let wasExclusive = isExclusive
    isExclusive = true
    for vcpu in vcpus { vcpu.requestAttention() }
    while runningCount > 0 { gate.wait() }
    lock.withLock {
      guard isFull else { return }  // another vCPU did it
      counters.flushes += 1
      table.removeAll()
      unsettledPages.removeAll()
      emitter?.removeAllSites()
      buffer?.used = emptyBufferOffset
      for region in memory?.ram ?? [] {
        let pages = Int(region.byteCount / guestPageByteCount)
        for page in 0..<pages where apus_load_relaxed8(region.pageFlags + page) & GuestRAM.pageHasCode != 0 {
          _ = apus_fetch_and8(region.pageFlags + page, ~GuestRAM.pageHasCode)
        }
      }
      for vcpu in vcpus { vcpu.forgetCode() }
    }
    isExclusive = wasExclusive
    gate.broadcast()
    gate.unlock()
  }

  // MARK: Finding and making blocks

  enum Found {
    case block(UInt32)
    /// The code goes on in the next page, which the caller must resolve.
    case needsNextPage
    /// No room: `dropAll` is due.
    case full
  }

  /// The bit that a block's key has besides its mode if its accesses are not grouped.
  static let ungroupedKey: UInt32 = 1 << 31

  /// Finds or translates the block at `pc`, whose bytes are at `physical` and at `host`.
  ///
  /// - Parameter key: the CPU mode, with `ungroupedKey` for a block without groups.
  func findBlock(
    pc: UInt64, physical: UInt64, host: UnsafePointer<UInt8>, key: UInt32,
    nextPage: (physical: UInt64, host: UnsafePointer<UInt8>)?,
    for vcpu: TranslatedVCPU
  ) -> Found {
    lock.lock()
    defer { lock.unlock() }
    switch table.find(
      physicalPC: physical, pc: pc, mode: key, secondPhysicalPage: nextPage.map { $0.physical >> 12 })
    {
    case .block(let known): return .block(known)
    case .needsSecondPage: return .needsNextPage
    case .unknown: break
    }
    if isFull { return .full }
    let start = options.countsTime ? HostClock.monotonicNanoseconds() : 0
    defer { if options.countsTime { counters.nanoseconds += HostClock.monotonicNanoseconds() - start } }
    return translate(pc, physical, host, key, nextPage, vcpu)
  }

  private var isFull: Bool {
    table.isFull || (buffer.map { $0.free < 1 << 20 } ?? false)
      || (emitter?.sites.isNearlyFull ?? false)
  }

  private func translate(
    _ pc: UInt64, _ physical: UInt64, _ host: UnsafePointer<UInt8>, _ key: UInt32,
    _ nextPage: (physical: UInt64, host: UnsafePointer<UInt8>)?, _ vcpu: TranslatedVCPU
  ) -> Found {
    let mode = key & ~Self.ungroupedKey
    // Stores to the page must be seen from before its bytes are read.
    markCode(physical, vcpu)
    if let nextPage { markCode(nextPage.physical, vcpu) }
    let offset = Int(physical & 4095)
    let window = GuestCodeWindow(
      bytes: host, count: 4096 - offset, precedingCount: offset, nextPage: nextPage?.host)
    let limit = options.blockInstructionLimit
    switch vcpu.guest.translate(block, pc: pc, mode: mode, code: window, instructionLimit: limit) {
    case .needsNextPage: return .needsNextPage
    case .block: break
    }
    #if DEBUG
      if let problem = IRVerifier.check(block) {
        preconditionFailure("malformed IR: \(problem)\n\(block.text())")
      }
    #endif
    counters.blocks += 1
    counters.guestInstructions += UInt64(block.guestInstructionCount)
    log(vcpu, window)
    let last = lastInstructionEnd()
    let byteCount = UInt32(truncatingIfNeeded: last &- pc)
    let crosses = UInt64(offset) + UInt64(byteCount) > 4096
    var record = BlockRecord(
      physicalPC: physical, pc: pc, mode: key, byteCount: byteCount,
      secondPhysicalPage: crosses ? nextPage!.physical >> 12 : .max)
    if vcpus.count > 1, memory != nil { record.byteHash = byteHash(record) }
    if options.verifies || options.engine == .interpreter { record.ir = BlockIR.copy(block) }
    guard let emitter else { return .block(table.insert(record)) }
    let context = X86BlockContext(
      block: UInt32(table.count), jumpCacheContext: vcpu.guest.fetchContext(mode: mode),
      isPaged: memory != nil, isFlat: memory == nil,
      groupsAccesses: memory != nil && options.optimisations.contains(.group)
        && key & Self.ungroupedKey == 0)
    guard let code = emitter.emit(block, context) else {
      preconditionFailure("a block of \(block.count) operations does not fit 1 MiB")
    }
    record.codeOffset = UInt32(code.offset)
    counters.hostCodeBytes += UInt64(code.byteCount)
    buffer?.releaseWritten()
    let number = table.insert(record)
    for link in emitter.links {
      let linkNumber = table.links.append(
        LinkRecord(
          siteOffset: UInt32(link.siteOffset), stubOffset: UInt32(link.stubOffset), sourceBlock: number,
          targetPC: link.targetPC, isUngrouped: link.isUngrouped))
      storeCode(linkNumber, link.stubOffset + X86Emitter.linkNumberOffsetInStub)
    }
    if options.log.items.contains(.hostCode) { options.log.write(hostCodeText(code.offset, code.byteCount)) }
    perfMap?.add(buffer!.address(code.offset), code.byteCount, pc)
    return .block(number)
  }

  private func lastInstructionEnd() -> UInt64 {
    var index = block.count - 1
    while block.instructions[index].opcode != .instruction { index -= 1 }
    let last = block.instructions[index]
    return UInt64(bitPattern: last.immediate) &+ UInt64(last.c)
  }

  private func markCode(_ physical: UInt64, _ current: TranslatedVCPU) {
    if memory == nil {
      onCodePage?(physical & ~4095)
      return
    }
    guard let region = memory?.ramRegion(GuestPhysicalAddress(physical), forCPU: true) else { return }
    let flags = region.pageFlags + Int((physical - region.base.rawValue) >> 12)
    if apus_load_relaxed8(flags) & GuestRAM.pageHasCode != 0 { return }
    _ = apus_fetch_or8(flags, GuestRAM.pageHasCode)
    for vcpu in vcpus { vcpu.codePageAppeared() }
    apus_fence()
    var waiting: UInt64 = 0
    for vcpu in vcpus where vcpu !== current && vcpu.isInCode { waiting |= 1 << UInt64(vcpu.index) }
    if waiting != 0 { unsettledPages.append((physical >> 12, waiting)) }
  }

  // MARK: Unsettled pages

  // Generated code of another vCPU may store to a page, by a permission in its TLB, for a moment after code was
  // translated from it, unseen. Such a page is unsettled until every vCPU that was in generated code at that time
  // has dropped its permissions. Then, and at each `fence.i` before, its blocks are compared with its bytes.

  /// A vCPU that ran generated code has dropped its permissions to store.
  func acknowledgeStores(_ vcpu: TranslatedVCPU) {
    lock.withLock {
      for index in unsettledPages.indices.reversed() {
        unsettledPages[index].waiting &= ~(1 << UInt64(vcpu.index))
        if unsettledPages[index].waiting == 0 { recheck(unsettledPages.remove(at: index).page) }
      }
    }
  }
  /// `fence.i`: what other vCPUs stored before counts from now on.
  func recheckUnsettledPages() {
    lock.withLock { for (page, _) in unsettledPages { recheck(page) } }
  }
  private func recheck(_ page: UInt64) {
    var stale: [BlockRecord] = []
    table.forEachBlock(page: page) { number in
      let record = table[number]
      if byteHash(record) != record.byteHash { stale.append(record) }
    }
    for record in stale {
      counters.lateInvalidations += 1
      invalidateLocked(record.physicalPC, 1)
    }
  }

  /// A hash of the bytes that a block was made from.
  private func byteHash(_ record: BlockRecord) -> UInt32 {
    let inFirst = min(UInt64(record.byteCount), 4096 - record.physicalPC & 4095)
    var hash = byteHash(record.physicalPC, inFirst, 0xcbf2_9ce4_8422_2325)
    if inFirst < record.byteCount {
      hash = byteHash(record.secondPhysicalPage << 12, UInt64(record.byteCount) - inFirst, hash)
    }
    return UInt32(truncatingIfNeeded: hash >> 32)
  }
  private func byteHash(_ physical: UInt64, _ count: UInt64, _ seed: UInt64) -> UInt64 {
    guard let pointer = memory!.ramPointer(GuestPhysicalAddress(physical), count, forCPU: true) else {
      return seed
    }
    var hash = seed
    // Instructions are pairs of bytes.
    for offset in stride(from: 0, to: Int(count), by: 2) {
      hash =
        (hash ^ UInt64(pointer.loadUnaligned(fromByteOffset: offset, as: UInt16.self))) &* 0x100_0000_01b3
    }
    return hash
  }

  func byteCount(of number: UInt32) -> UInt64 { UInt64(table[number].byteCount) }
  func codeAddress(_ number: UInt32) -> UInt64 { buffer!.address(Int(table[number].codeOffset)) }
  /// No lock: for a caller that has made the block reachable and asks whether it was dropped meanwhile.
  func isInvalid(_ number: UInt32) -> Bool { table.pointer(number).pointee.isInvalid }
  func record(locked number: UInt32) -> BlockRecord { lock.withLock { table[number] } }
  /// The slow path's description. No lock: sites are written before their code can run.
  func site(_ number: Int) -> SlowSite { emitter!.sites[number] }

  /// The site whose access is at `address` in generated code, for a fault in flat memory. Async-signal-safe.
  public func faultSite(_ address: UInt64) -> SlowSite? {
    guard let buffer, let emitter else { return nil }
    let start = buffer.address(0)
    guard address >= start, address < start + UInt64(buffer.used) else { return nil }
    return emitter.sites.find(flatOffset: UInt32(address - start))
  }

  // MARK: Links

  private func storeCode(_ value: UInt32, _ offset: Int) {
    UnsafeMutableRawPointer(buffer!.writable + offset).storeBytes(of: value, as: UInt32.self)
  }
  private func patch(_ link: LinkRecord, to target: Int) {
    apus_store_relaxed32(
      buffer!.writable + Int(link.siteOffset), UInt32(bitPattern: Int32(target - Int(link.siteOffset) - 4)))
  }

  /// Where a link leads, and whether it must be looked up each time. No lock: `targetPC` never changes while code
  /// runs, and an outdated `isUnstable` costs one more try.
  func linkTarget(_ number: UInt32) -> (pc: UInt64, isUnstable: Bool, isUngrouped: Bool) {
    let link = table.links.base + Int(number)
    return (link.pointee.targetPC, link.pointee.isUnstable, link.pointee.isUngrouped)
  }

  /// Lets link `number` jump to `target` from now on, if both blocks are still good.
  func connect(_ number: UInt32, to target: UInt32) {
    lock.withLock {
      let link = table.links.base + Int(number)
      let record = table.pointer(target)
      guard link.pointee.targetBlock == 0, !record.pointee.isInvalid,
        !table[link.pointee.sourceBlock].isInvalid
      else { return }
      if memory != nil, record.pointee.secondPhysicalPage != .max,
        record.pointee.secondPhysicalPage != table[link.pointee.sourceBlock].secondPhysicalPage
      {
        link.pointee.isUnstable = true
        return
      }
      link.pointee.targetBlock = target
      link.pointee.nextIncoming = record.pointee.firstIncoming
      record.pointee.firstIncoming = number
      counters.links += 1
      patch(link.pointee, to: Int(record.pointee.codeOffset))
    }
  }

  // MARK: Invalidation

  /// The numbers of the pages from `first` to `last` that blocks were made from. Under `lock`.
  func codePages(_ first: UInt64, _ last: UInt64) -> [UInt64] {
    if last - first < 64 { return (first...last).filter { table.hasBlocks(page: $0) } }
    return table.pageNumbers.filter { $0 >= first && $0 <= last }
  }

  /// Drops the blocks made from `count` bytes at physical address `address`; returns whether there were any.
  @discardableResult
  func invalidate(_ address: UInt64, _ count: UInt64) -> Bool {
    lock.withLock { invalidateLocked(address, count) }
  }
  @discardableResult
  private func invalidateLocked(_ address: UInt64, _ count: UInt64) -> Bool {
    var hadBlocks = false
    var page = address >> 12
    let last = (address + count - 1) >> 12
    while page <= last {
      let start = page == address >> 12 ? address & 4095 : 0
      let end = page == last ? ((address + count - 1) & 4095) + 1 : 4096
      var dropped: [UInt32] = []
      let blocksLeft = table.remove(page: page, start: start, end: end) { dropped.append($0) }
      counters.invalidations += UInt64(dropped.count)
      if !dropped.isEmpty { hadBlocks = true }
      for number in dropped { disconnect(number) }
      if !blocksLeft, let region = memory?.ramRegion(GuestPhysicalAddress(page << 12), forCPU: true) {
        _ = apus_fetch_and8(
          region.pageFlags + Int(((page << 12) - region.base.rawValue) >> 12), ~GuestRAM.pageHasCode)
      }
      page += 1
    }
    return hadBlocks
  }

  /// Makes sure that nothing leads to the block any more.
  private func disconnect(_ number: UInt32) {
    let record = table.pointer(number)
    // A vCPU that enters the block into its jump cache right now sees that it is invalid.
    apus_fence()
    for vcpu in vcpus { vcpu.forgetJump(to: record.pointee.pc) }
    var link = record.pointee.firstIncoming
    while link != 0 {
      let pointer = table.links.base + Int(link)
      patch(pointer.pointee, to: Int(pointer.pointee.stubOffset))
      pointer.pointee.targetBlock = 0
      link = pointer.pointee.nextIncoming
      pointer.pointee.nextIncoming = 0
    }
    record.pointee.firstIncoming = 0
  }

  // MARK: Observation

  /// The counters of the cache and its vCPUs, a `name value` pair a line. Exact once the vCPUs rest.
  public func statistics() -> String {
    lock.withLock {
      var lines = counters.named
      for vcpu in vcpus { lines += vcpu.counters.named.map { ("cpu\(vcpu.index).\($0.0)", $0.1) } }
      return lines.map { "\($0.0) \($0.1)\n" }.joined()
    }
  }

  private func log(_ vcpu: TranslatedVCPU, _ window: GuestCodeWindow) {
    let items = options.log.items
    if items.isDisjoint(with: [.guestCode, .ir, .usedIR]) { return }
    var text = ""
    if items.contains(.guestCode) {
      text += "----------------\nIN: \n"
      for index in 0..<block.count where block.instructions[index].opcode == .instruction {
        let pc = UInt64(bitPattern: block.instructions[index].immediate)
        var bytes = [UInt8](repeating: 0, count: 16)
        for k in 0..<16 {
          let offset = Int(pc &- block.startPC) + k
          bytes[k] =
            offset < window.count ? window.bytes[offset] : window.nextPage?[offset - window.count] ?? 0
        }
        text += "0x\(String(pc, radix: 16)):  \(vcpu.guest.disassemble(bytes, pc: pc))\n"
      }
    }
    if items.contains(.ir) { text += "OP:\n\(block.text())\n" }
    if items.contains(.usedIR) { text += "OP without unused values:\n\(block.text(omitsUnused: true))\n" }
    options.log.write(text)
  }

  private func hostCodeText(_ offset: Int, _ count: Int) -> String {
    var text = "OUT: [size=\(count)]\n"
    for line in stride(from: 0, to: count, by: 16) {
      text += "0x\(String(buffer!.address(offset + line), radix: 16)):  "
      for k in line..<min(line + 16, count) {
        let digits = String(buffer!.writable[offset + k], radix: 16)
        text += (digits.count == 1 ? "0" : "") + digits
      }
      text += "\n"
    }
    return text + "\n"
  }
}

/// What the engine counted, by name (`info jit`, `--stats`).
public struct TranslateCounters: Sendable {
  public var blocks: UInt64 = 0
  public var guestInstructions: UInt64 = 0
  public var hostCodeBytes: UInt64 = 0
  public var links: UInt64 = 0
  public var invalidations: UInt64 = 0
  /// Blocks that a store of another vCPU had made stale before that vCPU knew of them.
  public var lateInvalidations: UInt64 = 0
  public var flushes: UInt64 = 0
  /// Host time spent translating, if `stats=on`.
  public var nanoseconds: UInt64 = 0

  var named: [(String, UInt64)] {
    [
      ("blocks", blocks), ("guest-instructions", guestInstructions), ("host-code-bytes", hostCodeBytes),
      ("links", links), ("invalidations", invalidations), ("late-invalidations", lateInvalidations),
      ("flushes", flushes),
      ("translation-nanoseconds", nanoseconds),
    ]
  }
}
