/// The type of an IR value.
public enum IRType: UInt8, Sendable {
  /// No result.
  case none
  /// Integers; the bits above bit 31 of an `i32` are undefined.
  case i32, i64
  /// IEEE 754 binary32 and binary64.
  case f32, f64
  case v128, v256
  /// Condition flags of one operation, kept as its operands until somebody asks.
  case flags
}

/// The operations of the IR. docs/ir.md says what each computes, edge cases included; `IREvaluator` is the
/// executable form of that. Names are verb, kind, width.
public enum IROpcode: UInt16, CaseIterable, Sendable {
  // Markers. `instruction`: immediate = guest PC, c = byte length; what follows belongs to that instruction.
  case instruction
  // Constants (immediate) and guest state (immediate = byte offset into the state).
  case const32, const64
  case get32, get64, getF64
  case set32, set64, setF64
  // Integer arithmetic. Shift counts count modulo the width.
  case add64, sub64, mul64, and64, or64, xor64, andNot64, shl64, shrU64, shrS64, rotr64
  case add32, sub32, mul32, and32, or32, xor32, shl32, shrU32, shrS32, rotr32
  case mulHighS64, mulHighU64, mulHighSU64
  // x / 0 = all ones, x % 0 = x; MIN / -1 = MIN, MIN % -1 = 0.
  case divS64, divU64, remS64, remU64, divS32, divU32, remS32, remU32
  // compare: immediate = IRCondition; the result is 0 or 1. select: a != 0 ? b : c.
  case compare64, compare32, select64
  case minS64, minU64, maxS64, maxU64
  // Counts of a zero argument are the width.
  case countLeadingZeros64, countTrailingZeros64, countOnes64
  case countLeadingZeros32, countTrailingZeros32, countOnes32
  case byteSwap64
  case carrylessMultiply64, carrylessMultiplyHigh64
  // The sum a (its lower 32 bits) with the lowest bytes of b: 1 << immediate's lowest two bits of them; bit 2: CRC-32C.
  case crc32
  // Width changes. The 8- and 16-bit ones take and give i64.
  case signExtend8, signExtend16, zeroExtend8, zeroExtend16
  case signExtend32, zeroExtend32, truncate32
  // Memory: a = address, b = value, immediate = IRMemoryOperand. Results are i64, extended as named.
  case loadU8, loadS8, loadU16, loadS16, loadU32, loadS32, load64, loadF32, loadF64
  case store8, store16, store32, store64, storeF32, storeF64
  // 128 bits between memory and a register of the state, which the operand names.
  case loadV128, storeV128
  // Atomics; the operand's `operation` says which. Results are the old value, 32-bit ones sign-extended.
  case atomicRMW32, atomicRMW64
  // a = address, b = expected, c = desired.
  case atomicCompareExchange32, atomicCompareExchange64
  // The monitor lives in the state header. storeConditional gives 0 if it stored, 1 if not.
  case loadLinked32, loadLinked64, storeConditional32, storeConditional64
  case fence
  // Whole vector registers of the state (immediate = IRVectorOperand): no values.
  case vector
  // The same with floating-point lanes (immediate = IRVectorFloatOperand); may raise IEEE exception flags.
  case vectorFloat
  // Floating point; immediate = IRFloatOperand.
  case addF32, subF32, mulF32, divF32, sqrtF32, mulAddF32, minF32, maxF32
  case addF64, subF64, mulF64, divF64, sqrtF64, mulAddF64, minF64, maxF64
  case compareF32, compareF64
  case convertF32ToF64, convertF64ToF32
  case convertF32ToS32, convertF32ToU32, convertF32ToS64, convertF32ToU64
  case convertF64ToS32, convertF64ToU32, convertF64ToS64, convertF64ToU64
  case convertS32ToF32, convertU32ToF32, convertS64ToF32, convertU64ToF32
  case convertS32ToF64, convertU32ToF64, convertS64ToF64, convertU64ToF64
  // a with the sign of b (immediate = IRSignInjection).
  case signInjectF32, signInjectF64
  // Bit casts. moveF32ToI64 sign-extends. boxF32 puts ones above the value; unboxF32 gives the default NaN for
  // a value that is not boxed. With immediate 1 the bits above are zeros, and nothing is checked.
  case moveF32ToI64, moveI64ToF32, moveF64ToI64, moveI64ToF64, boxF32, unboxF32
  // Flags. immediate = IRFlagsOperand for the makers, IRFlagTest for flagTest. Packed: `IRPackedFlags`.
  case flagsAdd, flagsAddCarry, flagsSub, flagsSubBorrow, flagsLogic, flagsUnpack
  // Of two floats (immediate = IRFloatOperand; kind `less` raises invalid for quiet NaNs, too): N less, Z equal, C not
  // less, V unordered.
  case flagsCompareF32, flagsCompareF64
  case flagTest, flagsPack
  // IEEE exception flags, in RISC-V's layout (NX 1, UF 2, OF 4, DZ 8, NV 16): those raised since they were set.
  // setFloatFlagsIfNaN: if b or c is a NaN.
  case getFloatFlags, setFloatFlags, setFloatFlagsIfNaNF32, setFloatFlagsIfNaNF64
  // Calls helper `immediate` (see IRHelper) with a, b, c.
  case call
  // Side exits to the constant guest PC `immediate` if a <condition c> b.
  case exitIf64, exitIf32
  // Leaves with the PC `immediate` if an exit was requested.
  case poll

