/// The part of a vCPU's state that every guest shares, by byte offset from the state's base.
///
/// ```
///    0 .. 255   the guest's 32 hottest 64-bit registers
///  256 .. 1023  this header
/// 1024 .. 3967  the rest of the guest's registers
/// 3968 .. 4095  constants of the code emitter
/// 4096 ..       jump caches, then TLBs: one of each for every translation context
/// ```
/// Generated code addresses the state from base + 128, so that the hot registers have 8-bit displacements.
public enum StateHeader {
  public static let bias = 128
  /// Guest PC, exact whenever control is outside generated code. u64.
  public static let pc = 256
  /// Nonzero: leave generated code at the next poll. u32, written by any thread.
  public static let exitRequest = 264
  /// Nonzero after a helper or slow path: go to the dispatcher, `pc` is set. 2: look for interrupts there. u32.
  public static let pendingExit = 268
  /// Address and value of the last load-linked; an address of all ones is no reservation. u64, u64.
  public static let monitorAddress = 272
  public static let monitorValue = 280
  /// The guest's MXCSR (rounding and sticky flags) while outside generated code, and the host's. u32, u32.
  public static let guestMXCSR = 288
  public static let hostMXCSR = 292
  /// The CPU mode that keys translated blocks. u32.
  public static let mode = 296
  /// Arguments and result of slow paths. u64 each.
  public static let argument0 = 304
  public static let argument1 = 312
  public static let argument2 = 320
  public static let result = 328
  /// IEEE flags raised by soft float, in RISC-V's layout (NX 1, UF 2, OF 4, DZ 8, NV 16). u32.
  public static let softFloatFlags = 336
  /// Not 0: a vector operation held a lane to its range since this was cleared. u32.
  public static let saturation = 340
  /// The engine's vCPU object, for the runtime functions. pointer.
  public static let engine = 344
  /// The guest's CPU object, for the helpers. pointer.
  public static let guest = 352
  /// The `kind` of an indirect branch that came to the dispatcher, which clears it; the branch's PC is `argument0`. u32.
  public static let branchKind = 360
  /// A vector of 16 bytes, for the code emitter.
  public static let vectorScratch = 368
  /// Scratch for the code emitter. 8 x u64.
  public static let scratch = 384
  /// Vectors of 16 bytes that the code emitter writes once.
  public static let vectorConstants = 3968
  /// The IEEE flags for each value of MXCSR's six sticky bits, a byte each; written by the back end.
  public static let floatFlagTable = 896
  /// MXCSR's sticky bits (IE 0, DE 1, ZE 2, OE 3, UE 4, PE 5) as flags in RISC-V's layout.
  public static func floatFlags(mxcsr: UInt32) -> UInt32 {
    (mxcsr & 1) << 4 | (mxcsr >> 2 & 1) << 3 | (mxcsr >> 3 & 1) << 2 | (mxcsr >> 4 & 1) << 1 | mxcsr >> 5 & 1
  }
  /// Host registers saved around calls, and values that found no register.
  public static let spill = 448

  /// Number of translation contexts (privilege levels) with a TLB and a jump cache of their own.
  public static let contextCount = 13
  /// Jump cache entries: {guest PC, code address}, indexed by PC bits 1 up. The PC of a branch that has a kind is XORed with
  /// `jumpCacheTag`, so that an entry is found by branches of one kind.
  public static let jumpCacheEntryCount = 8192
  public static let jumpCacheEntryByteCount = 16
  public static let jumpCaches = 4096
  public static func jumpCache(_ context: Int) -> Int {
    jumpCaches + context * jumpCacheEntryCount * jumpCacheEntryByteCount
  }
  /// Makes other PCs of those that are multiples of 4.
  /// - Parameter kind: 0 to 3; 0 has no tag.
  public static func jumpCacheTag(_ kind: UInt32) -> UInt64 { UInt64(kind) << 62 | UInt64(kind & 2) }
  /// TLB entries: {page for loads, page for stores, host address of the page, unused}.
  public static let tlbEntryCount = 1024
  public static let tlbEntryByteCount = 32
  public static let tlbs = jumpCaches + contextCount * jumpCacheEntryCount * jumpCacheEntryByteCount
  public static func tlb(_ context: Int) -> Int { tlbs + context * tlbEntryCount * tlbEntryByteCount }
  public static let byteCount = tlbs + contextCount * tlbEntryCount * tlbEntryByteCount
  /// What an empty TLB entry holds as its page: one that belongs to another entry, so that no address that is looked up
  /// in the entry has an offset of less than 4096 from it. Zeroed memory is empty but for entry 0.
  public static func noPage(_ entry: Int) -> UInt64 { entry == 0 ? 4096 : 0 }
  /// What an empty jump cache entry holds as its PC; zeroed memory is empty but for entry 0.
  public static func noPC(_ entry: Int) -> UInt64 { entry == 0 ? noAddress : 0 }
  /// The monitor's address without a reservation.
  public static let noAddress = UInt64.max
}

/// Which state slots a back end should keep in host registers, the most used first.
public struct StateLayout: Sendable {
  /// Offsets of 64-bit integer slots.
  public var hotIntegers: [Int]
  /// Offsets of 64-bit floating-point slots.
  public var hotFloats: [Int]
  /// The float slots are the lower halves of vector registers of 128 bits, multiples of 16, which are kept whole.
  public var hasVectors: Bool
  /// The slot of `IRPackedFlags`, whose other bits are undefined.
  public var packedFlags: Int?
  public init(hotIntegers: [Int], hotFloats: [Int], hasVectors: Bool = false, packedFlags: Int? = nil) {
    (self.hotIntegers, self.hotFloats, self.hasVectors) = (hotIntegers, hotFloats, hasVectors)
    self.packedFlags = packedFlags
  }
}
