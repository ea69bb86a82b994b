import ApusCPU
import ApusGuest
import ApusHost
import ApusIR
import ApusISAAArch64
import ApusMemory
import CApusHost
import Synchronization

/// One AArch64 CPU: EL0, EL1 and perhaps EL2 and EL3, A64 [Arm ARM].
///
/// Runs on its vCPU's thread; `setInterrupt` may be called from any. In user-mode emulation exceptions go to the hooks.
/// Not modelled: AArch32.
public final class AArch64CPU: GuestCPU {
  /// CNTFRQ_EL0: 62.5 MHz.
  public static let counterFrequency: UInt64 = 62_500_000

  public let state: UnsafeMutableRawPointer
  public let features: AArch64FeatureSet
  public let helpers = AArch64Helper.table
  public let layout: StateLayout
  public let sharedStateOffsets = [AArch64SystemSlot.interruptLines.offset]
  let s: AArch64State
  let clock: GuestClock
  /// Set by the engine that runs this CPU.
  public unowned(unsafe) var engine: any GuestEngine
  public var userHooks: GuestUserHooks?

  /// What is around a CPU that is not in user-mode emulation.
  public struct System: Sendable {
    public var environment: ArmCPUEnvironment
    public var cluster: AArch64Cluster
    public var eventLoop: EventLoop
    /// Where page tables lie. Its address space outlives the CPU.
    public var physicalMemory: GuestRAMTable
    public init(
      environment: ArmCPUEnvironment, cluster: AArch64Cluster, eventLoop: EventLoop,
      physicalMemory: GuestRAMTable
    ) {
      (self.environment, self.cluster) = (environment, cluster)
      (self.eventLoop, self.physicalMemory) = (eventLoop, physicalMemory)
    }
  }
  let system: System?
  let physicalMemory: GuestRAMTable?
  /// The machine has EL3.
  let security: ArmCPUEnvironment.Security?
  let hasMonitor: Bool
  let index: Int
  let model: AArch64Model
  /// Used where the features have pointer authentication.
  let authentication: AArch64PointerAuthentication.Algorithm
  let power = AArch64Power()
  /// Whether a page of a process's code is guarded (PROT_BTI); set before the CPU runs.
  public var isGuarded: (UInt64) -> Bool = { _ in false }
  /// The process has had such a page.
  var checksBranchTargets = false
  /// Answers `hlt #0xf000`; `nil`: the instruction is undefined. Set before the CPU runs.
  public var semihosting: (any SemihostingHandler)?
  /// A flag that the event loop's thread sets.
  final class Flag: Sendable { let value = Atomic<Bool>(false) }
  /// A timer's deadline has passed.
  let dueFlag = Flag()
  /// EL3's event register, and when its `wfe` ends at the latest, in the host's time.
  var hasEvent = false
  var eventDeadline: UInt64?
  /// The host's timers of the guest's.
  var scheduled = [EventLoop.TimerID?](repeating: nil, count: ArmCPUEnvironment.Timer.allCases.count)
  /// What control registers make of each level's mode.
  var levelModes: InlineArray<4, AArch64Mode> = .init(repeating: AArch64Mode(rawValue: 0))
  /// What the engine was told last, by `ContextGroup`.
  var addressSpaces: InlineArray<5, GuestAddressSpace> = .init(repeating: GuestAddressSpace())
  /// EL1's last two upper tables, without address space identifiers: the kernel's contexts, and the other ones.
  var upperTables: (UInt64, UInt64) = (0, 0)
  var hasOtherTable = false
  var performance = PerformanceMonitor()
  var performanceTimer: EventLoop.TimerID?
  /// Called, on any thread, when the CPU must look for interrupts. Set before the CPU runs.
  public private(set) var wake: @Sendable () -> Void = {}
  /// Shown each exception (`-d int`): its vector, syndrome, address and PC.
  public var onException: ((_ vector: UInt64, _ syndrome: UInt64, _ address: UInt64, _ pc: UInt64) -> Void)?
  /// MPIDR_EL1's affinity.
  var mpidr: UInt64 { UInt64(index) }

