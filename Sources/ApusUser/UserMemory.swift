import ApusHost
import CApusHost
import Glibc

/// The guest's address space, which lies in the host's: which pages are the guest's, and with what protection.
///
/// No guest page is ever executable on the host. How changes to code are noticed is told in `CodePage`. Pages are only
/// ever mapped over pages that are the guest's or nobody's, so that a guest cannot replace the emulator.
///
/// Any thread. Lock order: the translation cache's lock before this one.
public final class UserMemory: @unchecked Sendable {
  public struct Region: Equatable, Sendable {
    public var start: UInt64
    public var end: UInt64
    /// As the guest asked for it: PROT_READ 1, PROT_WRITE 2, PROT_EXEC 4.
    public var protection: Int32
    public var isShared: Bool
    public var label = Label.none
    /// mseal: stays as it is.
    public var isSealed = false
    /// Part of core files: not after MADV_DONTDUMP.
    public var isDumped = true

    /// What the region adds to the process's size: a stack is there as a whole, but counts as far as the kernel's would
    /// have grown at first.
    var countedByteCount: UInt64 { label == .stack ? min(end - start, 132 << 10) : end - start }
    /// Whether it counts as data (RLIMIT_DATA).
    var isData: Bool { protection & PROT_WRITE != 0 && !isShared && label != .stack }
  }
  /// What /proc/self/maps calls a region without a file.
  public enum Label: Sendable { case none, heap, stack, vdso }

  public static let pageMask: UInt64 = 4095
  /// Guest addresses end here: Sv39 user space would be smaller, but the host's end is what counts.
  public static let limit: UInt64 = 1 << 47
  let addresses = AddressChoice()
  /// The bit of a protection that guards pages; set before there are any.
  var guardProtection: Int32 = 0
  /// There has been a page with it.
  private(set) var hasGuardedPages = false

  let lock = Monitor()
  // Guarded by `lock`. Ascending, disjoint.
  private(set) var regions: [Region] = []
  private var lastFound = 0
  /// One fence at a time: whoever returns from one relies on what another has begun to drop. Taken before `lock`.
  let fenceLock = Monitor()
  private var nextMapping: UInt64
  /// Pages that code was translated from and that may be written, by address.
  var codePages: [UInt64: CodePage] = [:]
  /// System V shared memory: sizes by address.
  private var attachments: [UInt64: UInt64] = [:]
  /// RLIMIT_AS and RLIMIT_DATA, the kernel's soft limits for the guest.
  private var sizeLimit = UInt64.max
  private var dataLimit = UInt64.max
  private var breakStart: UInt64 = 0
  private var breakEnd: UInt64 = 0
  /// Drops translated code of a range and says whether there was any. Called without `lock`.
  public var invalidate: (UInt64, UInt64) -> Bool = { _, _ in false }
  func dropCode(_ start: UInt64, _ end: UInt64) { _ = invalidate(start, end) }

  public init() { nextMapping = addresses.mappings }

  func whileForking(_ fork: () -> Int) -> Int { lock.withLock(fork) }

  // MARK: Looking up

  func index(_ address: UInt64) -> Int? {
    if lastFound < regions.count, regions[lastFound].start <= address, address < regions[lastFound].end {
      return lastFound
    }
    var (low, high) = (0, regions.count)
    while low < high {
      let middle = (low + high) / 2
      if regions[middle].end <= address { low = middle + 1 } else { high = middle }
    }
    guard low < regions.count, regions[low].start <= address else { return nil }
    lastFound = low
    return low
  }
  public func region(at address: UInt64) -> Region? { lock.withLock { index(address).map { regions[$0] } } }
  public func isExecutable(_ address: UInt64) -> Bool {
    lock.withLock { index(address).map { regions[$0].protection & PROT_EXEC != 0 } ?? false }
  }
  func isGuarded(_ address: UInt64) -> Bool {
    lock.withLock {
      index(address).map {
        regions[$0].protection & guardProtection != 0 && regions[$0].protection & PROT_EXEC != 0
      }
        ?? false
    }
  }
  public var all: [Region] { lock.withLock { regions } }

