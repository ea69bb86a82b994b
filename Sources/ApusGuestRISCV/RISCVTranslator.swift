import ApusGuest
import ApusIR
import ApusISARISCV

/// Turns RV64 instructions into IR, a block at a time.
///
/// A value on the stack of `RISCVCPU.translate`; the methods append to `block`. Instruction groups live in the
/// files `RISCVTranslator+*.swift`.
struct RISCVTranslator {
  let block: IRBlock
  let mode: RISCVMode
  let extensions: RISCVExtensionSet
  let helpers: [IRHelper]
  /// The PC of the instruction at hand, and its encoding.
  var pc: UInt64
  var instruction: RISCVInstruction
  /// Set when the instruction at hand ended the block.
  var isFinished = false
  /// In S and M: the block has looked at mstatus.FS.
  var hasCheckedFloat = false

  init(block: IRBlock, mode: RISCVMode, extensions: RISCVExtensionSet, helpers: [IRHelper], pc: UInt64) {
    (self.block, self.mode, self.extensions, self.helpers, self.pc) = (block, mode, extensions, helpers, pc)
    instruction = .illegal(0, length: 4)
  }

  mutating func run(_ code: GuestCodeWindow, instructionLimit: Int) -> GuestTranslationResult {
    let decoder = RISCVDecoder.shared
    var offset = 0
    while true {
      let low = UInt32(code.bytes[offset]) | UInt32(code.bytes[offset &+ 1]) << 8
      var bits = low
      if low & 3 == 3 {
        if offset &+ 4 <= code.count {
          bits |= UInt32(code.bytes[offset &+ 2]) << 16 | UInt32(code.bytes[offset &+ 3]) << 24
        } else if offset > 0 {
          block.finish(.direct(target: pc))
          return .block
        } else if let next = code.nextPage {
          bits |= UInt32(next[0]) << 16 | UInt32(next[1]) << 24
        } else {
          return .needsNextPage
        }
      }
      instruction = decoder.decode(bits, extensions)
      block.instruction(pc: pc, length: instruction.length)
      translateInstruction()
      if isFinished { return .block }
      offset &+= Int(instruction.length)
      pc &+= UInt64(instruction.length)
      if offset >= code.count || block.isNearlyFull || block.guestInstructionCount >= instructionLimit {
        block.finish(.direct(target: pc))
        return .block
      }
    }
  }

  var nextPC: UInt64 { pc &+ UInt64(instruction.length) }

  // MARK: Operands

  func x(_ number: UInt8) -> IRValue {
    number == 0 ? block.const64(0) : block.get64(RISCVState.x(Int(number)))
  }
  func setX(_ number: UInt8, _ value: IRValue) {
    if number != 0 { block.set64(RISCVState.x(Int(number)), value) }
  }
  var rs1: IRValue { x(instruction.rs1) }
  var rs2: IRValue { x(instruction.rs2) }
  func setRD(_ value: IRValue) { setX(instruction.rd, value) }
  var immediate: IRValue { block.const64(UInt64(bitPattern: Int64(instruction.immediate))) }
  func memory(ordered: Bool = false, displaced: Bool = true, _ operation: IRAtomicOperation = .exchange)
    -> IRMemoryOperand
  {
    IRMemoryOperand(
      displacement: displaced ? instruction.immediate : 0, context: mode.context, ordered: ordered,
      operation: operation)
  }
  @discardableResult
  func call(_ helper: RISCVHelper, _ a: IRValue = .none, _ b: IRValue = .none, _ c: IRValue = .none)
    -> IRValue
  {
    block.call(helper.rawValue, helpers[helper.rawValue], a, b, c)
  }

  mutating func finish(_ terminator: IRTerminator) {
    block.finish(terminator)
    isFinished = true
  }

  /// Raises illegal-instruction; the block ends.
  mutating func illegal() {
    call(.raiseIllegal, block.const64(UInt64(instruction.word)))
    finish(.dispatch)
  }

  // MARK: One instruction

