import ApusIR

/// What a memory access wants.
public enum GuestAccess: UInt8, Sendable { case load, store, fetch }

/// What a guest virtual address is translated to, and what its page allows in the context asked for.
public struct GuestPage: Sendable {
  /// The physical address of the byte asked for.
  public var physical: UInt64
  public var canLoad: Bool
  /// False, too, where a first store must be seen (dirty bit).
  public var canStore: Bool
  /// The same in every address space.
  public var isGlobal: Bool
  /// The size of the mapping that the page is part of, a power of two.
  public var byteCount: UInt64
  /// Indirect branches into the page are checked; whom that concerns asks the engine's `codePage`.
  public var isGuarded: Bool
  @inlinable
  public init(
    physical: UInt64, canLoad: Bool, canStore: Bool, isGlobal: Bool, byteCount: UInt64,
    isGuarded: Bool = false
  ) {
    (self.physical, self.canLoad, self.canStore) = (physical, canLoad, canStore)
    (self.isGlobal, self.byteCount, self.isGuarded) = (isGlobal, byteCount, isGuarded)
  }
}

/// The outcome of translating a guest virtual address.
public enum GuestTranslation: Sendable {
  case page(GuestPage)
  /// An exception with this guest-specific number.
  case fault(UInt64)
}

/// The code bytes that a translator may read.
public struct GuestCodeWindow: @unchecked Sendable {
  // SAFETY: `bytes` points at `count` readable bytes while the block is being translated.
  /// The bytes from the block's first instruction to the end of its page.
  public let bytes: UnsafePointer<UInt8>
  /// At least 1.
  public let count: Int
  /// The bytes before `bytes` in the same page.
  public let precedingCount: Int
  /// The first bytes of the next page, if the engine was asked for them.
  public let nextPage: UnsafePointer<UInt8>?
  public init(bytes: UnsafePointer<UInt8>, count: Int, precedingCount: Int, nextPage: UnsafePointer<UInt8>?) {
    (self.bytes, self.count, self.precedingCount, self.nextPage) = (bytes, count, precedingCount, nextPage)
  }
}

/// What a translator made of a window.
public enum GuestTranslationResult: Sendable {
  /// The block is done; it was made from `byteCount` bytes from its start (of both pages), `lowest` bytes before
  /// the start included where a branch was followed backwards.
  case block
  /// The first instruction goes on in the next page: call again with `nextPage`.
  case needsNextPage
}

/// A guest architecture's CPU, one object a vCPU: state, translation to IR, address translation, exceptions.
///
/// Everything runs on the vCPU's thread, except `setInterrupt` and what says otherwise.
public protocol GuestCPU: AnyObject {
  /// `StateHeader.byteCount` bytes, laid out as `StateHeader` says.
  var state: UnsafeMutableRawPointer { get }
  var layout: StateLayout { get }
  var helpers: [IRHelper] { get }
  /// Offsets of 64-bit state that other threads write while the CPU runs.
  var sharedStateOffsets: [Int] { get }
  /// The translation context that instructions of `mode` are fetched in; also the index of its jump cache.
  func fetchContext(mode: UInt32) -> Int

  /// Translates the block at `pc` into `block`, which is reset. Ends at the end of the page at the latest.
  func translate(_ block: IRBlock, pc: UInt64, mode: UInt32, code: GuestCodeWindow, instructionLimit: Int)
    -> GuestTranslationResult

  /// Walks the guest's page tables, checks permissions and sets accessed and dirty bits.
  func translateAddress(_ address: UInt64, _ access: GuestAccess, context: Int) -> GuestTranslation

  /// Whether the registers are those that `context` translates by, and not another virtual machine's.
  func canTranslate(context: Int) -> Bool

  /// Takes the exception `fault` for an access to `address` by the instruction at `pc`: afterwards the state's PC
  /// and mode are the handler's.
  func raise(fault: UInt64, address: UInt64, pc: UInt64)
  /// The fault number for an access to physical memory where nothing answers.
  func busFault(_ access: GuestAccess) -> UInt64
  /// The fault number for a misaligned access that the architecture does not carry out.
  func misalignedFault(_ access: GuestAccess) -> UInt64

