import ApusAsmX86
import ApusIR
import ApusJIT

/// Where a value is.
enum ValuePlace: UInt8 {
  case nowhere
  /// The instruction's immediate.
  case constant
  /// In a host register: a pinned one, whose state slot holds the same value, or a temporary.
  case register
  /// In its state slot (byte offset in `offset`), not loaded yet.
  case slot
  /// In the spill area.
  case spill
}

/// Whether an operation is part of the only one that uses its result: an address of the access, a mask of the exit.
enum OperationFusion: UInt8 { case none, candidate, fused }

struct ValueInfo {
  var place = ValuePlace.nowhere
  var fusion = OperationFusion.none
  var register: UInt8 = 0
  /// Index of the last instruction that uses the value; 0: none.
  var lastUse: UInt16 = 0
  /// The value that this one is another name of (`truncate32`), or itself.
  var root: UInt16 = 0
  /// `slot`: state offset. `spill`: spill index.
  var offset: Int16 = 0
  /// A slot in memory that holds the value besides its register, or -1.
  var home: Int16 = -1
  /// For an access: its group's number plus one; 0: none.
  var group: UInt8 = 0
}

/// What the emitter needs to know of a block besides its IR.
public struct X86BlockContext {
  /// Number that the block will have in the block table.
  public var block: UInt32
  /// Jump cache (and fetch context) of the block's mode.
  public var jumpCacheContext: Int
  /// Whether links may only be patched within a page.
  public var isPaged: Bool
  /// Guest addresses are host addresses.
  public var isFlat: Bool
  /// Whether accesses off one base may share a look-up (X86Emitter+Groups.swift).
  public var groupsAccesses: Bool
  public init(block: UInt32, jumpCacheContext: Int, isPaged: Bool, isFlat: Bool, groupsAccesses: Bool) {
    (self.block, self.jumpCacheContext, self.isPaged, self.isFlat) = (
      block, jumpCacheContext, isPaged, isFlat
    )
    self.groupsAccesses = groupsAccesses
  }
}

/// Translates IR blocks to x86-64, one pass, with local register allocation.
///
/// Host registers:
/// ```
///   rbp             state + 128                 rsp   16-byte aligned
///   rbx rsi rdi r8 r9 r10 r12 r13 r14 r15       the guest's hottest integer slots, in every block
///   rax rcx rdx r11                             temporaries of one block
///   xmm4 .. xmm15   the hottest float slots, or vector registers whose lower halves they are
///   xmm0 .. xmm3    temporaries
/// ```
/// At every guest instruction's end each slot is up to date in its register or in memory, so that leaving
/// a block anywhere needs no fix-up. Guarded by the translation cache's lock.
public final class X86Emitter {
  static let pinnedOrder: [X86Register] = [.rbx, .r12, .r13, .r14, .r15, .rsi, .rdi, .r8, .r9, .r10]
  static let temporaryMask: UInt16 = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 11
  static let vectorTemporaryMask: UInt16 = 0xf
  static let firstPinnedVector = 4
  static let slotCount = 256

  public internal(set) var asm: X86Assembler
  let buffer: CodeBuffer
  let layout: StateLayout
  let optimisations: IROptimisations
  let features: X86HostFeatures
  let helpers: [IRHelper]
  /// Offsets of the shared routines at the start of the code buffer.
  var thunks = X86Thunks()
  /// The pinned slots in use, by host register.
  let pinnedIntegers: [(register: X86Register, offset: Int)]
  let pinnedFloats: [(register: X86Vector, offset: Int)]

  // SAFETY: flat tables of fixed size, alive as long as self.
  /// The block's values, then the groups' host addresses.
  let values: UnsafeMutablePointer<ValueInfo>
  /// Slot number -> pinned register, or 0xff. Integer slots name general registers, float slots vector ones.
  let slotRegister: UnsafeMutablePointer<UInt8>
  /// Slot number -> pinned vector register whose upper half it is, or 0xff.
  let upperRegister: UnsafeMutablePointer<UInt8>
  /// Slot number -> value that is in the slot's memory and known to be so, or .max (unpinned slots).
  let slotContent: UnsafeMutablePointer<UInt16>
  /// Register number -> value in it; general 0..15, vector 16..31. `.max`: none.
  let content: UnsafeMutablePointer<UInt16>

