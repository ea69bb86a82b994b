/// What `vectorFloat` does with the lanes of 128-bit registers that lie in the state.
public enum IRVectorFloatOperation: UInt8, CaseIterable, Sendable {
  // Of a and b, rounded as the mode in force says. multiplyAdd: d + a * b, multiplySubtract: d - a * b, each rounded once.
  case add, subtract, multiply, divide, squareRoot, multiplyAdd, multiplySubtract, absoluteDifference
  // A NaN wins; `Number`: a quiet NaN loses. -0 is less than +0.
  case minimum, maximum, minimumNumber, maximumNumber
  // All ones where the comparison holds. All but `equal` raise invalid for quiet NaNs.
  case equal, greaterOrEqual, greater, lessOrEqual, less, absoluteGreaterOrEqual, absoluteGreater
  // Of neighbouring lanes of a, then of b; a scalar's are a's lowest two.
  case addPairs
  // Of integers of the lanes' size, the lowest `fraction` bits of which are a fraction; to them by truncation, saturated, a NaN
  // is 0. Of 64 bits with `hostWideLanes`, but not from unsigned ones nor with a fraction; nor has toUnsigned one.
  case fromSigned, fromUnsigned, toSigned, toUnsigned
  // To an integral value by the operand's rounding, which need not be in force; `Exact` raises inexact.
  case roundToIntegral, roundToIntegralExact
  // f32 lanes of a's lower or upper half to f64; f64 lanes to f32, in d's lower or upper half.
  case widenLow, widenHigh, narrowLow, narrowHigh

  public var readsDestination: Bool { self == .multiplyAdd || self == .multiplySubtract }
}

/// Which lanes an operation on vectors computes. What it does not compute is not written, but for `scalar`, which clears
/// the rest of the lower 64 bits.
public enum IRVectorShape: UInt8, Sendable { case half, scalar, full }

/// The immediate of `vectorFloat`, 54 bits.
///
/// ```
/// 53 44 43 34 33 24 23    18 17     16    15 14    12 11 10 9        8     6 5         0
/// | b  | a   | d   | fraction | tiny | NaN rule | rounding | shape | double | element | operation |
/// ```
/// Slots are state offsets in units of 8 bytes; 1023 for b is zero. `element` is 1 plus the lane of b that stands for all
/// of its lanes, or 0.
public struct IRVectorFloatOperand: Sendable, CustomStringConvertible {
  public let rawValue: Int64
  public init(rawValue: Int64) { self.rawValue = rawValue }
  /// - Parameters:
  ///   - destination, a, b: byte offsets in the state; b `nil`: zero.
  ///   - isDouble: of the wider side, for widen and narrow.
  ///   - fraction: 0 to 32, of fromSigned, fromUnsigned and toSigned of 32 bits.
  public init(
    _ operation: IRVectorFloatOperation, isDouble: Bool, shape: IRVectorShape, destination: Int, a: Int,
    b: Int?,
    element: Int? = nil, fraction: Int = 0, rounding: IRRounding, nanRule: IRNaNRule,
    isTinyBeforeRounding: Bool
  ) {
    let attributes = Int(operation.rawValue) | (element.map { $0 + 1 } ?? 0) << 6 | (isDouble ? 1 << 9 : 0)
    let rules =
      fraction << 18 | Int(rounding.rawValue) << 12 | Int(nanRule.rawValue) << 15
      | (isTinyBeforeRounding ? 1 << 17 : 0)
    rawValue =
      Int64(attributes | Int(shape.rawValue) << 10 | rules)
      | IRVectorSlots(destination: destination, a: a, b: b).rawValue
  }
  public var operation: IRVectorFloatOperation {
    IRVectorFloatOperation(rawValue: UInt8(rawValue & 63)).unsafelyUnwrapped
  }
  public var element: Int? {
    let field = Int(rawValue >> 6 & 7)
    return field == 0 ? nil : field - 1
  }
  public var fraction: Int { Int(rawValue >> 18 & 63) }
  public var isDouble: Bool { rawValue >> 9 & 1 != 0 }
  public var shape: IRVectorShape { IRVectorShape(rawValue: UInt8(rawValue >> 10 & 3)).unsafelyUnwrapped }
  public var slots: IRVectorSlots { IRVectorSlots(rawValue: rawValue) }
  public var rounding: IRRounding { IRRounding(rawValue: UInt8(rawValue >> 12 & 7)).unsafelyUnwrapped }
  public var nanRule: IRNaNRule { IRNaNRule(rawValue: UInt8(rawValue >> 15 & 3)).unsafelyUnwrapped }
  public var isTinyBeforeRounding: Bool { rawValue >> 17 & 1 != 0 }
  public var description: String {
    "\(operation).\(isDouble ? "f64" : "f32") \(shape) \(slots)\(element.map { "[\($0)]" } ?? "") \(rounding)"
      + (fraction == 0 ? "" : " fraction \(fraction)")
  }
}

/// The registers of an operation on vectors, in bits 24 to 53 of its immediate.
public struct IRVectorSlots: Sendable, CustomStringConvertible {
  let rawValue: Int64
  init(rawValue: Int64) { self.rawValue = rawValue }
  init(destination: Int, a: Int, b: Int?) {
    rawValue = Int64((b.map { $0 >> 3 } ?? 1023) << 44 | (a >> 3) << 34 | (destination >> 3) << 24)
  }
  public var destination: Int { Int(rawValue >> 24 & 1023) << 3 }
  public var a: Int { Int(rawValue >> 34 & 1023) << 3 }
  /// `nil`: zero.
  public var b: Int? {
    let slot = Int(rawValue >> 44 & 1023)
    return slot == 1023 ? nil : slot << 3
  }
  public var description: String { "[\(destination)], [\(a)], \(b.map { "[\($0)]" } ?? "0")" }
}
