import ApusCPU
import ApusGuest
import ApusHost
import ApusIR
import ApusIREval
import ApusJIT
import ApusJITX86
import ApusMemory
import CApusHost
import Synchronization

/// A vCPU that runs translated code, or the evaluator, on its own thread.
///
/// Everything without a comment belongs to that thread. `kick`, `requestExit`, `setInterrupt`, `codeDropped`,
/// `codePageAppeared` may be called from any.
public final class TranslatedVCPU: VCPU, GuestEngine, @unchecked Sendable {
  public let index: Int
  public let cache: TranslationCache
  /// Set by init, once the engine can be handed to it.
  public private(set) var guest: (any GuestCPU)!
  // SAFETY: StateHeader.byteCount bytes that live as long as self.
  public let state: UnsafeMutableRawPointer
  private let stateMapping: HostMapping
  let tlb: SecondLevelTLB
  private let firstLevel: FirstLevelTLB
  private let jumps: JumpCaches
  /// None in flat memory, where nothing is flushed.
  private let recentBlocks: RecentBlocks?
  let memory: AddressSpace?
  /// For what generated code leaves to it; many threads never need one.
  private(set) lazy var evaluator = IREvaluator()
  private let isJIT: Bool
  /// One block a dispatch: for lockstep, the interpreter and `-d exec`.
  private let isStepped: Bool

  // Written by any thread.
  private let stopRequested = Atomic<Bool>(false)
  private let codeStale = Atomic<Bool>(false)
  private let storesStale = Atomic<Bool>(false)
  private let mappingsStale = Atomic<Bool>(false)
  private let runsCode = Atomic<Bool>(false)
  /// What other vCPUs want to be forgotten. The flag is set and cleared inside the lock, and read outside.
  private let invalidations = Mutex<[Invalidation]>([])
  private let hasInvalidations = Atomic<Bool>(false)
  private struct Invalidation {
    var page: UInt64?
    var keepGlobal: Bool
    var contexts: GuestContexts
  }
  /// More than this at once, and everything goes.
  private static let invalidationLimit = 64
  /// Other vCPUs may not have done yet what `invalidateTLB` asked for.
  private var awaitsInvalidations = false
  /// Pages whose accesses the guest wants to see, by first address.
  var watchedPages: [UInt64] = []
  private let sleepMonitor = Monitor()

  private var sleepRequested = false
  /// Interrupts may have become deliverable by something that this vCPU did.
  private var interruptCheckRequested = false
  private var needsFlush = false
  private var failure: String?
  /// The block that `findNext` found, and its code.
  private var nextBlock: UInt32 = 0
  private var nextCode: UInt64 = 0
  public internal(set) var counters = VCPUCounters()