  // What the passes ask of an operation, a bit each; every one is looked at several times.
  /// By opcode.
  private let traits: UnsafeMutablePointer<UInt16>
  private static let isMarker: UInt16 = 1
  private static let isAlias: UInt16 = 2
  private static let hasEffect: UInt16 = 4
  private static let setsSlot: UInt16 = 8
  private static let getsSlot: UInt16 = 16
  private static let thirdIsNoValue: UInt16 = 32
  /// A 32-bit instruction makes the result: the register's upper half is clear.
  private static let clearsUpperHalf: UInt16 = 64
  private static let isZeroExtension: UInt16 = 128
  /// The host's flags are as before, or it looks at them.
  private static let keepsFlags: UInt16 = 256
  /// A load or store whose address may be a sum.
  private static let isPlainAccess: UInt16 = 512
  private static func traits(of opcode: IROpcode) -> UInt16 {
    var traits: UInt16 = opcode.hasEffect ? hasEffect : 0
    if opcode.isAlias { traits |= isAlias }
    if opcode.isPlainLoad || opcode.isPlainStore { traits |= isPlainAccess }
    switch opcode {
    case .instruction: traits |= isMarker | keepsFlags
    case .set64: traits |= setsSlot | keepsFlags
    case .const32, .const64: traits |= keepsFlags
    case .get64, .get32, .getF64: traits |= getsSlot
    case .exitIf64, .exitIf32: traits |= thirdIsNoValue | keepsFlags
    case .add32, .sub32, .and32, .or32, .xor32, .shl32, .shrU32, .shrS32, .rotr32, .mul32:
      traits |= clearsUpperHalf
    case .zeroExtend32: traits |= isZeroExtension
    default: break
    }
    return traits
  }

  // The block at hand.
  var ir: UnsafeMutablePointer<IRInstruction>
  var irCount = 0
  var index = 0
  var context = X86BlockContext(
    block: 0, jumpCacheContext: 0, isPaged: true, isFlat: false, groupsAccesses: false)
  var currentPC: UInt64 = 0
  /// Registers that the instruction at hand uses and that must not be evicted.
  var locked: UInt16 = 0
  var lockedVectors: UInt16 = 0
  /// Vector registers whose bits from 64 or 32 up are known to be clear.
  var clearAbove64: UInt16 = 0
  var clearAbove32: UInt16 = 0
  /// The slot that the store of a whole vector register has cleared, whose own store is left out; or -1.
  var clearedSlot = -1
  /// The `setF64` for which `pinnedDestination` has given a register last.
  var pinnedSetter = 0
  /// While nothing has changed the host's flags since.
  var comparison: HostComparison?
  var spillsInUse: UInt64 = 0
  var stubs: [ColdStub] = []
  var groups: [AccessGroup] = []
  /// Jumps of the block that was emitted last, to constant guest PCs.
  public internal(set) var links: [PendingLink] = []
  /// Slow paths of the block, appended to the table when the block is inserted.
  public internal(set) var sites: SlowSiteTable

  /// A jump to a constant guest PC that can be patched.
  public struct PendingLink {
    public var siteOffset: Int
    public var stubOffset: Int
    public var targetPC: UInt64
    /// Leads to the block without groups at `targetPC`.
    public var isUngrouped = false
  }

  public init(
    buffer: CodeBuffer, layout: StateLayout, helpers: [IRHelper], optimisations: IROptimisations,
    features: X86HostFeatures, runtime: X86Runtime, sites: SlowSiteTable
  ) {
    (self.buffer, self.layout, self.helpers, self.optimisations) = (buffer, layout, helpers, optimisations)
    self.sites = sites
    self.features = features
    let scratch = X86Memory(.rbp, Int32(StateHeader.vectorScratch - StateHeader.bias))
    asm = X86Assembler(
      start: buffer.writable, offset: 0, vectorEncoding: features.hasAVX ? .vex : .legacy(scratch: scratch))
    let valueCount = IRBlock.capacity + AccessGroup.limit
    values = .allocate(capacity: valueCount)
    values.initialize(repeating: ValueInfo(), count: valueCount)
    slotRegister = .allocate(capacity: Self.slotCount)
    slotRegister.initialize(repeating: 0xff, count: Self.slotCount)
    upperRegister = .allocate(capacity: Self.slotCount)
    upperRegister.initialize(repeating: 0xff, count: Self.slotCount)
    slotContent = .allocate(capacity: Self.slotCount)
    slotContent.initialize(repeating: .max, count: Self.slotCount)
    content = .allocate(capacity: 32)
    content.initialize(repeating: .max, count: 32)
    ir = .allocate(capacity: 0)
    let lastOpcode = IROpcode.allCases.reduce(0) { max($0, Int($1.rawValue)) }
    traits = .allocate(capacity: lastOpcode + 1)
    traits.initialize(repeating: 0, count: lastOpcode + 1)
    for opcode in IROpcode.allCases { traits[Int(opcode.rawValue)] = Self.traits(of: opcode) }
    let isPinning = optimisations.contains(.pin)
    pinnedIntegers = isPinning ? zip(Self.pinnedOrder, layout.hotIntegers).map { ($0, $1) } : []
    pinnedFloats =
      isPinning
      ? layout.hotFloats.prefix(16 - Self.firstPinnedVector).enumerated().map {
        (X86Vector(rawValue: UInt8(Self.firstPinnedVector + $0.offset)).unsafelyUnwrapped, $0.element)
      } : []
    for (register, offset) in pinnedIntegers { slotRegister[offset >> 3] = register.rawValue }
    for (register, offset) in pinnedFloats {
      slotRegister[offset >> 3] = register.rawValue
      if layout.hasVectors { upperRegister[offset >> 3 + 1] = register.rawValue }
    }
    emitThunks(runtime)
    buffer.used = asm.offset
  }

