import ApusIR
import ApusISAAArch64

// What Armv8.1 and later add besides vectors: flags, ordered accesses, half precision's moves, pointer authentication.

extension AArch64Translator {
  // MARK: Flags [FEAT_FlagM, FEAT_FlagM2]

  mutating func flagManipulation(_ opcode: AArch64Opcode) {
    let block = block
    func and(_ a: IRValue, _ b: IRValue) -> IRValue { block.binary(.and64, a, b) }
    func or(_ a: IRValue, _ b: IRValue) -> IRValue { block.binary(.or64, a, b) }
    func bit(_ value: IRValue, _ number: UInt64) -> IRValue {
      and(block.binary(.shrU64, value, block.const64(number)), block.const64(1))
    }
    func placed(_ value: IRValue, _ number: UInt64) -> IRValue {
      block.binary(.shl64, value, block.const64(number))
    }
    func not(_ value: IRValue) -> IRValue { block.binary(.xor64, value, block.const64(1)) }
    let old = conditionBits()
    let new: IRValue
    switch opcode {
    case .cfinv: new = block.binary(.xor64, old, constant(1 << 29))
    case .rmif:
      let mask = UInt64(bits(0, 4)) << 28
      let rotated = block.binary(.rotr64, x(rn), constant(UInt64(bits(15, 6))))
      new = or(and(old, constant(~mask & 0xf000_0000)), and(placed(rotated, 28), constant(mask)))
    case .setf:
      // N and Z of a byte or a half word; V: the bit above it differs.
      let top: UInt64 = bits(14, 1) == 1 ? 15 : 7
      let value = and(x(rn), constant(1 << (top + 1) - 1))
      let isZero = block.compare(.equal, value, constant(0))
      let overflow = block.binary(.xor64, bit(x(rn), top), bit(x(rn), top + 1))
      new = or(
        or(placed(bit(x(rn), top), 31), placed(isZero, 30)),
        or(placed(overflow, 28), and(old, constant(1 << 29))))
    case .axflag:
      let (z, c, v) = (bit(old, 30), bit(old, 29), bit(old, 28))
      new = or(placed(or(z, v), 30), placed(and(c, not(v)), 29))
    default:  // xaflag
      let (z, c) = (bit(old, 30), bit(old, 29))
      new = or(
        or(placed(not(or(c, z)), 31), placed(and(z, c), 30)),
        or(placed(or(c, z), 29), placed(and(not(c), z), 28)))
    }
    setConditionBits(new)
  }

  // MARK: Accesses [FEAT_LRCPC2]

  /// stlur and ldapur.
  func unscaledOrdered() {
    let size = Int(bits(30, 2))
    let operand = memory(signedBits(12, 9), ordered: true)
    switch bits(22, 2) {
    case 0:
      let stores: [IROpcode] = [.store8, .store16, .store32, .store64]
      block.store(stores[size], xsp(rn), x(rd), operand)
      block.fence()
    case 1:
      let loads: [IROpcode] = [.loadU8, .loadU16, .loadU32, .load64]
      setX(rd, block.load(loads[size], xsp(rn), operand))
    default:
      let loads: [IROpcode] = [.loadS8, .loadS16, .loadS32]
      let value = block.load(loads[size], xsp(rn), operand)
      setX(rd, bits(22, 1) == 1 ? block.unary(.zeroExtend32, narrow(value)) : value)
    }
  }

  // MARK: Half precision [FEAT_FP16]

  mutating func half(_ opcode: AArch64Opcode) {
    func lowest(_ value: IRValue) -> IRValue { block.unary(.zeroExtend16, value) }
    func set(_ value: IRValue, high: IRValue? = nil) {
      setVector(rd, Halves(low: block.unary(.moveI64ToF64, value), high: high))
    }
    switch opcode {
    case .halfToGeneral: setX(rd, lowest(half(rn, false)))
    case .halfFromGeneral: set(lowest(x(rn)))
    case .halfImmediate: set(constant(Self.expandedHalf(bits(13, 8))))
    case .halfVectorImmediate:
      let value = constant(Self.expandedHalf(bits(16, 3) << 5 | bits(5, 5)) &* 0x1_0001_0001_0001)
      set(value, high: bits(30, 1) == 1 ? value : nil)
    case .halfSelect:
      let condition = bits(12, 4)
      let holds = condition >= 14 ? constant(1) : value(of: condition)
      set(lowest(block.ternary(.select64, holds, half(rn, false), half(rm, false))))
    case .halfCompare:
      storeFlags()
      call(.softCompare, constant(UInt64(word)))
      flags = .stored
      areFlagsStored = true
    default: call(.softFloat, constant(UInt64(word)))
    }
  }

