// Loads and stores of general and single vector registers [Arm ARM C4.1.94].

extension AArch64Disassembler {
  private static let widths = ["b", "h", "", ""]
  /// A register for an access of `1 << size` bytes.
  private func sized(_ number: UInt32, _ size: UInt32) -> String { size == 3 ? x(number) : w(number) }
  private func vectorRegister(_ number: UInt32, _ size: UInt32) -> String {
    "\(["b", "h", "s", "d", "q"][Int(size)])\(number)"
  }

  var access: Operation? {
    let size = bits(30, 2)
    let width = Self.widths[Int(size)]
    switch row.opcode {
    case .loadLiteral: return literal
    case .loadLiteralVector: return Operation("ldr", vectorRegister(rd, 2 + size), target(signed(5, 19) << 2))
    case .pair, .pairVector: return pair
    case .stxr, .ldxr:
      let isOrdered = bits(15, 1) == 1
      if row.opcode == .ldxr {
        return Operation((isOrdered ? "ldaxr" : "ldxr") + width, sized(rd, size), memory())
      }
      return Operation((isOrdered ? "stlxr" : "stxr") + width, w(rm), sized(rd, size), memory())
    case .stxp, .ldxp:
      let isOrdered = bits(15, 1) == 1
      let pair = [sized(rd, size), sized(ra, size), memory()]
      if row.opcode == .ldxp { return Operation(isOrdered ? "ldaxp" : "ldxp", list: pair) }
      return Operation(isOrdered ? "stlxp" : "stxp", list: [w(rm)] + pair)
    case .stlr: return Operation((bits(15, 1) == 1 ? "stlr" : "stllr") + width, sized(rd, size), memory())
    case .ldar: return Operation((bits(15, 1) == 1 ? "ldar" : "ldlar") + width, sized(rd, size), memory())
    case .ldapr: return Operation("ldapr" + width, sized(rd, size), memory())
    case .cas:
      let order = ["", "l", "a", "al"][Int(bits(22, 1) << 1 | bits(15, 1))]
      return Operation("cas" + order + width, sized(rm, size), sized(rd, size), memory())
    case .casp:
      let order = ["", "l", "a", "al"][Int(bits(22, 1) << 1 | bits(15, 1))]
      let size = 2 + bits(30, 1)
      // The register after x30 is the zero register.
      return Operation(
        "casp" + order, sized(rm, size), sized(rm + 1, size), sized(rd, size), sized(rd + 1, size), memory())
    case .atomicMemory:
      let names = ["ldadd", "ldclr", "ldeor", "ldset", "ldsmax", "ldsmin", "ldumax", "ldumin"]
      let order = ["", "l", "a", "al"][Int(bits(22, 2) & 1 | bits(23, 1) << 1)]
      let name = bits(15, 1) == 1 ? "swp" : names[Int(bits(12, 3))]
      return Operation(name + order + width, sized(rm, size), sized(rd, size), memory())
    case .unscaledOrdered:
      // Where the sign is extended: 2 to 64 bits, 3 to 32.
      let isWideResult = size == 3 || bits(22, 2) == 2
      return Operation(name, isWideResult ? x(rd) : w(rd), memory(signed(12, 9)))
    case .loadAuthenticated:
      let offset = (Int64(bits(22, 1)) * -512 + Int64(bits(12, 9))) * 8
      return Operation(name, x(rd), bits(11, 1) == 1 ? memory(offset) + "!" : memory(offset))
    case .ldg: return Operation(name, x(rd), memory(signed(12, 9) << 4))
    case .storeTag: return Operation(name, list: [xsp(rd)] + indexed(bits(10, 2), signed(12, 9) << 4))
    case .stgp: return Operation(name, list: [x(rd), x(ra)] + indexed(bits(23, 2), signed(15, 7) << 4))
    case .loadStore: return loadStore
    case .loadStoreVector: return loadStoreVector
    default: return nil
    }
  }

  private var literal: Operation {
    let place = target(signed(5, 19) << 2)
    switch bits(30, 2) {
    case 0: return Operation("ldr", w(rd), place)
    case 1: return Operation("ldr", x(rd), place)
    case 2: return Operation("ldrsw", x(rd), place)
    default: return Operation("prfm", prefetch, place)
    }
  }

  /// What is prefetched: for loads, instructions or stores, into which cache, kept or not.
  private var prefetch: String {
    let (kind, level) = (rd >> 3, rd >> 1 & 3)
    guard kind < 3, level < 3 else { return "#0x" + (rd < 16 ? "0" : "") + String(rd, radix: 16) }
    return ["pld", "pli", "pst"][Int(kind)] + "l\(level + 1)" + (rd & 1 == 0 ? "keep" : "strm")
  }

  private var pair: Operation {
    let form = bits(23, 2)
    let base = (bits(22, 1) == 1 ? "ld" : "st") + (form == 0 ? "np" : "p")
    if row.opcode == .pairVector {
      let size = 2 + bits(30, 2)
      return Operation(
        base,
        list: [vectorRegister(rd, size), vectorRegister(ra, size)]
          + indexed(form, signed(15, 7) << Int64(size)))
    }
    if bits(30, 2) == 1 {
      return Operation("ldpsw", list: [x(rd), x(ra)] + indexed(form, signed(15, 7) << 2))
    }
    return Operation(base, list: [r(rd), r(ra)] + indexed(form, signed(15, 7) << (isWide ? 3 : 2)))
  }

  private func place(_ size: UInt32) -> [String] {
    if bits(24, 1) == 1 { return [memory(Int64(bits(10, 12)) << Int64(size))] }
    guard bits(21, 1) == 1 else { return indexed(bits(10, 2), signed(12, 9)) }
    let option = bits(13, 3)
    let isScaled = bits(12, 1) == 1
    let index = option & 1 == 1 ? x(rm) : w(rm)
    if option == 3 { return ["[\(xsp(rn)), \(index)" + (isScaled ? ", lsl #\(size)]" : "]")] }
    let name = [2: "uxtw", 6: "sxtw", 7: "sxtx"][option] ?? ""
    return ["[\(xsp(rn)), \(index), \(name)" + (isScaled ? " #\(size)]" : "]")]
  }

  /// ldur, ldtr and their like have names of their own.
  private var prefix: (load: String, store: String) {
    guard bits(24, 1) == 0, bits(21, 1) == 0 else { return ("ldr", "str") }
    switch bits(10, 2) {
    case 0: return ("ldur", "stur")
    case 2: return ("ldtr", "sttr")
    default: return ("ldr", "str")
    }
  }

  private var loadStore: Operation {
    let (size, kind) = (bits(30, 2), bits(22, 2))
    let width = Self.widths[Int(size)]
    if size == 3, kind == 2 {
      return Operation(prefix.load == "ldur" ? "prfum" : "prfm", list: [prefetch] + place(3))
    }
    switch kind {
    case 0: return Operation(prefix.store + width, list: [sized(rd, size)] + place(size))
    case 1: return Operation(prefix.load + width, list: [sized(rd, size)] + place(size))
    default:
      let signed = prefix.load + "s" + (size == 2 ? "w" : width)
      return Operation(signed, list: [kind == 2 ? x(rd) : w(rd)] + place(size))
    }
  }

  private var loadStoreVector: Operation {
    let size = bits(23, 1) == 1 ? 4 : bits(30, 2)
    let name = bits(22, 1) == 1 ? prefix.load : prefix.store
    return Operation(name, list: [vectorRegister(rd, size)] + place(size))
  }
}