  deinit {
    values.deallocate()
    traits.deallocate()
    slotRegister.deallocate()
    upperRegister.deallocate()
    slotContent.deallocate()
    content.deallocate()
  }

  /// A state slot as a memory operand.
  @inline(__always)
  func state(_ offset: Int) -> X86Memory { X86Memory(.rbp, Int32(offset - StateHeader.bias)) }

  /// Forgets the slow paths of dropped code.
  public func removeAllSites() { sites.removeAll() }

  // MARK: A block

  /// Bytes that no block's code exceeds, per IR instruction.
  static let maximumByteCountPerInstruction = 256

  /// Translates the block into the code buffer. Returns the code's range, or `nil` if the buffer is full; `links`
  /// holds the block's jumps until the next call.
  public func emit(_ block: IRBlock, _ context: X86BlockContext) -> (offset: Int, byteCount: Int)? {
    guard buffer.free > (block.count + 16) * Self.maximumByteCountPerInstruction else { return nil }
    self.context = context
    ir = block.instructions
    irCount = block.count
    asm.offset = (buffer.used + 15) & ~15
    let start = asm.offset
    prepare(block)
    index = 0
    while index < irCount {
      let instruction = ir[index]
      if values[index].lastUse != 0 && values[index].fusion != .fused
        || traits[Int(instruction.opcode.rawValue)] & Self.hasEffect != 0
      {
        // Moves alone leave the flags as they are.
        if comparison != nil, traits[Int(instruction.opcode.rawValue)] & Self.keepsFlags == 0 {
          comparison = nil
        }
        emit(instruction)
      }
      locked = 0
      lockedVectors = 0
      index &+= 1
    }
    emitTerminator(block.terminator)
    emitStubs()
    buffer.used = asm.offset
    return (start, asm.offset - start)
  }

  /// Finds last uses, backwards, and clears the allocation state.
  private func prepare(_ block: IRBlock) {
    let keepsAll = !optimisations.contains(.deadCode)
    // Locals: stores through pointers might change the members.
    let (values, ir, count, traits) = (self.values, self.ir, irCount, self.traits)
    for number in 0..<count {
      let i = ir[number]
      // What it is another name of comes before it.
      let trait = traits[Int(i.opcode.rawValue)]
      var root = UInt16(truncatingIfNeeded: number)
      if trait & Self.isAlias != 0 || i.opcode == .unboxF32 && i.immediate == 1 {
        root = values[Int(i.a)].root
      } else if trait & Self.isZeroExtension != 0 {
        let source = values[Int(i.a)].root
        if traits[Int(ir[Int(source)].opcode.rawValue)] & Self.clearsUpperHalf != 0 { root = source }
      }
      values[number] = ValueInfo(root: root)
    }
    func use(_ operand: UInt16, _ at: Int) {
      if operand == .max { return }
      let root = Int(values[Int(operand)].root)
      if values[root].lastUse == 0 {
        values[root].lastUse = UInt16(truncatingIfNeeded: at)
      } else {
        values[root].fusion = .none
      }
    }
    let isFlat = context.isFlat
    if case .indirect(let target, _, _) = block.terminator { use(target.index, count) }
    // The unpinned slots, a bit each, that are set again before anything can see them: by leaving the block, in a fault, in a
    // helper. A pinned one's set costs nothing.
    var overwritten: UInt32 = 0
    var number = count
    while number > 0 {
      number &-= 1
      let i = ir[number]
      let trait = traits[Int(i.opcode.rawValue)]
      if trait & Self.isMarker != 0 || Int(values[number].root) != number { continue }
      if trait & Self.setsSlot != 0, i.immediate < 256 {
        let slot = Int(i.immediate >> 3)
        if overwritten &>> UInt32(slot) & 1 != 0, !keepsAll {
          ir[number] = IRInstruction(.const64)
          continue
        }
        if slotRegister[slot] == 0xff { overwritten |= 1 &<< UInt32(slot) }
      } else if trait & Self.hasEffect != 0 {
        overwritten = 0
      } else if trait & Self.getsSlot != 0, i.immediate < 256 {
        overwritten &= ~(1 &<< UInt32(i.immediate >> 3))
      }
      if keepsAll, i.opcode.resultType != .none, values[number].lastUse == 0 {
        values[number].lastUse = UInt16(truncatingIfNeeded: number)
      }
      if trait & Self.hasEffect != 0 || values[number].lastUse != 0 {
        if values[number].fusion == .candidate, fuse(number) { continue }
        use(i.a, number)
        if isFlat, trait & Self.isPlainAccess != 0 {
          markForFusion(i.a, .add64, usedFirstAt: number)
        } else if i.opcode == .exitIf64, i.c <= Self.lastEquality, isConstant(i.b, 0...0) {
          markForFusion(i.a, .and64, usedFirstAt: number)
        }
        use(i.b, number)
        if trait & Self.thirdIsNoValue == 0 { use(i.c, number) }
      }
    }
    findGroups()
    content.update(repeating: .max, count: 32)
    slotContent.update(repeating: .max, count: Self.slotCount)
    spillsInUse = 0
    locked = 0
    lockedVectors = 0
    (clearAbove64, clearAbove32) = (0, 0)
    clearedSlot = -1
    comparison = nil
    stubs.removeAll(keepingCapacity: true)
    links.removeAll(keepingCapacity: true)
  }

