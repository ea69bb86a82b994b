import ApusCPU
import ApusGuest
import ApusIR
import CApusHost
import Synchronization

// Stage 1: granules of 4, 16 and 64 KiB, 48 or 52 bits [Arm ARM D8].

extension AArch64CPU {
  /// A walk's address space and what it is for.
  struct Walk {
    var regime: TranslationRegime
    var control: TranslationControl
    var format: DescriptorFormat
    var virtual: UInt64
    var access: GuestAccess
    var context: Int
    /// Stage 1 alone: the result is an intermediate physical address.
    var isStage1Only: Bool
    var isUser: Bool { AArch64CPU.isUser(context) }
    /// PAN has effect.
    var isGuarded: Bool { context == 1 || context == 3 || context == 6 || context == 9 }
    func fault(_ status: UInt64) -> GuestTranslation { .fault(Syndrome.fault(status, access)) }
    func fault(_ kind: UInt64, level: Int) -> GuestTranslation { fault(Syndrome.status(kind, level)) }
  }

  /// Contexts: see `AArch64Mode`.
  /// - Returns: of secure accesses, physical addresses with `ArmCPUEnvironment.Security.addressBit`.
  func walk(_ virtual: UInt64, _ access: GuestAccess, context: Int, isStage1Only: Bool = false)
    -> GuestTranslation
  {
    let regime = regime(context)
    let isUpper = virtual >> 55 & 1 != 0
    let control = TranslationControl(value: regime.control, isUpper: isUpper)
    let walk = Walk(
      regime: regime, control: control,
      format: DescriptorFormat(
        granuleBits: control.granuleBits,
        isLong: control.isLong && hasLargeAddresses && control.granuleBits != 16,
        hasLargeAddresses: hasLargeAddresses), virtual: virtual, access: access, context: context,
      isStage1Only: isStage1Only)
    let addressBits: UInt64 = hasLargeAddresses ? 52 : 48
    guard regime.isEnabled else {
      guard virtual >> addressBits == 0 else { return walk.fault(Syndrome.addressSize, level: 0) }
      return finish(
        walk,
        GuestPage(
          physical: virtual | (regime.isSecure ? Self.secureBit : 0), canLoad: true, canStore: true,
          isGlobal: true, byteCount: 4096))
    }
    let isLargeInput = walk.format.isLong || control.granuleBits == 16 && hasLargeAddresses
    let inputBits =
      64 - min(max(control.sizeOffset, control.smallestSizeOffset(hasLargeAddresses)), 39)
    var checked = virtual
    if control.ignoresTopByte,
      access != .fetch || !control.ignoresTopByteOfData || !features.contains(.pauth)
    {
      checked = UInt64(bitPattern: Int64(bitPattern: virtual << 8) >> 8)
      if checked != virtual { system?.cluster.hasSeenTags.store(true, ordering: .relaxed) }
    }
    guard !control.isDisabled, !(walk.isUser && control.isPrivileged && features.hasPAN),
      checked >> inputBits == (isUpper ? UInt64.max >> inputBits : 0)
    else {
      return walk.fault(Syndrome.translation, level: 0)
    }
    let format = walk.format
    var level = 4 - Int((inputBits - format.granuleBits + format.stride - 1) / format.stride)
    // The first table may be smaller, or larger where levels are concatenated.
    var indexBits = inputBits - format.shift(level)
    let base = isUpper ? regime.upperTable : regime.lowerTable
    var table = base & 0xffff_ffff_fffe
    if isLargeInput { table = table & ~0x3f | (base >> 2 & 15) << 48 }
    table &= ~((8 << indexBits) - 1)
    // APTable, UXNTable and PXNTable of the tables on the way.
    var hierarchy: UInt64 = 0
    var isSecure = regime.isSecure
    while true {
      let index = virtual >> format.shift(level) & ((1 << indexBits) - 1)
      var entryAddress = table + index * 8
      var canSetFlags = true
      if regime.usesStage2 {
        switch stage2(entryAddress, .load, isUser: walk.isUser) {
        case .fault(let status):
          return .fault(Syndrome.stage2(status, .walk, access, entryAddress))
        case .page(let page):
          (entryAddress, canSetFlags) = (page.physical, page.canStore)
        }
      }
      if isSecure { entryAddress = place(entryAddress | Self.secureBit) }
      guard let pointer = physicalMemory?.word(entryAddress) else {
        return walk.fault(Syndrome.walk, level: level)
      }
      let entry = apus_load_relaxed64(pointer)
      guard entry & Descriptor.valid != 0 else { return walk.fault(Syndrome.translation, level: level) }
      if level < 3, entry & Descriptor.tableOrPage != 0 {
        if !control.ignoresHierarchy { hierarchy |= entry >> 59 & 0xf }
        if entry & Descriptor.tableNotSecure != 0 { isSecure = false }
        table = format.address(entry, lowBits: format.granuleBits)
        guard table >> min(control.outputBits, addressBits) == 0 else {
          return walk.fault(Syndrome.addressSize, level: level)
        }
        level += 1
        indexBits = format.stride
        continue
      }
      guard level == 3 ? entry & Descriptor.tableOrPage != 0 : format.hasBlocks(level) else {
        return walk.fault(Syndrome.translation, level: level)
      }
      let leaf = Leaf(
        entry: entry, pointer: pointer, address: table + index * 8, hierarchy: hierarchy, level: level,
        isSecure: isSecure, canSetFlags: canSetFlags)
      if let found = finish(walk, leaf) { return found }
      // Another CPU changed the entry: once more.
    }
  }

