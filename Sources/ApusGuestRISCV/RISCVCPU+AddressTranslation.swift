import ApusGuest
import ApusIR
import ApusISARISCV
import CApusHost

// Sv39, Sv48, Sv57 page tables and physical memory protection [RV-Priv 1.12 §3.7, §4.3-4.5].
//
//   63 62 61 60..54 53          10 9 8 7 6 5 4 3 2 1 0
//  | N | PBMT | 0  | physical page | RSW|D|A|G|U|X|W|R|V|

private enum PTE {
  static let valid: UInt64 = 1
  static let read: UInt64 = 2
  static let write: UInt64 = 4
  static let execute: UInt64 = 8
  static let user: UInt64 = 16
  static let global: UInt64 = 32
  static let accessed: UInt64 = 64
  static let dirty: UInt64 = 128
}

extension RISCVCPU {
  private func pageFault(_ access: GuestAccess) -> GuestTranslation {
    switch access {
    case .load: .fault(RISCVCause.loadPage)
    case .store: .fault(RISCVCause.storePage)
    case .fetch: .fault(RISCVCause.instructionPage)
    }
  }

  static let contexts = GuestContexts(bits: 0xf)
  /// Those that satp is for.
  static let pagedContexts = GuestContexts(bits: 7)

  /// Contexts: 0 user, 1 supervisor, 2 supervisor with SUM, 3 machine.
  public func translateAddress(_ address: UInt64, _ access: GuestAccess, context: Int) -> GuestTranslation {
    let satp = s[.satp]
    let levels: Int
    switch satp >> 60 {
    case _ where context == 3: levels = 0
    case 8: levels = 3
    case 9: levels = 4
    case 10: levels = 5
    default: levels = 0
    }
    let privilege: UInt64 = context == 3 ? 3 : context == 0 ? 0 : 1
    if levels == 0 {
      return protect(
        address, privilege, access, canLoad: true, canStore: true, isGlobal: context == 3, byteCount: 4096)
    }
    let addressBits = 12 + 9 * levels
    guard signExtended(address, addressBits) == address else { return pageFault(access) }

    var table = (satp & 0xfff_ffff_ffff) << 12
    var level = levels - 1
    var isGlobal = false
    let allowed = pmpAllows(table, 1, .load)
    guard allowed else { return .fault(busFault(access)) }
    while true {
      let entryAddress = table + (address >> UInt64(12 + 9 * level) & 0x1ff) * 8
      guard pmpAllows(entryAddress, 1, .load), let entryPointer = physicalMemory?.word(entryAddress) else {
        return .fault(busFault(access))
      }
      var entry = apus_load_relaxed64(entryPointer)
      let isReserved =
        entry & PTE.valid == 0 || entry & (PTE.read | PTE.write) == PTE.write || entry >> 54 & 0x7f != 0
      if isReserved { return pageFault(access) }
      let memoryType = entry >> 61 & 3
      if memoryType != 0, !extensions.contains(.svpbmt) || s[.menvcfg] >> 62 & 1 == 0 || memoryType == 3 {
        return pageFault(access)
      }
      isGlobal = isGlobal || entry & PTE.global != 0
      if entry & (PTE.read | PTE.execute) == 0 {
        // A pointer to the next table.
        let mustBeZero = PTE.accessed | PTE.dirty | PTE.user | 1 << 63 | 3 << 61
        guard level > 0, entry & mustBeZero == 0 else { return pageFault(access) }
        table = (entry >> 10 & 0xfff_ffff_ffff) << 12
        level -= 1
        continue
      }

      // A leaf.
      let isUser = entry & PTE.user != 0
      if privilege == 0 ? !isUser : isUser && (access == .fetch || context != 2) { return pageFault(access) }
      let mayLoad =
        entry & PTE.read != 0 || (s[.mstatus] & MStatus.mxr != 0 && entry & PTE.execute != 0)
      let mayStore = entry & PTE.write != 0
      let isPermitted =
        switch access {
        case .load: mayLoad
        case .store: mayStore
        case .fetch: entry & PTE.execute != 0
        }
      guard isPermitted else { return pageFault(access) }
      var page = entry >> 10 & 0xfff_ffff_ffff
      let pageMask = (UInt64(1) << UInt64(9 * level)) - 1
      guard page & pageMask == 0 else { return pageFault(access) }  // misaligned superpage
      let isContiguous = entry >> 63 != 0
      if isContiguous {
        // Svnapot: only 64 KiB at the last level [RV-Priv 1.12 ch. 5].
        guard extensions.contains(.svnapot), level == 0, page & 15 == 8 else { return pageFault(access) }
        page = page & ~15 | address >> 12 & 15
      }
      let wanted = PTE.accessed | (access == .store ? PTE.dirty : 0)
      if entry & wanted != wanted {
        // With Svadu the environment decides; without, the hardware sets the bits, as QEMU's does.
        if extensions.contains(.svadu), s[.menvcfg] >> 61 & 1 == 0 { return pageFault(access) }
        guard pmpAllows(entryAddress, 1, .store) else { return .fault(busFault(access)) }
        var expected = entry
        guard apus_compare_exchange64(entryPointer, &expected, entry | wanted) else { continue }
        entry |= wanted
      }
      let physical = (page | (address >> 12 & pageMask)) << 12 | address & 0xfff
      return protect(
        physical, privilege, access, canLoad: mayLoad, canStore: mayStore && entry & PTE.dirty != 0,
        isGlobal: isGlobal, byteCount: 4096 << UInt64(9 * level + (isContiguous ? 4 : 0)))
    }
  }

