// Advanced SIMD [Arm ARM C4.1.96]. The class of an encoding gives the operands' shapes, the mnemonic what departs from them.

extension AArch64Disassembler {
  /// Element sizes: 0 byte to 3 double word.
  private static let letters = ["b", "h", "s", "d"]
  private var q: UInt32 { bits(30, 1) }
  private func letter(_ size: UInt32) -> String { Self.letters[Int(size)] }
  /// All elements of a register, or of its lower half.
  private func arrangement(_ size: UInt32, _ isFull: Bool) -> String {
    "\((isFull ? 16 : 8) >> size)\(letter(size))"
  }
  private func arrangement(_ size: UInt32) -> String { arrangement(size, q == 1) }
  private func s(_ number: UInt32, _ size: UInt32) -> String { scalar(letter(size), number) }
  private func element(_ number: UInt32, _ size: UInt32, _ index: UInt32) -> String {
    v(number, "\(letter(size))[\(index)]")
  }
  private var isScalar: Bool { bits(28, 1) == 1 && bits(30, 1) == 1 }
  private var isZero: Bool { name.contains("(zero)") }
  private var isFloat: Bool { mnemonic.hasPrefix("f") || mnemonic.hasSuffix("cvtf") }

  /// The size of the elements: halves where the opcode says so, two sizes of floats, or bits 23:22.
  private var size: UInt32 {
    switch row.opcode {
    case .halfVector: 1
    case .vectorFrintts: 2 + bits(22, 1)
    default: isFloat || mnemonic == "urecpe" || mnemonic == "ursqrte" ? 2 + bits(22, 1) : bits(22, 2)
    }
  }

  /// Instructions that read or write the upper half of the narrow registers say so with a 2.
  private var halfName: String { mnemonic + (q == 1 ? "2" : "") }

  var vector: Operation? {
    switch row.opcode {
    case .vectorThreeSame: return threeSame
    case .vectorThreeDifferent: return threeDifferent
    case .vectorMiscellaneous, .vectorFrintts: return miscellaneous
    case .vectorAcross: return across
    case .vectorCopy, .scalarCopy: return copy
    case .vectorShift, .scalarShift: return shift
    case .vectorPermute: return same(3, bits(22, 2))
    case .vectorExtract:
      return Operation(
        "ext", v(rd, arrangement(0)), v(rn, arrangement(0)), v(rm, arrangement(0)), "#\(bits(11, 4))")
    case .vectorTable:
      return Operation(
        mnemonic, v(rd, arrangement(0)), list(rn, bits(13, 2) + 1, "16b"), v(rm, arrangement(0)))
    case .vectorImmediate, .halfVectorImmediate: return modifiedImmediate
    case .vectorIndexed, .scalarIndexed, .sqrdmlahIndexed, .sqrdmlshIndexed: return indexed
    case .scalarMiscellaneous: return scalarMiscellaneous
    case .scalarPairwise: return pairwise(bits(22, 2) == 3 ? 3 : size)
    case .scalarThreeSame: return scalars(3, size)
    case .scalarThreeDifferent:
      return Operation(mnemonic, s(rd, bits(22, 2) + 1), s(rn, bits(22, 2)), s(rm, bits(22, 2)))
    case .sqrdmlah, .sqrdmlsh: return isScalar ? scalars(3, bits(22, 2)) : same(3, bits(22, 2))
    case .halfVector: return half
    default: return product
    }
  }

  /// Two or three registers of one arrangement; `#0` behind them where they are compared with it.
  private func same(_ count: Int, _ size: UInt32) -> Operation {
    let registers = [rd, rn, rm].prefix(count).map { v($0, arrangement(size)) }
    return Operation(mnemonic, list: registers + zero)
  }
  private func scalars(_ count: Int, _ size: UInt32) -> Operation {
    Operation(mnemonic, list: [rd, rn, rm].prefix(count).map { s($0, size) } + zero)
  }
  private var zero: [String] { isZero ? [isFloat ? "#0.0" : "#0"] : [] }