  /// The fault number of a watch point that this access to a watched page hits.
  func watchFault(_ address: UInt64, _ byteCount: Int, _ access: GuestAccess, context: Int) -> UInt64?

  /// An indirect branch of a kind (`IRTerminator.indirect`), at `source`, leads to the state's PC and was not seen there
  /// before. Takes the exception if it may not. True: branches of this kind may come here as long as the page is what it is.
  func checkBranch(kind: UInt32, from source: UInt64) -> Bool

  /// Takes a pending, enabled interrupt, if there is one. Returns whether it did.
  func takeInterrupt() -> Bool
  /// Whether a sleeping guest should wake, and the host time (monotonic nanoseconds) of its own next timer.
  func shouldWake() -> Bool
  func nextTimerDeadline() -> UInt64?

  /// Any thread: the level of an interrupt input changed. The engine wakes the vCPU afterwards.
  func setInterrupt(_ number: Int, _ level: Bool)
  func reset(entry: UInt64, arguments: [UInt64])

  /// One guest instruction as text (`-d in_asm`).
  func disassemble(_ bytes: UnsafePointer<UInt8>, pc: UInt64) -> String
  /// The registers as text (`-d cpu`, lockstep reports), one `name value` pair after the other.
  func registerText() -> String
}

/// What a guest CPU asks of the engine that runs it. Same thread as the CPU.
public protocol GuestEngine: AnyObject {
  /// Stores 8 aligned bytes as the guest would in `context`; gives the fault number if it faults.
  func storeGuest(_ address: UInt64, _ value: UInt64, context: Int) -> UInt64?
  /// Compares and swaps 16 aligned bytes; `expected` receives the old value. Gives the fault number if it faults.
  func compareExchange128(
    _ address: UInt64, _ expected: inout (UInt64, UInt64), _ desired: (UInt64, UInt64), context: Int
  ) -> UInt64?
  /// Where the code at `address` is on the host, and whether its page is guarded; `nil` if it cannot be fetched. `host` is
  /// `nil` where there is no RAM.
  func codePage(_ address: UInt64, context: Int) -> (host: UnsafeRawPointer?, isGuarded: Bool)?
  /// Forgets translations of some contexts: all, or those of one page. `keepGlobal` spares global pages.
  func flushTLB(page: UInt64?, keepGlobal: Bool, contexts: GuestContexts)
  /// Forgets translations as `flushTLB` does, and, if `isShared`, lets the other vCPUs forget them, too.
  func invalidateTLB(page: UInt64?, keepGlobal: Bool, contexts: GuestContexts, isShared: Bool)
  /// Waits until the other vCPUs have forgotten what this one's `invalidateTLB` told them. The helper that calls this
  /// goes to the dispatcher afterwards if the answer is true.
  func completeInvalidations() -> Bool
  /// From now on these contexts belong to this address space. What is known of others is kept.
  func addressSpaceChanged(_ space: GuestAddressSpace, contexts: GuestContexts)
  /// From now on each access to these pages (by their first addresses) asks the CPU's `watchFault`.
  func setWatchedPages(_ pages: [UInt64])
  /// Instruction memory may have changed (`fence.i`).
  func synchronizeInstructions()
  /// The CPU waits for an interrupt: sleep at the next dispatch.
  func requestSleep()
  /// Interrupts may have become deliverable: look before the next instruction.
  func requestInterruptCheck()
}

extension GuestCPU {
  public func canTranslate(context: Int) -> Bool { true }
  /// For guests whose branches have no kinds.
  public func checkBranch(kind: UInt32, from source: UInt64) -> Bool { true }
  /// For guests without watch points.
  public func watchFault(_ address: UInt64, _ byteCount: Int, _ access: GuestAccess, context: Int) -> UInt64?
  {
    nil
  }
}
