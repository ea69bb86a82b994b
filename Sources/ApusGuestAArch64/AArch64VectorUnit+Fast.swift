// The vector instructions that strings and loops are made of, on the host's vector registers. Everything here is also in
// `AArch64VectorUnit`, lane by lane; random programs compare both with QEMU.

extension AArch64VectorUnit {
  /// Carries the instruction out if it is one of the common ones; false leaves it to the general code.
  @inline(never)
  static func executeFast(_ word: UInt32, _ s: AArch64State) -> Bool {
    let n = s[v: Int(word >> 5 & 31)]
    let m = s[v: Int(word >> 16 & 31)]
    let isFull = word >> 30 & 1 != 0
    let u = word >> 29 & 1 != 0
    let size = word >> 22 & 3
    var result: AArch64Vector?
    if word & 0x9f20_0400 == 0x0e20_0400 {
      // Three same. Halves of pairwise operations of 64 bits lie elsewhere.
      let opcode = word >> 11 & 31
      let d = s[v: Int(word & 31)]
      switch size {
      case 0 where u && unsignedBytes(opcode, isFull, cast(n), cast(m), &result): break
      case 0:
        result = lanewise(opcode, u, isFull, cast(n), cast(m), cast(d), SIMD16<Int8>.self, SIMD16<UInt8>.self)
        { n, m in
          let (a, b) = (unsafeBitCast(n, to: SIMD8<UInt16>.self), unsafeBitCast(m, to: SIMD8<UInt16>.self))
          let low = (SIMD8<UInt8>(truncatingIfNeeded: a), SIMD8<UInt8>(truncatingIfNeeded: b))
          let high = (SIMD8<UInt8>(truncatingIfNeeded: a &>> 8), SIMD8<UInt8>(truncatingIfNeeded: b &>> 8))
          return (SIMD16(lowHalf: low.0, highHalf: low.1), SIMD16(lowHalf: high.0, highHalf: high.1))
        }
      case 1:
        result = lanewise(opcode, u, isFull, cast(n), cast(m), cast(d), SIMD8<Int16>.self, SIMD8<UInt16>.self)
        { n, m in
          (SIMD8(lowHalf: n.evenHalf, highHalf: m.evenHalf), SIMD8(lowHalf: n.oddHalf, highHalf: m.oddHalf))
        }
      case 2:
        result = lanewise(opcode, u, isFull, cast(n), cast(m), cast(d), SIMD4<Int32>.self, SIMD4<UInt32>.self)
        { n, m in
          (SIMD4(n[0], n[2], m[0], m[2]), SIMD4(n[1], n[3], m[1], m[3]))
        }
      default:
        result = lanewise(opcode, u, isFull, cast(n), cast(m), cast(d), SIMD2<Int64>.self, SIMD2<UInt64>.self)
        { n, m in
          (SIMD2(n[0], m[0]), SIMD2(n[1], m[1]))
        }
      }
    } else if word & 0xbf80_fc00 == 0x0f00_8400, word >> 19 & 15 != 0 {
      result = shiftNarrow(word, n, s[v: Int(word & 31)])
    } else if word & 0xbf20_8c00 == 0x0e00_0800 {
      result = permuted(word, n, m)
    }
    guard var result else { return false }
    if !isFull { result.high = 0 }
    s[v: Int(word & 31)] = result
    return true
  }

  @inline(__always) private static func cast<V>(_ value: AArch64Vector) -> V {
    unsafeBitCast(value, to: V.self)
  }

  @inline(__always)
  private static func lanewise<U: SIMD, S: SIMD>(
    _ opcode: UInt32, _ isUnsigned: Bool, _ isFull: Bool, _ n: U, _ m: U, _ d: U, _: S.Type, _: U.Type,
    _ pairs: (U, U) -> (even: U, odd: U)?
  ) -> AArch64Vector?
  where U.Scalar: FixedWidthInteger, S.Scalar: FixedWidthInteger, U.MaskStorage == S.MaskStorage {
    @inline(__always) func signed(_ value: U) -> S { unsafeBitCast(value, to: S.self) }
    @inline(__always) func mask(_ lanes: SIMDMask<U.MaskStorage>) -> U {
      U(repeating: 0).replacing(with: U(repeating: ~0), where: lanes)
    }
    let result: U
    switch opcode {
    case 0x10: result = isUnsigned ? n &- m : n &+ m
    case 0x11: result = isUnsigned ? mask(n .== m) : mask((n & m) .!= U(repeating: 0))
    case 0x06: result = isUnsigned ? mask(n .> m) : mask(signed(n) .> signed(m))
    case 0x07: result = isUnsigned ? mask(n .>= m) : mask(signed(n) .>= signed(m))
    case 0x0c: result = m.replacing(with: n, where: isUnsigned ? n .> m : signed(n) .> signed(m))
    case 0x0d: result = m.replacing(with: n, where: isUnsigned ? n .< m : signed(n) .< signed(m))
    case 0x12: result = isUnsigned ? d &- n &* m : d &+ n &* m
    case 0x13:
      if isUnsigned { return nil }
      result = n &* m
    case 0x14, 0x15, 0x17:
      // Pairwise: of even and odd lanes of n, then of m.
      guard isFull, opcode != 0x17 || !isUnsigned, let (even, odd) = pairs(n, m) else { return nil }
      switch opcode {
      case 0x17: result = even &+ odd
      case 0x14:
        result = odd.replacing(with: even, where: isUnsigned ? even .> odd : signed(even) .> signed(odd))
      default:
        result = odd.replacing(with: even, where: isUnsigned ? even .< odd : signed(even) .< signed(odd))
      }
    default: return nil
    }
    return unsafeBitCast(result, to: AArch64Vector.self)
  }