  /// A block's or page's descriptor, and where it is.
  struct Leaf {
    var entry: UInt64
    var pointer: UnsafeMutableRawPointer
    /// For stage 2.
    var address: UInt64
    var hierarchy: UInt64
    var level: Int
    /// No table on the way said that what is below it is not secure.
    var isSecure: Bool
    /// Stage 2 lets the descriptor be written.
    var canSetFlags: Bool
  }

  /// Permissions and address of a block or page; `nil` if the entry changed while its flags were set.
  private func finish(_ walk: Walk, _ leaf: Leaf) -> GuestTranslation? {
    var entry = leaf.entry
    var wanted = entry
    let hierarchy = leaf.hierarchy
    let shift = walk.format.shift(leaf.level)
    let output = walk.format.address(entry, lowBits: shift)
    guard output >> min(walk.control.outputBits, hasLargeAddresses ? 52 : 48) == 0 else {
      return walk.fault(Syndrome.addressSize, level: leaf.level)
    }
    if entry & Descriptor.accessed == 0 {
      guard walk.control.setsAccessed, features.hasHardwareFlags else {
        return walk.fault(Syndrome.accessFlag, level: leaf.level)
      }
      wanted |= Descriptor.accessed
    }
    let isDirtyManaged =
      entry & Descriptor.dirtyManaged != 0 && walk.control.setsDirty && features.hasHardwareFlags
    let isUser = walk.regime.hasUser && entry & Descriptor.user != 0 && hierarchy & 4 == 0
    // Hierarchy: bit 0 PXNTable, 1 UXNTable, 2 no access for EL0, 3 read-only.
    let mayBecomeWritable = hierarchy & 8 == 0 && (entry & Descriptor.readOnly == 0 || isDirtyManaged)
    let neverExecutes: Bool
    if walk.isUser || !walk.regime.hasUser {
      // EL2's one bit is where others have EL0's.
      neverExecutes = entry & Descriptor.userNeverExecute != 0 || hierarchy & 2 != 0
    } else {
      neverExecutes =
        entry & Descriptor.privilegedNeverExecute != 0 || hierarchy & 1 != 0 || isUser && mayBecomeWritable
    }
    let writeImpliesNeverExecute = walk.regime.system >> 19 & 1 != 0 && mayBecomeWritable
    let hasData = walk.isUser ? isUser : !(walk.isGuarded && features.hasPAN && isUser)
    let isSecure = leaf.isSecure && entry & Descriptor.notSecure == 0
    // SCR_EL3.SIF: the secure state executes nothing else.
    let isForeignCode = walk.regime.isSecure && !isSecure && s[.scr] & SCR.fetchesSecure != 0
    let isPermitted =
      switch walk.access {
      case .load: hasData
      case .store: hasData && mayBecomeWritable
      case .fetch: !neverExecutes && !writeImpliesNeverExecute && !isForeignCode
      }
    guard isPermitted else { return walk.fault(Syndrome.permission, level: leaf.level) }
    if walk.access == .store, entry & Descriptor.readOnly != 0 { wanted &= ~Descriptor.readOnly }
    if wanted != entry {
      if walk.regime.usesStage2 {
        // Setting the flags is a store to the table.
        if !leaf.canSetFlags, case .fault(let status) = stage2(leaf.address, .store, isUser: walk.isUser) {
          return .fault(Syndrome.stage2(status, .walk, .store, leaf.address))
        }
      }
      var expected = entry
      guard apus_compare_exchange64(leaf.pointer, &expected, wanted) else { return nil }
      entry = wanted
    }
    let mask = UInt64(1) << shift - 1
    // What the secure state has by tables that are not secure is not global.
    let isGlobal =
      !walk.regime.hasUser
      || entry & Descriptor.notGlobal == 0 && leaf.isSecure == walk.regime.isSecure
    return finish(
      walk,
      GuestPage(
        physical: output | walk.virtual & mask | (isSecure ? Self.secureBit : 0), canLoad: hasData,
        canStore: hasData && mayBecomeWritable && entry & Descriptor.readOnly == 0, isGlobal: isGlobal,
        byteCount: 1 << (entry & Descriptor.contiguous != 0 ? shift + 4 : shift),
        isGuarded: entry & Descriptor.guarded != 0 && features.contains(.bti)))
  }

  /// Stage 1's result, and what stage 2 makes of it.
  private func finish(_ walk: Walk, _ found: GuestPage) -> GuestTranslation {
    guard walk.regime.usesStage2, !walk.isStage1Only else { return .page(found) }
    switch stage2(found.physical, walk.access, isUser: walk.isUser) {
    case .fault(let status): return .fault(Syndrome.stage2(status, .output, walk.access, found.physical))
    case .page(let page):
      var result = found
      result.physical = page.physical
      result.canLoad = found.canLoad && page.canLoad
      result.canStore = found.canStore && page.canStore
      result.byteCount = min(found.byteCount, page.byteCount)
      return .page(result)
    }
  }

  // MARK: Security

  static let secureBit = ArmCPUEnvironment.Security.addressBit

  /// Where the address space has what an access finds at `physical`, an address as `walk` gives it.
  func place(_ physical: UInt64) -> UInt64 {
    guard physical & Self.secureBit != 0 else { return physical }
    let plain = physical & ~Self.secureBit
    return security?.place(plain, isSecure: true) ?? plain
  }
}