  private mutating func translateInstruction() {
    switch instruction.opcode {
    case .illegal: illegal()

    case .lui: setRD(immediate)
    case .auipc: setRD(block.const64(pc &+ UInt64(bitPattern: Int64(instruction.immediate))))
    case .jal, .jalr: jump()
    case .beq: branch(.equal)
    case .bne: branch(.notEqual)
    case .blt: branch(.lessSigned)
    case .bge: branch(.greaterOrEqualSigned)
    case .bltu: branch(.lessUnsigned)
    case .bgeu: branch(.greaterOrEqualUnsigned)

    case .lb: load(.loadS8)
    case .lh: load(.loadS16)
    case .lw: load(.loadS32)
    case .ld: load(.load64)
    case .lbu: load(.loadU8)
    case .lhu: load(.loadU16)
    case .lwu: load(.loadU32)
    case .sb: store(.store8)
    case .sh: store(.store16)
    case .sw: store(.store32)
    case .sd: store(.store64)

    case .addi: immediate64(.add64)
    case .xori: immediate64(.xor64)
    case .ori: immediate64(.or64)
    case .andi: immediate64(.and64)
    case .slli: immediate64(.shl64)
    case .srli: immediate64(.shrU64)
    case .srai: immediate64(.shrS64)
    case .slti: set(block.compare(.lessSigned, rs1, immediate))
    case .sltiu: set(block.compare(.lessUnsigned, rs1, immediate))
    case .add: register64(.add64)
    case .sub: register64(.sub64)
    case .sll: register64(.shl64)
    case .srl: register64(.shrU64)
    case .sra: register64(.shrS64)
    case .xor: register64(.xor64)
    case .or: register64(.or64)
    case .and: register64(.and64)
    case .slt: set(block.compare(.lessSigned, rs1, rs2))
    case .sltu: set(block.compare(.lessUnsigned, rs1, rs2))
    case .addiw: immediate32(.add32)
    case .slliw: immediate32(.shl32)
    case .srliw: immediate32(.shrU32)
    case .sraiw: immediate32(.shrS32)
    case .addw: register32(.add32)
    case .subw: register32(.sub32)
    case .sllw: register32(.shl32)
    case .srlw: register32(.shrU32)
    case .sraw: register32(.shrS32)

    case .fence, .fenceTso: block.fence()
    case .pause: break
    case .ecall, .ebreak, .fenceI, .sret, .mret, .wfi, .sfenceVma, .sinvalVma, .sfenceWInval, .sfenceInvalIr,
      .wrsNto, .wrsSto:
      system()
    case .csrrw, .csrrs, .csrrc, .csrrwi, .csrrsi, .csrrci: controlRegister()
    case .cboInval, .cboClean, .cboFlush, .cboZero: cacheBlock()

    case .mul: register64(.mul64)
    case .mulh: register64(.mulHighS64)
    case .mulhsu: register64(.mulHighSU64)
    case .mulhu: register64(.mulHighU64)
    case .div: register64(.divS64)
    case .divu: register64(.divU64)
    case .rem: register64(.remS64)
    case .remu: register64(.remU64)
    case .mulw: register32(.mul32)
    case .divw: register32(.divS32)
    case .divuw: register32(.divU32)
    case .remw: register32(.remS32)
    case .remuw: register32(.remU32)

    case .lrW, .lrD, .scW, .scD, .amoswapW, .amoaddW, .amoxorW, .amoandW, .amoorW, .amominW, .amomaxW,
      .amominuW,
      .amomaxuW, .amoswapD, .amoaddD, .amoxorD, .amoandD, .amoorD, .amominD, .amomaxD, .amominuD, .amomaxuD,
      .amocasW,
      .amocasD, .amocasQ:
      atomic()

    case .addUw, .slliUw, .sh1add, .sh1addUw, .sh2add, .sh2addUw, .sh3add, .sh3addUw, .andn, .orn, .xnor,
      .clz, .ctz,
      .cpop, .sextB, .sextH, .clzw, .ctzw, .cpopw, .min, .minu, .max, .maxu, .zextH, .rol, .ror, .rori, .rolw,
      .rorw,
      .roriw, .orcB, .rev8, .clmul, .clmulr, .clmulh, .bclr, .bclri, .bext, .bexti, .binv, .binvi, .bset,
      .bseti,
      .czeroEqz, .czeroNez:
      bitManipulation()

    case .flw, .fsw, .fmaddS, .fmsubS, .fnmsubS, .fnmaddS, .faddS, .fsubS, .fmulS, .fdivS, .fsqrtS, .fsgnjS,
      .fsgnjnS,
      .fsgnjxS, .fminS, .fmaxS, .fleS, .fltS, .feqS, .fclassS, .fcvtWS, .fcvtWuS, .fcvtLS, .fcvtLuS, .fcvtSW,
      .fcvtSWu, .fcvtSL, .fcvtSLu, .fmvXW, .fmvWX, .fld, .fsd, .fmaddD, .fmsubD, .fnmsubD, .fnmaddD, .faddD,
      .fsubD,
      .fmulD, .fdivD, .fsqrtD, .fsgnjD, .fsgnjnD, .fsgnjxD, .fminD, .fmaxD, .fleD, .fltD, .feqD, .fclassD,
      .fcvtWD,
      .fcvtWuD, .fcvtLD, .fcvtLuD, .fcvtDW, .fcvtDWu, .fcvtDL, .fcvtDLu, .fmvXD, .fmvDX, .fcvtSD, .fcvtDS,
      .flh,
      .fsh, .fmaddH, .fmsubH, .fnmsubH, .fnmaddH, .faddH, .fsubH, .fmulH, .fdivH, .fsqrtH, .fsgnjH, .fsgnjnH,
      .fsgnjxH, .fminH, .fmaxH, .fleH, .fltH, .feqH, .fclassH, .fcvtWH, .fcvtWuH, .fcvtLH, .fcvtLuH, .fcvtHW,
      .fcvtHWu, .fcvtHL, .fcvtHLu, .fmvXH, .fmvHX, .fcvtSH, .fcvtHS, .fcvtDH, .fcvtHD:
      floatingPoint()
    }
  }

