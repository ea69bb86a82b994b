import ApusDevice

/// The interrupts of a Generic Interrupt Controller and what its CPU interfaces do with them, for versions 2 and 3
/// [Arm IHI 0048B.b, IHI 0069H]: with one security state or two.
///
/// Numbers: 0 to 15 software-generated and 16 to 31 private, of each CPU; from 32 on shared. Groups: 0; 1, with two states
/// the non-secure one's; 2, version 3's secure group 1. The non-secure state's accesses (`isRestricted`) reach group 1 alone,
/// and have the less urgent half of the priorities for all there are.
struct GICState {
  /// Interrupts as bits, 32 a word: word 0 is a CPU's own, the others are shared.
  struct Bits {
    var words: [UInt32]
    init(_ wordCount: Int) { words = Array(repeating: 0, count: wordCount) }
    subscript(_ number: Int) -> Bool {
      get { words[number / 32] >> UInt32(number % 32) & 1 != 0 }
      set {
        let bit = UInt32(1) << UInt32(number % 32)
        words[number / 32] = newValue ? words[number / 32] | bit : words[number / 32] & ~bit
      }
    }
  }

  /// One group of interrupts with everything that is kept for each.
  struct Bank {
    var enabled, latched, level, active, group, isEdge: Bits
    /// IGRPMODR: where `group` is 0, group 1 of the secure state.
    var modifier: Bits
    var priority: [UInt8]
    /// NSACR: 1 lets the non-secure state make a secure interrupt pending, 2 also take that back, 3 also choose its target.
    var openness: [UInt8]
    init(wordCount: Int) {
      (enabled, latched, level) = (Bits(wordCount), Bits(wordCount), Bits(wordCount))
      (active, group, isEdge) = (Bits(wordCount), Bits(wordCount), Bits(wordCount))
      modifier = Bits(wordCount)
      priority = Array(repeating: 0, count: wordCount * 32)
      openness = Array(repeating: 0, count: wordCount * 32)
    }
    func groupNumber(_ index: Int) -> Int { group[index] ? 1 : modifier[index] ? 2 : 0 }
    /// The interrupts of a word that an access reaches; `openness`: also those of the secure state that are as open.
    func reachable(_ word: Int, isRestricted: Bool, openness wanted: UInt8 = .max) -> UInt32 {
      guard isRestricted else { return .max }
      return (0..<32).reduce(group.words[word]) {
        openness[word * 32 + $1] >= wanted ? $0 | 1 << UInt32($1) : $0
      }
    }
    /// Pending by a word.
    func pending(_ word: Int) -> UInt32 {
      latched.words[word] | level.words[word] & ~isEdge.words[word]
    }
  }

  /// A CPU's interface.
  struct Interface {
    /// By group.
    var isGroupEnabled = [false, false, false]
    var priorityMask: UInt8 = 0
    var binaryPoint: [UInt8] = [2, 3, 2]
    /// CBPR: group 0's binary point is the group's, too.
    var sharesBinaryPoint = [false, false, false]
    /// `eoi` only drops the priority; `deactivate` does the rest. By who accesses: the secure state, the other or only one, EL3.
    var splitsEnd = [false, false, false]
    /// Version 2's AckCtl, where there are two states.
    var acknowledgesBoth = false
    /// The priorities of the interrupts being handled, the most urgent last.
    var running: [(priority: UInt8, group: Int)] = []
    /// Group 0 is FIQ.
    var signalsFIQ = false
    var irq = false
    var fiq = false
    /// Version 3 signals the secure group 1.
    var secureIRQ = false
    /// How far a group's priorities are apart that preempt each other, as bits.
    func preemptionShift(_ group: Int) -> UInt8 {
      group == 0 || sharesBinaryPoint[group]
        ? binaryPoint[0] + 1 : binaryPoint[group] + (group == 2 ? 1 : 0)
    }
  }

  let cpuCount: Int
  let sharedCount: Int
  /// Five bits of priority.
  static let priorityMask: UInt8 = 0xf8
  static let spurious: UInt32 = 1023

  /// Each CPU's own interrupts; shared ones, their numbers less 32.
  var own: [Bank]
  var shared: Bank
  /// Version 2: the CPUs that sent each software-generated interrupt, by receiver and number.
  var senders: [[UInt8]]
  /// The CPUs that a shared interrupt may go to, as bits.
  var targets: [UInt64]
  /// Version 3's IROUTER.
  var routes: [UInt64]
  var isGroupForwarded = [false, false, false]
  /// Version 3's interrupts that messages cause, by CPU.
  var lpis: [LPIs]
  /// Version 3's GICR_WAKER.ProcessorSleep.
  var isAsleep: [Bool]
  var interfaces: [Interface]
  var virtual: [GICVirtualInterface]

