import ApusGuest
import ApusIR
import CApusHost
import Synchronization

// Stage 1 of EL1 and EL0: granules of 4, 16 and 64 KiB, 48 bits [Arm ARM D8].

/// Bits of a block's or page's descriptor [D8.3].
private enum Descriptor {
  static let valid: UInt64 = 1
  static let tableOrPage: UInt64 = 2
  /// AP[1]: EL0 has access. AP[2]: read-only.
  static let user: UInt64 = 1 << 6
  static let readOnly: UInt64 = 1 << 7
  static let accessed: UInt64 = 1 << 10
  static let notGlobal: UInt64 = 1 << 11
  static let dirtyManaged: UInt64 = 1 << 51
  static let contiguous: UInt64 = 1 << 52
  static let privilegedNeverExecute: UInt64 = 1 << 53
  static let userNeverExecute: UInt64 = 1 << 54
}

/// TCR_EL1, by half of the address space [D19.2.139].
private struct TranslationControl {
  let value: UInt64
  let isUpper: Bool
  var sizeOffset: UInt64 { value >> (isUpper ? 16 : 0) & 63 }
  var isDisabled: Bool { value >> (isUpper ? 23 : 7) & 1 != 0 }
  /// E0PD: EL0 has no access to this half.
  var isPrivileged: Bool { value >> (isUpper ? 56 : 55) & 1 != 0 }
  /// The granule's bits: 12, 14, 16.
  var granuleBits: UInt64 {
    if isUpper { return value >> 30 & 3 == 1 ? 14 : value >> 30 & 3 == 3 ? 16 : 12 }
    return value >> 14 & 3 == 1 ? 16 : value >> 14 & 3 == 2 ? 14 : 12
  }
  var ignoresTopByte: Bool { value >> (isUpper ? 38 : 37) & 1 != 0 }
  var setsAccessed: Bool { value >> 39 & 1 != 0 }
  var setsDirty: Bool { value >> 40 & 1 != 0 }
  var ignoresHierarchy: Bool { value >> (isUpper ? 42 : 41) & 1 != 0 }
}

extension AArch64CPU {
  /// The address space identifier that TCR_EL1 chooses.
  var addressSpaceIdentifier: UInt64 {
    let identifier = s[s[.tcr] >> 22 & 1 != 0 ? AArch64SystemSlot.ttbr1 : .ttbr0] >> 48
    return s[.tcr] >> 36 & 1 != 0 ? identifier : identifier & 0xff
  }

  /// Contexts: 0 EL0, 1 EL1, 2 EL1 without PAN.
  func walk(_ virtual: UInt64, _ access: GuestAccess, context: Int) -> GuestTranslation {
    func fault(_ status: UInt64) -> GuestTranslation { .fault(Syndrome.fault(status, access)) }
    guard s[.sctlr] & 1 != 0 else {
      // Physical addresses have 48 bits.
      guard virtual >> 48 == 0 else { return fault(0) }
      return .page(physical: virtual, canLoad: true, canStore: true, isGlobal: true, byteCount: 4096)
    }
    let isUpper = virtual >> 55 & 1 != 0
    let control = TranslationControl(value: s[.tcr], isUpper: isUpper)
    let inputBits = 64 - min(max(control.sizeOffset, 16), 39)
    var checked = virtual
    if control.ignoresTopByte {
      checked = UInt64(bitPattern: Int64(bitPattern: virtual << 8) >> 8)
      if checked != virtual { system?.cluster.hasSeenTags.store(true, ordering: .relaxed) }
    }
    guard !control.isDisabled, !(context == 0 && control.isPrivileged && features.hasPAN),
      checked >> inputBits == (isUpper ? UInt64.max >> inputBits : 0)
    else {
      return fault(4)
    }
    let granuleBits = control.granuleBits
    let stride = granuleBits - 3
    var level = 4 - (inputBits - granuleBits + stride - 1) / stride
    var table = s[isUpper ? AArch64SystemSlot.ttbr1 : .ttbr0] & 0xffff_ffff_fffe
    // The first table may be smaller, or larger where levels are concatenated.
    let firstBits = inputBits - (granuleBits + (3 - level) * stride)
    table &= ~((8 << firstBits) - 1)
    var indexBits = firstBits
    // APTable, UXNTable and PXNTable of the tables on the way.
    var hierarchy: UInt64 = 0
    while true {
      let shift = granuleBits + (3 - level) * stride
      let entryAddress = table + (virtual >> shift & (1 << indexBits - 1)) * 8
      guard let pointer = physicalMemory?.word(entryAddress) else { return fault(0x14 + level) }
      let entry = apus_load_relaxed64(pointer)
      guard entry & Descriptor.valid != 0 else { return fault(4 + level) }
      if level < 3, entry & Descriptor.tableOrPage != 0 {
        if !control.ignoresHierarchy { hierarchy |= entry >> 59 & 0xf }
        table = entry & 0xffff_ffff_ffff & ~(1 << granuleBits - 1)
        level += 1
        indexBits = stride
        continue
      }
      let isBlock = level < 3
      guard isBlock ? level == 2 || level == 1 && granuleBits == 12 : entry & Descriptor.tableOrPage != 0
      else {
        return fault(4 + level)
      }
      if let found = leaf(
        entry, pointer, hierarchy, control, virtual, access, context, shift: shift, level: level)
      {
        return found
      }
      // Another CPU changed the entry: once more.
    }
  }

