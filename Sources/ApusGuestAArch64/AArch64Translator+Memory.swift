import ApusIR
import ApusISAAArch64

// Loads and stores [Arm ARM C4.1.94]. A faulting access leaves all registers as they were: results and written-back
// addresses are set after the last access.

extension AArch64Translator {
  mutating func access(_ opcode: AArch64Opcode) {
    switch opcode {
    case .loadStore: loadStore()
    case .loadStoreVector: loadStoreVector()
    case .loadLiteral:
      let address = constant(pc &+ UInt64(bitPattern: signedBits(5, 19) << 2))
      let loads: [IROpcode] = [.loadU32, .load64, .loadS32]
      if bits(30, 2) == 3 { return }  // prefetch
      setX(rd, block.load(loads[Int(bits(30, 2))], address, memory()))
    case .loadLiteralVector:
      guard bits(30, 2) != 3 else { return undefined() }
      let address = constant(pc &+ UInt64(bitPattern: signedBits(5, 19) << 2))
      if bits(30, 2) == 2 { return block.loadV128(AArch64State.v(rd), address, memory()) }
      setVector(rd, loadVector(address, 0, byteCount: 4 << Int(bits(30, 2))))
    case .pair, .pairVector: pair(isVector: opcode == .pairVector)
    case .ldar, .ldapr: setX(rd, block.load(Self.loads[Int(bits(30, 2))], xsp(rn), memory(ordered: true)))
    case .stlr:
      block.store(Self.stores[Int(bits(30, 2))], xsp(rn), x(rd), memory(ordered: true))
      block.fence()
    case .ldxr, .stxr: exclusive(isLoad: opcode == .ldxr)
    case .ldxp: call(.loadExclusivePair, xsp(rn), constant(UInt64(word)))
    case .stxp: call(.storeExclusivePair, xsp(rn), constant(UInt64(word)))
    case .casp: call(.compareAndSwapPair, xsp(rn), constant(UInt64(word)))
    case .cas: compareAndSwap()
    case .atomicMemory: atomic()
    case .vectorStructures: structures()
    case .vectorElement: element()
    default: preconditionFailure("not an access")
    }
  }

  private static let loads: [IROpcode] = [.loadU8, .loadU16, .loadU32, .load64]
  private static let signedLoads: [IROpcode] = [.loadS8, .loadS16, .loadS32, .load64]
  private static let stores: [IROpcode] = [.store8, .store16, .store32, .store64]

  /// Where an access goes: base and displacement, and what the base register becomes.
  private struct Place {
    var base: IRValue
    var displacement: Int64 = 0
    var newBase: IRValue?
    /// Checked as EL0's (ldtr, sttr).
    var isUnprivileged = false
  }

  private func memory(_ place: Place) -> IRMemoryOperand {
    place.isUnprivileged
      ? IRMemoryOperand(
        displacement: Int32(truncatingIfNeeded: place.displacement), context: mode.unprivilegedContext,
        ordered: false,
        operation: .exchange)
      : memory(place.displacement)
  }

  /// The address of the forms that share an encoding, for an access of `1 << scale` bytes. `nil`: undefined.
  private func place(scale: UInt32) -> Place? {
    let base = xsp(rn)
    if bits(24, 1) == 1 { return Place(base: base, displacement: Int64(bits(10, 12)) << Int64(scale)) }
    if bits(21, 1) == 1 {
      let option = bits(13, 3)
      guard option & 2 != 0 else { return nil }
      let index = extended(x(rm), option: option, shift: bits(12, 1) == 1 ? scale : 0)
      return Place(base: block.binary(.add64, base, index))
    }
    let offset = signedBits(12, 9)
    switch bits(10, 2) {
    case 1:
      return Place(base: base, newBase: block.binary(.add64, base, constant(UInt64(bitPattern: offset))))
    case 3:
      return Place(
        base: base, displacement: offset,
        newBase: block.binary(.add64, base, constant(UInt64(bitPattern: offset))))
    case 2: return Place(base: base, displacement: offset, isUnprivileged: true)
    default: return Place(base: base, displacement: offset)  // unscaled
    }
  }
  private func writeBack(_ place: Place) { if let new = place.newBase { setXSP(rn, new) } }