  /// The type of the result.
  public var resultType: IRType {
    switch self {
    case .instruction, .set32, .set64, .setF64, .setFloatFlags, .setFloatFlagsIfNaNF32,
      .setFloatFlagsIfNaNF64, .store8, .store16, .store32, .store64,
      .storeF32, .storeF64, .loadV128, .storeV128, .fence, .vector, .vectorFloat,
      .exitIf64, .exitIf32, .poll:
      return .none
    case .const32, .get32, .add32, .sub32, .mul32, .and32, .or32, .xor32, .shl32, .shrU32, .shrS32, .rotr32,
      .divS32, .divU32, .remS32, .remU32, .countLeadingZeros32, .countTrailingZeros32, .countOnes32,
      .truncate32:
      return .i32
    case .getF64, .addF64, .subF64, .mulF64, .divF64, .sqrtF64, .mulAddF64, .minF64, .maxF64,
      .convertF32ToF64,
      .convertS32ToF64, .convertU32ToF64, .convertS64ToF64, .convertU64ToF64, .signInjectF64, .moveI64ToF64,
      .boxF32, .loadF64:
      return .f64
    case .addF32, .subF32, .mulF32, .divF32, .sqrtF32, .mulAddF32, .minF32, .maxF32, .convertF64ToF32,
      .convertS32ToF32, .convertU32ToF32, .convertS64ToF32, .convertU64ToF32, .signInjectF32, .moveI64ToF32,
      .unboxF32, .loadF32:
      return .f32
    case .flagsAdd, .flagsAddCarry, .flagsSub, .flagsSubBorrow, .flagsLogic, .flagsUnpack, .flagsCompareF32,
      .flagsCompareF64:
      return .flags
    case .const64, .get64, .add64, .sub64, .mul64, .and64, .or64, .xor64, .andNot64, .shl64, .shrU64, .shrS64,
      .rotr64, .mulHighS64, .mulHighU64, .mulHighSU64, .divS64, .divU64, .remS64, .remU64, .compare64,
      .compare32,
      .select64, .minS64, .minU64, .maxS64, .maxU64, .countLeadingZeros64, .countTrailingZeros64,
      .countOnes64,
      .byteSwap64, .carrylessMultiply64, .carrylessMultiplyHigh64, .crc32, .signExtend8, .signExtend16,
      .zeroExtend8,
      .zeroExtend16, .signExtend32, .zeroExtend32, .loadU8, .loadS8, .loadU16, .loadS16, .loadU32, .loadS32,
      .load64, .atomicRMW32, .atomicRMW64, .atomicCompareExchange32, .atomicCompareExchange64, .loadLinked32,
      .loadLinked64, .storeConditional32, .storeConditional64, .compareF32, .compareF64, .convertF32ToS32,
      .convertF32ToU32, .convertF32ToS64, .convertF32ToU64, .convertF64ToS32, .convertF64ToU32,
      .convertF64ToS64,
      .convertF64ToU64, .moveF32ToI64, .moveF64ToI64, .flagTest, .flagsPack, .getFloatFlags, .call:
      return .i64
    }
  }

