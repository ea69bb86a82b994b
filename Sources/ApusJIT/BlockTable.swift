import ApusHost
import ApusIR
import Glibc

/// One translated block.
public struct BlockRecord {
  /// Physical address of its first byte (the guest address itself in user mode).
  public var physicalPC: UInt64
  public var pc: UInt64
  public var mode: UInt32
  /// Guest bytes from the first instruction's first to the last one's last.
  public var byteCount: UInt32
  /// Offset of the host code in the code buffer; for the evaluator, unused.
  public var codeOffset: UInt32 = 0
  /// Next block with the same hash; next blocks in the block's first and second page. 0 ends a list.
  public var nextInHash: UInt32 = 0
  public var nextInPage: UInt32 = 0
  public var nextInSecondPage: UInt32 = 0
  /// First of the links that jump here.
  public var firstIncoming: UInt32 = 0
  /// A hash of the guest's bytes, where several vCPUs may change them.
  public var byteHash: UInt32 = 0
  /// The page that the block goes on in, or all ones.
  public var secondPhysicalPage: UInt64
  /// The block's IR on the heap, where the evaluator runs it.
  public var ir: UnsafeMutablePointer<BlockIR>?
  public var isInvalid = false

  public init(
    physicalPC: UInt64, pc: UInt64, mode: UInt32, byteCount: UInt32, secondPhysicalPage: UInt64
  ) {
    (self.physicalPC, self.pc, self.mode, self.byteCount) = (physicalPC, pc, mode, byteCount)
    self.secondPhysicalPage = secondPhysicalPage
  }
}

/// A copy of a block's IR.
public struct BlockIR {
  // SAFETY: count instructions that belong to this value until `BlockTable.removeAll`.
  public let instructions: UnsafeMutablePointer<IRInstruction>
  public let count: Int
  public let terminator: IRTerminator

  /// Copies the IR to the heap; the block table frees it with its block.
  public static func copy(_ block: IRBlock) -> UnsafeMutablePointer<BlockIR> {
    let instructions = UnsafeMutablePointer<IRInstruction>.allocate(capacity: block.count)
    instructions.initialize(from: block.instructions, count: block.count)
    let copy = UnsafeMutablePointer<BlockIR>.allocate(capacity: 1)
    copy.initialize(
      to: BlockIR(instructions: instructions, count: block.count, terminator: block.terminator))
    return copy
  }
}

/// A patchable jump from one block to another.
public struct LinkRecord {
  /// Offset in the code buffer of the 4-byte displacement, and of the stub that it is patched away from.
  public var siteOffset: UInt32
  public var stubOffset: UInt32
  public var sourceBlock: UInt32
  /// The next link to the same target.
  public var nextIncoming: UInt32 = 0
  public var targetPC: UInt64
  /// The block jumped to, or 0 while the link goes to its stub.
  public var targetBlock: UInt32 = 0
  /// The target goes on in another page, whose mapping may change: it is looked up at each jump.
  public var isUnstable = false
  /// The target is a block without groups.
  public var isUngrouped: Bool
  public init(
    siteOffset: UInt32, stubOffset: UInt32, sourceBlock: UInt32, targetPC: UInt64, isUngrouped: Bool
  ) {
    (self.siteOffset, self.stubOffset, self.sourceBlock, self.targetPC) =
      (siteOffset, stubOffset, sourceBlock, targetPC)
    self.isUngrouped = isUngrouped
  }
}

/// Where a slow path of generated code comes from, by number. There is one for every memory access: 16 bytes.
public struct SlowSite {
  public var pc: UInt64
  /// The operand in the lower 56 bits, the opcode above.
  private var packed: Int64
  public init(pc: UInt64, memoryOperand: Int64, opcode: IROpcode) {
    self.pc = pc
    packed = memoryOperand | Int64(opcode.rawValue) << 56
  }
  public var memoryOperand: Int64 { packed & (1 << 56 - 1) }
  public var opcode: IROpcode { IROpcode(rawValue: UInt16(packed >> 56)).unsafelyUnwrapped }
}

/// All slow sites, by number; in flat memory also the offset of each access in the code buffer, ascending.
///
/// Written under the translation cache's lock; a site may be read without it, being written before its code can run.
public struct SlowSiteTable: Sendable {
  private var sites: ReservedArray<SlowSite>
  private let offsets: ReservedArray<UInt32>

  public init() throws(HostError) {
    sites = try ReservedArray(capacity: 1 << 22)
    offsets = try ReservedArray(capacity: 1 << 22)
  }
  public var isNearlyFull: Bool { sites.count > sites.capacity - 8192 }
  public subscript(_ number: Int) -> SlowSite { sites.base[number] }