  private mutating func loadStore() {
    let size = bits(30, 2)
    let operation = bits(22, 2)
    if size == 3, operation == 2 {
      // Prefetch; indexed forms are not allocated.
      if bits(24, 1) == 0, bits(21, 1) == 0 ? bits(10, 2) != 0 : bits(14, 1) == 0 { undefined() }
      return
    }
    guard !(size >= 2 && operation == 3), let place = place(scale: size) else { return undefined() }
    if operation == 0 {
      block.store(Self.stores[Int(size)], place.base, x(rd), memory(place))
      return writeBack(place)
    }
    let opcode = (operation == 1 ? Self.loads : Self.signedLoads)[Int(size)]
    var value = block.load(opcode, place.base, memory(place))
    if operation == 3 { value = block.unary(.zeroExtend32, narrow(value)) }
    writeBack(place)
    setX(rd, value)
  }

  // MARK: Vector registers

  /// A value for a vector register: the upper half, or zero.
  struct Halves {
    /// An f64.
    var low: IRValue
    /// An i64.
    var high: IRValue?
  }

  /// A value of 1 to 8 bytes; the rest of the register becomes zero.
  func loadVector(_ base: IRValue, _ displacement: Int64, byteCount: Int) -> Halves {
    func move(_ value: IRValue) -> IRValue { block.unary(.moveI64ToF64, value) }
    switch byteCount {
    case 1: return Halves(low: move(block.load(.loadU8, base, memory(displacement))))
    case 2: return Halves(low: move(block.load(.loadU16, base, memory(displacement))))
    case 4: return Halves(low: move(block.load(.loadU32, base, memory(displacement))))
    default: return Halves(low: block.load(.loadF64, base, memory(displacement)))
    }
  }
  func storeVector(_ number: Int, _ base: IRValue, _ displacement: Int64, byteCount: Int) {
    func low() -> IRValue { block.unary(.moveF64ToI64, block.getF64(AArch64State.v(number))) }
    switch byteCount {
    case 1: block.store(.store8, base, low(), memory(displacement))
    case 2: block.store(.store16, base, low(), memory(displacement))
    case 4: block.store(.store32, base, low(), memory(displacement))
    case 8: block.store(.storeF64, base, block.getF64(AArch64State.v(number)), memory(displacement))
    default: block.storeV128(AArch64State.v(number), base, memory(displacement))
    }
  }
  func setVector(_ number: Int, _ value: Halves) {
    block.setF64(AArch64State.v(number), value.low)
    setHigh(number, value.high)
  }
  /// Sets the upper half; `nil` is zero.
  func setHigh(_ number: Int, _ value: IRValue?) {
    block.set64(AArch64State.v(number) + 8, value ?? constant(0))
  }

  private mutating func loadStoreVector() {
    let scale = bits(23, 1) << 2 | bits(30, 2)
    guard scale <= 4, let place = place(scale: scale), !place.isUnprivileged else { return undefined() }
    if bits(22, 1) == 0 {
      storeVector(rd, place.base, place.displacement, byteCount: 1 << Int(scale))
      return writeBack(place)
    }
    if scale == 4 {
      block.loadV128(AArch64State.v(rd), place.base, memory(place.displacement))
      return writeBack(place)
    }
    let value = loadVector(place.base, place.displacement, byteCount: 1 << Int(scale))
    writeBack(place)
    setVector(rd, value)
  }

