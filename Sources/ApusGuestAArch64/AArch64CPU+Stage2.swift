import ApusGuest
import CApusHost

// Stage 2: from a virtual machine's intermediate physical addresses to physical ones [Arm ARM D8.1.2].

/// VTCR_EL2 [D19.2.161].
struct Stage2Control {
  let value: UInt64
  let hasLargeAddresses: Bool
  var sizeOffset: UInt64 { value & 63 }
  var startLevel: UInt64 { value >> 6 & 3 }
  var granuleBits: UInt64 { value >> 14 & 3 == 1 ? 16 : value >> 14 & 3 == 2 ? 14 : 12 }
  var outputBits: UInt64 { TranslationControl.outputBits(value >> 16 & 7) }
  var setsAccessed: Bool { value >> 21 & 1 != 0 }
  var setsDirty: Bool { value >> 22 & 1 != 0 }
  var format: DescriptorFormat {
    DescriptorFormat(
      granuleBits: granuleBits, isLong: hasLargeAddresses && value >> 32 & 1 != 0 && granuleBits != 16,
      hasLargeAddresses: hasLargeAddresses)
  }
  /// The level of the first table: SL0, or SL2 with it.
  var firstLevel: Int {
    if granuleBits == 12 {
      if format.isLong, value >> 33 & 1 != 0 { return -1 }
      return startLevel == 3 ? 3 : 2 - Int(startLevel)
    }
    return 3 - Int(startLevel)
  }
}

extension AArch64CPU {
  struct Stage2Page {
    var physical: UInt64
    var canLoad: Bool
    var canStore: Bool
    var byteCount: UInt64
  }
  enum Stage2Result {
    case page(Stage2Page)
    /// A fault's status.
    case fault(UInt64)
  }

  private enum Stage2Descriptor {
    // S2AP, then XN[1:0] from bit 53.
    static let load: UInt64 = 1 << 6
    static let store: UInt64 = 1 << 7
  }

  /// - Parameter isUser: EL0's access, where instructions may be executable for one level only.
  func stage2(_ address: UInt64, _ access: GuestAccess, isUser: Bool) -> Stage2Result {
    func fault(_ kind: UInt64, _ level: Int) -> Stage2Result { .fault(Syndrome.status(kind, level)) }
    let control = Stage2Control(value: s[.vtcr], hasLargeAddresses: hasLargeAddresses)
    let format = control.format
    let isLarge = format.isLong || control.granuleBits == 16 && hasLargeAddresses
    let inputBits = 64 - min(max(control.sizeOffset, isLarge ? 12 : 16), 39)
    var level = control.firstLevel
    guard inputBits > format.shift(level) else { return fault(Syndrome.translation, 0) }
    // Up to 16 tables may lie one behind the other in the first level.
    var indexBits = inputBits - format.shift(level)
    guard address >> inputBits == 0, indexBits <= format.stride + 4 else {
      return fault(Syndrome.translation, 0)
    }
    var table = s[.vttbr] & 0xffff_ffff_fffe
    if isLarge { table = table & ~0x3f | (s[.vttbr] >> 2 & 15) << 48 }
    table &= ~((8 << indexBits) - 1)
    let outputBits = min(control.outputBits, hasLargeAddresses ? 52 : 48)
    while true {
      let shift = format.shift(level)
      guard let pointer = physicalMemory?.word(table + (address >> shift & ((1 << indexBits) - 1)) * 8) else {
        return fault(Syndrome.walk, level)
      }
      let entry = apus_load_relaxed64(pointer)
      guard entry & Descriptor.valid != 0 else { return fault(Syndrome.translation, level) }
      if level < 3, entry & Descriptor.tableOrPage != 0 {
        table = format.address(entry, lowBits: format.granuleBits)
        guard table >> outputBits == 0 else { return fault(Syndrome.addressSize, level) }
        level += 1
        indexBits = format.stride
        continue
      }
      guard level == 3 ? entry & Descriptor.tableOrPage != 0 : format.hasBlocks(level) else {
        return fault(Syndrome.translation, level)
      }
      let output = format.address(entry, lowBits: shift)
      guard output >> outputBits == 0 else { return fault(Syndrome.addressSize, level) }
      guard let wanted = stage2Permits(entry, access, control, isUser: isUser) else {
        return fault(Syndrome.permission, level)
      }
      if wanted & Descriptor.accessed == 0 { return fault(Syndrome.accessFlag, level) }
      if wanted != entry {
        var expected = entry
        // Another CPU changed the entry: once more.
        guard apus_compare_exchange64(pointer, &expected, wanted) else { continue }
      }
      let byteShift = entry & Descriptor.contiguous != 0 ? shift + 4 : shift
      return .page(
        Stage2Page(
          physical: output | address & ((1 << shift) - 1), canLoad: wanted & Stage2Descriptor.load != 0,
          canStore: wanted & Stage2Descriptor.store != 0, byteCount: 1 << byteShift))
    }
  }

  /// The descriptor with its flags set, as far as VTCR_EL2 lets hardware do that; `nil` if the access is not permitted.
  private func stage2Permits(_ entry: UInt64, _ access: GuestAccess, _ control: Stage2Control, isUser: Bool)
    -> UInt64?
  {
    var wanted = entry
    if control.setsAccessed, features.hasHardwareFlags { wanted |= Descriptor.accessed }
    switch access {
    case .load: return entry & Stage2Descriptor.load != 0 ? wanted : nil
    case .store:
      if entry & Stage2Descriptor.store != 0 { return wanted }
      guard control.setsDirty, control.setsAccessed, features.hasHardwareFlags,
        entry & Descriptor.dirtyManaged != 0
      else { return nil }
      return wanted | Stage2Descriptor.store
    case .fetch:
      // XN[1] without XNX; with it both levels, EL0 alone, none, EL1 alone. XNX is there where virtual hosts are.
      let executes =
        switch entry >> 53 & 3 {
        case 0: true
        case 1: hasHostExtensions ? isUser : true
        case 2: false
        default: hasHostExtensions && !isUser
        }
      return executes ? wanted : nil
    }
  }
}