  func hostProtection(_ protection: Int32) -> Int32 {
    // What may be executed must be readable by the translator.
    let readable = protection & (PROT_READ | PROT_EXEC | PROT_WRITE) != 0 ? PROT_READ : 0
    return readable | protection & PROT_WRITE
  }

  // MARK: The table

  /// Takes `start ..< end` out of the table; regions at its ends are cut.
  private func forget(_ start: UInt64, _ end: UInt64) {
    cut(start, end)
    forgetCodePages(start, end)
  }
  private func cut(_ start: UInt64, _ end: UInt64) {
    var position = 0
    while position < regions.count, regions[position].end <= start { position += 1 }
    var replacement: [Region] = []
    var last = position
    while last < regions.count, regions[last].start < end {
      let region = regions[last]
      if region.start < start {
        var below = region
        below.end = start
        replacement.append(below)
      }
      if region.end > end {
        var above = region
        above.start = end
        replacement.append(above)
      }
      last += 1
    }
    regions.replaceSubrange(position..<last, with: replacement)
  }

  private func enter(_ region: Region) {
    forget(region.start, region.end)
    note(region)
  }
  /// The same for what has been the guest's: its code stays watched.
  private func note(_ region: Region) {
    cut(region.start, region.end)
    var position = regions.firstIndex { $0.start >= region.end } ?? regions.count
    var region = region
    func canMerge(_ other: Region) -> Bool {
      other.protection == region.protection && other.isShared == region.isShared
        && other.label == region.label && other.isSealed == region.isSealed
        && other.isDumped == region.isDumped
    }
    if position > 0, regions[position - 1].end == region.start, canMerge(regions[position - 1]) {
      region.start = regions[position - 1].start
      regions.remove(at: position - 1)
      position -= 1
    }
    if position < regions.count, regions[position].start == region.end, canMerge(regions[position]) {
      region.end = regions[position].end
      regions.remove(at: position)
    }
    regions.insert(region, at: position)
  }

  /// The parts of `start ..< end` that are the guest's (`inside`) or not.
  private func parts(_ start: UInt64, _ end: UInt64, inside: Bool) -> [(UInt64, UInt64)] {
    var result: [(UInt64, UInt64)] = []
    var position = start
    for region in regions where region.end > start && region.start < end {
      let low = max(region.start, start)
      let high = min(region.end, end)
      if inside { result.append((low, high)) } else if low > position { result.append((position, low)) }
      position = high
    }
    if !inside, position < end { result.append((position, end)) }
    return result
  }

  /// What of a range is the guest's, and whether that is all of it.
  func guestRanges(_ start: UInt64, _ end: UInt64) -> ([(UInt64, UInt64)], isWhole: Bool) {
    lock.withLock { (parts(start, end, inside: true), parts(start, end, inside: false).isEmpty) }
  }

  private func hasSealed(_ start: UInt64, _ end: UInt64) -> Bool {
    regions.contains { $0.isSealed && $0.end > start && $0.start < end }
  }

  // MARK: Limits

  public func setLimits(size: UInt64, data: UInt64) {
    lock.withLock { (sizeLimit, dataLimit) = (size, data) }
  }

  /// Whether the limits let a region be entered, in place of what is in `replaced`. Under `lock`.
  private func isAllowed(_ byteCount: UInt64, isData: Bool, replacing replaced: (UInt64, UInt64)? = nil)
    -> Bool
  {
    if sizeLimit == .max && dataLimit == .max { return true }
    var (size, data) = (byteCount, isData ? byteCount : 0)
    for var region in regions {
      if let replaced, region.end > replaced.0, region.start < replaced.1 {
        let inside = min(region.end, replaced.1) - max(region.start, replaced.0)
        region.end -= inside
      }
      size += region.countedByteCount
      if region.isData { data += region.countedByteCount }
    }
    return size <= sizeLimit && (!isData || data <= dataLimit)
  }