  private mutating func pair(isVector: Bool) {
    let kind = bits(30, 2)
    let isLoad = bits(22, 1) == 1
    guard kind != 3, isVector || kind != 1 || isLoad && bits(23, 2) != 0 else { return undefined() }
    let byteCount: Int64 = isVector ? 4 << Int64(kind) : kind == 2 ? 8 : 4
    let offset = signedBits(15, 7) * byteCount
    let form = bits(23, 2)  // 0 non-temporal, 1 post-indexed, 2 offset, 3 pre-indexed
    let base = xsp(rn)
    let displacement = form == 1 ? 0 : offset
    let second = ra
    let newBase =
      form & 1 == 1 ? block.binary(.add64, base, constant(UInt64(bitPattern: offset))) : nil
    if isVector {
      if isLoad, byteCount == 16 {
        // The first register is lost if the second load faults, as the manual allows.
        block.loadV128(AArch64State.v(rd), base, memory(displacement))
        block.loadV128(AArch64State.v(second), base, memory(displacement + byteCount))
        if let newBase { setXSP(rn, newBase) }
      } else if isLoad {
        let first = loadVector(base, displacement, byteCount: Int(byteCount))
        let other = loadVector(base, displacement + byteCount, byteCount: Int(byteCount))
        if let newBase { setXSP(rn, newBase) }
        setVector(rd, first)
        setVector(second, other)
      } else {
        storeVector(rd, base, displacement, byteCount: Int(byteCount))
        storeVector(second, base, displacement + byteCount, byteCount: Int(byteCount))
        if let newBase { setXSP(rn, newBase) }
      }
      return
    }
    if isLoad {
      let opcode: IROpcode = kind == 2 ? .load64 : kind == 1 ? .loadS32 : .loadU32
      let first = block.load(opcode, base, memory(displacement))
      let other = block.load(opcode, base, memory(displacement + byteCount))
      if let newBase { setXSP(rn, newBase) }
      setX(rd, first)
      setX(second, other)
    } else {
      let opcode: IROpcode = kind == 2 ? .store64 : .store32
      block.store(opcode, base, x(rd), memory(displacement))
      block.store(opcode, base, x(second), memory(displacement + byteCount))
      if let newBase { setXSP(rn, newBase) }
    }
  }

  // MARK: Exclusives and atomics

  private mutating func exclusive(isLoad: Bool) {
    let size = Int(bits(30, 2))
    let address = xsp(rn)
    if size < 2 {
      if isLoad {
        let value = block.load(Self.loads[size], address, memory(ordered: true))
        block.set64(StateHeader.monitorAddress, address)
        block.set64(StateHeader.monitorValue, value)
        setX(rd, value)
      } else {
        setX(rm, call(.storeExclusiveNarrow, address, x(rd), constant(UInt64(size))))
      }
      return
    }
    if isLoad {
      let value = block.load(size == 3 ? .loadLinked64 : .loadLinked32, address, memory(ordered: true))
      setX(rd, size == 3 ? value : block.unary(.zeroExtend32, narrow(value)))
    } else {
      setX(
        rm,
        block.binary(
          size == 3 ? .storeConditional64 : .storeConditional32, address, x(rd),
          immediate: memory(ordered: true).rawValue))
    }
  }

  private mutating func compareAndSwap() {
    let size = Int(bits(30, 2))
    let expected = rm
    if size < 2 {
      // The helper takes the size and, above it, nothing: this is operation 16.
      let old = call(
        .atomicNarrow, xsp(rn), x(rd),
        block.binary(.or64, block.binary(.shl64, x(expected), constant(16)), constant(UInt64(size) | 16 << 8))
      )
      return setX(expected, old)
    }
    let old = block.ternary(
      size == 3 ? .atomicCompareExchange64 : .atomicCompareExchange32, xsp(rn), x(expected), x(rd),
      immediate: memory(ordered: true).rawValue)
    setX(expected, size == 3 ? old : block.unary(.zeroExtend32, narrow(old)))
  }

