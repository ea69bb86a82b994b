import ApusGuest

// What a page-table walk depends on [Arm ARM D8.1].

/// Bits of a block's or page's descriptor of stage 1 [D8.3].
enum Descriptor {
  static let valid: UInt64 = 1
  /// NS: of the secure state's tables, the output is not secure; of descriptors of tables, NSTable, nothing below is.
  static let notSecure: UInt64 = 1 << 5
  static let tableNotSecure: UInt64 = 1 << 63
  static let tableOrPage: UInt64 = 2
  /// AP[1]: EL0 has access. AP[2]: read-only.
  static let user: UInt64 = 1 << 6
  static let readOnly: UInt64 = 1 << 7
  static let accessed: UInt64 = 1 << 10
  static let notGlobal: UInt64 = 1 << 11
  static let guarded: UInt64 = 1 << 50
  static let dirtyManaged: UInt64 = 1 << 51
  static let contiguous: UInt64 = 1 << 52
  static let privilegedNeverExecute: UInt64 = 1 << 53
  static let userNeverExecute: UInt64 = 1 << 54
}

/// How addresses lie in descriptors: by granule, and by whether addresses have 52 bits.
struct DescriptorFormat {
  /// The granule's bits: 12, 14, 16.
  let granuleBits: UInt64
  /// TCR.DS or VTCR.DS: with granules of 4 and 16 KiB, bits 9 and 8 are address bits 51 and 50.
  let isLong: Bool
  /// With granules of 64 KiB, bits 15 to 12 are address bits 51 to 48.
  let hasLargeAddresses: Bool

  var stride: UInt64 { granuleBits - 3 }
  /// The address bits that a level leaves.
  func shift(_ level: Int) -> UInt64 { granuleBits + UInt64(3 - level) * stride }

  /// The output address, or the next table's.
  func address(_ entry: UInt64, lowBits: UInt64) -> UInt64 {
    let mask = ~((UInt64(1) << lowBits) - 1)
    if isLong { return entry & 0x3_ffff_ffff_ffff & mask | (entry >> 8 & 3) << 50 }
    let address = entry & 0xffff_ffff_ffff & mask
    return granuleBits == 16 && hasLargeAddresses ? address | (entry >> 12 & 15) << 48 : address
  }

  /// Whether an entry of this level may be a block.
  func hasBlocks(_ level: Int) -> Bool {
    level == 2 || level == 1 && (granuleBits == 12 || isLong || granuleBits == 16 && hasLargeAddresses)
      || level == 0 && granuleBits == 12 && isLong
  }
}

/// A control register of stage 1 in TCR_EL1's layout, by half of the address space [D19.2.139].
struct TranslationControl {
  let value: UInt64
  let isUpper: Bool
  var sizeOffset: UInt64 { value >> (isUpper ? 16 : 0) & 63 }
  var isDisabled: Bool { value >> (isUpper ? 23 : 7) & 1 != 0 }
  /// E0PD: EL0 has no access to this half.
  var isPrivileged: Bool { value >> (isUpper ? 56 : 55) & 1 != 0 }
  var granuleBits: UInt64 {
    if isUpper { return value >> 30 & 3 == 1 ? 14 : value >> 30 & 3 == 3 ? 16 : 12 }
    return value >> 14 & 3 == 1 ? 16 : value >> 14 & 3 == 2 ? 14 : 12
  }
  /// TBI; TBID, which came with pointer authentication, takes instructions out.
  var ignoresTopByte: Bool { value >> (isUpper ? 38 : 37) & 1 != 0 }
  var ignoresTopByteOfData: Bool { value >> (isUpper ? 52 : 51) & 1 != 0 }
  var setsAccessed: Bool { value >> 39 & 1 != 0 }
  var setsDirty: Bool { value >> 40 & 1 != 0 }
  var ignoresHierarchy: Bool { value >> (isUpper ? 42 : 41) & 1 != 0 }
  var isLong: Bool { value >> 59 & 1 != 0 }
  /// 52 bits of input address where DS or the granule allow that, 48 otherwise.
  func smallestSizeOffset(_ hasLargeAddresses: Bool) -> UInt64 {
    hasLargeAddresses && (granuleBits == 16 || isLong) ? 12 : 16
  }
  /// IPS: the bits of output addresses.
  var outputBits: UInt64 { Self.outputBits(value >> 32 & 7) }
  static func outputBits(_ field: UInt64) -> UInt64 { [32, 36, 40, 42, 44, 48, 52, 52][Int(field)] }

  /// TCR_EL2 without E2H, or TCR_EL3, in TCR_EL1's layout: there is no upper half.
  static func fromHypervisor(_ value: UInt64) -> UInt64 {
    var result = value & 0xffff & ~(1 << 7) | 1 << 23
    result |= (value >> 16 & 7) << 32
    // TBI, HA, HD, HPD, TBID, DS
    for (from, to) in [(20, 37), (21, 39), (22, 40), (24, 41), (29, 51), (32, 59)] as [(UInt64, UInt64)] {
      result |= (value >> from & 1) << to
    }
    return result
  }
}

/// A translation regime: EL1&0, EL2, EL2&0, or EL3.
struct TranslationRegime {
  /// In TCR_EL1's layout.
  var control: UInt64
  var lowerTable: UInt64
  var upperTable: UInt64
  /// SCTLR_ELx, M as it has effect.
  var system: UInt64
  /// Pages have permissions of EL0; else there is one privilege (EL2 or EL3).
  var hasUser = true
  /// The secure state's: descriptors say which accesses are secure.
  var isSecure = false
  var usesStage2 = false
  var isEnabled: Bool { system & 1 != 0 }