  // MARK: System calls. Results are the kernel's: an address or a negative errno.

  private func hostMap(
    _ address: UInt64, _ length: UInt64, _ protection: Int32, _ flags: Int32, _ file: Int32, _ offset: Int
  )
    -> Int
  {
    Int(
      apus_syscall(
        9, address, length, UInt64(protection), UInt64(UInt32(bitPattern: flags)),
        UInt64(bitPattern: Int64(file)),
        UInt64(bitPattern: Int64(offset))))
  }
  /// MAP_FIXED_NOREPLACE and, on x86-64 only, MAP_32BIT.
  private static let noReplace: Int32 = 0x100000
  private static let low32: Int32 = 0x40

  public func map(
    _ wish: UInt64, _ length: UInt64, _ protection: Int32, _ flags: Int32, _ file: Int32, _ offset: Int,
    label: Label = .none
  ) -> Int {
    // The kernel says what is wrong first: the descriptor, or that nothing is asked for.
    guard length > 0 else { return hostMap(0, 0, protection & 7, flags & ~MAP_FIXED, file, offset) }
    if protection & guardProtection != 0 { hasGuardedPages = true }
    guard length <= Self.limit, wish < Self.limit, wish & Self.pageMask == 0 || flags & MAP_FIXED == 0 else {
      return -Int(wish & Self.pageMask != 0 && flags & MAP_FIXED != 0 ? EINVAL : ENOMEM)
    }
    let size = (length + Self.pageMask) & ~Self.pageMask
    let isFixed = flags & (MAP_FIXED | Self.noReplace) != 0
    let base = flags & ~(MAP_FIXED | Self.noReplace | Self.low32)
    var dropped: (UInt64, UInt64)?
    let isData = protection & PROT_WRITE != 0 && flags & MAP_SHARED == 0 && label != .stack
    let result = lock.withLock { () -> Int in
      var address: UInt64
      var size = size
      guard isAllowed(size, isData: isData, replacing: isFixed ? (wish, wish &+ size) : nil) else {
        return -Int(ENOMEM)
      }
      if isFixed {
        guard wish &+ size <= Self.limit, wish &+ size > wish else { return -Int(ENOMEM) }
        if flags & Self.noReplace != 0, !parts(wish, wish + size, inside: true).isEmpty {
          return -Int(EEXIST)
        }
        if hasSealed(wish, wish + size) { return -Int(EPERM) }
        // What is not the guest's must be nobody's.
        let reserved = reserveHoles(wish, wish + size)
        guard reserved == 0 else {
          return reserved == -Int(EEXIST) && flags & Self.noReplace == 0 ? -Int(ENOMEM) : reserved
        }
        address = wish
      } else {
        guard let place = findPlace(wish & ~Self.pageMask, size) else { return -Int(ENOMEM) }
        address = place
      }
      var mapped = hostMap(address, size, hostProtection(protection), base | MAP_FIXED, file, offset)
      if mapped == -Int(EINVAL), !isFixed, let place = findHugePlace(&size, releasing: address) {
        // Huge pages, of a file or asked for, want a place of their size.
        address = place
        mapped = hostMap(address, size, hostProtection(protection), base | MAP_FIXED, file, offset)
      }
      guard mapped == Int(address) else {
        // The kernel refused (a bad descriptor, say): give back what the search reserved.
        giveBackHoles(address, address + size)
        return mapped
      }
      dropped = (address, address + size)
      enter(
        Region(
          start: address, end: address + size, protection: protection, isShared: flags & MAP_SHARED != 0,
          label: label))
      return mapped
    }
    if let dropped, isFixed { dropCode(dropped.0, dropped.1) }
    return result
  }