  // MARK: Operations that are part of others

  // In flat memory a sum that only one access uses is a part of it, and so is a shift by 1 to 3 in that sum:
  // [base + index * 8 + displacement]. A mask of 31 bits that only a branch on zero uses is that of `test`.

  /// `equal` and `notEqual` are the first conditions.
  private static let lastEquality = UInt16(max(IRCondition.equal.rawValue, IRCondition.notEqual.rawValue))

  /// Notes that a value may become part of an operation, if it is made by this one and has no later use.
  private func markForFusion(_ operand: UInt16, _ opcode: IROpcode, usedFirstAt user: Int) {
    let value = root(operand)
    if Int(values[value].lastUse) == user, ir[value].opcode == opcode { values[value].fusion = .candidate }
  }
  private func isConstant(_ operand: UInt16, _ range: ClosedRange<Int64> = .min ... .max) -> Bool {
    let i = ir[root(operand)]
    return i.opcode == .const64 && range.contains(i.immediate)
  }

  /// Makes a candidate part of what uses it. Its operands live until there. Returns whether it can be.
  private func fuse(_ number: Int) -> Bool {
    let (i, user) = (ir[number], values[number].lastUse)
    /// Returns whether the operand has no other use behind the operation.
    func keep(_ operand: UInt16) -> Bool {
      let value = root(operand)
      let isFirst = values[value].lastUse == 0
      values[value].fusion = .none
      values[value].lastUse = max(values[value].lastUse, user)
      return isFirst
    }
    switch i.opcode {
    case .add64:
      guard !isConstant(i.a), !isConstant(i.b) else { return false }
      if keep(i.b) { markForFusion(i.b, .shl64, usedFirstAt: Int(user)) }
      let isIndexed = values[root(i.b)].fusion == .candidate
      if keep(i.a), !isIndexed { markForFusion(i.a, .shl64, usedFirstAt: Int(user)) }
    default:
      guard isConstant(i.b, i.opcode == .shl64 ? 1...3 : 1...Int64(Int32.max)) else { return false }
      _ = keep(i.a)
    }
    values[number].fusion = .fused
    return true
  }

  /// The address of an access that its sum is a part of.
  func fusedAddress(_ i: IRInstruction) -> X86Memory? {
    let sum = root(i.a)
    guard values[sum].fusion == .fused else { return nil }
    var (base, index) = (ir[sum].a, ir[sum].b)
    if values[root(base)].fusion == .fused { swap(&base, &index) }
    var scale: UInt8 = 0
    let shift = root(index)
    if values[shift].fusion == .fused {
      index = ir[shift].a
      scale = UInt8(ir[root(ir[shift].b)].immediate)
    }
    return X86Memory(
      use(base), IRMemoryOperand(rawValue: i.immediate).displacement, index: use(index), scale: scale)
  }

  /// Tests the bits of a mask that is part of an exit. Returns the condition of the exit, or `nil` if there is no such mask.
  func fusedTest(_ i: IRInstruction) -> X86Condition? {
    let mask = root(i.a)
    guard i.opcode == .exitIf64, values[mask].fusion == .fused else { return nil }
    asm.test(use(ir[mask].a), immediate: UInt32(ir[root(ir[mask].b)].immediate))
    return i.c == IRCondition.equal.rawValue ? .equal : .notEqual
  }
}
