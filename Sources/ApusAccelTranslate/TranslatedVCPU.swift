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
  /// A block that `dispatch` found for the run loop (stepped mode).
  private var nextBlock: UInt32 = 0
  /// The mode that each jump cache's entries were made for; all ones: it is empty.
  private var jumpCacheModes: [UInt32]
  // SAFETY: a word for every jump cache entry, alive as long as self; none in flat memory, where nobody reads them.
  /// The physical page of each entry's block, and the kind of branches that find it in bits 57 and 56.
  private let jumpCachePhysicalPages: UnsafeMutablePointer<UInt64>
  /// Contexts whose jump cache or first-level TLB has entries that are not global.
  private var jumpCacheIsLocal = [Bool](repeating: false, count: StateHeader.contextCount)
  private var tlbIsLocal = [Bool](repeating: false, count: StateHeader.contextCount)
  /// Contexts whose first-level TLB has entries.
  private var tlbIsUsed = [Bool](repeating: false, count: StateHeader.contextCount)
  /// The virtual pages that have, or had, jump cache entries; not kept in flat memory.
  private var jumpCachePages = PageSet()
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
    jumpCachePhysicalPages = .allocate(
      capacity: memory == nil ? 0 : StateHeader.contextCount * StateHeader.jumpCacheEntryCount)
    isJIT = cache.options.engine == .jit
    isStepped = !isJIT || cache.options.verifies || cache.options.log.items.contains(.execution)
    jumpCacheModes = [UInt32](repeating: .max, count: StateHeader.contextCount)
    guest = makeGuest(state, self)
    state.storeBytes(
      of: Unmanaged.passUnretained(self).toOpaque(), toByteOffset: StateHeader.engine,
      as: UnsafeMutableRawPointer.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.hostMXCSR, as: UInt32.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    X86Emitter.initializeConstants(state)
    for context in 0..<contextCount {
      // The rest of fresh memory is zero, which is empty.
      state.storeBytes(of: StateHeader.noPC(0), toByteOffset: StateHeader.jumpCache(context), as: UInt64.self)
      for offset in [0, 8] {
        state.storeBytes(
          of: StateHeader.noPage(0), toByteOffset: StateHeader.tlb(context) + offset, as: UInt64.self)
      }
    }
    cache.attach(self)
  }

  deinit {
    jumpCachePhysicalPages.deallocate()
    jumpCachePages.deallocate()
  }

  /// Flat memory has one context.
  private var contextCount: Int { memory == nil ? 1 : StateHeader.contextCount }

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
  /// Takes a block's PC out of the jump caches. A racing jump of this vCPU runs the block once more, as it might have
  /// a moment before.
  func forgetJump(to pc: UInt64) {
    for kind in 0...3 as ClosedRange<UInt32> {
      let key = pc ^ StateHeader.jumpCacheTag(kind)
      let index = Int(key >> 1) & (StateHeader.jumpCacheEntryCount - 1)
      for context in 0..<contextCount {
        let entry = state + StateHeader.jumpCache(context) + index * StateHeader.jumpCacheEntryByteCount
        if apus_load_relaxed64(entry) == key { apus_store_relaxed64(entry, StateHeader.noPC(index)) }
      }
    }
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
    if codeStale.exchange(false, ordering: .acquiringAndReleasing) { clearJumpCaches() }
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
    guard findNext() else { return 0 }
    return cache.codeAddress(nextBlock)
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
    let context = lastContext
    guard jumpCacheModes[context] == mode else { return nil }
    let key = pc ^ StateHeader.jumpCacheTag(branchKind)
    let index = Int(key >> 1) & (StateHeader.jumpCacheEntryCount - 1)
    let entry = state + StateHeader.jumpCache(context) + index * StateHeader.jumpCacheEntryByteCount
    guard entry.load(as: UInt64.self) == key else { return nil }
    branchKind = 0
    state.storeBytes(of: 0, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
    return entry.load(fromByteOffset: 8, as: UInt64.self)
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
      // What is found there may change the mode.
      guard let page = resolveFetch(pc, pc: pc, context), self.mode == mode else { continue }
      let isUngrouped = pc == ungroupedPC
      let key = isUngrouped ? mode | TranslationCache.ungroupedKey : mode
      var found = cache.findBlock(
        pc: pc, physical: page.physical, host: page.host, key: key, nextPage: nil, for: self)
      if case .needsNextPage = found {
        let next = (pc | 4095) &+ 1
        let isGlobal = lastFetchWasGlobal
        guard let second = resolveFetch(next, pc: pc, context) else { continue }
        lastFetchWasGlobal = lastFetchWasGlobal && isGlobal
        found = cache.findBlock(
          pc: pc, physical: page.physical, host: page.host, key: key, nextPage: second, for: self)
      }
      switch found {
      case .block(let number):
        nextBlock = number
        // Code that was just translated may lie in a page that this vCPU may store to.
        dropStaleStorePermissions()
        if codeStale.exchange(false, ordering: .acquiringAndReleasing) { clearJumpCaches() }
        if isJIT, !isStepped, !isUngrouped {
          let isArrival = arrival?.pc == pc && arrival?.mode == mode
          remember(pc, isArrival ? arrival!.kind : 0, mode, context, number, page.physical)
        }
        return true
      case .needsNextPage, .full:
        needsFlush = true
        return false
      }
    }
  }

  /// Enters a block into the jump cache of its mode.
  private func remember(
    _ pc: UInt64, _ kind: UInt32, _ mode: UInt32, _ context: Int, _ number: UInt32, _ physical: UInt64
  ) {
    if jumpCacheModes[context] != mode {
      // One without a mode is empty.
      if jumpCacheModes[context] != .max { clearJumpCache(context) }
    }
    // Flat memory has no pages that could come to mean something else.
    if memory != nil, !jumpCachePages.insert(pc >> 12) {
      // Too many pages to tell apart: begin anew, with this one.
      clearJumpCaches()
      _ = jumpCachePages.insert(pc >> 12)
    }
    jumpCacheModes[context] = mode
    let key = pc ^ StateHeader.jumpCacheTag(kind)
    let index = Int(key >> 1) & (StateHeader.jumpCacheEntryCount - 1)
    let entry = state + StateHeader.jumpCache(context) + index * StateHeader.jumpCacheEntryByteCount
    entry.storeBytes(of: cache.codeAddress(number), toByteOffset: 8, as: UInt64.self)
    entry.storeBytes(of: key, as: UInt64.self)
    if memory != nil {
      // A block of two pages is not looked at again after a flush: it goes.
      let isWithinPage = !cache.goesOnInSecondPage(number)
      jumpCachePhysicalPages[context * StateHeader.jumpCacheEntryCount + index] =
        isWithinPage ? physical >> 12 | UInt64(kind) << 56 : .max
    }
    if !lastFetchWasGlobal { jumpCacheIsLocal[context] = true }
    // Another vCPU may have dropped the block since it was found, too early for `forgetJump` to see the entry.
    apus_fence()
    if cache.isInvalid(number) { entry.storeBytes(of: StateHeader.noPC(index), as: UInt64.self) }
  }
  private var lastFetchWasGlobal = true
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
    return cache.codeAddress(nextBlock)
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
      lastFetchWasGlobal = entry.pointee.isGlobal
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
  // MARK: Jump caches and TLBs

  private func clearJumpCache(_ context: Int) {
    counters.jumpCacheClears += 1
    clear(
      StateHeader.jumpCache(context), StateHeader.jumpCacheEntryCount * StateHeader.jumpCacheEntryByteCount)
    state.storeBytes(of: StateHeader.noPC(0), toByteOffset: StateHeader.jumpCache(context), as: UInt64.self)
    jumpCacheIsLocal[context] = false
    jumpCacheModes[context] = .max
  }
  private func clear(_ offset: Int, _ byteCount: Int) {
    (state + offset).initializeMemory(as: UInt8.self, repeating: 0, count: byteCount)
  }
  private func clearJumpCaches() {
    for context in 0..<StateHeader.contextCount where jumpCacheModes[context] != .max {
      clearJumpCache(context)
    }
    jumpCachePages.removeAll()
  }
  /// Takes the entries of one virtual page out.
  private func clearJumpCaches(ofPage page: UInt64) {
    counters.jumpCachePageClears += 1
    jumpCachePages.remove(page)
    for context in 0..<StateHeader.contextCount where jumpCacheModes[context] != .max {
      let entries = (state + StateHeader.jumpCache(context)).assumingMemoryBound(to: UInt64.self)
      let physical = jumpCachePhysicalPages + context * StateHeader.jumpCacheEntryCount
      // The entries of a page are neighbours, one for each possible instruction.
      for candidate in [page, page &- 1] {
        let first = Int(truncatingIfNeeded: candidate << 11) & (StateHeader.jumpCacheEntryCount - 1)
        for entry in first..<first + 2048
        // But for the tag of a kind.
        where (entries[entry * 2] ^ candidate << 12) & ~(3 << 62) < 4096
          && (candidate == page || physical[entry] == .max)
        {
          entries[entry * 2] = StateHeader.noPC(entry)
        }
      }
    }
  }
  private func clearTLB(_ context: Int) {
    clear(StateHeader.tlb(context), StateHeader.tlbEntryCount * StateHeader.tlbEntryByteCount)
    for offset in [0, 8] {
      state.storeBytes(
        of: StateHeader.noPage(0), toByteOffset: StateHeader.tlb(context) + offset, as: UInt64.self)
    }
    tlbIsLocal[context] = false
    tlbIsUsed[context] = false
  }
  private func dropStaleStorePermissions() {
    guard storesStale.exchange(false, ordering: .acquiringAndReleasing) else { return }
    for context in 0..<StateHeader.contextCount where tlbIsUsed[context] {
      let entries = (state + StateHeader.tlb(context)).assumingMemoryBound(to: UInt64.self)
      for entry in 0..<StateHeader.tlbEntryCount {
        entries[entry * 4 + 1] = StateHeader.noPage(entry)
      }
    }
    cache.acknowledgeStores(self)
  }

  // MARK: GuestEngine

  public func flushTLB(page: UInt64?, keepGlobal: Bool, contexts: GuestContexts) {
    guard memory != nil else { return }
    counters.tlbFlushes += 1
    if let page, !tlb.isPartOfLargePage(page, contexts) {
      let number = page >> 12
      tlb.remove(page: number, contexts)
      for context in contexts where tlbIsUsed[context] {
        let index = Int(number) & (StateHeader.tlbEntryCount - 1)
        let entry = (state + StateHeader.tlb(context) + index * StateHeader.tlbEntryByteCount)
          .assumingMemoryBound(to: UInt64.self)
        entry[0] = StateHeader.noPage(index)
        entry[1] = StateHeader.noPage(index)
      }
      // A block of the page before may go on in this one.
      if jumpCachePages.contains(number) || jumpCachePages.contains(number &- 1) {
        clearJumpCaches(ofPage: number)
      }
      return
    }
    counters.fullTLBFlushes += 1
    tlb.flush(keepGlobal: keepGlobal, contexts)
    for context in contexts where keepGlobal ? tlbIsLocal[context] : tlbIsUsed[context] { clearTLB(context) }
    for context in contexts where !keepGlobal || jumpCacheIsLocal[context] { revalidateJumpCache(context) }
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

  /// After a flush most code pages are where they were: looking each one up once is cheaper than finding all its
  /// blocks again.
  private func revalidateJumpCache(_ context: Int) {
    guard jumpCacheModes[context] != .max else { return }
    guard guest.canTranslate(context: context) else { return clearJumpCache(context) }
    let entries = (state + StateHeader.jumpCache(context)).assumingMemoryBound(to: UInt64.self)
    let physical = jumpCachePhysicalPages + context * StateHeader.jumpCacheEntryCount
    let guest = self.guest!
    // A small memory of pages looked up: page number, then what it maps to.
    var memory: InlineArray<64, (page: UInt64, physical: UInt64, isGuarded: Bool)> = .init(
      repeating: (.max, .max, false))
    for entry in 0..<StateHeader.jumpCacheEntryCount where entries[entry * 2] != StateHeader.noPC(entry) {
      // A block of two pages.
      if physical[entry] == .max {
        entries[entry * 2] = StateHeader.noPC(entry)
        continue
      }
      let kind = UInt32(truncatingIfNeeded: physical[entry] >> 56) & 3
      let pc = entries[entry * 2] ^ StateHeader.jumpCacheTag(kind)
      let page = pc >> 12
      let slot = Int(page & 63)
      if memory[slot].page != page {
        memory[slot] = (page, .max, false)
        if case .page(let now) = guest.translateAddress(pc, .fetch, context: context) {
          memory[slot] = (page, now.physical >> 12, now.isGuarded)
        }
      }
      if memory[slot].physical | UInt64(kind) << 56 != physical[entry] || kind != 0 && memory[slot].isGuarded
      {
        entries[entry * 2] = StateHeader.noPC(entry)
      }
    }
  }

  public func addressSpaceChanged(_ space: GuestAddressSpace, contexts: GuestContexts) {
    counters.addressSpaceSwitches += 1
    for context in contexts {
      // Global entries are those of a virtual machine.
      let isAnotherMachine = tlb.space(context).machine != space.machine
      tlb.setSpace(space, context)
      if isAnotherMachine ? tlbIsUsed[context] : tlbIsLocal[context] { clearTLB(context) }
      if isAnotherMachine ? jumpCacheModes[context] != .max : jumpCacheIsLocal[context] {
        clearJumpCache(context)
      }
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
    let index = Int(page >> 12) & (StateHeader.tlbEntryCount - 1)
    let slot = (state + StateHeader.tlb(context) + index * StateHeader.tlbEntryByteCount)
      .assumingMemoryBound(to: UInt64.self)
    slot[0] = entry.pointee.canLoad ? page : StateHeader.noPage(index)
    slot[1] = entry.pointee.canStore && !hasCode && !ram.isReadOnly ? page : StateHeader.noPage(index)
    slot[2] = UInt64(UInt(bitPattern: host))
    tlbIsUsed[context] = true
    if !entry.pointee.isGlobal { tlbIsLocal[context] = true }
  }
}

extension TranslatedVCPU {
  /// Whether generated code finds the page of `address`.
  func isInFirstLevel(_ address: UInt64, _ context: Int, isStore: Bool) -> Bool {
    let page = address & ~4095
    let index = Int(page >> 12) & (StateHeader.tlbEntryCount - 1)
    let slot = state + StateHeader.tlb(context) + index * StateHeader.tlbEntryByteCount
    return slot.load(fromByteOffset: isStore ? 8 : 0, as: UInt64.self) == page
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
