import ApusAsmX86
import ApusIR

/// The runtime that generated code calls, as addresses of C functions.
public struct X86Runtime: Sendable {
  /// (state) -> nonzero to go to the dispatcher. Carries out the access of site `argument2`.
  public var slowMemory: UInt64
  /// (state) -> code address, or 0 to leave. Patches link `argument2`.
  public var resolveLink: UInt64
  /// (state) -> code address of the block at the state's PC and mode, or 0 to leave.
  public var dispatch: UInt64
  /// (state) -> 0 if the page of site `argument2`'s group is in the TLB now, for every access of the group.
  public var prepareGroup: UInt64
  public init(slowMemory: UInt64, resolveLink: UInt64, dispatch: UInt64, prepareGroup: UInt64) {
    (self.slowMemory, self.resolveLink, self.dispatch) = (slowMemory, resolveLink, dispatch)
    self.prepareGroup = prepareGroup
  }
}

/// Offsets of the shared routines.
public struct X86Thunks: Sendable {
  public var enter = 0
  var leave = 0
  /// Called with operands in the state: a fused multiply-add's.
  var slowMemory = 0
  /// Called with an address and a site on the stack; the result takes the address's place. The same for a store,
  /// which has its value between the two and leaves nothing.
  var slowAccess = 0
  var slowStore = 0
  /// Called with an address and a site on the stack. Skips the caller's next jump (5 bytes) if it failed.
  var prepareGroup = 0
  var helper = 0
  var helperMayExit = 0
  var resolveLink = 0
  var dispatch = 0
  /// The same for a caller that has stored the pinned registers.
  var dispatchStored = 0
}

extension X86Emitter {
  /// The entry routine: (state, code) -> 0.
  public var entry: UInt64 { buffer.address(thunks.enter) }
  /// Where generated code is left whose pinned registers are in the state already: for a signal handler.
  public var leave: UInt64 { buffer.address(thunks.leave) }
  /// The host registers that hold state slots in all generated code, by the hardware's numbers.
  public var pinnedSlots:
    (
      general: [(register: UInt8, offset: Int)], vector: [(register: UInt8, offset: Int)],
      vectorByteCount: Int
    )
  {
    (
      pinnedIntegers.map { ($0.register.rawValue, $0.offset) },
      pinnedFloats.map { ($0.register.rawValue, $0.offset) }, layout.hasVectors ? 16 : 8
    )
  }

  // Constants in the state's scratch area.
  static let defaultNaN64 = StateHeader.scratch
  static let defaultNaN32 = StateHeader.scratch + 8
  /// 16-byte aligned masks, low half used.
  static let boxMask = StateHeader.scratch + 16
  static let signMask64 = StateHeader.scratch + 32
  static let signMask32 = StateHeader.scratch + 48

  /// In all lanes of 16 bytes: the smallest normal numbers; all bits but the sign.
  static let smallestNormal64 = 960
  static let smallestNormal32 = 976
  static let magnitudeMask64 = 992
  static let magnitudeMask32 = 1008

  /// Vectors for operations whose operands take the registers.
  enum VectorConstant: Int, CaseIterable {
    /// Added to an index with saturation, it sets the highest bit of what is above 15, which pshufb takes for "zero".
    case indexBias
    /// 1, 2, 4 ... 128, then zeros.
    case powers
    /// Counts of shifts: the least that counts in bytes and in words.
    case leastInBytes, leastInWords
    /// A byte's power, moved up by 8; a word's lower and upper byte for shifts to the left, and to the right.
    case eights, leftWords, rightWords
    /// The lower byte of each word, twice.
    case lowerBytes

    var offset: Int { StateHeader.vectorConstants + 16 * rawValue }
    func byte(_ index: Int) -> UInt8 {
      let isOdd = index & 1 != 0
      switch self {
      case .indexBias: return 0x70
      case .powers: return index < 8 ? 1 << UInt8(index) : 0
      case .leastInBytes: return 0xf8
      case .leastInWords: return 0xf0
      case .eights: return 8
      case .leftWords: return isOdd ? 0xf8 : 0
      case .rightWords: return isOdd ? 8 : 16
      case .lowerBytes: return UInt8(index & ~1)
      }
    }
  }