  /// Reserves `size` bytes at or near `wish`, or in the mapping area. The range is mapped without access.
  private func findPlace(_ wish: UInt64, _ size: UInt64) -> UInt64? {
    func reserve(_ address: UInt64) -> Bool {
      guard address != 0, address + size <= Self.limit, parts(address, address + size, inside: true).isEmpty
      else {
        return false
      }
      let result = hostMap(
        address, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | Self.noReplace, -1, 0)
      if result == Int(address) { return true }
      if result > 0 { munmap(UnsafeMutableRawPointer(bitPattern: result), Int(size)) }
      return false
    }
    if wish >= 0x10000, reserve(wish) { return wish }
    for start in [nextMapping, addresses.mappings] {
      var address = start
      for _ in 0..<1024 {
        if let taken = regions.first(where: { $0.end > address && $0.start < address + size }) {
          address = taken.end
          continue
        }
        if reserve(address) {
          nextMapping = address + size
          return address
        }
        address += max(size, 1 << 20)
        if address + size > Self.limit { break }
      }
    }
    return nil
  }

  /// Gives a place back and finds one that huge pages fit.
  private func findHugePlace(_ size: inout UInt64, releasing address: UInt64) -> UInt64? {
    let huge: UInt64 = 2 << 20
    giveBackHoles(address, address + size)
    size = (size + huge - 1) & ~(huge - 1)
    guard let place = findPlace(0, size + huge) else { return nil }
    let aligned = (place + huge - 1) & ~(huge - 1)
    giveBackHoles(place, aligned)
    giveBackHoles(aligned + size, place + size + huge)
    return aligned
  }

  public func unmap(_ address: UInt64, _ length: UInt64) -> Int {
    guard address & Self.pageMask == 0, length > 0, length < Self.limit, address < Self.limit else {
      return -Int(EINVAL)
    }
    let end = (address + length + Self.pageMask) & ~Self.pageMask
    let result = lock.withLock { () -> Int in
      if hasSealed(address, end) { return -Int(EPERM) }
      for (low, high) in parts(address, end, inside: true) {
        // There may be too many mappings for a hole.
        if munmap(UnsafeMutableRawPointer(bitPattern: UInt(low)), Int(high - low)) != 0 { return -Int(errno) }
        forget(low, high)
      }
      if end == nextMapping { nextMapping = max(address, addresses.mappings) }
      return 0
    }
    dropCode(address, end)
    return result
  }

  public func protect(_ address: UInt64, _ length: UInt64, _ protection: Int32) -> Int {
    guard address & Self.pageMask == 0 else { return -Int(EINVAL) }
    if length == 0 { return 0 }
    guard length < Self.limit, address < Self.limit else { return -Int(ENOMEM) }
    let end = (address + length + Self.pageMask) & ~Self.pageMask
    let protection = protection & (7 | guardProtection)
    if protection & guardProtection != 0 { hasGuardedPages = true }
    let result = lock.withLock { () -> Int in
      guard parts(address, end, inside: false).isEmpty else { return -Int(ENOMEM) }
      if hasSealed(address, end) { return -Int(EPERM) }
      if protection & PROT_WRITE != 0, dataLimit != .max {
        let added = parts(address, end, inside: true).reduce(0 as UInt64) { sum, part in
          guard let position = index(part.0), !regions[position].isData, !regions[position].isShared else {
            return sum
          }
          return sum + part.1 - part.0
        }
        let data = regions.reduce(0 as UInt64) { $1.isData ? $0 + $1.countedByteCount : $0 }
        if added > 0, data + added > dataLimit { return -Int(ENOMEM) }
      }
      if mprotect(
        UnsafeMutableRawPointer(bitPattern: UInt(address)), Int(end - address), hostProtection(protection))
        != 0
      {
        return -Int(errno)
      }
      for (low, high) in parts(address, end, inside: true) {
        guard let position = index(low) else { continue }
        var region = regions[position]
        (region.start, region.end, region.protection) = (low, high, protection)
        enter(region)
      }
      return 0
    }
    if result == 0 { dropCode(address, end) }
    return result
  }