  /// - Parameter makeGuest: makes the guest's CPU on the state it is given, with this engine.
  public init(
    index: Int, cache: TranslationCache,
    makeGuest: (_ state: UnsafeMutableRawPointer, _ engine: any GuestEngine) -> any GuestCPU
  ) throws(HostError) {
    self.index = index
    self.cache = cache
    memory = cache.memory
    stateMapping = try HostMapping(anonymousByteCount: StateHeader.byteCount)
    state = stateMapping.base
    tlb = try SecondLevelTLB()
    let isPaged = memory != nil
    firstLevel = FirstLevelTLB(state: state, contextCount: isPaged ? StateHeader.contextCount : 1)
    jumps = JumpCaches(state: state, isPaged: isPaged)
    recentBlocks = isPaged ? RecentBlocks() : nil
    isJIT = cache.options.engine == .jit
    isStepped = !isJIT || cache.options.verifies || cache.options.log.items.contains(.execution)
    guest = makeGuest(state, self)
    state.storeBytes(
      of: Unmanaged.passUnretained(self).toOpaque(), toByteOffset: StateHeader.engine,
      as: UnsafeMutableRawPointer.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.hostMXCSR, as: UInt32.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    X86Emitter.initializeConstants(state)
    cache.attach(self)
  }

  deinit { recentBlocks?.deallocate() }

  /// Calls `body` with the vCPU whose state this is; for the runtime functions.
  @inline(__always)
  private static func with(
    _ state: UnsafeMutableRawPointer, _ body: (TranslatedVCPU) -> UInt64
  ) -> UInt64 {
    Unmanaged<TranslatedVCPU>.fromOpaque(
      state.load(fromByteOffset: StateHeader.engine, as: UnsafeRawPointer.self)
    )
    ._withUnsafeGuaranteedRef(body)
  }

  @inline(__always) var pc: UInt64 {
    get { state.load(fromByteOffset: StateHeader.pc, as: UInt64.self) }
    set { state.storeBytes(of: newValue, toByteOffset: StateHeader.pc, as: UInt64.self) }
  }
  @inline(__always) var mode: UInt32 { state.load(fromByteOffset: StateHeader.mode, as: UInt32.self) }

  // MARK: From any thread

  /// Makes generated code return to the run loop soon, and wakes a sleeper.
  func requestAttention() {
    apus_store_release32(state + StateHeader.exitRequest, 1)
    sleepMonitor.lock()
    sleepMonitor.signal()
    sleepMonitor.unlock()
  }
  public func kick() { requestAttention() }
  public func requestExit() {
    stopRequested.store(true, ordering: .releasing)
    requestAttention()
  }
  public func setInterrupt(_ number: Int, _ level: Bool) {
    guest.setInterrupt(number, level)
    if level { requestAttention() }
  }
  /// A block at this PC is dropped.
  func forgetJump(to pc: UInt64) {
    recentBlocks?.forget(pc)
    apus_fence()
    jumps.forget(pc)
  }
  /// A page now has translated code: stores to it must take the slow path.
  func codePageAppeared() {
    storesStale.store(true, ordering: .releasing)
    apus_store_release32(state + StateHeader.exitRequest, 1)
  }
  /// Whether the vCPU may be storing by its TLB. Once false, it drops stale permissions before it is true again.
  var isInCode: Bool { runsCode.load(ordering: .sequentiallyConsistent) }
  /// What physical addresses mean has changed: host addresses in the TLBs may be wrong.
  func mappingsChanged() {
    mappingsStale.store(true, ordering: .releasing)
    requestAttention()
  }
  /// All code is gone. Called while no vCPU runs.
  func forgetCode() {
    codeStale.store(true, ordering: .releasing)
    storesStale.store(true, ordering: .releasing)
    nextBlock = 0
  }

  private func requestInvalidation(_ one: Invalidation) {
    invalidations.withLock { list in
      if list.count >= Self.invalidationLimit {
        list = [.init(page: nil, keepGlobal: false, contexts: .all)]
      } else {
        list.append(one)
      }
      hasInvalidations.store(true, ordering: .sequentiallyConsistent)
    }
    apus_store_release32(state + StateHeader.exitRequest, 1)
  }

  public func reset(entry: UInt64, arguments: [UInt64]) {
    sleepRequested = false
    guest.reset(entry: entry, arguments: arguments)
  }

  // MARK: The run loop

  public func run() -> VCPUExit {
    VCPUThread.index = index
    while true {
      if let exit = attend() { return exit }
      if needsFlush {
        needsFlush = false
        cache.dropAll(self)
        continue
      }
      if sleepRequested {
        sleep()
        continue
      }
      beginRunning()
      applyStaleness()
      if isStepped { runStepped() } else { enterCode() }
      endRunning()
      if let failure { return .failed(failure) }
    }
  }

  func beginRunning() {
    cache.beginRunning(self)
    runsCode.store(true, ordering: .sequentiallyConsistent)
  }
  func endRunning() {
    runsCode.store(false, ordering: .sequentiallyConsistent)
    counters.jumpCacheClears = jumps.clears
    cache.endRunning()
  }

  /// Deals with what other threads asked for.
  private func attend() -> VCPUExit? {
    if stopRequested.exchange(false, ordering: .acquiringAndReleasing) { return .requested }
    if apus_load_acquire32(state + StateHeader.exitRequest) != 0 {
      counters.exitRequests += 1
      apus_store_release32(state + StateHeader.exitRequest, 0)
      apus_fence()
      if stopRequested.exchange(false, ordering: .acquiringAndReleasing) { return .requested }
      if guest.takeInterrupt() {
        counters.interrupts += 1
        sleepRequested = false
      }
    }
    state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
    return nil
  }

  private func applyStaleness() {
    if codeStale.exchange(false, ordering: .acquiringAndReleasing) { forgetBlocks() }
    dropStaleStorePermissions()
    if mappingsStale.exchange(false, ordering: .acquiringAndReleasing) {
      flushTLB(page: nil, keepGlobal: false, contexts: .all)
    }
    if hasInvalidations.load(ordering: .sequentiallyConsistent) {
      invalidations.withLock { list in
        for one in list { flushTLB(page: one.page, keepGlobal: one.keepGlobal, contexts: one.contexts) }
        list.removeAll(keepingCapacity: true)
        hasInvalidations.store(false, ordering: .sequentiallyConsistent)
      }
    }
  }

  private func sleep() {
    sleepMonitor.lock()
    while !guest.shouldWake(), apus_load_acquire32(state + StateHeader.exitRequest) == 0 {
      counters.sleeps += 1
      sleepMonitor.wait(until: guest.nextTimerDeadline())
    }
    sleepMonitor.unlock()
    sleepRequested = false
    apus_store_release32(state + StateHeader.exitRequest, 1)
  }

  private func enterCode() {
    let code = dispatch()
    if code == 0 { return }
    _ = apus_enter_code(
      UnsafeRawPointer(bitPattern: UInt(cache.entry)), state, UnsafeRawPointer(bitPattern: UInt(code)))
  }

  private func runStepped() {
    while findNext() {
      let record = cache.record(locked: nextBlock)
      if cache.options.log.items.contains(.execution) {
        cache.options.log.write("Trace \(index): 0x\(String(record.pc, radix: 16)) mode \(record.mode)\n")
      }
      if cache.options.log.items.contains(.cpu) { cache.options.log.write(guest.registerText()) }
      if cache.options.verifies {
        verify(nextBlock, record)
        if failure != nil { return }
      } else if isJIT {
        runCode(nextBlock)
      } else {
        evaluate(record, self)
      }
    }
  }

  func evaluate(_ record: BlockRecord, _ memory: some EvaluatorMemory) {
    let ir = record.ir!.pointee
    evaluator.run(
      ir.instructions, count: ir.count, terminator: ir.terminator, state: state, helpers: guest.helpers,
      memory: memory)
  }
  /// Runs one block of generated code; `dispatch` returns to the run loop when stepping.
  func runCode(_ number: UInt32) {
    _ = apus_enter_code(
      UnsafeRawPointer(bitPattern: UInt(cache.entry)), state,
      UnsafeRawPointer(bitPattern: UInt(cache.codeAddress(number))))
  }
  func fail(_ reason: String) { failure = reason }

  // MARK: Dispatch

  /// The runtime functions for the back end.
  static let runtime = X86Runtime(
    slowMemory: address { state in TranslatedVCPU.with(state) { $0.slowMemory() } },
    resolveLink: address { state in TranslatedVCPU.with(state) { $0.resolveLink() } },
    dispatch: address { state in TranslatedVCPU.with(state) { $0.isStepped ? 0 : $0.dispatch() } },
    prepareGroup: address { state in TranslatedVCPU.with(state) { $0.prepareGroup() } })
  private typealias RuntimeFunction = @convention(c) (UnsafeMutableRawPointer) -> UInt64
  private static func address(_ function: RuntimeFunction) -> UInt64 {
    UInt64(UInt(bitPattern: unsafeBitCast(function, to: Int.self)))
  }

  /// The code for the state's PC and mode; 0 to return to the run loop.
  private func dispatch() -> UInt64 {
    counters.dispatches += 1
    if let code = findInJumpCache() { return code }
    return findNext() ? nextCode : 0
  }

  /// The short way: the jump cache knows the block, and nothing else is asked of the run loop.
  private func findInJumpCache() -> UInt64? {
    guard !sleepRequested, !needsFlush, !interruptCheckRequested,
      state.load(fromByteOffset: StateHeader.pendingExit, as: UInt32.self) & 2 == 0,
      apus_load_relaxed32(state + StateHeader.exitRequest) == 0
    else { return nil }
    let pc = self.pc
    let mode = self.mode
    if mode != lastMode { (lastMode, lastContext) = (mode, guest.fetchContext(mode: mode)) }
    if jumps.stale.contains(lastContext) { checkJumps(lastContext) }
    guard let code = jumps.find(pc, kind: branchKind, mode: mode, lastContext) else { return nil }
    branchKind = 0
    state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
    return code
  }

  private var branchKind: UInt32 {
    get { state.load(fromByteOffset: StateHeader.branchKind, as: UInt32.self) }
    set { state.storeBytes(of: newValue, toByteOffset: StateHeader.branchKind, as: UInt32.self) }
  }
  /// An indirect branch that has been checked, at its target.
  private struct Arrival {
    var kind: UInt32
    var pc: UInt64
    var mode: UInt32
  }
  /// Lets the guest check the branch that came here, if it has a kind.
  private func takeBranch() -> Arrival? {
    let arrival = Arrival(kind: branchKind, pc: pc, mode: mode)
    guard arrival.kind != 0 else { return nil }
    branchKind = 0
    let source = state.load(fromByteOffset: StateHeader.argument0, as: UInt64.self)
    return guest.checkBranch(kind: arrival.kind, from: source) ? arrival : nil
  }

  /// Finds the block for the state's PC and mode into `nextBlock`. False: back to the run loop first.
  private func findNext() -> Bool {
    defer { ungroupedPC = nil }
    let arrival = takeBranch()
    if state.load(fromByteOffset: StateHeader.pendingExit, as: UInt32.self) & 2 != 0 {
      requestInterruptCheck()
    }
    state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
    while true {
      if failure != nil || needsFlush || apus_load_relaxed32(state + StateHeader.exitRequest) != 0 {
        return false
      }
      if interruptCheckRequested {
        interruptCheckRequested = false
        if guest.takeInterrupt() {
          counters.interrupts += 1
          sleepRequested = false
          state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
        }
      }
      if sleepRequested { return false }
      counters.blockSearches += 1
      let pc = self.pc
      let mode = self.mode
      let context = guest.fetchContext(mode: mode)
      (lastMode, lastContext) = (mode, context)
      if jumps.stale.contains(context) { checkJumps(context) }
      // What is found there may change the mode.
      guard let page = resolveFetch(pc, pc: pc, context), self.mode == mode else { continue }
      let isUngrouped = pc == ungroupedPC
      let kind = arrival.map { $0.pc == pc && $0.mode == mode ? $0.kind : 0 } ?? 0
      let isRemembered = isJIT && !isStepped && !isUngrouped
      let place = JumpCaches.Place(physicalPage: page.physical >> 12, isGuarded: lastFetchWasGuarded)
      if isRemembered, findRecent(pc, place, kind: kind, context) { return true }
      let key = isUngrouped ? mode | TranslationCache.ungroupedKey : mode
      var found = cache.findBlock(
        pc: pc, physical: page.physical, host: page.host, key: key, nextPage: nil, for: self)
      var secondPlace: JumpCaches.Place?
      if case .needsNextPage = found {
        let next = (pc | 4095) &+ 1
        let isGlobal = lastFetchWasGlobal
        guard let second = resolveFetch(next, pc: pc, context) else { continue }
        lastFetchWasGlobal = lastFetchWasGlobal && isGlobal
        secondPlace = JumpCaches.Place(physicalPage: second.physical >> 12, isGuarded: lastFetchWasGuarded)
        found = cache.findBlock(
          pc: pc, physical: page.physical, host: page.host, key: key, nextPage: second, for: self)
      }
      switch found {
      case .block(let number):
        (nextBlock, nextCode) = (number, isJIT ? cache.codeAddress(number) : 0)
        // Code that was just translated may lie in a page that this vCPU may store to.
        dropStaleStorePermissions()
        if codeStale.exchange(false, ordering: .acquiringAndReleasing) { forgetBlocks() }
        if isRemembered {
          let block = JumpCaches.Block(
            pc: pc, mode: mode, code: nextCode, place: place, secondPlace: secondPlace,
            isGlobal: lastFetchWasGlobal)
          remember(block, kind: kind, context, number: number)
        }
        return true
      case .needsNextPage, .full:
        needsFlush = true
        return false
      }
    }
  }

  /// Finds a block that was found lately, which then is in the jump cache again.
  private func findRecent(_ pc: UInt64, _ place: JumpCaches.Place, kind: UInt32, _ context: Int) -> Bool {
    let mode = self.mode
    guard let recentBlocks, let recent = recentBlocks.find(pc, place.physicalPage, mode) else { return false }
    let block = JumpCaches.Block(
      pc: pc, mode: mode, code: recent.pointee.code, place: place, isGlobal: lastFetchWasGlobal)
    (nextBlock, nextCode) = (recent.pointee.number, recent.pointee.code)
    let entry = jumps.insert(block, kind: kind, context)
    // As in `remember`: `forgetJump` begins with the recent blocks.
    apus_fence()
    if recentBlocks.find(pc, place.physicalPage, mode) == nil { jumps.remove(entry, context) }
    return true
  }

  /// Enters a block into the jump cache of its mode, and among the recent ones.
  private func remember(_ block: JumpCaches.Block, kind: UInt32, _ context: Int, number: UInt32) {
    let entry = jumps.insert(block, kind: kind, context)
    if block.secondPlace == nil {
      recentBlocks?.insert(number, code: block.code, block.pc, block.place.physicalPage, block.mode)
    }
    // Another vCPU may have dropped the block since it was found, too early for `forgetJump` to see the entries.
    apus_fence()
    if cache.isInvalid(number) {
      jumps.remove(entry, context)
      recentBlocks?.forget(block.pc)
    }
  }
  /// About the page that `resolveFetch` found last.
  private var lastFetchWasGlobal = true
  private var lastFetchWasGuarded = false
  /// The mode that was last looked at, and its context.
  private var lastMode = UInt32.max
  private var lastContext = 0
  /// Where a group's look-up failed: the next block is one without groups, if it begins there.
  private(set) var ungroupedPC: UInt64?

  private func resolveLink() -> UInt64 {
    let number = state.load(fromByteOffset: StateHeader.argument2, as: UInt32.self)
    let (target, isUnstable, isUngrouped) = cache.linkTarget(number)
    let mode = self.mode
    pc = target
    if isUngrouped { ungroupedPC = target }
    if isStepped { return 0 }
    if isUnstable, !isUngrouped { return dispatch() }
    guard findNext() else { return 0 }
    // A fault on the way leads elsewhere.
    if pc == target, self.mode == mode { cache.connect(number, to: nextBlock) }
    return nextCode
  }

  /// Physical and host address of the code at `address`; takes the exception and returns `nil` if there is none.
  private func resolveFetch(_ address: UInt64, pc: UInt64, _ context: Int)
    -> (physical: UInt64, host: UnsafePointer<UInt8>)?
  {
    guard memory != nil else {
      return flatFetch(address, pc: pc)
    }
    switch resolve(address, .fetch, context) {
    case .fault(let fault):
      guest.raise(fault: fault, address: address, pc: pc)
      state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
      return nil
    case .page(let entry):
      guard let host = entry.pointee.host else {
        guest.raise(fault: guest.busFault(.fetch), address: address, pc: pc)
        state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
        return nil
      }
      (lastFetchWasGlobal, lastFetchWasGuarded) = (entry.pointee.isGlobal, entry.pointee.isGuarded)
      let offset = address & 4095
      return (
        entry.pointee.physicalPage << 12 | offset,
        UnsafePointer((host + Int(offset)).assumingMemoryBound(to: UInt8.self))
      )
    }
  }

  /// User-mode emulation: whether a guest page may be executed.
  public var isExecutable: ((UInt64) -> Bool)?
  /// User-mode emulation: an access to flat memory faulted. True if it is worth another attempt.
  public var flatFault: ((_ address: UInt64, _ access: GuestAccess) -> Bool)?
  /// For `verify`.
  private(set) lazy var lockstep = Lockstep(self)
  private(set) lazy var singleStepBlock = IRBlock()
  private func flatFetch(_ address: UInt64, pc: UInt64) -> (physical: UInt64, host: UnsafePointer<UInt8>)? {
    guard isExecutable?(address) ?? true, let pointer = UnsafePointer<UInt8>(bitPattern: UInt(address)) else {
      guest.raise(fault: guest.busFault(.fetch), address: address, pc: pc)
      state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
      return nil
    }
    return (address, pointer)
  }
  private func forgetBlocks() {
    jumps.clearAll()
    recentBlocks?.removeAll()
  }
  private func dropStaleStorePermissions() {
    guard storesStale.load(ordering: .sequentiallyConsistent),
      storesStale.exchange(false, ordering: .acquiringAndReleasing)
    else { return }
    firstLevel.dropStores()
    cache.acknowledgeStores(self)
  }

  // MARK: GuestEngine

  public func flushTLB(page: UInt64?, keepGlobal: Bool, contexts: GuestContexts) {
    guard memory != nil else { return }
    counters.tlbFlushes += 1
    if let page, !tlb.isPartOfLargePage(page, contexts) {
      let number = page >> 12
      tlb.remove(page: number, contexts)
      for context in contexts { firstLevel.remove(page: number, context) }
      if jumps.clear(page: number) { counters.jumpCachePageClears += 1 }
      return
    }
    counters.fullTLBFlushes += 1
    tlb.flush(keepGlobal: keepGlobal, contexts)
    for context in contexts where !keepGlobal || firstLevel.isLocal(context) { firstLevel.clear(context) }
    for context in contexts where !keepGlobal || jumps.isLocal(context) {
      if guest.canTranslate(context: context) {
        checkJumps(context)
      } else {
        // It is not the one that runs.
        jumps.markStale(context)
      }
    }
  }

  public func codePage(_ address: UInt64, context: Int) -> (host: UnsafeRawPointer?, isGuarded: Bool)? {
    guard case .page(let entry) = resolve(address, .fetch, context) else { return nil }
    return (entry.pointee.host.map { UnsafeRawPointer($0 + Int(address & 4095)) }, entry.pointee.isGuarded)
  }

  public func setWatchedPages(_ pages: [UInt64]) {
    guard pages != watchedPages else { return }
    watchedPages = pages
    flushTLB(page: nil, keepGlobal: false, contexts: .all)
  }

  public func invalidateTLB(page: UInt64?, keepGlobal: Bool, contexts: GuestContexts, isShared: Bool) {
    flushTLB(page: page, keepGlobal: keepGlobal, contexts: contexts)
    guard isShared, cache.vcpus.count > 1 else { return }
    for other in cache.vcpus where other !== self {
      other.requestInvalidation(.init(page: page, keepGlobal: keepGlobal, contexts: contexts))
    }
    awaitsInvalidations = true
  }

  public func completeInvalidations() -> Bool {
    guard awaitsInvalidations else { return false }
    awaitsInvalidations = false
    // Two vCPUs may wait for each other: one that waits counts as outside its code, and does its part afterwards.
    runsCode.store(false, ordering: .sequentiallyConsistent)
    for other in cache.vcpus where other !== self {
      var rounds = 0
      while other.isInCode, other.hasInvalidations.load(ordering: .sequentiallyConsistent) {
        rounds += 1
        if rounds < 200 { apus_pause() } else { HostThread.giveWay() }
      }
    }
    runsCode.store(true, ordering: .sequentiallyConsistent)
    applyStaleness()
    return true
  }

  public func addressSpaceChanged(_ space: GuestAddressSpace, contexts: GuestContexts) {
    guard memory != nil else { return }
    counters.addressSpaceSwitches += 1
    for context in contexts {
      // Global entries are those of a virtual machine.
      let isAnotherMachine = tlb.space(context).machine != space.machine
      tlb.setSpace(space, context)
      if isAnotherMachine || firstLevel.isLocal(context) { firstLevel.clear(context) }
      if isAnotherMachine {
        jumps.clear(context)
      } else if jumps.isLocal(context) {
        checkJumps(context)
      }
    }
  }
  /// Whether what the jump cache knows is true by the guest's registers, which are the context's.
  private func checkJumps(_ context: Int) {
    jumps.check(context) { page in
      guard case .page(let entry) = resolve(page << 12, .fetch, context) else { return nil }
      return JumpCaches.Place(physicalPage: entry.pointee.physicalPage, isGuarded: entry.pointee.isGuarded)
    }
  }

  /// Stores to translated code are noticed as they happen, but for those of `TranslationCache`'s unsettled pages.
  public func synchronizeInstructions() {
    onInstructionFence?()
    applyStaleness()
    cache.recheckUnsettledPages()
  }
  /// User-mode emulation: `fence.i`, where memory that changes unseen may hold code.
  public var onInstructionFence: (() -> Void)?
  public func requestSleep() { sleepRequested = true }
  public func requestInterruptCheck() { interruptCheckRequested = true }

  // MARK: Translation of addresses

  enum Resolved {
    case page(UnsafeMutablePointer<SecondLevelTLB.Entry>)
    case fault(UInt64)
  }

  /// Finds the page of a guest address in the second-level TLB or the guest's tables.
  func resolve(_ address: UInt64, _ access: GuestAccess, _ context: Int) -> Resolved {
    let page = address >> 12
    if let entry = tlb.find(page, context, access) { return .page(entry) }
    counters.pageWalks += 1
    switch guest.translateAddress(address, access, context: context) {
    case .fault(let fault):
      if cache.options.log.items.contains(.mmu) {
        cache.options.log.write(
          "mmu: \(access) of 0x\(String(address, radix: 16)) in context \(context): fault \(fault)\n")
      }
      return .fault(fault)
    case .page(let found):
      let first = found.physical & ~4095
      let ram = memory!.ramRegion(GuestPhysicalAddress(first), 4096, forCPU: true)
      if found.byteCount > 4096 {
        tlb.noteLargePage(address & ~(found.byteCount - 1), found.byteCount, context)
      }
      let entry = tlb.insert(
        page, context, found, host: ram.map { $0.host + Int(first - $0.base.rawValue) }, ram: ram,
        canFetch: access == .fetch)
      return .page(entry)
    }
  }

  /// Enters a RAM page into the first-level TLB that generated code looks into.
  func fillFirstLevel(_ address: UInt64, _ context: Int, _ entry: UnsafeMutablePointer<SecondLevelTLB.Entry>)
  {
    guard let host = entry.pointee.host, let ram = entry.pointee.ram?.takeUnretainedValue() else { return }
    let page = address & ~4095
    // Generated code must not find it.
    if !watchedPages.isEmpty, watchedPages.contains(page) { return }
    let offset = (entry.pointee.physicalPage << 12) &- ram.base.rawValue
    let hasCode = apus_load_relaxed8(ram.pageFlags + Int(offset >> 12)) & GuestRAM.pageHasCode != 0
    firstLevel.insert(
      address, context, host: host, canLoad: entry.pointee.canLoad,
      canStore: entry.pointee.canStore && !hasCode && !ram.isReadOnly, isGlobal: entry.pointee.isGlobal)
  }
  /// Whether generated code finds the page of `address`.
  func isInFirstLevel(_ address: UInt64, _ context: Int, isStore: Bool) -> Bool {
    firstLevel.contains(address, context, isStore: isStore)
  }
}

/// What a vCPU counted, by name.
public struct VCPUCounters: Sendable {
  public var dispatches: UInt64 = 0
  public var exitRequests: UInt64 = 0
  public var interrupts: UInt64 = 0
  public var sleeps: UInt64 = 0
  public var slowAccesses: UInt64 = 0
  public var deviceAccesses: UInt64 = 0
  public var pageWalks: UInt64 = 0
  public var tlbFlushes: UInt64 = 0
  public var addressSpaceSwitches: UInt64 = 0
  public var fullTLBFlushes: UInt64 = 0
  public var jumpCacheClears: UInt64 = 0
  public var jumpCachePageClears: UInt64 = 0
  public var blockSearches: UInt64 = 0

  var named: [(String, UInt64)] {
    [
      ("dispatches", dispatches), ("exit-requests", exitRequests), ("interrupts", interrupts),
      ("sleeps", sleeps),
      ("slow-accesses", slowAccesses), ("device-accesses", deviceAccesses), ("page-walks", pageWalks),
      ("tlb-flushes", tlbFlushes), ("tlb-full-flushes", fullTLBFlushes),
      ("jump-cache-clears", jumpCacheClears),
      ("jump-cache-page-clears", jumpCachePageClears), ("block-searches", blockSearches),
      ("address-space-switches", addressSpaceSwitches),
    ]
  }
}