  /// Permissions and address of a block or page; `nil` if the entry changed while its flags were set.
  private func leaf(
    _ original: UInt64, _ pointer: UnsafeMutableRawPointer, _ hierarchy: UInt64,
    _ control: TranslationControl, _ virtual: UInt64, _ access: GuestAccess, _ context: Int, shift: UInt64,
    level: UInt64
  ) -> GuestTranslation? {
    func fault(_ status: UInt64) -> GuestTranslation { .fault(Syndrome.fault(status + level, access)) }
    var entry = original
    var wanted = entry
    if entry & Descriptor.accessed == 0 {
      guard control.setsAccessed, features.hasHardwareFlags else { return fault(8) }
      wanted |= Descriptor.accessed
    }
    let isDirtyManaged =
      entry & Descriptor.dirtyManaged != 0 && control.setsDirty && features.hasHardwareFlags
    let isUser = entry & Descriptor.user != 0 && hierarchy & 4 == 0
    // Hierarchy: bit 0 PXNTable, 1 UXNTable, 2 no access for EL0, 3 read-only.
    let mayBecomeWritable = hierarchy & 8 == 0 && (entry & Descriptor.readOnly == 0 || isDirtyManaged)
    let neverExecutes: Bool
    if context == 0 {
      neverExecutes = entry & Descriptor.userNeverExecute != 0 || hierarchy & 2 != 0
    } else {
      neverExecutes =
        entry & Descriptor.privilegedNeverExecute != 0 || hierarchy & 1 != 0 || isUser && mayBecomeWritable
    }
    let writeImpliesNeverExecute = s[.sctlr] >> 19 & 1 != 0 && mayBecomeWritable
    let hasData = context == 0 ? isUser : !(context == 1 && features.hasPAN && isUser)
    let isPermitted =
      switch access {
      case .load: hasData
      case .store: hasData && mayBecomeWritable
      case .fetch: !neverExecutes && !writeImpliesNeverExecute
      }
    guard isPermitted else { return fault(0xc) }
    if access == .store, entry & Descriptor.readOnly != 0 { wanted &= ~Descriptor.readOnly }
    if wanted != entry {
      var expected = entry
      guard apus_compare_exchange64(pointer, &expected, wanted) else { return nil }
      entry = wanted
    }
    let mask = UInt64(1) << shift - 1
    let physical = entry & 0xffff_ffff_ffff & ~mask | virtual & mask
    return .page(
      physical: physical, canLoad: hasData,
      canStore: hasData && mayBecomeWritable && entry & Descriptor.readOnly == 0,
      isGlobal: entry & Descriptor.notGlobal == 0,
      byteCount: 1 << (entry & Descriptor.contiguous != 0 ? shift + 4 : shift))
  }

  /// at s1e1r and its like: PAR_EL1 [D19.2.100].
  func translateToRegister(_ address: UInt64, _ access: GuestAccess, level: UInt64) {
    switch walk(address, access, context: level == 0 ? 0 : 2) {
    case .page(let physical, _, _, _, _): s[.par] = physical & 0xffff_ffff_f000 | 0x800 | 0xff << 56 | 2 << 7
    case .fault(let number): s[.par] = 1 | (number & 63) << 1 | 0x800
    }
  }

  // MARK: Maintenance

  /// tlbi [C5.5]. `operation`: CRm in bits 6 to 3 and op2; of the EL1&0 regime.
  func invalidateTLB(_ key: AArch64SystemKey, _ operand: UInt64) {
    // CRm 3 is the Inner Shareable domain, 1 (os) the outer one, 7 this CPU alone.
    let isShared = key.m != 7
    let page = UInt64(bitPattern: Int64(bitPattern: operand << 20) >> 8)
    let isByAddress = key.op2 & 1 != 0 && system?.cluster.hasSeenTags.load(ordering: .relaxed) == false
    engine.invalidateTLB(page: isByAddress ? page : nil, keepGlobal: key.op2 == 2, isShared: isShared)
    s.requestDispatch()
  }
}