  /// The identifier in the table register that TCR.A1 chooses.
  var identifier: UInt64 {
    guard hasUser else { return 0 }
    let identifier = (control >> 22 & 1 != 0 ? upperTable : lowerTable) >> 48
    return control >> 36 & 1 != 0 ? identifier : identifier & 0xff
  }
}

extension AArch64CPU {
  /// HCR_EL2.E2H and TGE: EL0 is the host's.
  var isHost: Bool { s[.hcr] & HCR.host == HCR.host }
  /// Where EL0 and EL1 use stage 2.
  var usesStage2: Bool { s[.hcr] & (HCR.stage2 | HCR.defaultCacheable) != 0 && s[.hcr] & HCR.general == 0 }

  func regime(_ context: Int) -> TranslationRegime {
    if Self.isOfGuest(context) {
      let isOff = s[.hcr] & (HCR.defaultCacheable | HCR.general) != 0
      return TranslationRegime(
        control: s[.tcr], lowerTable: s[.ttbr0], upperTable: s[.ttbr1],
        system: isOff ? s[.sctlr] & ~1 : s[.sctlr], isSecure: isSecure, usesStage2: usesStage2)
    }
    if context == 8 {
      return TranslationRegime(
        control: TranslationControl.fromHypervisor(s[.tcr3]), lowerTable: s[.ttbr0EL3], upperTable: 0,
        system: s[.sctlr3], hasUser: false, isSecure: true)
    }
    let hasUser = s[.hcr] & HCR.hostExtensions != 0
    return TranslationRegime(
      control: hasUser ? s[.tcr2] : TranslationControl.fromHypervisor(s[.tcr2]), lowerTable: s[.ttbr0EL2],
      upperTable: s[.ttbr1EL2], system: s[.sctlr2], hasUser: hasUser)
  }

  /// Contexts of EL1&0, and those in which accesses are EL0's: see `AArch64Mode`.
  static func isOfGuest(_ context: Int) -> Bool { context < 3 || context > 8 }
  static func isUser(_ context: Int) -> Bool { context == 0 || context == 5 || context > 10 }

  /// The contexts that go together: EL0's, EL1's with either upper table, EL2's, EL3's.
  enum ContextGroup: Int {
    case user, kernel, otherKernel, hypervisor, monitor
    var first: Int { [0, 1, 9, 3, 8][rawValue] }
    var contexts: GuestContexts {
      switch self {
      case .user: GuestContexts(bits: 1)
      case .kernel: GuestContexts(bits: 1 << 1 | 1 << 2 | 1 << 11)
      case .otherKernel: GuestContexts(bits: 1 << 9 | 1 << 10 | 1 << 12)
      case .hypervisor: GuestContexts(bits: 0xf8)
      case .monitor: GuestContexts(bits: 1 << 8)
      }
    }
    /// All of EL1&0.
    static let guest = GuestContexts(bits: 0x1e07)
  }

  public func canTranslate(context: Int) -> Bool {
    // While EL2 runs, or its processes, EL1's registers may be those of any virtual machine; while EL3 does, those of lower
    // levels may be either state's.
    switch s[.exceptionLevel] {
    case 3: return context == 8
    case 2: return !Self.isOfGuest(context)
    default:
      guard Self.isOfGuest(context) else { return true }
      // Of EL1&0's contexts only those that are in the address space that the registers name.
      let group: ContextGroup = context == 0 ? .user : context < 3 || context == 11 ? .kernel : .otherKernel
      return !isHost && addressSpaces[group.rawValue] == addressSpace(of: group)
        && (group == .user || (group == .otherKernel) == hasOtherTable)
    }
  }

  /// EL1&0's registers changed, or EL2 or EL3, which may have changed them, go to a lower level. EL0's address space is
  /// looked at when EL0 is entered: until then EL1 may go back to the one before.
  func updateKernelAddressSpace() {
    let table = s[.ttbr1] & 0xffff_ffff_fffe
    let current = hasOtherTable ? upperTables.1 : upperTables.0
    if table != current {
      // The other contexts' table, or one that takes its place.
      hasOtherTable.toggle()
      if hasOtherTable { upperTables.1 = table } else { upperTables.0 = table }
      levelModes[1].hasOtherTable = hasOtherTable
      updateMode()
    }
    updateAddressSpace(of: hasOtherTable ? .otherKernel : .kernel)
  }

  /// Tells the engine which address spaces the group's contexts belong to, if that changed.
  func updateAddressSpace(of group: ContextGroup) {
    let space = addressSpace(of: group)
    guard addressSpaces[group.rawValue] != space else { return }
    addressSpaces[group.rawValue] = space
    engine.addressSpaceChanged(space, contexts: group.contexts)
  }

  private func addressSpace(of group: ContextGroup) -> GuestAddressSpace {
    let regime = regime(group.first)
    // M, WXN, and BT0 and BT1, which branches that are remembered depend on; what decides about stage 2 and whose pages
    // these are; the security state.
    var machine = UInt32(regime.system & 1) << 16 | UInt32(regime.system >> 19 & 1) << 17
    machine |= UInt32(regime.system >> 35 & 3) << 20
    if group == .hypervisor {
      machine |= regime.hasUser ? 1 << 18 : 0
    } else if group != .monitor, isHypervisorEnabled {
      machine |= UInt32(s[.vttbr] >> 48) & (s[.vtcr] >> 19 & 1 != 0 ? 0xffff : 0xff)
      machine |= regime.usesStage2 ? 1 << 18 : 0
    }
    machine |= regime.isSecure ? 1 << 19 : 0
    return GuestAddressSpace(identifier: UInt32(regime.identifier), machine: machine)
  }
}