  /// - Parameter flatOffset: where the access is in the code buffer, in flat memory, where a fault comes from there.
  public mutating func append(_ site: SlowSite, flatOffset: Int?) -> UInt32 {
    if let flatOffset { offsets.base[sites.count] = UInt32(flatOffset) }
    return sites.append(site)
  }
  public mutating func removeAll() { sites.removeAll() }

  /// The site of the last access at or before `offset`. Async-signal-safe.
  public func find(flatOffset offset: UInt32) -> SlowSite? {
    var low = 1
    var high = sites.count
    while low < high {
      let middle = (low + high) / 2
      if offsets.base[middle] <= offset { low = middle + 1 } else { high = middle }
    }
    return low > 1 ? sites.base[low - 1] : nil
  }
}

/// A growable flat array in reserved address space: elements never move, growth costs page faults only.
public struct ReservedArray<Element>: @unchecked Sendable {
  // SAFETY: `base` maps capacity elements for the life of the process.
  public let base: UnsafeMutablePointer<Element>
  public let capacity: Int
  public private(set) var count: Int

  public init(capacity: Int) throws(HostError) {
    let pointer = mmap(
      nil, capacity * MemoryLayout<Element>.stride, PROT_READ | PROT_WRITE,
      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    guard let pointer, pointer != MAP_FAILED else { throw .last("reserve a table of \(capacity) elements") }
    base = pointer.assumingMemoryBound(to: Element.self)
    self.capacity = capacity
    count = 1  // element 0 stands for "none"
  }
  @inlinable public var isFull: Bool { count >= capacity - 1 }
  public mutating func append(_ element: Element) -> UInt32 {
    precondition(count < capacity, "table full")
    (base + count).initialize(to: element)
    count &+= 1
    return UInt32(count &- 1)
  }
  public mutating func removeAll() { count = 1 }
}

/// All translated blocks, found by physical address, PC and mode; and by page, for invalidation.
///
/// Guarded by the translation cache's lock.
public struct BlockTable {
  private var blocks: UnsafeMutablePointer<BlockRecord>
  private let capacity = 1 << 19
  public private(set) var count: Int = 1
  private let buckets: UnsafeMutablePointer<UInt32>
  private let bucketMask: UInt64 = (1 << 16) - 1
  /// By physical page number.
  private var pages: [UInt64: PageEntry] = [:]

  private struct PageEntry {
    var first: UInt32 = 0
    /// One bit for each 64 bytes of the page that a block was made from.
    var granules: UInt64 = 0
  }
  public var links: ReservedArray<LinkRecord>

  public init() throws(HostError) {
    blocks = .allocate(capacity: capacity)
    buckets = HostMemory.zeroed(UInt32.self, count: Int(bucketMask) + 1)
    links = try ReservedArray(capacity: 1 << 21)
  }

  public subscript(_ block: UInt32) -> BlockRecord {
    get { pointer(block).pointee }
    nonmutating set { pointer(block).pointee = newValue }
  }
  public func pointer(_ block: UInt32) -> UnsafeMutablePointer<BlockRecord> { blocks + Int(block) }

  public var isFull: Bool { count >= capacity - 1 || links.count > links.capacity - 8192 }

  /// A page's blocks have 64 buckets that are neighbours, and so have pages: short programs touch little of the table. The
  /// virtual address counts too: a shared library's page is one for all processes, but each has it elsewhere.
  private func bucket(_ physicalPC: UInt64, _ pc: UInt64, _ mode: UInt32) -> Int {
    let elsewhere = ((physicalPC ^ pc) >> 12) &* 0x9e37_79b9_7f4a_7c15 ^ UInt64(mode) &* 0xff51_afd7_ed55_8ccd
    let page = (pc >> 12) &+ (elsewhere >> 40)
    return Int(truncatingIfNeeded: (page << 6 | (pc >> 1 ^ pc >> 7) & 63) & bucketMask)
  }

  /// What is known of a block.
  public enum Lookup {
    case block(UInt32)
    /// There are such blocks, but they go on in a second page: which one must be said.
    case needsSecondPage
    case unknown
  }

  /// - Parameter secondPhysicalPage: the page that follows in the guest's address space, once it is known.
  public func find(physicalPC: UInt64, pc: UInt64, mode: UInt32, secondPhysicalPage: UInt64?) -> Lookup {
    var block = buckets[bucket(physicalPC, pc, mode)]
    while block != 0 {
      let record = blocks + Int(block)
      if record.pointee.physicalPC == physicalPC, record.pointee.pc == pc, record.pointee.mode == mode {
        if record.pointee.secondPhysicalPage == .max { return .block(block) }
        guard let secondPhysicalPage else { return .needsSecondPage }
        if record.pointee.secondPhysicalPage == secondPhysicalPage { return .block(block) }
      }
      block = record.pointee.nextInHash
    }
    return .unknown
  }

