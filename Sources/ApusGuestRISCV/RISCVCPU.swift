import ApusCPU
import ApusGuest
import ApusHost
import ApusIR
import ApusISARISCV
import ApusMemory
import CApusHost

/// One RISC-V hart: M, S and U modes, RV64GC and what `RISCVExtensionSet` lists [RV-Priv 1.12].
///
/// Runs on its vCPU's thread; `setInterrupt` may be called from any. Not modelled: debug triggers, hardware
/// performance counters (they read as zero), the hypervisor extension.
public final class RISCVCPU: GuestCPU {
  public let state: UnsafeMutableRawPointer
  public let hartID: Int
  public let extensions: RISCVExtensionSet
  public let helpers = RISCVHelper.table
  public let layout: StateLayout
  public let sharedStateOffsets = [RISCVState.Field.mip.offset]
  let s: RISCVState
  /// Deepest page tables that satp takes: 3 Sv39, 4 Sv48, 5 Sv57, 0 none.
  let translationLevels: Int
  let clock: GuestClock
  let eventLoop: EventLoop?
  /// Where page tables lie; `nil` in user-mode emulation.
  let physicalMemory: GuestRAMTable?
  /// Set by the engine that runs this CPU.
  public unowned(unsafe) var engine: any GuestEngine
  /// Shown each trap (`-d int`): cause, its value, PC, and whether it goes to S-mode.
  public var onTrap: ((_ cause: UInt64, _ value: UInt64, _ pc: UInt64, _ toSupervisor: Bool) -> Void)?
  /// Called, on any thread, when the timer makes an interrupt pending.
  public var wake: @Sendable () -> Void = {}
  /// Levels of the external interrupt inputs, as bits of mip; written by any thread.
  private let externalLevels: UnsafeMutablePointer<UInt64>
  private var timer: EventLoop.TimerID?
  /// Physical memory protection. Without it every mode has access to everything. Set before the first reset.
  public var hasPMP = true
  /// Answers programs' semihosting calls; `nil`: ebreak is an exception always. Set before the CPU runs.
  public var semihosting: (any SemihostingHandler)?
  var pmpRange = PMPRange()
  /// SEIP, if software set it; the interrupt controller has its own.
  var softwarePending: UInt64 = 0
  /// Set for user-mode emulation, before the CPU runs.
  public var userHooks: GuestUserHooks?

  /// - Parameters:
  ///   - state: `StateHeader.byteCount` zeroed bytes that outlive the CPU.
  ///   - translationLevels: 3 for Sv39 at most, 4 Sv48, 5 Sv57, 0 for no address translation.
  ///   - eventLoop: where the supervisor timer fires; `nil` in user-mode emulation.
  ///   - physicalMemory: where page tables lie; `nil` in user-mode emulation. Its address space outlives the CPU.
  public init(
    state: UnsafeMutableRawPointer, hartID: Int, extensions: RISCVExtensionSet, clock: GuestClock,
    eventLoop: EventLoop?, engine: any GuestEngine, physicalMemory: GuestRAMTable? = nil,
    translationLevels: Int = 5
  ) {
    self.physicalMemory = physicalMemory
    self.translationLevels = translationLevels
    (self.state, self.hartID, self.extensions) = (state, hartID, extensions)
    (self.clock, self.eventLoop, self.engine) = (clock, eventLoop, engine)
    s = RISCVState(state)
    externalLevels = .allocate(capacity: 1)
    externalLevels.initialize(to: 0)
    // a5 a4 a0 a3 sp a2 s0 a1 s1 ra: what compilers use most.
    layout = StateLayout(
      hotIntegers: [15, 14, 10, 13, 2, 12, 8, 11, 9, 16].map(RISCVState.x),
      hotFloats: [15, 14, 10, 13, 12, 11, 0, 1, 8, 9, 16, 17].map(RISCVState.f))
    state.storeBytes(
      of: Unmanaged.passUnretained(self).toOpaque(), toByteOffset: StateHeader.guest,
      as: UnsafeMutableRawPointer.self)
  }
  deinit { externalLevels.deallocate() }

