/// A comparison of two integers.
public enum IRCondition: UInt16, Sendable {
  case equal, notEqual, lessSigned, greaterOrEqualSigned, lessUnsigned, greaterOrEqualUnsigned
}

/// A comparison of two floats; a comparison with a NaN is false. `less`, `lessOrEqual` raise invalid for any NaN,
/// `equal` and the quiet ones for signalling NaNs only.
public enum IRFloatComparison: UInt8, Sendable { case equal, less, lessOrEqual, lessQuiet, lessOrEqualQuiet }

/// What `signInject` takes the sign from: b's, its opposite, or the exclusive or of both.
public enum IRSignInjection: UInt8, Sendable { case copy, negate, xor }

/// What an atomic read-modify-write stores.
public enum IRAtomicOperation: UInt8, Sendable {
  case exchange, add, xor, and, or, minSigned, maxSigned, minUnsigned, maxUnsigned
}

/// The immediate of a memory operation.
///
/// ```
///  63      56 55       48 47       40 39      32 31                     0
/// | reserved | operation | order     | context  | displacement (signed)  |
/// ```
/// `loadV128` and `storeV128` have, in place of an operation, the register's state offset in units of 16 bytes.
public struct IRMemoryOperand: Sendable {
  public var rawValue: Int64
  @inlinable public init(rawValue: Int64) { self.rawValue = rawValue }
  /// - Parameters:
  ///   - displacement: bytes added to the address operand.
  ///   - context: index of the translation context (privilege) that the access is made in, 0 to 12.
  ///   - ordered: acquire and release; atomics are always so.
  @inlinable
  public init(
    displacement: Int32 = 0, context: UInt8, ordered: Bool = false, operation: IRAtomicOperation = .exchange
  ) {
    rawValue =
      Int64(UInt32(bitPattern: displacement)) | Int64(context) << 32 | (ordered ? 1 << 40 : 0)
      | Int64(operation.rawValue) << 48
  }
  /// The same for the vector register at an offset, a multiple of 16 below 4096.
  @inlinable
  public func with(vectorRegister offset: Int) -> IRMemoryOperand {
    IRMemoryOperand(rawValue: rawValue | Int64(offset >> 4) << 48)
  }
  @inlinable public var vectorRegister: Int { Int(rawValue >> 48 & 0xff) << 4 }
  @inlinable public var displacement: Int32 { Int32(truncatingIfNeeded: rawValue) }
  @inlinable public var context: Int { Int(truncatingIfNeeded: rawValue >> 32 & 0xff) }
  @inlinable public var isOrdered: Bool { rawValue >> 40 & 1 != 0 }
  @inlinable public var operation: IRAtomicOperation {
    IRAtomicOperation(rawValue: UInt8(truncatingIfNeeded: rawValue >> 48)).unsafelyUnwrapped
  }
}

/// How a NaN result is made.
public enum IRNaNRule: UInt8, Sendable {
  /// Always the default NaN with a clear sign (RISC-V; AArch64 with FPCR.DN).
  case positiveDefault
  /// First operand's payload, quieted (AArch64); first NaN operand, negative default NaN (x86 SSE).
  case propagateARM, propagateX86
}

/// IEEE rounding, by RISC-V's numbers.
public enum IRRounding: UInt8, Sendable {
  case nearestEven, towardZero, down, up, nearestAway
}