  /// mseal.
  public func seal(_ address: UInt64, _ length: UInt64, _ flags: UInt64) -> Int {
    guard address & Self.pageMask == 0, flags == 0, address < Self.limit, length < Self.limit else {
      return -Int(EINVAL)
    }
    return mark(address, (address + length + Self.pageMask) & ~Self.pageMask) { $0.isSealed = true }
  }

  /// Changes what is noted of the regions in a range, all of which must be the guest's.
  private func mark(_ start: UInt64, _ end: UInt64, _ change: (inout Region) -> Void) -> Int {
    lock.withLock {
      guard start < end else { return 0 }
      guard parts(start, end, inside: false).isEmpty else { return -Int(ENOMEM) }
      for (low, high) in parts(start, end, inside: true) {
        guard let position = index(low) else { continue }
        var region = regions[position]
        (region.start, region.end) = (low, high)
        change(&region)
        note(region)
      }
      return 0
    }
  }

  /// MADV_DONTDUMP and MADV_DODUMP, on what is the guest's of the range.
  func setDumped(_ isDumped: Bool, _ start: UInt64, _ end: UInt64) {
    _ = mark(start, end) { $0.isDumped = isDumped }
  }
  /// Whether advice that discards pages is refused for a sealed range: what could be written to may be discarded.
  func refusesDiscarding(_ start: UInt64, _ end: UInt64) -> Bool {
    lock.withLock {
      regions.contains { $0.isSealed && $0.protection & PROT_WRITE == 0 && $0.end > start && $0.start < end }
    }
  }

  public func remap(_ old: UInt64, _ oldLength: UInt64, _ newLength: UInt64, _ flags: Int32, _ target: UInt64)
    -> Int
  {
    guard old & Self.pageMask == 0, newLength > 0, newLength < Self.limit, oldLength < Self.limit,
      old < Self.limit
    else {
      return -Int(EINVAL)
    }
    let oldSize = (oldLength + Self.pageMask) & ~Self.pageMask
    let newSize = (newLength + Self.pageMask) & ~Self.pageMask
    guard flags & ~7 == 0, flags & 4 == 0 || oldSize == newSize && flags & 1 != 0, flags & 3 != 2 else {
      return -Int(EINVAL)
    }
    let (mayMove, isFixed) = (flags & 1 != 0, flags & 2 != 0)
    var dropped: [(UInt64, UInt64)] = []
    let result = lock.withLock { () -> Int in
      guard let position = index(old), oldSize == 0 || regions[position].end >= old + oldSize else {
        return -Int(EFAULT)
      }
      var region = regions[position]
      if hasSealed(old, old + max(oldSize, 1)) || isFixed && hasSealed(target, target &+ newSize) {
        return -Int(EPERM)
      }
      let growth = flags & 4 != 0 || oldSize == 0 ? newSize : newSize > oldSize ? newSize - oldSize : 0
      guard growth == 0 || isAllowed(growth, isData: region.isData) else { return -Int(ENOMEM) }
      if !isFixed, newSize <= oldSize, oldSize > 0, flags & 4 == 0 {
        if newSize < oldSize {
          munmap(UnsafeMutableRawPointer(bitPattern: UInt(old + newSize)), Int(oldSize - newSize))
          forget(old + newSize, old + oldSize)
          dropped.append((old + newSize, old + oldSize))
        }
        return Int(old)
      }
      // In place where the pages behind are nobody's.
      if !isFixed, newSize > oldSize, parts(old + oldSize, old + newSize, inside: true).isEmpty, oldSize > 0 {
        let grown = Int(apus_syscall(25, old, oldSize, newSize, 0, 0, 0))
        if grown == Int(old) {
          (region.start, region.end) = (old, old + newSize)
          enter(region)
          return grown
        }
      }
      guard mayMove else { return -Int(ENOMEM) }
      let place: UInt64
      if isFixed {
        guard target & Self.pageMask == 0, target + newSize <= Self.limit else { return -Int(EINVAL) }
        guard target + newSize <= old || target >= old + oldSize else { return -Int(EINVAL) }
        guard reserveHoles(target, target + newSize) == 0 else { return -Int(ENOMEM) }
        place = target
      } else {
        guard let found = findPlace(0, newSize) else { return -Int(ENOMEM) }
        place = found
      }
      let moved = Int(apus_syscall(25, old, oldSize, newSize, 3 | UInt64(flags & 4), place, 0))
      guard moved == Int(place) else {
        giveBackHoles(place, place + newSize)
        return moved
      }
      if flags & 4 == 0 { forget(old, old + oldSize) }
      (region.start, region.end) = (place, place + newSize)
      region.label = .none
      enter(region)
      dropped = [(old, old + oldSize), (place, place + newSize)]
      // Pages that were read-only for their code are writable again.
      mprotect(
        UnsafeMutableRawPointer(bitPattern: UInt(place)), Int(newSize), hostProtection(region.protection))
      return moved
    }
    for range in dropped { dropCode(range.0, range.1) }
    return result
  }