  /// The CPU whose state this is; for helpers.
  @inline(__always)
  static func of(_ state: UnsafeMutableRawPointer) -> RISCVCPU {
    Unmanaged<RISCVCPU>.fromOpaque(state.load(fromByteOffset: StateHeader.guest, as: UnsafeRawPointer.self))
      .takeUnretainedValue()
  }

  /// The same without reference counting.
  @inline(__always)
  static func with(_ state: UnsafeMutableRawPointer, _ body: (RISCVCPU) -> Void) {
    Unmanaged<RISCVCPU>.fromOpaque(state.load(fromByteOffset: StateHeader.guest, as: UnsafeRawPointer.self))
      ._withUnsafeGuaranteedRef(body)
  }

  // MARK: Reset and mode

  public func reset(entry: UInt64, arguments: [UInt64]) {
    for number in 0..<32 {
      s[x: number] = 0
      s[f: number] = 0xffff_ffff_0000_0000
    }
    let levels = externalLevels.pointee
    for field in RISCVState.Field.allCases { s[field] = 0 }
    s[.mip] = levels
    softwarePending = 0
    pmpRange = PMPRange()
    s[.privilege] = 3
    s[.mstatus] = MStatus.uxl | MStatus.sxl
    s[.stimecmp] = .max
    var environment: UInt64 = 0
    // Firmware that does not know Svadu expects the hardware to set accessed and dirty bits.
    if extensions.contains(.svadu) { environment |= 1 << 61 }
    s[.menvcfg] = environment
    s.floatFlags = 0
    s.pc = entry
    state.storeBytes(of: UInt64.max, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    for (index, value) in arguments.prefix(8).enumerated() { s[x: 10 + index] = value }
    cancelTimer()
    updateMode()
    engine.addressSpaceChanged(GuestAddressSpace(), contexts: Self.contexts)
    engine.flushTLB(page: nil, keepGlobal: false, contexts: Self.contexts)
  }

  /// Puts the CPU in the state of a process of user-mode emulation.
  public func enterUserEmulation(pc: UInt64, stackPointer: UInt64) {
    reset(entry: pc, arguments: [])
    s[x: 2] = stackPointer
    s[.privilege] = 0
    s[.mstatus] |= MStatus.fs | MStatus.sd
    updateMode()
  }

  var privilege: UInt64 { s[.privilege] }

  /// Computes the block key from the state.
  func updateMode() {
    let status = s[.mstatus]
    var effective = s[.privilege]
    if effective == 3, status & MStatus.mprv != 0 { effective = status >> 11 & 3 }
    let context: UInt32 = effective == 0 ? 0 : effective == 1 ? (status & MStatus.sum != 0 ? 2 : 1) : 3
    // Kernels switch FS at every trap but use it in few blocks: those look at run time.
    let floatState = s[.privilege] == 0 ? UInt32(status >> 13 & 3) : RISCVMode.floatStateIsDynamic
    let frm = UInt32(s[.frm])
    let mode = RISCVMode(
      privilege: UInt32(s[.privilege]), context: context,
      floatState: s[.privilege] != 0 ? floatState : floatState == 3 ? 2 : floatState == 0 ? 0 : 1, frm: frm,
      isUserEmulation: userHooks != nil)
    s.mode = mode
    // The host's rounding: nearest 0, down 1, up 2, toward zero 3.
    let control: UInt32 = [0, 3, 1, 2, 0, 0, 0, 0][Int(frm)]
    let mxcsr = state.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    state.storeBytes(
      of: mxcsr & ~0x6000 | control << 13, toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
  }

  public func fetchContext(mode: UInt32) -> Int {
    let mode = RISCVMode(rawValue: mode)
    return mode.privilege == 3 ? 3 : Int(mode.context)
  }

  // MARK: Translation

  public func translate(
    _ block: IRBlock, pc: UInt64, mode: UInt32, code: GuestCodeWindow, instructionLimit: Int
  ) -> GuestTranslationResult {
    block.reset(startPC: pc)
    var translator = RISCVTranslator(
      block: block, mode: RISCVMode(rawValue: mode), extensions: extensions, helpers: helpers, pc: pc)
    return translator.run(code, instructionLimit: instructionLimit)
  }

  public func disassemble(_ bytes: UnsafePointer<UInt8>, pc: UInt64) -> String {
    var bits = UInt32(bytes[0]) | UInt32(bytes[1]) << 8
    if bits & 3 == 3 { bits |= UInt32(bytes[2]) << 16 | UInt32(bytes[3]) << 24 }
    return RISCVDisassembler.text(bits, pc: pc, extensions: extensions)
  }

  public func registerText() -> String {
    func hex(_ value: UInt64) -> String {
      let digits = String(value, radix: 16)
      return String(repeating: "0", count: 16 - digits.count) + digits
    }
    var text = "pc \(hex(s.pc)) mode \(s.mode.rawValue)\n"
    for number in 0..<32 {
      text +=
        "\(RISCVDisassembler.registerName(number)) \(hex(s[x: number]))" + (number % 4 == 3 ? "\n" : " ")
    }
    for number in 0..<32 {
      text +=
        "\(RISCVDisassembler.floatRegisterName(number)) \(hex(s[f: number]))" + (number % 4 == 3 ? "\n" : " ")
    }
    for field in RISCVState.Field.allCases { text += "\(field) \(hex(s[field]))\n" }
    return text
  }

  // MARK: Interrupts

  public func setInterrupt(_ number: Int, _ level: Bool) {
    let bit = UInt64(1) << UInt64(number)
    let mip = state + RISCVState.Field.mip.offset
    if level {
      _ = apus_fetch_or64(externalLevels, bit)
      _ = apus_fetch_or64(mip, bit)
    } else {
      _ = apus_fetch_and64(externalLevels, ~bit)
      _ = apus_fetch_and64(mip, ~bit)
    }
  }

  /// What is pending and enabled for a trap to M (`false`) or S (`true`) right now.
  private func deliverable() -> (bits: UInt64, toSupervisor: Bool) {
    let pending = apus_load_relaxed64(state + RISCVState.Field.mip.offset) & s[.mie]
    if pending == 0 { return (0, false) }
    let privilege = self.privilege
    let machine = pending & ~s[.mideleg]
    if machine != 0, privilege < 3 || s[.mstatus] & MStatus.mie != 0 { return (machine, false) }
    let supervisor = pending & s[.mideleg]
    if supervisor != 0, privilege < 1 || (privilege == 1 && s[.mstatus] & MStatus.sie != 0) {
      return (supervisor, true)
    }
    return (0, false)
  }

  public func takeInterrupt() -> Bool {
    if let userHooks {
      userHooks.interrupt(userHooks.context)
      return false
    }
    let (bits, toSupervisor) = deliverable()
    if bits == 0 { return false }
    // Highest first [RV-Priv 1.12 §3.1.9].
    for number in [11, 3, 7, 9, 1, 5] as [UInt64] where bits >> number & 1 != 0 {
      enterTrap(cause: 1 << 63 | number, value: 0, pc: s.pc, toSupervisor: toSupervisor)
      return true
    }
    return false
  }

  public func shouldWake() -> Bool { apus_load_relaxed64(state + RISCVState.Field.mip.offset) & s[.mie] != 0 }

  /// The supervisor timer sets its pending bit through the event loop, so that sleepers need no deadline.
  public func nextTimerDeadline() -> UInt64? { nil }

  // MARK: Traps

  public func raise(fault: UInt64, address: UInt64, pc: UInt64) { trap(fault, value: address, pc: pc) }
  public func busFault(_ access: GuestAccess) -> UInt64 {
    switch access {
    case .load: RISCVCause.loadAccess
    case .store: RISCVCause.storeAccess
    case .fetch: RISCVCause.instructionAccess
    }
  }
  public func misalignedFault(_ access: GuestAccess) -> UInt64 {
    access == .load ? RISCVCause.loadMisaligned : RISCVCause.storeMisaligned
  }

  /// Takes a synchronous exception of the instruction at `pc`.
  func trap(_ cause: UInt64, value: UInt64, pc: UInt64) {
    if let userHooks {
      s.pc = pc
      let kind = RISCVCause.userException(cause)
      userHooks.exception(userHooks.context, kind.rawValue, value)
      s.requestDispatch()
      return
    }
    let delegated = privilege < 3 && s[.medeleg] >> cause & 1 != 0
    enterTrap(cause: cause, value: value, pc: pc, toSupervisor: delegated)
  }

  private func enterTrap(cause: UInt64, value: UInt64, pc: UInt64, toSupervisor: Bool) {
    onTrap?(cause, value, pc, toSupervisor)
    var status = s[.mstatus]
    let vector: UInt64
    if toSupervisor {
      s[.sepc] = pc
      s[.scause] = cause
      s[.stval] = value
      status =
        status & ~(MStatus.spie | MStatus.spp | MStatus.sie)
        | (status & MStatus.sie) << 4 | (privilege & 1) << 8
      s[.privilege] = 1
      vector = s[.stvec]
    } else {
      s[.mepc] = pc
      s[.mcause] = cause
      s[.mtval] = value
      status =
        status & ~(MStatus.mpie | MStatus.mpp | MStatus.mie)
        | (status & MStatus.mie) << 4 | privilege << 11
      s[.privilege] = 3
      vector = s[.mtvec]
    }
    s[.mstatus] = status
    let isVectored = vector & 1 != 0 && cause >> 63 != 0
    s.pc = (vector & ~3) &+ (isVectored ? 4 &* (cause & 0x3f) : 0)
    updateMode()
    s.requestDispatch()
  }

  /// mret and sret.
  func returnFromTrap(machine: Bool) {
    var status = s[.mstatus]
    let previous: UInt64
    if machine {
      previous = status >> 11 & 3
      status = status & ~(MStatus.mie | MStatus.mpp) | (status & MStatus.mpie) >> 4 | MStatus.mpie
      s.pc = s[.mepc]
    } else {
      previous = status >> 8 & 1
      status = status & ~(MStatus.sie | MStatus.spp) | (status & MStatus.spie) >> 4 | MStatus.spie
      s.pc = s[.sepc]
    }
    if previous != 3 { status &= ~MStatus.mprv }
    s[.mstatus] = status
    s[.privilege] = previous
    updateMode()
    engine.requestInterruptCheck()
    s.requestDispatch()
  }

  // MARK: Time

  /// mtime: 10 MHz.
  public func time() -> UInt64 { clock.nowNanoseconds() / 100 }

  var hasSupervisorTimer: Bool { extensions.contains(.sstc) && s[.menvcfg] >> 63 != 0 }

  func writeTimerCompare(_ value: UInt64) {
    s[.stimecmp] = value
    rearmTimer()
  }

  /// Brings STIP and the event loop's timer in line with stimecmp.
  func rearmTimer() {
    cancelTimer()
    guard hasSupervisorTimer else { return }
    let mip = state + RISCVState.Field.mip.offset
    let compare = s[.stimecmp]
    if time() >= compare {
      _ = apus_fetch_or64(mip, 1 << 5)
      engine.requestInterruptCheck()
      return
    }
    _ = apus_fetch_and64(mip, ~(1 << 5))
    let (deadline, overflow) = compare.multipliedReportingOverflow(by: 100)
    guard let eventLoop, !overflow else { return }
    let raw = UInt(bitPattern: mip)
    let wake = self.wake
    timer = eventLoop.schedule(at: clock.hostDeadline(deadline)) {
      _ = apus_fetch_or64(UnsafeMutableRawPointer(bitPattern: raw)!, 1 << 5)
      wake()
    }
  }

  private func cancelTimer() {
    if let timer { eventLoop?.cancel(timer) }
    timer = nil
  }
}

// What user-mode emulation does with a CPU.
extension RISCVCPU {
  /// Sets the dynamic rounding mode, as a signal's return does.
  public func setRounding(_ mode: UInt64) {
    s[.frm] = mode & 7
    updateMode()
  }
}