  private func signExtended(_ value: UInt64, _ bits: Int) -> UInt64 {
    UInt64(bitPattern: Int64(bitPattern: value << UInt64(64 - bits)) >> Int64(64 - bits))
  }

  // MARK: Physical memory protection

  /// Protection regions have a grain of one page, so that a page is uniform.
  static let pmpGrain: UInt64 = 10

  private func protect(
    _ physical: UInt64, _ privilege: UInt64, _ access: GuestAccess, canLoad: Bool, canStore: Bool,
    isGlobal: Bool,
    byteCount: UInt64
  ) -> GuestTranslation {
    guard pmpAllows(physical, privilege, access) else { return .fault(busFault(access)) }
    return .page(
      GuestPage(
        physical: physical, canLoad: canLoad && (access == .load || pmpAllows(physical, privilege, .load)),
        canStore: canStore && (access == .store || pmpAllows(physical, privilege, .store)),
        isGlobal: isGlobal, byteCount: byteCount))
  }

  func pmpConfiguration(_ index: Int) -> UInt64 {
    s[index < 8 ? .pmpcfg0 : .pmpcfg2] >> UInt64(8 * (index & 7)) & 0xff
  }
  func pmpAddress(_ index: Int) -> UInt64 {
    state.load(fromByteOffset: RISCVState.Field.pmpaddr0.offset + index * 8, as: UInt64.self)
  }

  /// The first matching entry decides [RV-Priv 1.12 §3.7.1].
  private func pmpAllows(_ physical: UInt64, _ privilege: UInt64, _ access: GuestAccess) -> Bool {
    if physical &- pmpRange.low >= pmpRange.byteCount { pmpRange = findPMPRange(physical) }
    if privilege == 3, !pmpRange.isLocked { return true }
    switch access {
    case .load: return pmpRange.permissions & 1 != 0
    case .store: return pmpRange.permissions & 2 != 0
    case .fetch: return pmpRange.permissions & 4 != 0
    }
  }

  /// The protection of `physical`, and around it the range that no entry's border cuts.
  private func findPMPRange(_ physical: UInt64) -> PMPRange {
    guard hasPMP else { return PMPRange(low: 0, byteCount: .max, permissions: 7, isLocked: false) }
    // With no entry that matches, only M-mode has access.
    var range = PMPRange(low: 0, byteCount: .max, permissions: 0, isLocked: false)
    var high = UInt64.max
    var previous: UInt64 = 0
    let grain = ~(UInt64(1) << Self.pmpGrain - 1)
    entries: for index in 0..<16 {
      let configuration = pmpConfiguration(index)
      let address = pmpAddress(index)
      // In words of 4 bytes; `last` is inside.
      var first: UInt64 = 0
      var last: UInt64 = 0
      switch configuration >> 3 & 3 {
      case 1:
        first = previous & grain
        last = (address & grain) &- 1
        previous = address
        if first > last || address & grain == 0 { continue }
      case 3:
        let ones = address | (1 << (Self.pmpGrain - 1) - 1)
        let size = ones ^ (ones &+ 1)  // the trailing ones and the zero above
        first = ones & ~size
        last = first | size
        previous = address
      default:
        previous = address
        continue
      }
      let low = first << 2
      let end = last >> 62 != 0 ? UInt64.max : last << 2 | 3
      if physical < low {
        high = min(high, low - 1)
      } else if physical > end {
        range.low = max(range.low, end + 1)
      } else {
        range.low = max(range.low, low)
        high = min(high, end)
        range.permissions = configuration & 7
        range.isLocked = configuration & 0x80 != 0
        break entries
      }
    }
    range.byteCount = high &- range.low &+ 1
    if range.byteCount == 0 { range.byteCount = .max }
    return range
  }
}

/// Physical addresses that protection treats alike: what was found last. Empty when entries changed.
struct PMPRange {
  var low: UInt64 = 0
  var byteCount: UInt64 = 0
  /// 1 load, 2 store, 4 fetch, for S and U; for M too if locked.
  var permissions: UInt64 = 0
  var isLocked = false
}
