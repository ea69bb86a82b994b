// Data processing on general registers [Arm ARM C4.1.92, C4.1.95].

extension AArch64Disassembler {
  var integer: Operation? {
    switch row.opcode {
    case .adr: return Operation(name, x(rd), target(signed(5, 19) << 2 | Int64(bits(29, 2))))
    case .adrp:
      let pages = signed(5, 19) << 2 | Int64(bits(29, 2))
      return Operation(name, x(rd), address((pc & ~0xfff) &+ UInt64(bitPattern: pages << 12)))
    case .addImmediate, .subImmediate: return addImmediate(rsp(rd))
    case .addsImmediate, .subsImmediate: return addImmediate(r(rd))
    case .andImmediate, .orrImmediate, .eorImmediate: return logical(rsp(rd))
    case .andsImmediate: return logical(r(rd))
    case .movn, .movz, .movk:
      let shift = bits(21, 2) * 16
      return Operation(name, list: [r(rd), hex(bits(5, 16))] + (shift == 0 ? [] : ["lsl #\(shift)"]))
    case .sbfm, .bfm, .ubfm: return Operation(name, r(rd), r(rn), "#\(bits(16, 6))", "#\(bits(10, 6))")
    case .extr: return Operation(name, r(rd), r(rn), r(rm), "#\(bits(10, 6))")
    case .and, .bic, .orr, .orn, .eor, .eon, .ands, .bics, .add, .adds, .sub, .subs:
      let amount = bits(10, 6)
      let shift =
        amount == 0 && bits(22, 2) == 0
        ? [] : ["\(["lsl", "lsr", "asr", "ror"][Int(bits(22, 2))]) #\(amount)"]
      return Operation(name, list: [r(rd), r(rn), r(rm)] + shift)
    case .addExtended, .subExtended: return addExtended(rsp(rd), usesStackPointer: rd == 31 || rn == 31)
    case .addsExtended, .subsExtended: return addExtended(r(rd), usesStackPointer: rn == 31)
    case .adc, .adcs, .sbc, .sbcs, .udiv, .sdiv, .lslv, .lsrv, .asrv, .rorv:
      return Operation(name, r(rd), r(rn), r(rm))
    case .ccmn, .ccmp:
      let second = bits(11, 1) == 1 ? hex(rm) : r(rm)
      return Operation(name, r(rn), second, hex(bits(0, 4)), condition(bits(12, 4)))
    case .csel, .csinc, .csinv, .csneg: return Operation(name, r(rd), r(rn), r(rm), condition(bits(12, 4)))
    case .crc32:
      let name = bits(12, 1) == 1 ? "crc32c" + name.suffix(1) : name
      return Operation(name, w(rd), w(rn), isWide ? x(rm) : w(rm))
    case .rbit, .rev16, .rev, .rev32, .clz, .cls: return Operation(name, r(rd), r(rn))
    case .madd, .msub: return Operation(name, r(rd), r(rn), r(rm), r(ra))
    case .smaddl, .smsubl, .umaddl, .umsubl: return Operation(name, x(rd), w(rn), w(rm), x(ra))
    case .smulh, .umulh: return Operation(name, x(rd), x(rn), x(rm))
    case .cfinv, .xaflag, .axflag: return Operation(name)
    case .rmif: return Operation(name, x(rn), "#\(bits(15, 6))", "#\(bits(0, 4))")
    case .setf: return Operation(name, w(rn))
    case .pointerAuthentication:
      return bits(13, 1) == 1 ? Operation(name, x(rd)) : Operation(name, x(rd), xsp(rn))
    case .stripAuthentication: return Operation(name, x(rd))
    case .pacga: return Operation(name, x(rd), x(rn), xsp(rm))
    case .addTag: return Operation(name, xsp(rd), xsp(rn), hex(bits(16, 6) << 4), hex(bits(10, 4)))
    case .irg: return Operation(name, list: [xsp(rd), xsp(rn)] + (rm == 31 ? [] : [x(rm)]))
    case .gmi: return Operation(name, x(rd), xsp(rn), x(rm))
    case .subp: return Operation(name, x(rd), xsp(rn), xsp(rm))
    default: return nil
    }
  }

  private func addImmediate(_ destination: String) -> Operation {
    Operation(name, list: [destination, rsp(rn), hex(bits(10, 12))] + (bits(22, 1) == 1 ? ["lsl #12"] : []))
  }

  private func logical(_ destination: String) -> Operation? {
    guard let value = logicalImmediate(n: bits(22, 1), immr: bits(16, 6), imms: bits(10, 6), isWide: isWide)
    else {
      return nil
    }
    return Operation(name, destination, r(rn), hex(value))
  }

  private func addExtended(_ destination: String, usesStackPointer: Bool) -> Operation {
    let option = bits(13, 3)
    let extensions = ["uxtb", "uxth", "uxtw", "uxtx", "sxtb", "sxth", "sxtw", "sxtx"]
    let amount = bits(10, 3)
    let last = isWide && option & 3 == 3 ? x(rm) : w(rm)
    let shift = amount == 0 ? "" : " #\(amount)"
    // With the stack pointer, an extension that changes nothing is a shift.
    if usesStackPointer, option == (isWide ? 3 : 2) {
      return Operation(mnemonic, list: [destination, rsp(rn), last] + (amount == 0 ? [] : ["lsl" + shift]))
    }
    return Operation(mnemonic, destination, rsp(rn), last, extensions[Int(option)] + shift)
  }
}