  // MARK: Base integer

  private func set(_ value: @autoclosure () -> IRValue) { if instruction.rd != 0 { setRD(value()) } }
  private func immediate64(_ opcode: IROpcode) {
    if instruction.rd != 0 { setRD(block.binary(opcode, rs1, immediate)) }
  }
  private func register64(_ opcode: IROpcode) {
    if instruction.rd != 0 { setRD(block.binary(opcode, rs1, rs2)) }
  }
  private func immediate32(_ opcode: IROpcode) {
    guard instruction.rd != 0 else { return }
    let value = block.binary(
      opcode, block.unary(.truncate32, rs1), block.const32(UInt32(bitPattern: instruction.immediate)))
    setRD(block.unary(.signExtend32, value))
  }
  private func register32(_ opcode: IROpcode) {
    guard instruction.rd != 0 else { return }
    let value = block.binary(opcode, block.unary(.truncate32, rs1), block.unary(.truncate32, rs2))
    setRD(block.unary(.signExtend32, value))
  }
  private func load(_ opcode: IROpcode) {
    // The load happens, and may fault, even where the result is dropped.
    setRD(block.load(opcode, rs1, memory()))
  }
  private func store(_ opcode: IROpcode) { block.store(opcode, rs1, rs2, memory()) }

  // MARK: Control flow

  private mutating func jump() {
    let isLink = instruction.rd == 1 || instruction.rd == 5
    if instruction.opcode == .jal {
      let target = pc &+ UInt64(bitPattern: Int64(instruction.immediate))
      guard checkTarget(target) else { return }
      if target <= pc { block.poll(pc: pc) }
      setRD(block.const64(nextPC))
      finish(.direct(target: target))
    } else {
      block.poll(pc: pc)
      var target = block.binary(.add64, rs1, immediate)
      target = block.binary(.and64, target, block.const64(~1))
      setRD(block.const64(nextPC))
      let isReturn = !isLink && (instruction.rs1 == 1 || instruction.rs1 == 5)
      finish(.indirect(target: target, hint: isReturn ? .return : isLink ? .call : .jump))
    }
  }

  private mutating func branch(_ condition: IRCondition) {
    let target = pc &+ UInt64(bitPattern: Int64(instruction.immediate))
    guard checkTarget(target) else { return }
    let isBackward = target <= pc
    if isBackward { block.poll(pc: pc) }
    block.exitIf(condition, rs1, rs2, target: target)
    if isBackward || !block.optimisations.contains(.superblock) { finish(.direct(target: nextPC)) }
  }

  /// With C, every even target is aligned; without it a target at 2 mod 4 would fault. Both hold for the encodings
  /// that a hart without C can fetch, except for these.
  private mutating func checkTarget(_ target: UInt64) -> Bool {
    if target & 2 != 0, !extensions.contains(.c) {
      call(.raiseMisalignedFetch, block.const64(target))
      finish(.dispatch)
      return false
    }
    return true
  }
}