  private mutating func atomic() {
    let size = Int(bits(30, 2))
    let isSwap = bits(15, 1) == 1
    let source = x(rm)
    if size < 2 {
      let operation: UInt64 = isSwap ? 8 : UInt64(bits(12, 3))
      return setX(rd, call(.atomicNarrow, xsp(rn), source, constant(UInt64(size) | operation << 8)))
    }
    let operations: [IRAtomicOperation] = [
      .add, .and, .xor, .or, .maxSigned, .minSigned, .maxUnsigned, .minUnsigned,
    ]
    let operation = isSwap ? .exchange : operations[Int(bits(12, 3))]
    // ldclr clears the bits that are set.
    let value = operation == .and ? block.binary(.xor64, source, constant(.max)) : source
    let old = block.binary(
      size == 3 ? .atomicRMW64 : .atomicRMW32, xsp(rn), value,
      immediate: memory(ordered: true, operation).rawValue)
    setX(rd, size == 3 ? old : block.unary(.zeroExtend32, narrow(old)))
  }

  // MARK: Structures

  /// ld1 to ld4 and st1 to st4 of whole registers.
  private mutating func structures() {
    let isLoad = bits(22, 1) == 1
    let isFull = bits(30, 1) == 1
    let (registers, elements): (Int, Int)
    switch bits(12, 4) {
    case 0: (registers, elements) = (4, 4)
    case 2: (registers, elements) = (4, 1)
    case 4: (registers, elements) = (3, 3)
    case 6: (registers, elements) = (3, 1)
    case 7: (registers, elements) = (1, 1)
    case 8: (registers, elements) = (2, 2)
    case 10: (registers, elements) = (2, 1)
    default: return undefined()
    }
    guard elements == 1 || isFull || bits(10, 2) != 3 else { return undefined() }
    let base = xsp(rn)
    let byteCount = isFull ? 16 : 8
    let total = registers * byteCount
    var newBase: IRValue?
    if bits(23, 1) == 1 {
      newBase = block.binary(.add64, base, rm == 31 ? constant(UInt64(total)) : x(rm))
    }
    if elements > 1, block.optimisations.contains(.hostVector) {
      sortedStructures(elements, base, byteCount: byteCount, isLoad: isLoad)
    } else if isLoad {
      for index in 0..<registers {
        let (register, place) = ((rd + index) & 31, Int64(index * byteCount))
        if isFull {
          block.loadV128(AArch64State.v(register), base, memory(place))
        } else {
          setVector(register, loadVector(base, place, byteCount: 8))
        }
      }
      // In memory order so far: the elements go to their registers.
      if elements > 1 { call(.deinterleave, constant(UInt64(word))) }
    } else if elements == 1 {
      for index in 0..<registers {
        storeVector((rd + index) & 31, base, Int64(index * byteCount), byteCount: byteCount)
      }
    } else {
      call(.interleave, constant(UInt64(word)))
      for offset in stride(from: 0, to: total, by: 8) {
        block.store(.store64, base, block.get64(AArch64State.scratch + offset), memory(Int64(offset)))
      }
    }
    if let newBase { setXSP(rn, newBase) }
  }

  /// ld2 to ld4 and st2 to st4 by way of the scratch area.
  private mutating func sortedStructures(_ elements: Int, _ base: IRValue, byteCount: Int, isLoad: Bool) {
    let (scale, total) = (Int(bits(10, 2)), elements * byteCount)
    if !isLoad { interleave(elements, scale: scale, byteCount: byteCount) }
    for offset in stride(from: 0, to: total, by: 16) {
      let (slot, place) = (AArch64State.scratch + offset, memory(Int64(offset)))
      switch (isLoad, total - offset >= 16) {
      case (true, true): block.loadV128(slot, base, place)
      case (true, false): block.set64(slot, block.load(.load64, base, place))
      case (false, true): block.storeV128(slot, base, place)
      case (false, false): block.store(.store64, base, block.get64(slot), place)
      }
    }
    if isLoad { deinterleave(elements, scale: scale, byteCount: byteCount) }
  }