  /// VFPExpandImm of 16 bits.
  static func expandedHalf(_ immediate: UInt32) -> UInt64 {
    let exponent = immediate >> 6 & 1
    return UInt64(
      (immediate >> 7) << 15 | (exponent ^ 1) << 14 | (exponent * 3) << 12 | (immediate & 0x3f) << 6)
  }

  // MARK: Pointer authentication [FEAT_PAuth]

  /// Hints that sign and check x17 or x30; true if the hint is one of them.
  mutating func authenticationHint(_ number: UInt32) -> Bool {
    guard features.contains(.pauth) else { return false }
    typealias Request = AArch64PointerAuthentication.Request
    let (register, modifier, request): (Int, IRValue, Request)
    let key: AArch64PointerAuthentication.Key = number & 2 == 0 ? .instructionA : .instructionB
    switch number {
    case 7: (register, modifier, request) = (30, constant(0), .strip(.instructionA))
    case 8, 10: (register, modifier, request) = (17, x(16), .sign(key))
    case 12, 14: (register, modifier, request) = (17, x(16), .check(key))
    case 24, 26: (register, modifier, request) = (30, constant(0), .sign(key))
    case 25, 27: (register, modifier, request) = (30, xsp(31), .sign(key))
    case 28, 30: (register, modifier, request) = (30, constant(0), .check(key))
    case 29, 31: (register, modifier, request) = (30, xsp(31), .check(key))
    default: return false
    }
    setX(register, authenticated(x(register), modifier, request))
    return true
  }

  private mutating func authenticated(
    _ pointer: IRValue, _ modifier: IRValue, _ request: AArch64PointerAuthentication.Request
  ) -> IRValue {
    let number = constant(UInt64(request.rawValue))
    // EL2 may want to know of uses, not of `xpac`.
    if mode.isSystem, mode.checksTraps, request.action != 2 {
      call(.checkTrap, constant(UInt64(word)), number)
    }
    return call(.authenticate, pointer, modifier, number)
  }

  mutating func authentication(_ opcode: AArch64Opcode) {
    typealias Key = AArch64PointerAuthentication.Key
    let keys: [Key] = [.instructionA, .instructionB, .dataA, .dataB]
    switch opcode {
    case .pointerAuthentication:
      let key = keys[Int(bits(10, 2))]
      let modifier = bits(13, 1) == 1 ? constant(0) : xsp(rn)
      setX(rd, authenticated(x(rd), modifier, bits(12, 1) == 1 ? .check(key) : .sign(key)))
    case .stripAuthentication:
      setX(rd, authenticated(x(rd), constant(0), .strip(bits(10, 1) == 1 ? .dataA : .instructionA)))
    case .pacga: setX(rd, authenticated(x(rn), xsp(rm), .generic))
    case .loadAuthenticated:
      let key: Key = bits(23, 1) == 1 ? .dataB : .dataA
      storeFlags()
      let base = authenticated(xsp(rn), constant(0), .check(key))
      let offset = Int64(bits(22, 1) == 1 ? -512 : 0) + Int64(bits(12, 9))
      let value = block.load(.load64, base, memory(offset * 8))
      if bits(11, 1) == 1 {
        setXSP(rn, block.binary(.add64, base, constant(UInt64(bitPattern: offset * 8))))
      }
      setX(rd, value)
    case .brAuthenticated, .blrAuthenticated:
      storeFlags()
      block.poll(pc: pc)
      let key: Key = bits(10, 1) == 1 ? .instructionB : .instructionA
      let modifier = bits(24, 1) == 1 ? xsp(rd) : constant(0)
      let target = authenticated(x(rn), modifier, .check(key))
      if opcode == .blrAuthenticated { setX(30, constant(pc &+ 4)) }
      branchIndirectly(to: target, isCall: opcode == .blrAuthenticated)
    case .retAuthenticated:
      storeFlags()
      block.poll(pc: pc)
      let key: Key = bits(10, 1) == 1 ? .instructionB : .instructionA
      finish(.indirect(target: authenticated(x(30), xsp(31), .check(key)), hint: .return))
    default:  // eretaa, eretab
      guard mode.isSystem, mode.level != 0 else { return undefined() }
      let key: Key = bits(10, 1) == 1 ? .instructionB : .instructionA
      let elr = AArch64CPU.ExceptionRegisters(level: UInt64(mode.level)).link.offset
      block.set64(elr, authenticated(block.get64(elr), xsp(31), .check(key)))
      systemControl(.eret)
    }
  }
}
