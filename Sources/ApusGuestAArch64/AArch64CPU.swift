import ApusCPU
import ApusGuest
import ApusIR
import ApusISAAArch64

/// One AArch64 CPU as a process sees it: EL0, A64 [Arm ARM].
///
/// Runs on its vCPU's thread. There are no other exception levels yet: exceptions go to the user-mode hooks.
public final class AArch64CPU: GuestCPU {
  /// CNTFRQ_EL0: 62.5 MHz.
  public static let counterFrequency: UInt64 = 62_500_000

  public let state: UnsafeMutableRawPointer
  public let features: AArch64FeatureSet
  public let helpers = AArch64Helper.table
  public let layout: StateLayout
  public let sharedStateOffsets: [Int] = []
  let s: AArch64State
  let clock: GuestClock
  /// Set by the engine that runs this CPU.
  public unowned(unsafe) var engine: any GuestEngine
  public var userHooks: GuestUserHooks?

  /// - Parameter state: `StateHeader.byteCount` zeroed bytes that outlive the CPU.
  public init(
    state: UnsafeMutableRawPointer, features: AArch64FeatureSet, clock: GuestClock, engine: any GuestEngine
  ) {
    (self.state, self.features, self.clock, self.engine) = (state, features, clock, engine)
    s = AArch64State(state)
    // Arguments, temporaries, the first callee-saved registers and sp: what compilers use most.
    layout = StateLayout(
      hotIntegers: [0, 1, 2, 3, 19, 31, 4, 20, 5, 21].map(AArch64State.x),
      hotFloats: [0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 8, 9].map(AArch64State.v))
    state.storeBytes(
      of: Unmanaged.passUnretained(self).toOpaque(), toByteOffset: StateHeader.guest,
      as: UnsafeMutableRawPointer.self)
  }

  /// Runs `body` with the CPU whose state this is, without reference counting; for helpers.
  @inline(__always)
  static func with<T>(_ state: UnsafeMutableRawPointer, _ body: (AArch64CPU) -> T) -> T {
    Unmanaged<AArch64CPU>.fromOpaque(state.load(fromByteOffset: StateHeader.guest, as: UnsafeRawPointer.self))
      ._withUnsafeGuaranteedRef(body)
  }

  // MARK: Reset and mode

  public func reset(entry: UInt64, arguments: [UInt64]) {
    for number in 0..<32 {
      s[x: number] = 0
      s[v: number] = AArch64Vector()
    }
    for field in AArch64State.Field.allCases { s[field] = 0 }
    s.pc = entry
    state.storeBytes(of: StateHeader.noAddress, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
    state.storeBytes(of: UInt32(0x1f80), toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    s.fpsr = 0
    for (index, value) in arguments.prefix(8).enumerated() { s[x: index] = value }
    updateMode()
    engine.addressSpaceChanged(asid: 0)
    engine.flushTLB(page: nil, keepGlobal: false, asid: nil)
  }

  /// Puts the CPU in the state of a process of user-mode emulation.
  public func enterUserEmulation(pc: UInt64, stackPointer: UInt64) {
    reset(entry: pc, arguments: [])
    s[x: 31] = stackPointer
  }

  public func setFPCR(_ value: UInt64) {
    s[.fpcr] = value & FPCR.writable
    updateMode()
  }

  /// Computes the block key from the state.
  func updateMode() {
    let fpcr = s[.fpcr]
    s.mode = AArch64Mode(context: 0, fpcr: fpcr)
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
      block: block, mode: AArch64Mode(rawValue: mode), features: features, helpers: helpers, pc: pc)
    return translator.run(code, instructionLimit: instructionLimit)
  }

  /// The row's name and the word: there is no text for operands yet.
  public func disassemble(_ bytes: UnsafePointer<UInt8>, pc: UInt64) -> String {
    let word = UnsafeRawPointer(bytes).loadUnaligned(as: UInt32.self)
    let digits = String(word, radix: 16)
    return ".inst\t0x\(String(repeating: "0", count: 8 - digits.count))\(digits)"
      + (AArch64Decoder.shared.row(word).map { "  // \($0.name)" } ?? "")
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
    .page(physical: address, canLoad: true, canStore: true, isGlobal: true, byteCount: 4096)
  }
  public func takeInterrupt() -> Bool {
    if let userHooks { userHooks.interrupt(userHooks.context) }
    return false
  }
  public func shouldWake() -> Bool { false }
  public func nextTimerDeadline() -> UInt64? { nil }
  public func setInterrupt(_ number: Int, _ level: Bool) {}

  public func busFault(_ access: GuestAccess) -> UInt64 {
    UInt64((access == .fetch ? GuestUserException.fetch : .access).rawValue)
  }
  public func misalignedFault(_ access: GuestAccess) -> UInt64 {
    UInt64(GuestUserException.misaligned.rawValue)
  }

  public func raise(fault: UInt64, address: UInt64, pc: UInt64) {
    s.pc = pc
    if let userHooks { userHooks.exception(userHooks.context, UInt8(truncatingIfNeeded: fault), address) }
    s.requestDispatch()
  }
  func raise(_ exception: GuestUserException, address: UInt64) {
    raise(fault: UInt64(exception.rawValue), address: address, pc: s.pc)
  }

  /// CNTVCT_EL0.
  func counter() -> UInt64 { clock.nowNanoseconds() / 16 }
}