  // MARK: System V shared memory

  /// shmat.
  func attach(_ identifier: Int32, _ wish: UInt64, _ flags: Int32) -> Int {
    // struct shmid64_ds: permissions 48, size 8, ...
    var status = [UInt64](repeating: 0, count: 16)
    let known = status.withUnsafeMutableBytes { raw in
      apus_syscall(
        31, UInt64(UInt32(bitPattern: identifier)), 2, UInt64(UInt(bitPattern: raw.baseAddress)), 0, 0, 0)
    }
    guard known >= 0 else { return Int(known) }
    let size = (status[6] + Self.pageMask) & ~Self.pageMask
    let (readOnly, round, remap, execute): (Int32, Int32, Int32, Int32) = (
      0o10000, 0o20000, 0o40000, 0o100000
    )
    let address = flags & round != 0 ? wish & ~Self.pageMask : wish
    guard address & Self.pageMask == 0, address < Self.limit else { return -Int(EINVAL) }
    if address == 0, wish != 0, flags & remap != 0 { return -Int(EINVAL) }
    var place = address
    let result = lock.withLock { () -> Int in
      if address == 0 {
        guard let found = findPlace(0, size) else { return -Int(ENOMEM) }
        place = found
      } else {
        if flags & remap == 0, !parts(place, place + size, inside: true).isEmpty { return -Int(EINVAL) }
        guard reserveHoles(place, place + size) == 0 else { return -Int(EINVAL) }
      }
      // Never executable on the host.
      let hostFlags = flags & readOnly | remap
      let mapped = Int(
        apus_syscall(
          30, UInt64(UInt32(bitPattern: identifier)), place, UInt64(UInt32(bitPattern: hostFlags)), 0, 0, 0))
      guard mapped == Int(place) else {
        giveBackHoles(place, place + size)
        return mapped
      }
      let protection =
        PROT_READ | (flags & readOnly == 0 ? PROT_WRITE : 0) | (flags & execute != 0 ? PROT_EXEC : 0)
      enter(Region(start: place, end: place + size, protection: protection, isShared: true))
      attachments[place] = size
      return mapped
    }
    if result == Int(place) { dropCode(place, place + size) }
    return result
  }

  /// shmdt.
  func detach(_ address: UInt64) -> Int {
    var size: UInt64 = 0
    let result = lock.withLock { () -> Int in
      guard let known = attachments[address] else { return -Int(EINVAL) }
      let result = Int(apus_syscall(67, address, 0, 0, 0, 0, 0))
      if result == 0 {
        size = known
        attachments[address] = nil
        forget(address, address + size)
      }
      return result
    }
    if result == 0 { dropCode(address, address + size) }
    return result
  }