  /// What the functions for strings do most, written for its type: operators of generic vectors go lane by lane.
  private static func unsignedBytes(
    _ opcode: UInt32, _ isFull: Bool, _ n: SIMD16<UInt8>, _ m: SIMD16<UInt8>, _ result: inout AArch64Vector?
  ) -> Bool {
    func mask(_ lanes: SIMDMask<SIMD16<Int8>>) -> SIMD16<UInt8> {
      SIMD16<UInt8>(repeating: 0).replacing(with: SIMD16(repeating: 0xff), where: lanes)
    }
    var lanes: SIMD16<UInt8>
    switch opcode {
    case 0x06: lanes = mask(n .> m)
    case 0x07: lanes = mask(n .>= m)
    case 0x11: lanes = mask(n .== m)
    case 0x0c: lanes = pointwiseMax(n, m)
    case 0x0d: lanes = pointwiseMin(n, m)
    case 0x14, 0x15:
      guard isFull else { return false }
      let (a, b) = (unsafeBitCast(n, to: SIMD8<UInt16>.self), unsafeBitCast(m, to: SIMD8<UInt16>.self))
      let even = SIMD16(
        lowHalf: SIMD8<UInt8>(truncatingIfNeeded: a), highHalf: SIMD8<UInt8>(truncatingIfNeeded: b))
      let odd = SIMD16(
        lowHalf: SIMD8<UInt8>(truncatingIfNeeded: a &>> 8),
        highHalf: SIMD8<UInt8>(truncatingIfNeeded: b &>> 8))
      lanes = opcode == 0x14 ? pointwiseMax(even, odd) : pointwiseMin(even, odd)
    default: return false
    }
    result = unsafeBitCast(lanes, to: AArch64Vector.self)
    return true
  }

  /// shrn and shrn2: the lower halves of lanes shifted right.
  private static func shiftNarrow(_ word: UInt32, _ n: AArch64Vector, _ d: AArch64Vector) -> AArch64Vector? {
    let field = word >> 16 & 127
    let narrow: UInt64
    switch field {
    case 8..<16:
      let lanes: SIMD8<UInt16> = cast(n)
      narrow = unsafeBitCast(
        SIMD8<UInt8>(truncatingIfNeeded: lanes &>> SIMD8(repeating: UInt16(16 - field))), to: UInt64.self)
    case 16..<32:
      let lanes: SIMD4<UInt32> = cast(n)
      narrow = unsafeBitCast(
        SIMD4<UInt16>(truncatingIfNeeded: lanes &>> SIMD4(repeating: UInt32(32 - field))), to: UInt64.self)
    case 32..<64:
      let lanes: SIMD2<UInt64> = cast(n)
      narrow = unsafeBitCast(
        SIMD2<UInt32>(truncatingIfNeeded: lanes &>> SIMD2(repeating: UInt64(64 - field))), to: UInt64.self)
    default: return nil
    }
    return word >> 30 & 1 != 0
      ? AArch64Vector(low: d.low, high: narrow) : AArch64Vector(low: narrow)
  }

  /// zip, uzp and trn of whole registers.
  private static func permuted(_ word: UInt32, _ n: AArch64Vector, _ m: AArch64Vector) -> AArch64Vector? {
    guard word >> 30 & 1 != 0 else { return nil }
    let kind = word >> 12 & 3
    let part = Int(word >> 14 & 1)
    switch word >> 22 & 3 {
    case 0: return permuted(kind, part, cast(n) as SIMD16<UInt8>, cast(m))
    case 1: return permuted(kind, part, cast(n) as SIMD8<UInt16>, cast(m))
    case 2: return permuted(kind, part, cast(n) as SIMD4<UInt32>, cast(m))
    default: return permuted(kind, part, cast(n) as SIMD2<UInt64>, cast(m))
    }
  }
  @inline(__always)
  private static func permuted<V: SIMD>(_ kind: UInt32, _ part: Int, _ n: V, _ m: V) -> AArch64Vector? {
    let lanes = V.scalarCount
    var result = n
    for lane in 0..<lanes / 2 {
      switch kind {
      case 1:
        result[lane] = n[2 * lane + part]
        result[lanes / 2 + lane] = m[2 * lane + part]
      case 2:
        result[2 * lane] = n[2 * lane + part]
        result[2 * lane + 1] = m[2 * lane + part]
      case 3:
        result[2 * lane] = n[lane + part * lanes / 2]
        result[2 * lane + 1] = m[lane + part * lanes / 2]
      default: return nil
      }
    }
    return unsafeBitCast(result, to: AArch64Vector.self)
  }
}