  /// One lane of one to four registers, or one element for all lanes.
  private mutating func element() {
    let isLoad = bits(22, 1) == 1
    let registers = Int(bits(13, 1) << 1 | bits(21, 1)) + 1
    var scale = Int(bits(14, 2))
    var lane = 0
    let isReplicated = scale == 3
    let index = Int(bits(30, 1) << 3 | bits(12, 1) << 2 | bits(10, 2))
    switch scale {
    case 3:
      guard isLoad, bits(12, 1) == 0 else { return undefined() }
      scale = Int(bits(10, 2))
    case 0: lane = index
    case 1:
      guard index & 1 == 0 else { return undefined() }
      lane = index >> 1
    default:
      if bits(10, 1) == 1 {
        guard bits(12, 1) == 0, bits(11, 1) == 0 else { return undefined() }
        (scale, lane) = (3, index >> 3)
      } else {
        guard bits(11, 1) == 0 else { return undefined() }
        lane = index >> 2
      }
    }
    let base = xsp(rn)
    let byteCount = 1 << scale
    var newBase: IRValue?
    if bits(23, 1) == 1 {
      newBase = block.binary(.add64, base, rm == 31 ? constant(UInt64(registers * byteCount)) : x(rm))
    }
    if isLoad {
      let values = (0..<registers).map {
        block.load(Self.loads[scale], base, memory(Int64($0 * byteCount)))
      }
      for (number, value) in values.enumerated() {
        let register = (rd + number) & 31
        if isReplicated {
          let all = replicated(value, scale)
          setVector(
            register, Halves(low: block.unary(.moveI64ToF64, all), high: bits(30, 1) == 1 ? all : nil))
        } else {
          insert(value, register, lane: lane, scale: scale)
        }
      }
    } else {
      for number in 0..<registers {
        block.store(
          Self.stores[scale], base, lanePart((rd + number) & 31, lane: lane, scale: scale),
          memory(Int64(number * byteCount)))
      }
    }
    if let newBase { setXSP(rn, newBase) }
  }

  // MARK: Lanes, as integers

  /// Half a vector register as an i64.
  func half(_ number: Int, _ isHigh: Bool) -> IRValue {
    isHigh
      ? block.get64(AArch64State.v(number) + 8)
      : block.unary(.moveF64ToI64, block.getF64(AArch64State.v(number)))
  }
  func setHalf(_ number: Int, _ isHigh: Bool, _ value: IRValue) {
    if isHigh {
      block.set64(AArch64State.v(number) + 8, value)
    } else {
      block.setF64(AArch64State.v(number), block.unary(.moveI64ToF64, value))
    }
  }
  /// A zero-extended element in all lanes of 64 bits.
  func replicated(_ value: IRValue, _ scale: Int) -> IRValue {
    if scale == 3 { return value }
    let factors: [UInt64] = [0x0101_0101_0101_0101, 0x0001_0001_0001_0001, 0x0000_0001_0000_0001]
    return block.binary(.mul64, value, constant(factors[scale]))
  }
  /// The half that holds a lane, shifted so that the lane is lowest. Bits above the lane are not clear.
  func lanePart(_ number: Int, lane: Int, scale: Int) -> IRValue {
    let position = lane << scale
    let value = half(number, position >= 8)
    return position & 7 == 0 ? value : block.binary(.shrU64, value, constant(UInt64(position & 7) * 8))
  }
  /// Puts the lowest bits of `value` into a lane.
  func insert(_ value: IRValue, _ number: Int, lane: Int, scale: Int) {
    let position = lane << scale
    let isHigh = position >= 8
    if scale == 3 { return setHalf(number, isHigh, value) }
    let mask: UInt64 = (1 << (8 << UInt64(scale))) - 1
    let shift = UInt64(position & 7) * 8
    let kept = block.binary(.and64, half(number, isHigh), constant(~(mask << shift)))
    let moved = block.binary(.shl64, block.binary(.and64, value, constant(mask)), constant(shift))
    setHalf(number, isHigh, block.binary(.or64, kept, moved))
  }
}