  private var threeSame: Operation {
    let logical: Set = ["and", "bic", "orr", "orn", "eor", "bsl", "bit", "bif"]
    return same(3, logical.contains(mnemonic) ? 0 : size)
  }

  private var threeDifferent: Operation {
    let size = bits(22, 2)
    let (narrow, wide) = (arrangement(size), arrangement(size + 1, true))
    let shapes =
      mnemonic.hasSuffix("hn")
      ? [narrow, wide, wide] : mnemonic.hasSuffix("w") ? [wide, wide, narrow] : [wide, narrow, narrow]
    return Operation(halfName, v(rd, shapes[0]), v(rn, shapes[1]), v(rm, shapes[2]))
  }

  private var miscellaneous: Operation {
    let size = size
    switch mnemonic {
    case "saddlp", "uaddlp", "sadalp", "uadalp":
      let wide = "\((q == 1 ? 8 : 4) >> size)\(letter(size + 1))"
      return Operation(mnemonic, v(rd, wide), v(rn, arrangement(size)))
    case "xtn", "sqxtn", "uqxtn", "sqxtun":
      return Operation(halfName, v(rd, arrangement(size)), v(rn, arrangement(size + 1, true)))
    case "shll":
      return Operation(
        halfName, v(rd, arrangement(size + 1, true)), v(rn, arrangement(size)), "#\(8 << size)")
    case "fcvtn", "fcvtxn":
      return Operation(halfName, v(rd, arrangement(size - 1)), v(rn, arrangement(size, true)))
    case "fcvtl": return Operation(halfName, v(rd, arrangement(size, true)), v(rn, arrangement(size - 1)))
    case "not", "rbit": return same(2, 0)
    default: return same(2, size)
    }
  }

  private var scalarMiscellaneous: Operation {
    switch mnemonic {
    case "sqxtn", "uqxtn", "sqxtun": Operation(mnemonic, s(rd, size), s(rn, size + 1))
    case "fcvtxn": Operation(mnemonic, s(rd, 2), s(rn, 3))
    default: scalars(2, size)
    }
  }

  private func pairwise(_ size: UInt32) -> Operation {
    Operation(mnemonic, s(rd, size), v(rn, "2\(letter(size))"))
  }

  private var across: Operation {
    let size = isFloat ? 2 : bits(22, 2)
    return Operation(mnemonic, s(rd, mnemonic.hasSuffix("lv") ? size + 1 : size), v(rn, arrangement(size)))
  }

  private var half: Operation {
    if name.contains("(fixed-point)") {
      let fraction = "#\(32 - bits(16, 5))"
      return isScalar
        ? Operation(mnemonic, s(rd, 1), s(rn, 1), fraction)
        : Operation(mnemonic, v(rd, arrangement(1)), v(rn, arrangement(1)), fraction)
    }
    if name.contains("by element") { return indexed }
    // One source: bits 11:10 are 2.
    let isUnary = bits(10, 2) == 2
    if isUnary, bits(17, 5) == 0x18 {
      return isScalar ? pairwise(1) : Operation(mnemonic, s(rd, 1), v(rn, arrangement(1)))
    }
    return isScalar ? scalars(isUnary ? 2 : 3, 1) : same(isUnary ? 2 : 3, 1)
  }

  // MARK: Copies

  private var copy: Operation {
    let size = UInt32(bits(16, 5).trailingZeroBitCount)
    let index = bits(16, 5) >> (size + 1)
    switch name {
    case "dup (element)": return Operation("dup", v(rd, arrangement(size)), element(rn, size, index))
    case "dup (scalar)": return Operation("dup", s(rd, size), element(rn, size, index))
    case "dup (general)": return Operation("dup", v(rd, arrangement(size)), size == 3 ? x(rn) : w(rn))
    case "ins (general)": return Operation("ins", element(rd, size, index), size == 3 ? x(rn) : w(rn))
    case "ins (element)":
      return Operation("ins", element(rd, size, index), element(rn, size, bits(11, 4) >> size))
    default: return Operation(mnemonic, q == 1 ? x(rd) : w(rd), element(rn, size, index))
    }
  }