  init(cpuCount: Int, sharedCount: Int, security: GIC.Security = .single) {
    (self.cpuCount, self.sharedCount) = (cpuCount, sharedCount)
    var bank = Bank(wordCount: 1)
    bank.isEdge.words[0] = 0xffff
    own = Array(repeating: bank, count: cpuCount)
    shared = Bank(wordCount: sharedCount / 32)
    senders = Array(repeating: Array(repeating: 0, count: 16), count: cpuCount)
    targets = Array(repeating: 1, count: sharedCount)
    routes = Array(repeating: 0, count: sharedCount)
    lpis = Array(repeating: LPIs(), count: cpuCount)
    isAsleep = Array(repeating: true, count: cpuCount)
    interfaces = Array(repeating: Interface(), count: cpuCount)
    virtual = Array(repeating: GICVirtualInterface(), count: cpuCount)
    guard security == .nonSecure else { return }
    func giveAway(_ bank: inout Bank) {
      for word in bank.group.words.indices { bank.group.words[word] = .max }
      for index in bank.priority.indices { bank.priority[index] = 0x80 }
    }
    giveAway(&shared)
    for cpu in 0..<cpuCount {
      giveAway(&own[cpu])
      interfaces[cpu].priorityMask = 0x80
    }
  }

  // MARK: What is pending

  /// The most urgent interrupt that is forwarded to a CPU; of a group, or of both.
  func best(_ cpu: Int) -> (number: Int, priority: UInt8, group: Int)? {
    var best: (number: Int, priority: UInt8, group: Int)?
    func look(_ bank: Bank, _ word: Int, _ base: Int, _ accepts: (Int) -> Bool) {
      var candidates = bank.pending(word) & bank.enabled.words[word] & ~bank.active.words[word]
      while candidates != 0 {
        let bit = candidates.trailingZeroBitCount
        candidates &= candidates - 1
        let index = word * 32 + bit
        let group = bank.groupNumber(index)
        guard isGroupForwarded[group], interfaces[cpu].isGroupEnabled[group],
          bank.priority[index] < best?.priority ?? 0xff, accepts(index)
        else { continue }
        best = (base + index, bank.priority[index], group)
      }
    }
    look(own[cpu], 0, 0) { _ in true }
    for word in 0..<sharedCount / 32 {
      look(shared, word, 32) { [targets] in targets[$0] >> UInt64(cpu) & 1 != 0 }
    }
    // They are of group 1.
    if !lpis[cpu].pending.isEmpty, isGroupForwarded[1], interfaces[cpu].isGroupEnabled[1],
      let found = lpis[cpu].best, found.priority < best?.priority ?? 0xff
    {
      best = (found.number, found.priority, 1)
    }
    return best
  }

  /// The interrupt that would be signalled to a CPU now.
  func signalled(_ cpu: Int) -> (number: Int, priority: UInt8, group: Int)? {
    guard let best = best(cpu), best.priority < interfaces[cpu].priorityMask else { return nil }
    if let running = interfaces[cpu].running.last {
      let shift = interfaces[cpu].preemptionShift(best.group)
      let mask: UInt8 = shift >= 8 ? 0 : 0xff << shift
      guard best.priority & mask < running.priority & mask else { return nil }
    }
    return best
  }

  // MARK: A CPU's own and shared interrupts alike

  func bank(_ cpu: Int, _ number: Int) -> (bank: Bank, index: Int) {
    number < 32 ? (own[cpu], number) : (shared, number - 32)
  }
  mutating func change(_ cpu: Int, _ number: Int, _ body: (inout Bank, Int) -> Void) {
    if number < 32 { body(&own[cpu], number) } else { body(&shared, number - 32) }
  }
  func exists(_ number: Int) -> Bool { number >= 0 && number < 32 + sharedCount }

  mutating func setLevel(_ cpu: Int, _ number: Int, _ level: Bool) {
    change(cpu, number) { bank, index in
      if level, !bank.level[index], bank.isEdge[index] { bank.latched[index] = true }
      bank.level[index] = level
    }
  }

  /// Sends a software-generated interrupt.
  mutating func send(_ number: Int, from sender: Int, to cpu: Int) {
    senders[cpu][number] |= 1 << UInt8(sender & 7)
    own[cpu].latched[number] = true
  }

  // MARK: Handling

