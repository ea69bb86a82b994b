// Branches, exceptions and system instructions [Arm ARM C4.1.93].

extension AArch64Disassembler {
  var control: Operation? {
    switch row.opcode {
    case .b, .bl: return Operation(name, target(signed(0, 26) << 2))
    case .bCond: return Operation("b." + condition(bits(0, 4)), target(signed(5, 19) << 2))
    case .cbz, .cbnz: return Operation(name, r(rd), target(signed(5, 19) << 2))
    case .tbz, .tbnz:
      return Operation(name, r(rd), "#\(bits(31, 1) << 5 | bits(19, 5))", target(signed(5, 14) << 2))
    case .br, .blr: return Operation(name, x(rn))
    case .ret: return Operation(name, list: rn == 30 ? [] : [x(rn)])
    case .brAuthenticated, .blrAuthenticated:
      return bits(24, 1) == 1 ? Operation(name, x(rn), xsp(rd)) : Operation(name, x(rn))
    case .retAuthenticated, .eretAuthenticated, .eret, .sb: return Operation(name)
    case .svc, .hvc, .smc, .brk, .hlt: return Operation(name, hex(bits(5, 16)))
    case .hint: return Operation(name, hex(bits(5, 7)))
    case .clrex, .isb: return Operation(name, list: bits(8, 4) == 15 ? [] : [hex(bits(8, 4))])
    case .barrier: return Operation(name, barrier)
    case .sys:
      let operands = ["#\(bits(16, 3))", "C\(bits(12, 4))", "C\(bits(8, 4))", "#\(bits(5, 3))"]
      return Operation(name, list: operands + (rd == 31 ? [] : [x(rd)]))
    case .mrs: return Operation(name, x(rd), register)
    case .msr: return Operation(name, register, x(rd))
    case .msrImmediate:
      // Fields of one bit take no other values.
      guard let field = Self.fields[bits(16, 3) << 3 | bits(5, 3)], field.hasPrefix("daif") || bits(8, 4) < 2
      else {
        return Operation("msr", register, x(rd))
      }
      return Operation(name, field, hex(bits(8, 4)))
    default: return nil
    }
  }

  /// A system register's generic name.
  private var register: String {
    "s\(bits(19, 2))_\(bits(16, 3))_c\(bits(12, 4))_c\(bits(8, 4))_\(bits(5, 3))"
  }

  /// Fields of PSTATE by op1 and op2.
  private static let fields: [UInt32: String] = [
    3: "uao", 4: "pan", 5: "spsel", 0o10: "allint", 0o31: "ssbs", 0o32: "dit", 0o34: "tco", 0o36: "daifset",
    0o37: "daifclr",
  ]

  private var barrier: String {
    let names: [UInt32: String] = [
      1: "oshld", 2: "oshst", 3: "osh", 5: "nshld", 6: "nshst", 7: "nsh", 9: "ishld", 10: "ishst", 11: "ish",
      13: "ld", 14: "st", 15: "sy",
    ]
    let number = bits(8, 4)
    return names[number] ?? "#0x0" + String(number, radix: 16)
  }
}