  // MARK: Shifts

  private var shift: Operation {
    let value = bits(16, 7)
    let size = UInt32(28 - (value >> 3).leadingZeroBitCount + 3)
    let width = UInt32(8) << size
    let isLeft = ["shl", "sli", "sqshl", "uqshl", "sqshlu", "sshll", "ushll"].contains(mnemonic)
    let amount = "#\(isLeft ? value - width : 2 * width - value)"
    let isNarrowing = mnemonic.hasSuffix("rn") || mnemonic.hasSuffix("run")
    if isScalar { return Operation(mnemonic, s(rd, size), s(rn, isNarrowing ? size + 1 : size), amount) }
    let wide = arrangement(min(size + 1, 3), true)
    if isNarrowing { return Operation(halfName, v(rd, arrangement(size)), v(rn, wide), amount) }
    if mnemonic.hasSuffix("shll") {
      return Operation(halfName, v(rd, wide), v(rn, arrangement(size)), amount)
    }
    return Operation(mnemonic, v(rd, arrangement(size)), v(rn, arrangement(size)), amount)
  }

  // MARK: Modified immediates [C4.1.96]

  private var modifiedImmediate: Operation? {
    let (byte, mode, isInverted) = (bits(16, 3) << 5 | bits(5, 5), bits(12, 4), bits(29, 1) == 1)
    func shifted(_ name: String, _ size: UInt32, _ kind: String, _ amount: UInt32) -> Operation {
      let shift = amount == 0 ? [] : ["\(kind) #\(amount)"]
      return Operation(name, list: [v(rd, arrangement(size)), hex(byte)] + shift)
    }
    let isBitwise = mode & 1 == 1
    let name = isInverted ? isBitwise ? "bic" : "mvni" : isBitwise ? "orr" : "movi"
    switch mode {
    case 0..<8: return shifted(name, 2, "lsl", (mode >> 1) * 8)
    case 8..<12: return shifted(name, 1, "lsl", (mode >> 1 & 1) * 8)
    case 12, 13: return shifted(isInverted ? "mvni" : "movi", 2, "msl", mode == 12 ? 8 : 16)
    case 14:
      guard isInverted else { return Operation("movi", v(rd, arrangement(0)), hex(byte)) }
      // Each bit is a byte.
      let value = (0..<8).reduce(UInt64(0)) {
        $0 | (byte >> UInt32($1) & 1 == 1 ? 0xff << UInt64(8 * $1) : 0)
      }
      return Operation("movi", q == 1 ? v(rd, "2d") : "d\(rd)", hex(value))
    default:
      let size: UInt32 = bits(11, 1) == 1 ? 1 : isInverted ? 3 : 2
      return Operation("fmov", v(rd, arrangement(size)), Self.immediate(byte))
    }
  }

  // MARK: By element, and products of several elements

  /// The element: its register and its number are made of M, L and H, by size.
  private func indexedElement(_ size: UInt32) -> String {
    let (m, l, h) = (bits(20, 1), bits(21, 1), bits(11, 1))
    switch size {
    case 1: return element(bits(16, 4), 1, h << 2 | l << 1 | m)
    case 2: return element(rm, 2, h << 1 | l)
    default: return element(rm, 3, h)
    }
  }

  private var indexed: Operation {
    let size = size
    let isLong = ["lal", "lsl", "ull"].contains(String(mnemonic.suffix(3)))
    let wide = isLong ? size + 1 : size
    if isScalar { return Operation(mnemonic, s(rd, wide), s(rn, size), indexedElement(size)) }
    return Operation(
      isLong ? halfName : mnemonic, v(rd, arrangement(wide, isLong || q == 1)), v(rn, arrangement(size)),
      indexedElement(size))
  }

