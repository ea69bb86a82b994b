import ApusBits
import ApusFloat
import ApusIR
import CApusHost

/// Guest memory as the evaluator reaches it. `nil` or false: the access took an exception, the state has changed
/// accordingly and the block is left.
public protocol EvaluatorMemory: AnyObject {
  /// Loads 1, 2, 4 or 8 bytes, zero-extended. `pc` is the instruction's, for a fault.
  func load(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64) -> UInt64?
  func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64, context: Int, pc: UInt64) -> Bool
  /// Host memory behind an aligned operand of an atomic operation (4 or 8 bytes).
  func atomicPointer(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64, isStore: Bool)
    -> UnsafeMutableRawPointer?
  /// An atomic operation has stored through the pointer that `atomicPointer` gave.
  func didStoreAtomically(_ address: UInt64, _ byteCount: Int, context: Int)
}

/// Executes IR directly: the meaning of the IR in executable form, oracle of the back ends and portable fallback.
///
/// One thread at a time.
public final class IREvaluator {
  // SAFETY: one word a value of the largest block, alive as long as self.
  private let values: UnsafeMutablePointer<UInt64>
  /// Guest instructions begun since the evaluator was made.
  public private(set) var instructionCount: UInt64 = 0

  public init() {
    values = .allocate(capacity: IRBlock.capacity)
    values.initialize(repeating: 0, count: IRBlock.capacity)
  }
  deinit { values.deallocate() }