  /// Writes the constants that generated code reads from the state.
  public static func initializeConstants(_ state: UnsafeMutableRawPointer) {
    func store(_ value: UInt64, _ offset: Int) {
      state.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
    }
    for bits in 0..<UInt32(64) {
      state.storeBytes(
        of: UInt8(StateHeader.floatFlags(mxcsr: bits)), toByteOffset: StateHeader.floatFlagTable + Int(bits),
        as: UInt8.self)
    }
    for constant in VectorConstant.allCases {
      for index in 0..<16 {
        state.storeBytes(of: constant.byte(index), toByteOffset: constant.offset + index, as: UInt8.self)
      }
    }
    store(0x7ff8_0000_0000_0000, defaultNaN64)
    store(0x7fc0_0000, defaultNaN32)
    for half in [0, 8] {
      store(1 << 52, smallestNormal64 + half)
      store(1 << 23 | 1 << 55, smallestNormal32 + half)
      store(0x7fff_ffff_ffff_ffff, magnitudeMask64 + half)
      store(0x7fff_ffff_7fff_ffff, magnitudeMask32 + half)
    }
    store(0xffff_ffff_0000_0000, boxMask)
    store(0, boxMask + 8)
    store(0x8000_0000_0000_0000, signMask64)
    store(0, signMask64 + 8)
    store(0x8000_0000, signMask32)
    store(0, signMask32 + 8)
  }

  func emitThunks(_ runtime: X86Runtime) {
    let saved: [X86Register] = [.rbx, .rbp, .r12, .r13, .r14, .r15]
    // enter(rdi: state, rsi: code)
    asm.align(16)
    thunks.enter = asm.offset
    for register in saved { asm.push(register) }
    asm.arithmetic(.sub, .rsp, immediate: 8)
    asm.loadAddress(.rbp, X86Memory(.rdi, Int32(StateHeader.bias)))
    asm.move(.rax, .rsi)
    loadPinned()
    asm.jump(.rax)

    // Pinned registers are in the state already.
    asm.align(16)
    thunks.leave = asm.offset
    asm.arithmetic(.add, .rsp, immediate: 8)
    for register in saved.reversed() { asm.pop(register) }
    asm.move(.rax, immediate: 0)
    asm.ret()

    // Jumped to: the stack is 16-byte aligned.
    func transfer(_ function: UInt64, popsArgument: Bool = false) -> (offset: Int, afterStore: Int) {
      asm.align(16)
      let offset = asm.offset
      if popsArgument {
        asm.pop(.rax)
        asm.store(state(StateHeader.argument2), .rax)
      }
      storePinned()
      let afterStore = asm.offset
      stateArgument()
      asm.move(.rax, immediate: function)
      asm.call(.rax)
      asm.test(.rax, .rax)
      let leave = asm.jump(.equal)
      asm.bind(leave, to: thunks.leave)
      loadPinned()
      asm.jump(.rax)
      return (offset, afterStore)
    }
    (thunks.dispatch, thunks.dispatchStored) = transfer(runtime.dispatch)
    thunks.resolveLink = transfer(runtime.resolveLink, popsArgument: true).offset

    // Called: a return address on the stack, and below it `stacked` words: where each goes, the last one first.
    func service(_ function: UInt64?, tests: ServiceTest, stacked: [Int] = [], leavesResult: Bool = false)
      -> Int
    {
      asm.align(16)
      let offset = asm.offset
      let padding = stacked.count % 2 == 0 ? 8 : 16
      asm.arithmetic(.sub, .rsp, immediate: Int32(padding))
      storePinned()
      storeTemporaries()
      for (index, slot) in stacked.enumerated() {
        asm.load(.rax, X86Memory(.rsp, Int32(padding + 8 + index * 8)))
        asm.store(state(slot), .rax)
      }
      stateArgument()
      if let function {
        asm.move(.rax, immediate: function)
      } else {
        // A helper: its address is in `result`, its arguments in `argument0` to `argument2`.
        asm.load(.rax, state(StateHeader.result))
        asm.load(.rsi, state(StateHeader.argument0))
        asm.load(.rdx, state(StateHeader.argument1))
        asm.load(.rcx, state(StateHeader.argument2))
      }
      asm.call(.rax)
      if function == nil { asm.store(state(StateHeader.result), .rax) }
      switch tests {
      case .none: break
      case .result: asm.test(.rax, .rax, wide: false)
      case .skipOnFailure: asm.store(state(StateHeader.result), .rax)
      case .pendingExit: asm.arithmetic(.cmp, state(StateHeader.pendingExit), immediate: 0, wide: false)
      }
      if tests == .result || tests == .pendingExit {
        let stay = asm.jumpShort(.equal)
        // The state is complete: go on at its PC.
        asm.arithmetic(.add, .rsp, immediate: Int32(padding + 8 + stacked.count * 8))
        asm.jump(to: thunks.dispatchStored)
        asm.bindShort(stay)
      }
      if leavesResult {
        asm.load(.rax, state(StateHeader.result))
        asm.store(X86Memory(.rsp, Int32(padding + stacked.count * 8)), .rax)
      }
      loadPinned()
      loadTemporaries()
      if tests == .skipOnFailure {
        asm.arithmetic(.cmp, state(StateHeader.result), immediate: 0, wide: false)
        let goesOn = asm.jumpShort(.equal)
        asm.arithmetic(.add, X86Memory(.rsp, Int32(padding)), immediate: 5)
        asm.bindShort(goesOn)
      }
      asm.arithmetic(.add, .rsp, immediate: Int32(padding))
      let popped = stacked.count - (leavesResult ? 1 : 0)
      if popped == 0 { asm.ret() } else { asm.ret(popping: UInt16(popped * 8)) }
      return offset
    }
    thunks.slowMemory = service(runtime.slowMemory, tests: .result)
    thunks.slowAccess = service(
      runtime.slowMemory, tests: .result, stacked: [StateHeader.argument2, StateHeader.argument0],
      leavesResult: true)
    thunks.slowStore = service(
      runtime.slowMemory, tests: .result,
      stacked: [StateHeader.argument2, StateHeader.argument1, StateHeader.argument0])
    thunks.prepareGroup = service(
      runtime.prepareGroup, tests: .skipOnFailure, stacked: [StateHeader.argument2, StateHeader.argument0])
    thunks.helper = service(nil, tests: .none)
    thunks.helperMayExit = service(nil, tests: .pendingExit)
    asm.align(64)
  }