  /// The interrupt that a CPU begins to handle: its number, and from bit 10 who sent it (version 2).
  mutating func acknowledge(_ cpu: Int, group: Int?) -> UInt32 {
    guard let found = signalled(cpu), group == nil || found.group == group else { return Self.spurious }
    var result = UInt32(found.number)
    if found.number >= LPIs.first {
      // It has no active state.
      lpis[cpu].pending[found.number] = nil
      interfaces[cpu].running.append((found.priority, found.group))
      return result
    }
    change(cpu, found.number) { bank, index in
      bank.active[index] = true
      bank.latched[index] = false
    }
    if found.number < 16 {
      let from = senders[cpu][found.number].trailingZeroBitCount & 7
      senders[cpu][found.number] &= senders[cpu][found.number] &- 1
      if senders[cpu][found.number] != 0 { own[cpu].latched[found.number] = true }
      result |= UInt32(from) << 10
    }
    interfaces[cpu].running.append((found.priority, found.group))
    return result
  }

  /// - Parameters:
  ///   - group: the only one that this may be about; `nil`: any.
  ///   - splits: the index in `splitsEnd`.
  mutating func end(_ cpu: Int, _ number: Int, group: Int? = nil, splits: Int = 1, isRestricted: Bool = false)
  {
    if let group, interfaces[cpu].running.last.map({ $0.group != group }) ?? true { return }
    _ = interfaces[cpu].running.popLast()
    if !interfaces[cpu].splitsEnd[splits] { deactivate(cpu, number, isRestricted: isRestricted) }
  }
  mutating func deactivate(_ cpu: Int, _ number: Int, isRestricted: Bool = false) {
    guard exists(number) else { return }
    change(cpu, number) { if !isRestricted || $0.group[$1] { $0.active[$1] = false } }
  }
  func runningPriority(_ cpu: Int, isShifted: Bool = false) -> UInt8 {
    let priority = interfaces[cpu].running.last?.priority ?? 0xff
    return isShifted && priority != 0xff ? Self.shifted(priority) : priority
  }
  func priorityMask(_ cpu: Int, isShifted: Bool) -> UInt8 {
    isShifted ? Self.shifted(interfaces[cpu].priorityMask) : interfaces[cpu].priorityMask
  }
  /// The non-secure state changes a mask only where it is one of its own.
  mutating func setPriorityMask(_ cpu: Int, _ value: UInt64, isShifted: Bool) {
    let byte = UInt8(truncatingIfNeeded: value)
    if isShifted, interfaces[cpu].priorityMask & 0x80 == 0 { return }
    interfaces[cpu].priorityMask = (isShifted ? 0x80 | byte >> 1 : byte) & Self.priorityMask
  }
  /// A priority as the non-secure state sees it: 0 is one of the secure state's.
  static func shifted(_ priority: UInt8) -> UInt8 { priority & 0x80 == 0 ? 0 : priority << 1 }

  // MARK: Distributor registers that both versions have

  /// What a register of one bit an interrupt stands for.
  enum BitRegister: Int {
    case group = 0x080
    case setEnable = 0x100
    case clearEnable = 0x180
    case setPending = 0x200
    case clearPending = 0x280
    case setActive = 0x300
    case clearActive = 0x380
    /// How open a secure interrupt must be for the non-secure state.
    var openness: UInt8 { self == .setPending ? 1 : self == .clearPending ? 2 : .max }
  }

  private func readBits(_ register: BitRegister, _ bank: Bank, _ word: Int, _ isRestricted: Bool) -> UInt32 {
    let mask = bank.reachable(word, isRestricted: isRestricted, openness: register.openness)
    return switch register {
    case .group: isRestricted ? 0 : bank.group.words[word]
    case .setEnable, .clearEnable: bank.enabled.words[word] & mask
    case .setPending, .clearPending: bank.pending(word) & mask
    case .setActive, .clearActive: bank.active.words[word] & mask
    }
  }
  private func writeBits(
    _ register: BitRegister, _ bank: inout Bank, _ word: Int, _ all: UInt32, _ isRestricted: Bool
  ) {
    let value = all & bank.reachable(word, isRestricted: isRestricted, openness: register.openness)
    switch register {
    case .group where isRestricted: break
    case .group: bank.group.words[word] = value
    case .setEnable: bank.enabled.words[word] |= value
    case .clearEnable: bank.enabled.words[word] &= ~value
    case .setPending: bank.latched.words[word] |= value
    case .clearPending: bank.latched.words[word] &= ~value
    case .setActive: bank.active.words[word] |= value
    case .clearActive: bank.active.words[word] &= ~value
    }
  }