  /// Runs a block once; afterwards the state's PC says where to go on.
  public func run(
    _ instructions: UnsafePointer<IRInstruction>, count: Int, terminator: IRTerminator,
    state: UnsafeMutableRawPointer, helpers: [IRHelper], memory: some EvaluatorMemory
  ) {
    var pc: UInt64 = 0
    func setPC(_ value: UInt64) { state.storeBytes(of: value, toByteOffset: StateHeader.pc, as: UInt64.self) }
    var index = 0
    while index < count {
      let i = instructions[index]
      switch i.opcode {
      case .instruction:
        pc = UInt64(bitPattern: i.immediate)
        instructionCount &+= 1
      case .fence: apus_fence()
      case .vector: IRVectorUnit.execute(IRVectorOperand(rawValue: i.immediate), state)
      case .vectorFloat: IRVectorFloatUnit.execute(IRVectorFloatOperand(rawValue: i.immediate), state)
      case .getFloatFlags: values[index] = UInt64(Self.floatFlags(state))
      case .setFloatFlags: Self.setFloatFlags(state, values[Int(i.a)])
      case .setFloatFlagsIfNaNF32:
        let (b, c) = (
          Float(bitPattern: UInt32(truncatingIfNeeded: values[Int(i.b)])),
          Float(bitPattern: UInt32(truncatingIfNeeded: values[Int(i.c)]))
        )
        if b.isNaN || c.isNaN { Self.setFloatFlags(state, values[Int(i.a)]) }
      case .setFloatFlagsIfNaNF64:
        let (b, c) = (Double(bitPattern: values[Int(i.b)]), Double(bitPattern: values[Int(i.c)]))
        if b.isNaN || c.isNaN { Self.setFloatFlags(state, values[Int(i.a)]) }
      case .poll:
        if state.load(fromByteOffset: StateHeader.exitRequest, as: UInt64.self) != 0 {
          return setPC(UInt64(bitPattern: i.immediate))
        }
      case .exitIf64:
        if Self.holds(i.c, values[Int(i.a)], values[Int(i.b)]) {
          return setPC(UInt64(bitPattern: i.immediate))
        }
      case .exitIf32:
        let a = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: values[Int(i.a)])))
        let b = UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: values[Int(i.b)])))
        if Self.holds(i.c, a, b) { return setPC(UInt64(bitPattern: i.immediate)) }
      case .call:
        let effects = IRHelperEffects(rawValue: UInt8(truncatingIfNeeded: i.immediate >> 32))
        if effects.contains(.readsPC) { setPC(pc) }
        values[index] = helpers[Int(i.immediate & 0xffff_ffff)].function(
          state, i.a == .max ? 0 : values[Int(i.a)], i.b == .max ? 0 : values[Int(i.b)],
          i.c == .max ? 0 : values[Int(i.c)])
        if effects.contains(.mayExit),
          state.load(fromByteOffset: StateHeader.pendingExit, as: UInt32.self) != 0
        {
          return
        }
      case .get64, .getF64: values[index] = state.load(fromByteOffset: Int(i.immediate), as: UInt64.self)
      case .get32: values[index] = UInt64(state.load(fromByteOffset: Int(i.immediate), as: UInt32.self))
      case .set64, .setF64:
        state.storeBytes(of: values[Int(i.a)], toByteOffset: Int(i.immediate), as: UInt64.self)
      case .set32:
        state.storeBytes(
          of: UInt32(truncatingIfNeeded: values[Int(i.a)]), toByteOffset: Int(i.immediate), as: UInt32.self)
      default:
        if i.opcode.accessesMemory {
          guard accessMemory(i, index, pc, state, memory) else { return }
        } else if i.opcode.setsFloatFlags {
          values[index] = float(i, state)
        } else {
          values[index] = integer(i)
        }
      }
      index &+= 1
    }
    switch terminator {
    case .direct(let target): setPC(target)
    case .indirect(let target, _, let kind):
      setPC(values[Int(target.index)])
      if kind != 0 {
        state.storeBytes(of: UInt32(kind), toByteOffset: StateHeader.branchKind, as: UInt32.self)
        state.storeBytes(of: pc, toByteOffset: StateHeader.argument0, as: UInt64.self)
      }
    case .dispatch: break
    }
  }

  /// Carries out one operation on memory or floating-point numbers, or a product without carries, on given operands, for
  /// a back end's slow path. `nil`: it took an exception.
  public func runOne(
    _ opcode: IROpcode, _ a: UInt64, _ b: UInt64, _ c: UInt64, immediate: Int64, pc: UInt64,
    state: UnsafeMutableRawPointer, memory: some EvaluatorMemory
  ) -> UInt64? {
    if opcode == .vectorFloat {
      IRVectorFloatUnit.execute(IRVectorFloatOperand(rawValue: immediate), state)
      return 0
    }
    (values[0], values[1], values[2]) = (a, b, c)
    let instruction = IRInstruction(opcode, a: 0, b: 1, c: 2, immediate: immediate)
    if opcode.setsFloatFlags { return float(instruction, state) }
    if opcode == .carrylessMultiply64 || opcode == .carrylessMultiplyHigh64 { return integer(instruction) }
    guard accessMemory(instruction, 3, pc, state, memory) else { return nil }
    return values[3]
  }

  @inline(__always)
  static func holds(_ condition: UInt16, _ a: UInt64, _ b: UInt64) -> Bool {
    switch IRCondition(rawValue: condition).unsafelyUnwrapped {
    case .equal: a == b
    case .notEqual: a != b
    case .lessSigned: Int64(bitPattern: a) < Int64(bitPattern: b)
    case .greaterOrEqualSigned: Int64(bitPattern: a) >= Int64(bitPattern: b)
    case .lessUnsigned: a < b
    case .greaterOrEqualUnsigned: a >= b
    }
  }

  private static func setFloatFlags(_ state: UnsafeMutableRawPointer, _ value: UInt64) {
    state.storeBytes(of: UInt32(value & 31), toByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
    let host = state.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    state.storeBytes(of: host & ~0x3f, toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
  }

  /// The IEEE flags of a state: what soft float raised and what the host's unit did.
  public static func floatFlags(_ state: UnsafeMutableRawPointer) -> UInt32 {
    let host = state.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    let soft = state.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
    return (soft | StateHeader.floatFlags(mxcsr: host)) & 31
  }

  /// Adds to the flags that soft float has raised.
  static func raise(_ flags: UInt8, _ state: UnsafeMutableRawPointer) {
    guard flags != 0 else { return }
    let old = state.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
    state.storeBytes(of: old | UInt32(flags), toByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
  }

  // MARK: Memory

  private func accessMemory(
    _ i: IRInstruction, _ index: Int, _ pc: UInt64, _ state: UnsafeMutableRawPointer,
    _ memory: some EvaluatorMemory
  ) -> Bool {
    let operand = IRMemoryOperand(rawValue: i.immediate)
    let address = values[Int(i.a)] &+ UInt64(bitPattern: Int64(operand.displacement))
    let context = operand.context
    func load(_ byteCount: Int, _ extend: (UInt64) -> UInt64) -> Bool {
      guard let value = memory.load(address, byteCount, context: context, pc: pc) else { return false }
      values[index] = extend(value)
      return true
    }
    func store(_ byteCount: Int) -> Bool {
      memory.store(address, byteCount, values[Int(i.b)], context: context, pc: pc)
    }
    func atomic(_ byteCount: Int, _ body: (UnsafeMutableRawPointer) -> UInt64) -> Bool {
      let isStore = i.opcode != .loadLinked32 && i.opcode != .loadLinked64
      guard
        let pointer = memory.atomicPointer(address, byteCount, context: context, pc: pc, isStore: isStore)
      else { return false }
      values[index] = body(pointer)
      if isStore { memory.didStoreAtomically(address, byteCount, context: context) }
      return true
    }
    func signed32(_ value: UInt64) -> UInt64 { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))) }
    func monitor(_ address: UInt64, _ value: UInt64) {
      state.storeBytes(of: address, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
      state.storeBytes(of: value, toByteOffset: StateHeader.monitorValue, as: UInt64.self)
    }
    switch i.opcode {
    case .loadU8: return load(1) { $0 }
    case .loadS8: return load(1) { UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: $0))) }
    case .loadU16: return load(2) { $0 }
    case .loadS16: return load(2) { UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: $0))) }
    case .loadU32, .loadF32: return load(4) { $0 }
    case .loadS32: return load(4, signed32)
    case .load64, .loadF64: return load(8) { $0 }
    case .store8: return store(1)
    case .store16: return store(2)
    case .store32, .storeF32: return store(4)
    case .store64, .storeF64: return store(8)
    case .loadV128:
      guard let low = memory.load(address, 8, context: context, pc: pc),
        let high = memory.load(address &+ 8, 8, context: context, pc: pc)
      else { return false }
      state.storeBytes(of: low, toByteOffset: operand.vectorRegister, as: UInt64.self)
      state.storeBytes(of: high, toByteOffset: operand.vectorRegister + 8, as: UInt64.self)
      return true
    case .storeV128:
      let low = state.load(fromByteOffset: operand.vectorRegister, as: UInt64.self)
      let high = state.load(fromByteOffset: operand.vectorRegister + 8, as: UInt64.self)
      return memory.store(address, 8, low, context: context, pc: pc)
        && memory.store(address &+ 8, 8, high, context: context, pc: pc)
    case .atomicRMW32:
      return atomic(4) { pointer in
        signed32(
          Self.readModifyWrite32(pointer, operand.operation, UInt32(truncatingIfNeeded: values[Int(i.b)])))
      }
    case .atomicRMW64:
      return atomic(8) { Self.readModifyWrite64($0, operand.operation, values[Int(i.b)]) }
    case .atomicCompareExchange32:
      return atomic(4) { pointer in
        var expected = UInt32(truncatingIfNeeded: values[Int(i.b)])
        _ = apus_compare_exchange32(pointer, &expected, UInt32(truncatingIfNeeded: values[Int(i.c)]))
        return signed32(UInt64(expected))
      }
    case .atomicCompareExchange64:
      return atomic(8) { pointer in
        var expected = values[Int(i.b)]
        _ = apus_compare_exchange64(pointer, &expected, values[Int(i.c)])
        return expected
      }
    case .loadLinked32, .loadLinked64:
      let isDouble = i.opcode == .loadLinked64
      return atomic(isDouble ? 8 : 4) { pointer in
        let value = isDouble ? apus_load_acquire64(pointer) : signed32(UInt64(apus_load_acquire32(pointer)))
        monitor(address, value)
        return value
      }
    case .storeConditional32, .storeConditional64:
      let isDouble = i.opcode == .storeConditional64
      return atomic(isDouble ? 8 : 4) { pointer in
        let reserved = state.load(fromByteOffset: StateHeader.monitorAddress, as: UInt64.self)
        let old = state.load(fromByteOffset: StateHeader.monitorValue, as: UInt64.self)
        monitor(StateHeader.noAddress, old)
        guard reserved == address else { return 1 }
        if isDouble {
          var expected = old
          return apus_compare_exchange64(pointer, &expected, values[Int(i.b)]) ? 0 : 1
        }
        var expected = UInt32(truncatingIfNeeded: old)
        return apus_compare_exchange32(pointer, &expected, UInt32(truncatingIfNeeded: values[Int(i.b)]))
          ? 0 : 1
      }
    default: preconditionFailure("\(i.opcode) is not a memory operation")
    }
  }

  /// Atomic read-modify-write; returns the old value. Any thread.
  public static func readModifyWrite64(
    _ pointer: UnsafeMutableRawPointer, _ operation: IRAtomicOperation, _ value: UInt64
  ) -> UInt64 {
    switch operation {
    case .exchange: return apus_exchange64(pointer, value)
    case .add: return apus_fetch_add64(pointer, value)
    case .xor: return apus_fetch_xor64(pointer, value)
    case .and: return apus_fetch_and64(pointer, value)
    case .or: return apus_fetch_or64(pointer, value)
    case .minSigned, .maxSigned, .minUnsigned, .maxUnsigned:
      var old = apus_load_acquire64(pointer)
      while true {
        let new: UInt64
        switch operation {
        case .minSigned: new = Int64(bitPattern: old) < Int64(bitPattern: value) ? old : value
        case .maxSigned: new = Int64(bitPattern: old) > Int64(bitPattern: value) ? old : value
        case .minUnsigned: new = min(old, value)
        default: new = max(old, value)
        }
        if apus_compare_exchange64(pointer, &old, new) { return old }
      }
    }
  }

  public static func readModifyWrite32(
    _ pointer: UnsafeMutableRawPointer, _ operation: IRAtomicOperation, _ value: UInt32
  ) -> UInt64 {
    switch operation {
    case .exchange: return UInt64(apus_exchange32(pointer, value))
    case .add: return UInt64(apus_fetch_add32(pointer, value))
    case .xor: return UInt64(apus_fetch_xor32(pointer, value))
    case .and: return UInt64(apus_fetch_and32(pointer, value))
    case .or: return UInt64(apus_fetch_or32(pointer, value))
    case .minSigned, .maxSigned, .minUnsigned, .maxUnsigned:
      var old = apus_load_acquire32(pointer)
      while true {
        let new: UInt32
        switch operation {
        case .minSigned: new = Int32(bitPattern: old) < Int32(bitPattern: value) ? old : value
        case .maxSigned: new = Int32(bitPattern: old) > Int32(bitPattern: value) ? old : value
        case .minUnsigned: new = min(old, value)
        default: new = max(old, value)
        }
        if apus_compare_exchange32(pointer, &old, new) { return UInt64(old) }
      }
    }
  }

  // MARK: Integer

  private func integer(_ i: IRInstruction) -> UInt64 {
    func a() -> UInt64 { values[Int(i.a)] }
    func b() -> UInt64 { values[Int(i.b)] }
    func a32() -> UInt32 { UInt32(truncatingIfNeeded: values[Int(i.a)]) }
    func b32() -> UInt32 { UInt32(truncatingIfNeeded: values[Int(i.b)]) }
    func signed(_ value: UInt64) -> Int64 { Int64(bitPattern: value) }
    func bits(_ value: Int64) -> UInt64 { UInt64(bitPattern: value) }
    switch i.opcode {
    case .const32, .const64: return UInt64(bitPattern: i.immediate)
    case .add64: return a() &+ b()
    case .sub64: return a() &- b()
    case .mul64: return a() &* b()
    case .and64: return a() & b()
    case .or64: return a() | b()
    case .xor64: return a() ^ b()
    case .andNot64: return a() & ~b()
    case .shl64: return a() &<< b()
    case .shrU64: return a() &>> b()
    case .shrS64: return bits(signed(a()) &>> signed(b()))
    case .rotr64: return a() &>> b() | a() &<< (0 &- b())
    case .add32: return UInt64(a32() &+ b32())
    case .sub32: return UInt64(a32() &- b32())
    case .mul32: return UInt64(a32() &* b32())
    case .and32: return UInt64(a32() & b32())
    case .or32: return UInt64(a32() | b32())
    case .xor32: return UInt64(a32() ^ b32())
    case .shl32: return UInt64(a32() &<< b32())
    case .shrU32: return UInt64(a32() &>> b32())
    case .shrS32: return UInt64(UInt32(bitPattern: Int32(bitPattern: a32()) &>> Int32(bitPattern: b32())))
    case .rotr32: return UInt64(a32() &>> b32() | a32() &<< (0 &- b32()))
    case .mulHighS64: return bits(signed(a()).multipliedFullWidth(by: signed(b())).high)
    case .mulHighU64: return a().multipliedFullWidth(by: b()).high
    case .mulHighSU64:
      return a().multipliedFullWidth(by: b()).high &- (signed(a()) < 0 ? b() : 0)
    case .divS64:
      if b() == 0 { return .max }
      return signed(a()) == .min && signed(b()) == -1 ? a() : bits(signed(a()) / signed(b()))
    case .divU64: return b() == 0 ? .max : a() / b()
    case .remS64:
      if b() == 0 { return a() }
      return signed(a()) == .min && signed(b()) == -1 ? 0 : bits(signed(a()) % signed(b()))
    case .remU64: return b() == 0 ? a() : a() % b()
    case .divS32, .remS32:
      let (x, y) = (Int32(bitPattern: a32()), Int32(bitPattern: b32()))
      let isDivision = i.opcode == .divS32
      if y == 0 { return isDivision ? 0xffff_ffff : UInt64(a32()) }
      if x == .min && y == -1 { return isDivision ? UInt64(a32()) : 0 }
      return UInt64(UInt32(bitPattern: isDivision ? x / y : x % y))
    case .divU32: return b32() == 0 ? 0xffff_ffff : UInt64(a32() / b32())
    case .remU32: return b32() == 0 ? UInt64(a32()) : UInt64(a32() % b32())
    case .compare64: return Self.holds(UInt16(i.immediate), a(), b()) ? 1 : 0
    case .compare32:
      let x = UInt64(bitPattern: Int64(Int32(bitPattern: a32())))
      let y = UInt64(bitPattern: Int64(Int32(bitPattern: b32())))
      return Self.holds(UInt16(i.immediate), x, y) ? 1 : 0
    case .select64: return a() != 0 ? b() : values[Int(i.c)]
    case .minS64: return bits(min(signed(a()), signed(b())))
    case .maxS64: return bits(max(signed(a()), signed(b())))
    case .minU64: return min(a(), b())
    case .maxU64: return max(a(), b())
    case .countLeadingZeros64: return UInt64(a().leadingZeroBitCount)
    case .countTrailingZeros64: return UInt64(a().trailingZeroBitCount)
    case .countOnes64: return UInt64(a().nonzeroBitCount)
    case .countLeadingZeros32: return UInt64(a32().leadingZeroBitCount)
    case .countTrailingZeros32: return UInt64(a32().trailingZeroBitCount)
    case .countOnes32: return UInt64(a32().nonzeroBitCount)
    case .byteSwap64: return a().byteSwapped
    case .carrylessMultiply64: return carrylessProduct(a(), b()).low
    case .carrylessMultiplyHigh64: return carrylessProduct(a(), b()).high
    case .crc32:
      let kind: CyclicRedundancy = i.immediate & 4 != 0 ? .castagnoli : .ieee
      return UInt64(
        kind.updated(UInt32(truncatingIfNeeded: a()), with: b(), byteCount: 1 << Int(i.immediate & 3)))
    case .signExtend8: return bits(Int64(Int8(truncatingIfNeeded: a())))
    case .signExtend16: return bits(Int64(Int16(truncatingIfNeeded: a())))
    case .zeroExtend8: return a() & 0xff
    case .zeroExtend16: return a() & 0xffff
    case .signExtend32: return bits(Int64(Int32(bitPattern: a32())))
    case .zeroExtend32, .truncate32: return UInt64(a32())
    case .signInjectF32: return Self.injectSign(a(), b(), i.immediate, .single)
    case .signInjectF64: return Self.injectSign(a(), b(), i.immediate, .double)
    case .moveF32ToI64: return bits(Int64(Int32(bitPattern: a32())))
    case .moveI64ToF32: return UInt64(a32())
    case .moveF64ToI64, .moveI64ToF64: return a()
    case .boxF32: return a() & 0xffff_ffff | (i.immediate == 1 ? 0 : 0xffff_ffff_0000_0000)
    case .unboxF32:
      if i.immediate == 1 { return a() & 0xffff_ffff }
      return a() >> 32 == 0xffff_ffff ? a() & 0xffff_ffff : FloatFormat.single.defaultNaN
    case .flagsAdd, .flagsAddCarry, .flagsSub, .flagsSubBorrow, .flagsLogic, .flagsUnpack, .flagTest,
      .flagsPack:
      return flags(i)
    default: preconditionFailure("\(i.opcode) is not an integer operation")
    }
  }

  private static func injectSign(_ a: UInt64, _ b: UInt64, _ kind: Int64, _ format: FloatFormat) -> UInt64 {
    let sign: UInt64
    switch IRSignInjection(rawValue: UInt8(kind)).unsafelyUnwrapped {
    case .copy: sign = b
    case .negate: sign = ~b
    case .xor: sign = a ^ b
    }
    return a & ~format.signMask | sign & format.signMask
  }

  // MARK: Flags. A flags value is held packed. C is the carry of an addition and "no borrow" of a subtraction.

  private func flags(_ i: IRInstruction) -> UInt64 {
    let operand = IRFlagsOperand(rawValue: i.immediate)
    typealias F = IRPackedFlags
    let borrow: UInt64 = operand.isNZCVOnly ? 0 : F.auxiliary
    func make(_ result: UInt64, carry: Bool, overflow: Bool, auxiliary: Bool) -> UInt64 {
      let width = UInt64(operand.width)
      let masked = width == 64 ? result : result & ((1 << width) - 1)
      let packed =
        (masked >> (width - 1) & 1 != 0 ? F.negative : 0) | (masked == 0 ? F.zero : 0) | (carry ? F.carry : 0)
        | (overflow ? F.overflow : 0)
      if operand.isNZCVOnly { return packed }
      return packed | (auxiliary ? F.auxiliary : 0)
        | (UInt8(truncatingIfNeeded: masked).nonzeroBitCount & 1 == 0 ? F.parity : 0)
    }
    /// a + b + carry in `width` bits.
    func add(_ a: UInt64, _ b: UInt64, _ carry: UInt64) -> UInt64 {
      let width = UInt128(operand.width)
      let mask = (UInt128(1) << width) - 1
      let (x, y) = (UInt128(a) & mask, UInt128(b) & mask)
      let sum = x + y + UInt128(carry)
      let sign = width - 1
      let overflow = (~(x ^ y) & (x ^ sum)) >> sign & 1 != 0
      return make(
        UInt64(truncatingIfNeeded: sum), carry: sum >> width != 0, overflow: overflow,
        auxiliary: (x & 15) + (y & 15) + UInt128(carry) > 15)
    }
    let a = values[Int(i.a)]
    switch i.opcode {
    case .flagsAdd: return add(a, values[Int(i.b)], 0)
    case .flagsAddCarry: return add(a, values[Int(i.b)], values[Int(i.c)] & 1)
    case .flagsSub: return add(a, ~values[Int(i.b)], 1) ^ borrow
    // c is the borrow.
    case .flagsSubBorrow: return add(a, ~values[Int(i.b)], 1 ^ values[Int(i.c)] & 1) ^ borrow
    case .flagsLogic: return make(a, carry: false, overflow: false, auxiliary: false)
    case .flagsUnpack, .flagsPack: return a & (F.nzcv | F.auxiliary | F.parity)
    default: break
    }
    let (n, z, c, v) = (a & F.negative != 0, a & F.zero != 0, a & F.carry != 0, a & F.overflow != 0)
    let holds: Bool
    switch IRFlagTest(rawValue: UInt8(i.immediate)).unsafelyUnwrapped {
    case .zero: holds = z
    case .notZero: holds = !z
    case .negative: holds = n
    case .notNegative: holds = !n
    case .carry: holds = c
    case .notCarry: holds = !c
    case .overflow: holds = v
    case .notOverflow: holds = !v
    case .lessSigned: holds = n != v
    case .greaterOrEqualSigned: holds = n == v
    case .lessOrEqualSigned: holds = z || n != v
    case .greaterSigned: holds = !z && n == v
    case .lessOrEqualUnsigned: holds = !c || z
    case .greaterUnsigned: holds = c && !z
    }
    return holds ? 1 : 0
  }

  // MARK: Floating point

  private func float(_ i: IRInstruction, _ state: UnsafeMutableRawPointer) -> UInt64 {
    let operand = IRFloatOperand(rawValue: i.immediate)
    var soft = SoftFloat(
      operand.rounding, operand.nanRule, isTinyBeforeRounding: operand.isTinyBeforeRounding)
    let a = values[Int(i.a)]
    func b() -> UInt64 { values[Int(i.b)] }
    func signed32(_ value: UInt64) -> UInt64 { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: value))) }
    func fused(_ format: FloatFormat) -> UInt64 {
      soft.multiplyAdd(
        a, b(), values[Int(i.c)], format, negateProduct: operand.negateProduct,
        negateAddend: operand.negateAddend)
    }
    func compare(_ format: FloatFormat) -> UInt64 {
      switch IRFloatComparison(rawValue: operand.kind).unsafelyUnwrapped {
      case .equal: soft.equal(a, b(), format) ? 1 : 0
      case .less: soft.less(a, b(), format, orEqual: false) ? 1 : 0
      case .lessOrEqual: soft.less(a, b(), format, orEqual: true) ? 1 : 0
      case .lessQuiet: soft.less(a, b(), format, orEqual: false, isQuiet: true) ? 1 : 0
      case .lessOrEqualQuiet: soft.less(a, b(), format, orEqual: true, isQuiet: true) ? 1 : 0
      }
    }
    /// N less, Z equal, C not less, V unordered.
    func compareFlags(_ format: FloatFormat) -> UInt64 {
      let isSignalling = IRFloatComparison(rawValue: operand.kind) == .less
      let isLess = soft.less(a, b(), format, orEqual: false, isQuiet: !isSignalling)
      if format.isNaN(a) || format.isNaN(b()) { return IRPackedFlags.carry | IRPackedFlags.overflow }
      if isLess { return IRPackedFlags.negative }
      return IRPackedFlags.carry | (soft.equal(a, b(), format) ? IRPackedFlags.zero : 0)
    }
    let result: UInt64
    switch i.opcode {
    case .flagsCompareF32: result = compareFlags(.single)
    case .flagsCompareF64: result = compareFlags(.double)
    case .addF32: result = soft.add(a, b(), .single)
    case .subF32: result = soft.subtract(a, b(), .single)
    case .mulF32: result = soft.multiply(a, b(), .single)
    case .divF32: result = soft.divide(a, b(), .single)
    case .sqrtF32: result = soft.squareRoot(a, .single)
    case .mulAddF32: result = fused(.single)
    case .minF32: result = soft.minimum(a, b(), .single, isMaximum: false)
    case .maxF32: result = soft.minimum(a, b(), .single, isMaximum: true)
    case .addF64: result = soft.add(a, b(), .double)
    case .subF64: result = soft.subtract(a, b(), .double)
    case .mulF64: result = soft.multiply(a, b(), .double)
    case .divF64: result = soft.divide(a, b(), .double)
    case .sqrtF64: result = soft.squareRoot(a, .double)
    case .mulAddF64: result = fused(.double)
    case .minF64: result = soft.minimum(a, b(), .double, isMaximum: false)
    case .maxF64: result = soft.minimum(a, b(), .double, isMaximum: true)
    case .compareF32: result = compare(.single)
    case .compareF64: result = compare(.double)
    case .convertF32ToF64: result = soft.convert(a, from: .single, to: .double)
    case .convertF64ToF32: result = soft.convert(a, from: .double, to: .single)
    case .convertF32ToS32: result = soft.toInteger(a, .single, width: 32, isSigned: true)
    case .convertF32ToU32: result = signed32(soft.toInteger(a, .single, width: 32, isSigned: false))
    case .convertF32ToS64: result = soft.toInteger(a, .single, width: 64, isSigned: true)
    case .convertF32ToU64: result = soft.toInteger(a, .single, width: 64, isSigned: false)
    case .convertF64ToS32: result = soft.toInteger(a, .double, width: 32, isSigned: true)
    case .convertF64ToU32: result = signed32(soft.toInteger(a, .double, width: 32, isSigned: false))
    case .convertF64ToS64: result = soft.toInteger(a, .double, width: 64, isSigned: true)
    case .convertF64ToU64: result = soft.toInteger(a, .double, width: 64, isSigned: false)
    case .convertS32ToF32: result = soft.fromInteger(signed32(a), isSigned: true, .single)
    case .convertU32ToF32: result = soft.fromInteger(a & 0xffff_ffff, isSigned: false, .single)
    case .convertS64ToF32: result = soft.fromInteger(a, isSigned: true, .single)
    case .convertU64ToF32: result = soft.fromInteger(a, isSigned: false, .single)
    case .convertS32ToF64: result = soft.fromInteger(signed32(a), isSigned: true, .double)
    case .convertU32ToF64: result = soft.fromInteger(a & 0xffff_ffff, isSigned: false, .double)
    case .convertS64ToF64: result = soft.fromInteger(a, isSigned: true, .double)
    case .convertU64ToF64: result = soft.fromInteger(a, isSigned: false, .double)
    default: preconditionFailure("\(i.opcode) is not a floating-point operation")
    }
    Self.raise(soft.flags, state)
    return result
  }
}

extension SoftFloat {
  init(_ rounding: IRRounding, _ nanRule: IRNaNRule, isTinyBeforeRounding: Bool) {
    self.init(
      FloatRounding(rawValue: rounding.rawValue).unsafelyUnwrapped,
      nanRule: nanRule == .propagateARM ? .arm : .defaultNaN)
    self.isTinyBeforeRounding = isTinyBeforeRounding
  }
}