  private enum ServiceTest { case none, result, pendingExit, skipOnFailure }

  private func stateArgument() { asm.loadAddress(.rdi, X86Memory(.rbp, Int32(-StateHeader.bias))) }

  /// Pinned registers to their slots, and the guest's floating-point control out of the way.
  private func storePinned() {
    for (register, offset) in pinnedIntegers { asm.store(state(offset), register) }
    for (register, offset) in pinnedFloats {
      if layout.hasVectors {
        asm.storeWhole(state(offset), register)
      } else {
        asm.store(state(offset), register, double: true)
      }
    }
    asm.storeMXCSR(state(StateHeader.guestMXCSR))
    asm.loadMXCSR(state(StateHeader.hostMXCSR))
  }
  private func loadPinned() {
    asm.loadMXCSR(state(StateHeader.guestMXCSR))
    for (register, offset) in pinnedIntegers { asm.load(register, state(offset)) }
    for (register, offset) in pinnedFloats {
      if layout.hasVectors {
        asm.loadWhole(register, state(offset))
      } else {
        asm.load(register, state(offset), double: true)
      }
    }
  }
  private func storeTemporaries() {
    for (number, register) in [X86Register.rax, .rcx, .rdx, .r11].enumerated() {
      asm.store(state(StateHeader.spill + number * 8), register)
    }
    for number in 0..<Self.firstPinnedVector {
      asm.store(
        state(StateHeader.spill + 64 + number * 8), X86Vector(rawValue: UInt8(number)).unsafelyUnwrapped,
        double: true)
    }
  }
  private func loadTemporaries() {
    for (number, register) in [X86Register.rax, .rcx, .rdx, .r11].enumerated() {
      asm.load(register, state(StateHeader.spill + number * 8))
    }
    for number in 0..<Self.firstPinnedVector {
      asm.load(
        X86Vector(rawValue: UInt8(number)).unsafelyUnwrapped, state(StateHeader.spill + 64 + number * 8),
        double: true)
    }
  }
}