  /// Offsets 0x80 to 0xcff of the distributor, and of version 3's redistributors for `cpu`'s own. `nil`: none of these.
  func read(_ offset: Int, _ byteCount: Int, cpu: Int, isRestricted: Bool = false) -> UInt64? {
    if offset >= 0x80, offset < 0x400, byteCount == 4, offset % 4 == 0 {
      let register = BitRegister(rawValue: offset & ~0x7f)!
      let index = (offset & 0x7f) / 4
      if index == 0 { return UInt64(readBits(register, own[cpu], 0, isRestricted)) }
      return index - 1 < sharedCount / 32
        ? UInt64(readBits(register, shared, index - 1, isRestricted)) : 0
    }
    if (0x400..<0x800).contains(offset) {
      return bytes(byteCount) { number in
        guard exists(offset - 0x400 + number) else { return 0 }
        let (bank, index) = bank(cpu, offset - 0x400 + number)
        if isRestricted { return bank.group[index] ? Self.shifted(bank.priority[index]) : 0 }
        return bank.priority[index]
      }
    }
    if (0xc00..<0xd00).contains(offset), byteCount == 4, offset % 4 == 0 {
      var value: UInt64 = 0
      for k in 0..<16 {
        let number = (offset - 0xc00) * 4 + k
        guard exists(number) else { break }
        let (bank, index) = bank(cpu, number)
        if bank.isEdge[index], !isRestricted || bank.group[index] { value |= 2 << UInt64(2 * k) }
      }
      return value
    }
    return nil
  }

  /// False: none of these.
  mutating func write(
    _ offset: Int, _ byteCount: Int, _ value: UInt64, cpu: Int, isRestricted: Bool = false
  ) -> Bool {
    let value32 = UInt32(truncatingIfNeeded: value)
    if offset >= 0x80, offset < 0x400, byteCount == 4, offset % 4 == 0 {
      let register = BitRegister(rawValue: offset & ~0x7f)!
      let index = (offset & 0x7f) / 4
      if index == 0 {
        writeBits(register, &own[cpu], 0, value32, isRestricted)
      } else if index - 1 < sharedCount / 32 {
        writeBits(register, &shared, index - 1, value32, isRestricted)
      }
      return true
    }
    if (0x400..<0x800).contains(offset) {
      for k in 0..<byteCount where exists(offset - 0x400 + k) {
        let byte = UInt8(truncatingIfNeeded: value >> UInt64(8 * k))
        change(cpu, offset - 0x400 + k) {
          if !isRestricted {
            $0.priority[$1] = byte & Self.priorityMask
          } else if $0.group[$1] {
            $0.priority[$1] = (0x80 | byte >> 1) & Self.priorityMask
          }
        }
      }
      return true
    }
    if (0xc00..<0xd00).contains(offset), byteCount == 4, offset % 4 == 0 {
      for k in 0..<16 {
        let number = (offset - 0xc00) * 4 + k
        guard exists(number), number >= 16 else { continue }
        let isEdge = value >> UInt64(2 * k + 1) & 1 != 0
        change(cpu, number) { if !isRestricted || $0.group[$1] { $0.isEdge[$1] = isEdge } }
      }
      return true
    }
    return false
  }

  private func bytes(_ count: Int, _ body: (Int) -> UInt8) -> UInt64 {
    (0..<count).reduce(0) { $0 | UInt64(body($1)) << UInt64(8 * $1) }
  }

  // MARK: What only the secure state has

  /// IGRPMODR, from 0 on.
  func readModifier(_ offset: Int, cpu: Int) -> UInt64 {
    let word = offset / 4
    if word == 0 { return UInt64(own[cpu].modifier.words[0]) }
    return word - 1 < sharedCount / 32 ? UInt64(shared.modifier.words[word - 1]) : 0
  }
  mutating func writeModifier(_ offset: Int, _ value: UInt64, cpu: Int) {
    let word = offset / 4
    if word == 0 {
      own[cpu].modifier.words[0] = UInt32(truncatingIfNeeded: value)
    } else if word - 1 < sharedCount / 32 {
      shared.modifier.words[word - 1] = UInt32(truncatingIfNeeded: value)
    }
  }

  /// NSACR, from 0 on: two bits an interrupt.
  func readOpenness(_ offset: Int, cpu: Int) -> UInt64 {
    (0..<16).reduce(0) { value, k in
      guard exists(offset * 4 + k) else { return value }
      let (bank, index) = bank(cpu, offset * 4 + k)
      return value | UInt64(bank.openness[index]) << UInt64(2 * k)
    }
  }
  mutating func writeOpenness(_ offset: Int, _ value: UInt64, cpu: Int) {
    for k in 0..<16 where exists(offset * 4 + k) {
      change(cpu, offset * 4 + k) { $0.openness[$1] = UInt8(value >> UInt64(2 * k) & 3) }
    }
  }
}