  private var product: Operation? {
    let (words, bytes, halves) = (arrangement(2), arrangement(0), arrangement(1))
    let (h, l) = (bits(11, 1), bits(21, 1))
    switch row.opcode {
    case .dot: return Operation(mnemonic, v(rd, words), v(rn, bytes), v(rm, bytes))
    case .dotIndexed: return Operation(mnemonic, v(rd, words), v(rn, bytes), v(rm, "4b[\(h << 1 | l)]"))
    case .matrixMultiply: return Operation(mnemonic, v(rd, "4s"), v(rn, "16b"), v(rm, "16b"))
    case .bfdot: return Operation(mnemonic, v(rd, words), v(rn, halves), v(rm, halves))
    case .bfdotIndexed: return Operation(mnemonic, v(rd, words), v(rn, halves), v(rm, "2h[\(h << 1 | l)]"))
    case .bfmmla: return Operation(mnemonic, v(rd, "4s"), v(rn, "8h"), v(rm, "8h"))
    case .bfmlal: return Operation("bfmlal" + (q == 1 ? "t" : "b"), v(rd, "4s"), v(rn, "8h"), v(rm, "8h"))
    case .bfmlalIndexed:
      return Operation("bfmlal" + (q == 1 ? "t" : "b"), v(rd, "4s"), v(rn, "8h"), indexedElement(1))
    case .bfcvtn: return Operation(halfName, v(rd, halves), v(rn, "4s"))
    case .fmlal:
      return Operation(mnemonic, v(rd, words), v(rn, q == 1 ? "4h" : "2h"), v(rm, q == 1 ? "4h" : "2h"))
    case .fmlalIndexed:
      return Operation(mnemonic, v(rd, words), v(rn, q == 1 ? "4h" : "2h"), indexedElement(1))
    case .fcmla, .fcadd:
      let shape = arrangement(bits(22, 2))
      let angle = row.opcode == .fcmla ? bits(11, 2) * 90 : bits(12, 1) == 0 ? 90 : 270
      return Operation(mnemonic, v(rd, shape), v(rn, shape), v(rm, shape), "#\(angle)")
    case .fcmlaIndexed:
      let size = bits(22, 2)
      // Pairs of elements.
      let index = size == 1 ? h << 1 | l : h
      return Operation(
        mnemonic, v(rd, arrangement(size)), v(rn, arrangement(size)), element(rm, size, index),
        "#\(bits(13, 2) * 90)")
    default: return nil
    }
  }

  // MARK: Structures

  /// Registers one behind the other: pairs with a comma, more as a range unless they begin again at 0.
  private func list(_ first: UInt32, _ count: UInt32, _ arrangement: String) -> String {
    let last = first + count - 1
    if count > 2, last < 32 { return "{\(v(first, arrangement))-\(v(last, arrangement))}" }
    return "{" + (0..<count).map { v((first + $0) & 31, arrangement) }.joined(separator: ", ") + "}"
  }

  var structures: Operation? {
    var count: UInt32
    let registers: String
    let byteCount: UInt32
    if row.opcode == .vectorStructures {
      let kind = bits(12, 4)
      count = [0: 4, 2: 4, 4: 3, 6: 3, 7: 1, 8: 2, 10: 2][kind] ?? 0
      registers = list(rd, count, bits(10, 2) == 3 && q == 0 ? "1d" : arrangement(bits(10, 2)))
      byteCount = count * (q == 1 ? 16 : 8)
    } else {
      count = (bits(13, 1) << 1 | bits(21, 1)) + 1
      let kind = bits(14, 2)
      if kind == 3 {
        registers = list(rd, count, bits(10, 2) == 3 && q == 0 ? "1d" : arrangement(bits(10, 2)))
        byteCount = count << bits(10, 2)
      } else {
        // S and the size's lower bit belong to the element's number where elements are small.
        let position = q << 3 | bits(12, 1) << 2 | bits(10, 2)
        let size: UInt32 = kind == 2 ? bits(10, 1) == 1 ? 3 : 2 : kind
        registers = list(rd, count, letter(size)) + "[\(position >> size)]"
        byteCount = count << size
      }
    }
    var operands = [registers, "[\(xsp(rn))]"]
    if bits(23, 1) == 1 { operands.append(rm == 31 ? "#\(byteCount)" : x(rm)) }
    return Operation(mnemonic, list: operands)
  }
}
