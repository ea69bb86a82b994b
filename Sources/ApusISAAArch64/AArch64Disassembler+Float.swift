// Floating point and ciphers [Arm ARM C4.1.96].

extension AArch64Disassembler {
  /// The name without what tells rows of one mnemonic apart.
  var mnemonic: String { String(name.prefix { $0 != " " && $0 != "," }) }
  /// The letter of the precision in bits 23:22.
  private var precision: String { ["s", "d", "q", "h"][Int(bits(22, 2))] }
  func scalar(_ letter: String, _ number: UInt32) -> String { "\(letter)\(number)" }
  private func f(_ number: UInt32) -> String { scalar(precision, number) }
  func v(_ number: UInt32, _ arrangement: String) -> String { "v\(number).\(arrangement)" }

  var float: Operation? {
    switch row.opcode {
    case .floatToInteger, .fjcvtzs, .halfToGeneral: return Operation(mnemonic, r(rd), f(rn))
    case .integerToFloat, .halfFromGeneral: return Operation(mnemonic, f(rd), r(rn))
    case .fmovToGeneral: return Operation("fmov", r(rd), bits(19, 1) == 1 ? v(rn, "d[1]") : f(rn))
    case .fmovFromGeneral: return Operation("fmov", bits(19, 1) == 1 ? v(rd, "d[1]") : f(rd), r(rn))
    case .fixedToFloat: return Operation(mnemonic, f(rd), r(rn), "#\(64 - bits(10, 6))")
    case .floatToFixed: return Operation(mnemonic, r(rd), f(rn), "#\(64 - bits(10, 6))")
    case .fmov, .fabs, .fneg, .fsqrt, .frint, .frintts: return Operation(mnemonic, f(rd), f(rn))
    case .fcvt: return Operation("fcvt", scalar(["s", "d", "q", "h"][Int(bits(15, 2))], rd), f(rn))
    case .bfcvt: return Operation("bfcvt", scalar("h", rd), scalar("s", rn))
    case .fcmp: return compare
    case .fmovImmediate, .halfImmediate: return Operation("fmov", f(rd), Self.immediate(bits(13, 8)))
    case .fccmp: return conditionalCompare
    case .fmul, .fdiv, .fadd, .fsub, .fmax, .fmin, .fmaxnm, .fminnm, .fnmul:
      return Operation(mnemonic, f(rd), f(rn), f(rm))
    case .fcsel, .halfSelect: return Operation("fcsel", f(rd), f(rn), f(rm), condition(bits(12, 4)))
    case .fused: return Operation(mnemonic, f(rd), f(rn), f(rm), f(ra))
    case .halfCompare: return name.hasPrefix("fccmp") ? conditionalCompare : compare
    case .halfFloat: return half
    default: return cipher
    }
  }

  private var compare: Operation {
    Operation(mnemonic, f(rn), bits(3, 1) == 1 ? "#0.0" : f(rm))
  }
  private var conditionalCompare: Operation {
    Operation(bits(4, 1) == 1 ? "fccmpe" : "fccmp", f(rn), f(rm), hex(bits(0, 4)), condition(bits(12, 4)))
  }

  /// Half precision has all classes in one row's opcode.
  private var half: Operation {
    if name.hasSuffix("(fixed-point)") {
      let fraction = "#\(64 - bits(10, 6))"
      return bits(17, 1) == 1
        ? Operation(mnemonic, f(rd), r(rn), fraction) : Operation(mnemonic, r(rd), f(rn), fraction)
    }
    if bits(24, 1) == 1 { return Operation(mnemonic, f(rd), f(rn), f(rm), f(ra)) }
    // Between general registers and floats, of one operand, of two.
    if bits(10, 6) == 0 {
      return mnemonic.hasSuffix("cvtf")
        ? Operation(mnemonic, f(rd), r(rn)) : Operation(mnemonic, r(rd), f(rn))
    }
    return bits(10, 5) == 16 ? Operation(mnemonic, f(rd), f(rn)) : Operation(mnemonic, f(rd), f(rn), f(rm))
  }

  /// VFPExpandImm in decimal, exactly: 16 to 31 sixteenths times a power of two from -3 to 4.
  static func immediate(_ byte: UInt32) -> String {
    let exponent = Int(byte >> 4 & 7 ^ 4) - 3
    // In units of 10^-7: 2^-7 is the smallest bit.
    var value = UInt64(16 + (byte & 15)) * 10_000_000
    value = exponent >= 4 ? value << UInt64(exponent - 4) : value >> UInt64(4 - exponent)
    let digits = String(value)
    let power = digits.count - 8
    let fraction = digits.dropFirst() + String(repeating: "0", count: 18 - (digits.count - 1))
    return "#" + (byte >> 7 == 1 ? "-" : "")
      + "\(digits.prefix(1)).\(fraction)e\(power < 0 ? "-" : "+")0\(abs(power))"
  }

  // MARK: Ciphers

  private var cipher: Operation? {
    let four = "4s"
    switch row.opcode {
    case .aese, .aesd, .aesmc, .aesimc: return Operation(name, v(rd, "16b"), v(rn, "16b"))
    case .pmull64:
      let isUpper = bits(30, 1) == 1
      let source = isUpper ? "2d" : "1d"
      return Operation(isUpper ? "pmull2" : "pmull", v(rd, "1q"), v(rn, source), v(rm, source))
    case .sha1c, .sha1p, .sha1m: return Operation(name, "q\(rd)", "s\(rn)", v(rm, four))
    case .sha256h, .sha256h2: return Operation(name, "q\(rd)", "q\(rn)", v(rm, four))
    case .sha1su0, .sha256su1, .sm3partw1, .sm3partw2, .sm4ekey:
      return Operation(name, v(rd, four), v(rn, four), v(rm, four))
    case .sha1h: return Operation(name, "s\(rd)", "s\(rn)")
    case .sha1su1, .sha256su0, .sm4e: return Operation(name, v(rd, four), v(rn, four))
    case .sha512h, .sha512h2: return Operation(name, "q\(rd)", "q\(rn)", v(rm, "2d"))
    case .sha512su1, .rax1: return Operation(name, v(rd, "2d"), v(rn, "2d"), v(rm, "2d"))
    case .sha512su0: return Operation(name, v(rd, "2d"), v(rn, "2d"))
    case .eor3, .bcax: return Operation(name, v(rd, "16b"), v(rn, "16b"), v(rm, "16b"), v(ra, "16b"))
    case .xar: return Operation(name, v(rd, "2d"), v(rn, "2d"), v(rm, "2d"), "#\(bits(10, 6))")
    case .sm3ss1: return Operation(name, v(rd, four), v(rn, four), v(rm, four), v(ra, four))
    case .sm3tt1a, .sm3tt1b, .sm3tt2a, .sm3tt2b:
      return Operation(name, v(rd, four), v(rn, four), v(rm, "s[\(bits(12, 2))]"))
    default: return nil
    }
  }
}
