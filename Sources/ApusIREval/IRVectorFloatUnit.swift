import ApusFloat
import ApusIR

/// The meaning of `vectorFloat`, lane by lane; also what back ends leave to software.
enum IRVectorFloatUnit {
  /// Lanes of 32 or 64 bits of a register of the state.
  private struct Lanes {
    let base: UnsafeMutableRawPointer
    subscript(_ lane: Int, _ format: FloatFormat) -> UInt64 {
      get {
        format == .double
          ? base.load(fromByteOffset: lane * 8, as: UInt64.self)
          : UInt64(base.load(fromByteOffset: lane * 4, as: UInt32.self))
      }
      nonmutating set {
        if format == .double {
          base.storeBytes(of: newValue, toByteOffset: lane * 8, as: UInt64.self)
        } else {
          base.storeBytes(of: UInt32(truncatingIfNeeded: newValue), toByteOffset: lane * 4, as: UInt32.self)
        }
      }
    }
  }

  static func execute(_ operand: IRVectorFloatOperand, _ state: UnsafeMutableRawPointer) {
    var soft = SoftFloat(
      operand.rounding, operand.nanRule, isTinyBeforeRounding: operand.isTinyBeforeRounding)
    // SAFETY: slots are offsets of 16 bytes in the state.
    withUnsafeTemporaryAllocation(byteCount: 64, alignment: 8) { scratch in
      let memory = scratch.baseAddress.unsafelyUnwrapped
      memory.initializeMemory(as: UInt64.self, repeating: 0, count: 8)
      let slots = operand.slots
      memory.copyMemory(from: state + slots.a, byteCount: 16)
      if let b = slots.b { (memory + 16).copyMemory(from: state + b, byteCount: 16) }
      (memory + 32).copyMemory(from: state + slots.destination, byteCount: 16)
      let result = Lanes(base: memory + 48)
      compute(
        operand, Lanes(base: memory), Lanes(base: memory + 16), Lanes(base: memory + 32), result, &soft)
      switch (operand.operation, operand.shape) {
      case (.narrowHigh, _): (state + slots.destination + 8).copyMemory(from: result.base, byteCount: 8)
      case (_, .full): (state + slots.destination).copyMemory(from: result.base, byteCount: 16)
      default: (state + slots.destination).copyMemory(from: result.base, byteCount: 8)
      }
    }
    IREvaluator.raise(soft.flags, state)
  }

  private static func compute(
    _ operand: IRVectorFloatOperand, _ a: Lanes, _ b: Lanes, _ d: Lanes, _ result: Lanes,
    _ soft: inout SoftFloat
  ) {
    let format: FloatFormat = operand.isDouble ? .double : .single
    let count = operand.shape == .scalar ? 1 : (operand.shape == .full ? 16 : 8) / (operand.isDouble ? 8 : 4)
    func each(_ body: (UInt64, UInt64, UInt64) -> UInt64) {
      for lane in 0..<count {
        result[lane, format] = body(a[lane, format], b[operand.element ?? lane, format], d[lane, format])
      }
    }
    func mask(_ holds: Bool) -> UInt64 { holds ? .max : 0 }
    func magnitude(_ x: UInt64) -> UInt64 { x & ~format.signMask }
    switch operand.operation {
    case .add: each { a, b, _ in soft.add(a, b, format) }
    case .subtract: each { a, b, _ in soft.subtract(a, b, format) }
    case .multiply: each { a, b, _ in soft.multiply(a, b, format) }
    case .divide: each { a, b, _ in soft.divide(a, b, format) }
    case .squareRoot: each { a, _, _ in soft.squareRoot(a, format) }
    case .multiplyAdd: each { a, b, d in soft.multiplyAdd(a, b, d, format) }
    case .multiplySubtract: each { a, b, d in soft.multiplyAdd(a, b, d, format, negateProduct: true) }
    case .absoluteDifference: each { a, b, _ in magnitude(soft.subtract(a, b, format)) }
    case .minimum, .minimumNumber, .maximum, .maximumNumber:
      let isMaximum = operand.operation == .maximum || operand.operation == .maximumNumber
      let isNumeric = operand.operation == .minimumNumber || operand.operation == .maximumNumber
      each { a, b, _ in soft.armMinimum(a, b, format, isMaximum: isMaximum, isNumeric: isNumeric) }
    case .equal: each { a, b, _ in mask(soft.equal(a, b, format)) }
    case .greaterOrEqual: each { a, b, _ in mask(soft.less(b, a, format, orEqual: true)) }
    case .greater: each { a, b, _ in mask(soft.less(b, a, format, orEqual: false)) }
    case .lessOrEqual: each { a, b, _ in mask(soft.less(a, b, format, orEqual: true)) }
    case .less: each { a, b, _ in mask(soft.less(a, b, format, orEqual: false)) }
    case .absoluteGreaterOrEqual:
      each { a, b, _ in mask(soft.less(magnitude(b), magnitude(a), format, orEqual: true)) }
    case .absoluteGreater:
      each { a, b, _ in mask(soft.less(magnitude(b), magnitude(a), format, orEqual: false)) }
    case .addPairs:
      for lane in 0..<count {
        let source = lane < (count + 1) / 2 ? a : b
        let first = 2 * lane % max(count, 2)
        result[lane, format] = soft.add(source[first, format], source[first + 1, format], format)
      }
    case .fromSigned:
      each { a, _, _ in
        let value = operand.isDouble ? a : UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: a)))
        return soft.fromInteger(value, isSigned: true, format, scale: operand.fraction)
      }
    case .fromUnsigned:
      each { a, _, _ in soft.fromInteger(a, isSigned: false, format, scale: operand.fraction) }
    case .toSigned, .toUnsigned:
      soft.rounding = .towardZero
      let isSigned = operand.operation == .toSigned
      each { a, _, _ in
        guard format.isNaN(a) else {
          guard operand.fraction > 0 else {
            return soft.toInteger(a, format, width: operand.isDouble ? 64 : 32, isSigned: isSigned)
          }
          // Exact in the range of doubles.
          var wide = soft.convert(a, from: .single, to: .double)
          if magnitude(a) != 0, magnitude(a) != 0x7f80_0000 { wide += UInt64(operand.fraction) << 52 }
          return soft.toInteger(wide, .double, width: 32, isSigned: isSigned)
        }
        soft.flags |= FloatFlags.invalid
        return 0
      }
    case .roundToIntegral: each { a, _, _ in soft.roundToIntegral(a, format, isExact: false) }
    case .roundToIntegralExact: each { a, _, _ in soft.roundToIntegral(a, format, isExact: true) }
    case .widenLow, .widenHigh:
      let first = operand.operation == .widenHigh ? 2 : 0
      for lane in 0..<2 {
        result[lane, .double] = soft.convert(a[first + lane, .single], from: .single, to: .double)
      }
    case .narrowLow, .narrowHigh:
      for lane in 0..<2 {
        result[lane, .single] = soft.convert(a[lane, .double], from: .double, to: .single)
      }
    }
  }
}