  /// Calls `body` with the number of each valid block made from bytes of a page.
  public func forEachBlock(page: UInt64, _ body: (UInt32) -> Void) {
    var block = pages[page]?.first ?? 0
    while block != 0 {
      let record = blocks + Int(block)
      if !record.pointee.isInvalid { body(block) }
      block =
        record.pointee.physicalPC >> 12 == page
        ? record.pointee.nextInPage : record.pointee.nextInSecondPage
    }
  }

  public mutating func insert(_ record: BlockRecord) -> UInt32 {
    precondition(count < capacity, "block table full")
    let number = UInt32(count)
    count += 1
    var record = record
    let index = bucket(record.physicalPC, record.pc, record.mode)
    record.nextInHash = buckets[index]
    buckets[index] = number
    let start = record.physicalPC & 4095
    let end = start + UInt64(record.byteCount)
    record.nextInPage = addToPage(record.physicalPC >> 12, number, start, min(end, 4096))
    if record.secondPhysicalPage != .max {
      record.nextInSecondPage = addToPage(record.secondPhysicalPage, number, 0, end - 4096)
    }
    (blocks + Int(number)).initialize(to: record)
    return number
  }

  /// Notes a block that covers bytes `start ..< end` of a page; returns the page's list so far.
  private mutating func addToPage(_ page: UInt64, _ block: UInt32, _ start: UInt64, _ end: UInt64) -> UInt32 {
    var entry = pages[page] ?? PageEntry()
    let old = entry.first
    entry.first = block
    let (low, high) = (start / 64, (max(end, start + 1) - 1) / 64)
    entry.granules |= (UInt64.max << low) & (UInt64.max >> (63 - high))
    pages[page] = entry
    return old
  }

  /// Takes the blocks made from bytes `start ..< end` (offsets, `end` at most 4096) of a page out of the table and
  /// gives each to `body`. Returns whether blocks of the page are left.
  public mutating func remove(page: UInt64, start: UInt64, end: UInt64, _ body: (UInt32) -> Void) -> Bool {
    guard let entry = pages[page] else { return false }
    let written = (UInt64.max << (start / 64)) & (UInt64.max >> (63 - (end - 1) / 64))
    if entry.granules & written == 0 { return true }
    // Rebuild the page's list from what survives.
    var kept = PageEntry()
    var block = entry.first
    while block != 0 {
      let record = blocks + Int(block)
      let isFirstPage = record.pointee.physicalPC >> 12 == page
      let next = isFirstPage ? record.pointee.nextInPage : record.pointee.nextInSecondPage
      let blockStart = isFirstPage ? record.pointee.physicalPC & 4095 : 0
      let blockEnd =
        isFirstPage
        ? min(blockStart + UInt64(record.pointee.byteCount), 4096)
        : (record.pointee.physicalPC & 4095) + UInt64(record.pointee.byteCount) - 4096
      if record.pointee.isInvalid {
        // Dropped through its other page: leaves this list now.
      } else if blockStart < end && start < blockEnd {
        record.pointee.isInvalid = true
        removeFromHash(block)
        body(block)
      } else {
        let (low, high) = (blockStart / 64, (blockEnd - 1) / 64)
        kept.granules |= (UInt64.max << low) & (UInt64.max >> (63 - high))
        if isFirstPage {
          record.pointee.nextInPage = kept.first
        } else {
          record.pointee.nextInSecondPage = kept.first
        }
        kept.first = block
      }
      block = next
    }
    pages[page] = kept.first == 0 ? nil : kept
    return kept.first != 0
  }

  private func removeFromHash(_ block: UInt32) {
    let record = blocks + Int(block)
    let index = bucket(record.pointee.physicalPC, record.pointee.pc, record.pointee.mode)
    var current = buckets[index]
    if current == block {
      buckets[index] = record.pointee.nextInHash
      return
    }
    while current != 0 {
      let next = blocks[Int(current)].nextInHash
      if next == block {
        blocks[Int(current)].nextInHash = record.pointee.nextInHash
        return
      }
      current = next
    }
  }

  /// The pages that blocks were made from.
  public func hasBlocks(page: UInt64) -> Bool { pages[page] != nil }
  public var pageNumbers: [UInt64] { Array(pages.keys) }

  public mutating func removeAll() {
    for block in 1..<max(count, 1) {
      guard let ir = blocks[block].ir else { continue }
      ir.pointee.instructions.deallocate()
      ir.deallocate()
    }
    count = 1
    buckets.update(repeating: 0, count: Int(bucketMask) + 1)
    pages.removeAll(keepingCapacity: true)
    links.removeAll()
  }
}