  /// - Parameters:
  ///   - state: `StateHeader.byteCount` zeroed bytes that outlive the CPU.
  ///   - system: `nil` for user-mode emulation.
  public init(
    state: UnsafeMutableRawPointer, index: Int = 0, model: AArch64Model = .all[0], clock: GuestClock,
    engine: any GuestEngine, system: System? = nil
  ) {
    (self.state, self.features, self.clock, self.engine) = (state, model.features, clock, engine)
    (self.index, self.model, self.system) = (index, model, system)
    authentication = model.authentication
    physicalMemory = system?.physicalMemory
    security = system?.environment.security
    hasMonitor = security != nil
    s = AArch64State(state)
    // Arguments, temporaries, the first callee-saved registers and sp: what compilers use most.
    layout = StateLayout(
      hotIntegers: [0, 1, 2, 3, 19, 31, 4, 20, 5, 21].map(AArch64State.x),
      hotFloats: [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 8, 9].map(AArch64State.v), hasVectors: true,
      packedFlags: AArch64State.Field.packedFlags.offset)
    setProcessKeys()
    state.storeBytes(
      of: Unmanaged.passUnretained(self).toOpaque(), toByteOffset: StateHeader.guest,
      as: UnsafeMutableRawPointer.self)
  }

  /// Joins the cluster.
  /// - Parameter wake: makes the CPU look for interrupts, from any thread.
  public func connect(wake: @escaping @Sendable () -> Void) {
    self.wake = wake
    system?.cluster.add(mpidr: mpidr, power, wake: wake)
    clock.onResume { [dueFlag] in
      dueFlag.value.store(true, ordering: .releasing)
      wake()
    }
  }

  /// Runs `body` with the CPU whose state this is, without reference counting; for helpers.
  @inline(__always)
  static func with<T>(_ state: UnsafeMutableRawPointer, _ body: (AArch64CPU) -> T) -> T {
    Unmanaged<AArch64CPU>.fromOpaque(state.load(fromByteOffset: StateHeader.guest, as: UnsafeRawPointer.self))
      ._withUnsafeGuaranteedRef(body)
  }

  // MARK: Reset and mode

  /// Every CPU but the first waits for PSCI's CPU_ON.
  public func reset(entry: UInt64, arguments: [UInt64]) {
    powerUp(entry: entry, arguments: arguments)
    guard let system else { return }
    let isOff = index != 0 && system.environment.hasPSCI
    power.set(isOff: isOff)
    if isOff { engine.requestSleep() }
  }

