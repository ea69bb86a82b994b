/// A value of a block: the index of the instruction that makes it.
public struct IRValue: Equatable, Sendable {
  public let index: UInt16
  @inlinable public init(index: UInt16) { self.index = index }
  public static let none = IRValue(index: .max)
}

/// One instruction: 16 bytes, trivially copyable. The value it makes is named by its index in the block.
public struct IRInstruction: Sendable {
  public var opcode: IROpcode
  public var a: UInt16
  public var b: UInt16
  public var c: UInt16
  public var immediate: Int64
  @inlinable
  public init(_ opcode: IROpcode, a: UInt16 = .max, b: UInt16 = .max, c: UInt16 = .max, immediate: Int64 = 0)
  {
    (self.opcode, self.a, self.b, self.c, self.immediate) = (opcode, a, b, c, immediate)
  }
}

/// What an indirect branch is, for return prediction.
public enum IRBranchHint: UInt8, Sendable { case jump, call, `return` }

/// How control leaves a block at its end.
public enum IRTerminator: Sendable, Equatable {
  /// To a constant guest PC.
  case direct(target: UInt64)
  /// To a computed guest PC (an i64). A branch of a kind, 1 to 3, is one that the guest's CPU checks (`checkBranch`) at
  /// targets that are not known yet.
  case indirect(target: IRValue, hint: IRBranchHint, kind: UInt8 = 0)
  /// To wherever the state's PC points, through the dispatcher: the CPU mode may have changed.
  case dispatch
}

/// Names of the optimisations, each of which can be switched off to find a wrong one by bisection.
public struct IROptimisations: OptionSet, Sendable {
  public let rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  /// Constant folding and algebraic identities.
  public static let fold = IROptimisations(rawValue: 1)
  /// A read of guest state takes the value last written in the block.
  public static let forward = IROptimisations(rawValue: 2)
  /// Translation goes on past conditional branches and through direct jumps.
  public static let superblock = IROptimisations(rawValue: 4)
  /// Direct branches are patched block to block.
  public static let chain = IROptimisations(rawValue: 8)
  /// Indirect branches look into the jump cache inline.
  public static let jumpCache = IROptimisations(rawValue: 16)
  /// Hot guest registers live in host registers across blocks.
  public static let pin = IROptimisations(rawValue: 32)
  /// Floating point on host instructions (off: soft float).
  public static let hostFloat = IROptimisations(rawValue: 64)
  /// Unused values are not computed.
  public static let deadCode = IROptimisations(rawValue: 128)

  /// Accesses off one base register look their page up once.
  public static let group = IROptimisations(rawValue: 256)

  /// Vector registers of 128 bits on the host's.
  public static let hostVector = IROptimisations(rawValue: 512)

  /// AES, products without carries and CRC-32 on the host's instructions.
  public static let hostCrypto = IROptimisations(rawValue: 1024)
  /// SHA-1 and SHA-256 on the host's instructions.
  public static let hostSHA = IROptimisations(rawValue: 2048)
  /// Vector operations that few hosts have: more of those on lanes of 64 bits, operations on three operands.
  public static let hostWideLanes = IROptimisations(rawValue: 4096)
  /// Shifts of lanes of 32 and 64 bits by lanes.
  public static let hostLaneShifts = IROptimisations(rawValue: 8192)

  public static let all = IROptimisations(rawValue: 16383)
  public static let names: [(String, IROptimisations)] = [
    ("fold", .fold), ("forward", .forward), ("superblock", .superblock), ("chain", .chain),
    ("jump-cache", .jumpCache), ("pin", .pin), ("host-float", .hostFloat), ("dead-code", .deadCode),
    ("group", .group), ("host-vector", .hostVector),
    ("host-crypto", .hostCrypto), ("host-sha", .hostSHA),
    ("host-wide-lanes", .hostWideLanes), ("host-lane-shifts", .hostLaneShifts),
  ]
}

/// A block of IR under construction and afterwards: a flat buffer that is reused from block to block.
///
/// Owned by one thread at a time.
public final class IRBlock: @unchecked Sendable {
  /// No block has more instructions.
  public static let capacity = 4096
  // SAFETY: `capacity` instructions, initialised up to `count`, alive as long as self.
  public let instructions: UnsafeMutablePointer<IRInstruction>
  public internal(set) var count = 0
  public internal(set) var terminator = IRTerminator.dispatch
  public var optimisations = IROptimisations.all
  /// The guest PC of the block's first instruction.
  public internal(set) var startPC: UInt64 = 0
  /// Guest instructions in it.
  public internal(set) var guestInstructionCount = 0

  // State slots below 2048: the value that the slot holds, as far as the block knows.
  static let slotCount = 256
  let slots: UnsafeMutablePointer<UInt16>

  public init() {
    instructions = .allocate(capacity: Self.capacity)
    slots = .allocate(capacity: Self.slotCount)
    slots.initialize(repeating: .max, count: Self.slotCount)
  }
  deinit {
    instructions.deallocate()
    slots.deallocate()
  }

  public func reset(startPC: UInt64) {
    count = 0
    guestInstructionCount = 0
    self.startPC = startPC
    forgetSlots()
  }

  /// Room for at least one more guest instruction (no guest instruction needs more than 200 operations).
  @inlinable public var isNearlyFull: Bool { count > Self.capacity - 200 }

  @inline(__always)
  func append(_ instruction: IRInstruction) -> IRValue {
    precondition(count < Self.capacity, "IR block overflow")
    (instructions + count).initialize(to: instruction)
    count &+= 1
    return IRValue(index: UInt16(truncatingIfNeeded: count &- 1))
  }

  func forgetSlots() { slots.update(repeating: .max, count: Self.slotCount) }
}
