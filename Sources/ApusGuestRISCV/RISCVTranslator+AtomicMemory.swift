import ApusIR
import ApusISARISCV

extension RISCVTranslator {
  /// A and Zacas [RV-Unpriv 14, 16]. Every atomic is sequentially consistent on the host.
  mutating func atomic() {
    let isDouble = instruction.word >> 12 & 7 == 3
    let operation: IRAtomicOperation
    switch instruction.opcode {
    case .lrW, .lrD:
      setRD(
        block.load(isDouble ? .loadLinked64 : .loadLinked32, rs1, memory(ordered: true, displaced: false)))
      return
    case .scW, .scD:
      let failed = block.binary(
        isDouble ? .storeConditional64 : .storeConditional32, rs1, rs2,
        immediate: memory(ordered: true, displaced: false).rawValue)
      setRD(failed)
      return
    case .amocasW, .amocasD:
      let expected = x(instruction.rd)
      let old = block.ternary(
        isDouble ? .atomicCompareExchange64 : .atomicCompareExchange32, rs1, expected, rs2,
        immediate: memory(ordered: true, displaced: false).rawValue)
      setRD(old)
      return
    case .amocasQ:
      // Register pairs: odd numbers are reserved encodings.
      guard instruction.rd & 1 == 0, instruction.rs2 & 1 == 0 else { return illegal() }
      call(.compareExchangeQuad, rs1, block.const64(UInt64(instruction.word)))
      return
    case .amoswapW, .amoswapD: operation = .exchange
    case .amoaddW, .amoaddD: operation = .add
    case .amoxorW, .amoxorD: operation = .xor
    case .amoandW, .amoandD: operation = .and
    case .amoorW, .amoorD: operation = .or
    case .amominW, .amominD: operation = .minSigned
    case .amomaxW, .amomaxD: operation = .maxSigned
    case .amominuW, .amominuD: operation = .minUnsigned
    case .amomaxuW, .amomaxuD: operation = .maxUnsigned
    default: preconditionFailure("not an atomic instruction")
    }
    let old = block.binary(
      isDouble ? .atomicRMW64 : .atomicRMW32, rs1, rs2,
      immediate: memory(ordered: true, displaced: false, operation).rawValue)
    setRD(old)
  }
}