  /// The types of a, b, c; `.none` where there is no operand. `call` takes up to three i64.
  public var operandTypes: (IRType, IRType, IRType) {
    switch self {
    case .instruction, .const32, .const64, .get32, .get64, .getF64, .getFloatFlags, .fence, .vector,
      .vectorFloat, .poll:
      return (.none, .none, .none)
    case .set32: return (.i32, .none, .none)
    case .set64, .setFloatFlags, .countLeadingZeros64, .countTrailingZeros64, .countOnes64, .byteSwap64,
      .signExtend8, .signExtend16,
      .zeroExtend8, .zeroExtend16, .truncate32, .loadU8, .loadS8, .loadU16, .loadS16, .loadU32, .loadS32,
      .load64,
      .loadF32, .loadF64, .loadV128, .storeV128, .loadLinked32, .loadLinked64, .moveI64ToF32, .moveI64ToF64,
      .convertS64ToF32,
      .convertU64ToF32, .convertS64ToF64, .convertU64ToF64, .flagsLogic, .flagsUnpack, .convertS32ToF32,
      .convertU32ToF32, .convertS32ToF64, .convertU32ToF64:
      return (.i64, .none, .none)
    case .add64, .sub64, .mul64, .and64, .or64, .xor64, .andNot64, .shl64, .shrU64, .shrS64, .rotr64,
      .mulHighS64,
      .mulHighU64, .mulHighSU64, .divS64, .divU64, .remS64, .remU64, .compare64, .minS64, .minU64, .maxS64,
      .maxU64,
      .carrylessMultiply64, .carrylessMultiplyHigh64, .crc32, .store8, .store16, .store32, .store64,
      .atomicRMW32,
      .atomicRMW64, .storeConditional32, .storeConditional64, .flagsAdd, .flagsSub, .exitIf64:
      return (.i64, .i64, .none)
    case .select64, .atomicCompareExchange32, .atomicCompareExchange64, .flagsAddCarry, .flagsSubBorrow,
      .call:
      return (.i64, .i64, .i64)
    case .add32, .sub32, .mul32, .and32, .or32, .xor32, .shl32, .shrU32, .shrS32, .rotr32, .divS32, .divU32,
      .remS32,
      .remU32, .compare32, .exitIf32:
      return (.i32, .i32, .none)
    case .countLeadingZeros32, .countTrailingZeros32, .countOnes32, .signExtend32, .zeroExtend32:
      return (.i32, .none, .none)
    case .storeF32: return (.i64, .f32, .none)
    case .storeF64: return (.i64, .f64, .none)
    case .addF32, .subF32, .mulF32, .divF32, .minF32, .maxF32, .compareF32, .signInjectF32,
      .flagsCompareF32:
      return (.f32, .f32, .none)
    case .addF64, .subF64, .mulF64, .divF64, .minF64, .maxF64, .compareF64, .signInjectF64,
      .flagsCompareF64:
      return (.f64, .f64, .none)
    case .setFloatFlagsIfNaNF32: return (.i64, .f32, .f32)
    case .setFloatFlagsIfNaNF64: return (.i64, .f64, .f64)
    case .mulAddF32: return (.f32, .f32, .f32)
    case .mulAddF64: return (.f64, .f64, .f64)
    case .sqrtF32, .convertF32ToF64, .convertF32ToS32, .convertF32ToU32, .convertF32ToS64, .convertF32ToU64,
      .moveF32ToI64, .boxF32:
      return (.f32, .none, .none)
    case .setF64, .sqrtF64, .convertF64ToF32, .convertF64ToS32, .convertF64ToU32, .convertF64ToS64,
      .convertF64ToU64,
      .moveF64ToI64, .unboxF32:
      return (.f64, .none, .none)
    case .flagTest, .flagsPack: return (.flags, .none, .none)
    }
  }

  /// Whether the operation does something besides giving its result.
  public var hasEffect: Bool {
    switch self {
    case .instruction, .set32, .set64, .setF64, .setFloatFlags, .setFloatFlagsIfNaNF32,
      .setFloatFlagsIfNaNF64, .fence, .vector, .vectorFloat, .call,
      .exitIf64, .exitIf32,
      .poll:
      return true
    default: return accessesMemory || setsFloatFlags
    }
  }

  /// Loads and stores that are not atomic.
  public var isPlainLoad: Bool {
    switch self {
    case .loadU8, .loadS8, .loadU16, .loadS16, .loadU32, .loadS32, .load64, .loadF32, .loadF64, .loadV128:
      true
    default: false
    }
  }
  public var isPlainStore: Bool {
    switch self {
    case .store8, .store16, .store32, .store64, .storeF32, .storeF64, .storeV128: true
    default: false
    }
  }

  /// Whether a and b may change places.
  public var isCommutative: Bool {
    switch self {
    case .add64, .mul64, .and64, .or64, .xor64, .add32, .mul32, .and32, .or32, .xor32: true
    default: false
    }
  }

  /// Whether the operation loads from or stores to guest memory, and so may fault.
  public var accessesMemory: Bool {
    rawValue >= IROpcode.loadU8.rawValue && rawValue <= IROpcode.storeConditional64.rawValue
  }

  /// Whether the operation may raise IEEE exception flags.
  public var setsFloatFlags: Bool {
    rawValue >= IROpcode.addF32.rawValue && rawValue <= IROpcode.convertU64ToF64.rawValue
      || self == .flagsCompareF32 || self == .flagsCompareF64
  }
}