/// The immediate of a floating-point operation.
///
/// ```
///  63..32    31     24 23     16 15      8 7       0
/// | unused | kind    | negate  | NaN rule | rounding |
/// ```
/// `kind`: comparison or sign injection; `negate` bit 0: the product, bit 1: the addend of a fused operation, bit 2:
/// underflow is looked for before rounding.
/// The rounding is what the guest has asked for; bit 7 says that it is the mode in force (the guest's dynamic
/// mode, which the CPU mode fixes at translation), so that a host need not switch.
public struct IRFloatOperand: Sendable {
  public var rawValue: Int64
  @inlinable public init(rawValue: Int64) { self.rawValue = rawValue }
  @inlinable
  public init(
    rounding: IRRounding = .nearestEven, isCurrent: Bool = true, nanRule: IRNaNRule,
    negateProduct: Bool = false,
    negateAddend: Bool = false, isTinyBeforeRounding: Bool = false, kind: UInt8 = 0
  ) {
    rawValue =
      Int64(rounding.rawValue) | (isCurrent ? 0x80 : 0) | Int64(nanRule.rawValue) << 8
      | (negateProduct ? 1 << 16 : 0) | (negateAddend ? 1 << 17 : 0) | (isTinyBeforeRounding ? 1 << 18 : 0)
      | Int64(kind) << 24
  }
  @inlinable public var rounding: IRRounding {
    IRRounding(rawValue: UInt8(truncatingIfNeeded: rawValue & 0x7f)).unsafelyUnwrapped
  }
  @inlinable public var isCurrent: Bool { rawValue & 0x80 != 0 }
  @inlinable public var nanRule: IRNaNRule {
    IRNaNRule(rawValue: UInt8(truncatingIfNeeded: rawValue >> 8)).unsafelyUnwrapped
  }
  @inlinable public var negateProduct: Bool { rawValue >> 16 & 1 != 0 }
  @inlinable public var negateAddend: Bool { rawValue >> 17 & 1 != 0 }
  @inlinable public var isTinyBeforeRounding: Bool { rawValue >> 18 & 1 != 0 }
  @inlinable public var kind: UInt8 { UInt8(truncatingIfNeeded: rawValue >> 24) }
}

/// The immediate of an operation that makes flags: the width, 8, 16, 32 or 64, and bit 8 if nobody needs x86's A and P,
/// which then are clear.
public struct IRFlagsOperand: Sendable {
  public var rawValue: Int64
  @inlinable public init(rawValue: Int64) { self.rawValue = rawValue }
  @inlinable public init(width: Int, isNZCVOnly: Bool = false) {
    rawValue = Int64(width) | (isNZCVOnly ? 256 : 0)
  }
  @inlinable public var width: Int { Int(rawValue & 255) }
  @inlinable public var isNZCVOnly: Bool { rawValue & 256 != 0 }
}

/// The packed form of flags: what x86 hosts have after `lahf` and `seto`. Bits 1 to 7 are clear, the others undefined.
public enum IRPackedFlags {
  public static let negative: UInt64 = 1 << 15
  public static let zero: UInt64 = 1 << 14
  public static let carry: UInt64 = 1 << 8
  public static let overflow: UInt64 = 1
  /// x86's A and P.
  public static let auxiliary: UInt64 = 1 << 12
  public static let parity: UInt64 = 1 << 10
  /// The bits that AArch64 has.
  public static let nzcv = negative | zero | carry | overflow
}

/// What `flagTest` asks of flags. Signed and unsigned comparisons read the flags of a subtraction a - b.
public enum IRFlagTest: UInt8, Sendable {
  case zero, notZero, negative, notNegative, carry, notCarry, overflow, notOverflow
  case lessSigned, greaterOrEqualSigned, lessOrEqualSigned, greaterSigned
  case lessOrEqualUnsigned, greaterUnsigned
}

/// What a helper may do; the emitter keeps host registers and state in step accordingly.
public struct IRHelperEffects: OptionSet, Sendable {
  public let rawValue: UInt8
  public init(rawValue: UInt8) { self.rawValue = rawValue }
  /// Reads guest registers from the state.
  public static let readsState = IRHelperEffects(rawValue: 1)
  /// Writes guest registers in the state.
  public static let writesState = IRHelperEffects(rawValue: 2)
  /// May set `StateHeader.pendingExit`: an exception was taken or the mode changed, and the state's PC is the next.
  public static let mayExit = IRHelperEffects(rawValue: 4)
  /// Needs the PC of the current instruction in the state.
  public static let readsPC = IRHelperEffects(rawValue: 8)
  /// Two calls with the same state may answer differently (a clock): lockstep does not compare the block.
  public static let varies = IRHelperEffects(rawValue: 16)
}

/// A function that generated code and the evaluator call: the state's base, then a, b, c.
public typealias IRHelperFunction = @convention(c) (UnsafeMutableRawPointer, UInt64, UInt64, UInt64) -> UInt64

/// A helper of a guest's table, called by its index.
public struct IRHelper: Sendable {
  public let name: StaticString
  public let effects: IRHelperEffects
  public let function: IRHelperFunction
  public init(_ name: StaticString, _ effects: IRHelperEffects, _ function: @escaping IRHelperFunction) {
    (self.name, self.effects, self.function) = (name, effects, function)
  }
}