  /// Takes what is nobody's of a range, so that nothing of the emulator's is replaced. 0 or a negative errno.
  private func reserveHoles(_ start: UInt64, _ end: UInt64) -> Int {
    for (low, high) in parts(start, end, inside: false) {
      let probe = hostMap(
        low, high - low, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | Self.noReplace, -1, 0)
      if probe == Int(low) { continue }
      if probe > 0 { munmap(UnsafeMutableRawPointer(bitPattern: probe), Int(high - low)) }
      giveBackHoles(start, low)
      return probe < 0 ? probe : -Int(EEXIST)
    }
    return 0
  }
  private func giveBackHoles(_ start: UInt64, _ end: UInt64) {
    guard start < end else { return }
    for (low, high) in parts(start, end, inside: false) {
      munmap(UnsafeMutableRawPointer(bitPattern: UInt(low)), Int(high - low))
    }
  }

  // MARK: The break

  public func startBreak(_ address: UInt64) {
    lock.withLock {
      breakStart = (address + Self.pageMask) & ~Self.pageMask
      breakEnd = breakStart
    }
  }

  public var currentBreak: UInt64 { lock.withLock { breakEnd } }

  /// The name of a region without a file, `nil` if it has none.
  func name(of region: Region) -> Substring? {
    switch region.label {
    case .none: nil
    case .heap: "                         [heap]"
    case .stack: "                         [stack]"
    case .vdso: "                         [vdso]"
    }
  }

  public func setBreak(_ wish: UInt64) -> UInt64 {
    let (start, end) = lock.withLock { (breakStart, breakEnd) }
    guard wish >= start, wish < Self.limit else { return end }
    let (oldPage, newPage) = ((end + Self.pageMask) & ~Self.pageMask, (wish + Self.pageMask) & ~Self.pageMask)
    if newPage > oldPage {
      let flags = MAP_PRIVATE | MAP_ANONYMOUS | Self.noReplace
      let result = map(oldPage, newPage - oldPage, PROT_READ | PROT_WRITE, flags, -1, 0, label: .heap)
      guard result == Int(oldPage) else { return end }
    } else if newPage < oldPage {
      guard unmap(newPage, oldPage - newPage) == 0 else { return end }
    }
    lock.withLock { breakEnd = wish }
    return wish
  }

  // MARK: Contents

  /// Copies from the guest; false if a page is not there.
  public func read(_ address: UInt64, into buffer: UnsafeMutableRawBufferPointer) -> Bool {
    guard buffer.count > 0 else { return true }
    guard let source = UnsafeRawPointer(bitPattern: UInt(address)) else { return false }
    return apus_guard_copy(buffer.baseAddress, source, buffer.count) == 0
  }
  public func read<T: BitwiseCopyable>(_ address: UInt64, as type: T.Type, default value: T) -> T? {
    var value = value
    let ok = withUnsafeMutableBytes(of: &value) { read(address, into: $0) }
    return ok ? value : nil
  }
  public func readWord(_ address: UInt64) -> UInt64? { read(address, as: UInt64.self, default: 0) }

  public func write(_ address: UInt64, _ buffer: UnsafeRawBufferPointer) -> Bool {
    guard buffer.count > 0 else { return true }
    guard let target = UnsafeMutableRawPointer(bitPattern: UInt(address)) else { return false }
    if apus_guard_copy(target, buffer.baseAddress, buffer.count) == 0 { return true }
    return releaseAllCode() && apus_guard_copy(target, buffer.baseAddress, buffer.count) == 0
  }
  public func write<T: BitwiseCopyable>(_ address: UInt64, _ value: T) -> Bool {
    withUnsafeBytes(of: value) { write(address, $0) }
  }

  /// A zero-terminated string of at most 128 KiB, as the kernel limits arguments; `nil` if it is not all there.
  public func readString(_ address: UInt64) -> ByteString? {
    var result: ByteString = []
    var position = address
    return withUnsafeTemporaryAllocation(byteCount: 256, alignment: 16) { buffer -> ByteString? in
      while result.count < 131_072 {
        let count = Int(min(256, 4096 - position & 4095))
        let part = UnsafeMutableRawBufferPointer(rebasing: buffer[..<count])
        guard read(position, into: part) else { return nil }
        if let end = part.firstIndex(of: 0) {
          result += part[..<end]
          return result
        }
        result += part
        position += UInt64(count)
      }
      return nil
    }
  }
}