  func powerUp(entry: UInt64, arguments: [UInt64]) {
    // The levels of the inputs stay.
    setHypervisorControl(0)
    for slot in AArch64SystemSlot.allCases where slot != .interruptLines { s[slot] = 0 }
    setProcessKeys()
    s[.exceptionLevel] = system == nil ? 0 : hasHypervisor ? 2 : 1
    if hasMonitor { resetMonitor() }
    s[.stackSelect] = system == nil ? 0 : 1
    s[.daif] = system == nil ? 0 : PState.daif
    s[.sctlr] = 0x30d0_0800
    if hasHypervisor { resetHypervisor() }
    for number in 0..<32 {
      s[x: number] = 0
      s[v: number] = AArch64Vector()
    }
    for field in AArch64State.Field.allCases { s[field] = 0 }
    s.pc = entry
    (hasEvent, eventDeadline) = (false, nil)
    state.storeBytes(of: StateHeader.noAddress, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    s.fpsr = 0
    for (index, value) in arguments.prefix(8).enumerated() { s[x: index] = value }
    (upperTables, hasOtherTable) = ((0, 0), false)
    controlsChanged()
    updateTimers()
    performance = PerformanceMonitor()
    performance.hasHypervisor = hasHypervisor
    performance.hasMonitor = hasMonitor
    updatePerformanceMonitor()
    addressSpaces = .init(repeating: GuestAddressSpace())
    engine.addressSpaceChanged(GuestAddressSpace(), contexts: .all)
    engine.flushTLB(page: nil, keepGlobal: false, contexts: .all)
  }

  /// Puts the CPU in the state of a process of user-mode emulation.
  public func enterUserEmulation(pc: UInt64, stackPointer: UInt64) {
    reset(entry: pc, arguments: [])
    s[x: 31] = stackPointer
  }

  public func setFPCR(_ value: UInt64) {
    s[.fpcr] = value & FPCR.writable(features)
    updateMode()
  }

  /// A control register changed that modes depend on: those of all levels.
  func controlsChanged() {
    guard system != nil else { return updateMode() }
    let hasHostExtensions = s[.hcr] & HCR.hostExtensions != 0
    for level in 0...(hasMonitor ? 3 : 2) as ClosedRange<UInt64> {
      var context: UInt32 =
        level == 3 ? 8 : level == 2 ? 4 : level == 1 ? (features.hasPAN ? 2 : 1) : isHost ? 5 : 0
      let trapsFloat =
        level < 2 && !isHost && Self.trapsFloat(s[.cpacr], level: level)
        || hypervisorTrapsFloat(level: level) || hasMonitor && s[.cptr3] & CPTR.float != 0
      if level == 2, trapsFloat { context = 7 }
      var mode = AArch64Mode(level: UInt32(level), context: context, trapsFloat: trapsFloat)
      mode.isHost = level >= 2 ? hasHostExtensions : level == 0 && isHost
      mode.checksTraps = needsTrapChecks(level: level)
      mode.hasOtherTable = level == 1 && hasOtherTable
      levelModes[Int(level)] = mode
    }
    updateMode()
  }

  /// Computes the block key from the state.
  func updateMode() {
    let fpcr = s[.fpcr]
    if system == nil {
      s.mode = AArch64Mode(context: 0, fpcr: fpcr)
      s.mode.checksBranchTargets = checksBranchTargets
    } else {
      let level = s[.exceptionLevel]
      var mode = levelModes[Int(level)]
      // PAN's context is the one before.
      if s[.pan] != 0, level == 1 || level == 2 && mode.isHost { mode.setContext(UInt32(mode.context) - 1) }
      mode.rawValue |= AArch64Mode(context: 0, fpcr: fpcr).rawValue
      if s[.uao] != 0 { mode.overridesUserAccess = true }
      if s[.branchType] != 0 { mode.hasBranchType = true }
      if s[.mdscr] != 0 { addDebug(to: &mode) }
      s.mode = mode
    }
    // The host's rounding: nearest 0, down 1, up 2, toward zero 3; Arm's: nearest, up, down, toward zero.
    let control = [0, 2, 1, 3][Int(fpcr >> 22 & 3)] as UInt32
    let mxcsr = state.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    state.storeBytes(
      of: mxcsr & ~0x6000 | control << 13, toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
  }

  public func fetchContext(mode: UInt32) -> Int { Int(AArch64Mode(rawValue: mode).context) }

  // MARK: Translation

  public func translate(
    _ block: IRBlock, pc: UInt64, mode: UInt32, code: GuestCodeWindow, instructionLimit: Int
  ) -> GuestTranslationResult {
    block.reset(startPC: pc)
    guard pc & 3 == 0, code.count >= 4 else {
      block.instruction(pc: pc, length: 4)
      let helper = AArch64Helper.raiseMisalignedPC
      block.call(helper.rawValue, helpers[helper.rawValue])
      block.finish(.dispatch)
      return .block
    }
    var translator = AArch64Translator(
      block: block, mode: AArch64Mode(rawValue: mode), features: features, helpers: helpers,
      hasHypervisor: hasHypervisor, monitor: monitorOwner, pc: pc)
    return translator.run(code, instructionLimit: instructionLimit)
  }

  public func disassemble(_ bytes: UnsafePointer<UInt8>, pc: UInt64) -> String {
    AArch64Disassembler.text(UnsafeRawPointer(bytes).loadUnaligned(as: UInt32.self), pc: pc)
  }

  public func registerText() -> String {
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }
    var text = "pc \(hex(s.pc)) mode \(s.mode.rawValue)\n"
    for number in 0..<32 {
      text += "\(number == 31 ? "sp" : "x\(number)") \(hex(s[x: number]))" + (number % 4 == 3 ? "\n" : " ")
    }
    for number in 0..<32 {
      text += "v\(number) \(hex(s[v: number].high))\(hex(s[v: number].low))" + (number % 2 == 1 ? "\n" : " ")
    }
    for field in AArch64State.Field.allCases where field != .monitorHigh {
      text += "\(field) \(hex(s[field]))\n"
    }
    return text + "fpsr \(hex(s.fpsr))\n"
  }

  // MARK: Interrupts and exceptions

  public func translateAddress(_ address: UInt64, _ access: GuestAccess, context: Int) -> GuestTranslation {
    if system != nil {
      let found = walk(address, access, context: context)
      guard hasMonitor, case .page(var page) = found else { return found }
      page.physical = place(page.physical)
      return .page(page)
    }
    return .page(
      GuestPage(physical: address, canLoad: true, canStore: true, isGlobal: true, byteCount: 4096))
  }
  public func takeInterrupt() -> Bool {
    if let userHooks {
      userHooks.interrupt(userHooks.context)
      return false
    }
    return takeSystemInterrupt()
  }
  public func shouldWake() -> Bool {
    if power.isOff { return power.hasStart }
    if let eventDeadline, HostClock.monotonicNanoseconds() >= eventDeadline { return true }
    return dueFlag.value.load(ordering: .acquiring)
      || apus_load_relaxed64(state + AArch64SystemSlot.interruptLines.offset) != 0
  }
  public func nextTimerDeadline() -> UInt64? { eventDeadline }
  /// - Parameter number: 0 IRQ, 1 FIQ.
  public func setInterrupt(_ number: Int, _ level: Bool) {
    let lines = state + AArch64SystemSlot.interruptLines.offset
    let bit = UInt64(1) << UInt64(number)
    _ = level ? apus_fetch_or64(lines, bit) : apus_fetch_and64(lines, ~bit)
  }

  public func busFault(_ access: GuestAccess) -> UInt64 {
    if system != nil { return Syndrome.fault(0x10, access) }
    return UInt64((access == .fetch ? GuestUserException.fetch : .access).rawValue)
  }
  public func misalignedFault(_ access: GuestAccess) -> UInt64 {
    if system != nil { return Syndrome.fault(0x21, access) }
    return UInt64(GuestUserException.misaligned.rawValue)
  }

  public func raise(fault: UInt64, address: UInt64, pc: UInt64) {
    s.pc = pc
    if let userHooks {
      userHooks.exception(userHooks.context, UInt8(truncatingIfNeeded: fault), address)
      s.requestDispatch()
    } else {
      enterAbort(fault, address: address)
    }
  }
  /// - Parameter immediate: `brk`'s.
  func raise(_ exception: GuestUserException, address: UInt64, immediate: UInt64 = 0) {
    guard system != nil else {
      return raise(fault: UInt64(exception.rawValue), address: address, pc: s.pc)
    }
    switch exception {
    case .breakpoint: trap(Syndrome.call(Syndrome.breakpoint, immediate), to: debugTarget)
    case .misaligned: enterAbort(Syndrome.fault(0x21, .load), address: address)
    default: trap(Syndrome.undefined)
    }
  }
}
