import ApusDevice

/// The interrupts of a Generic Interrupt Controller and what its CPU interfaces do with them, for versions 2 and 3
/// [Arm IHI 0048B.b, IHI 0069H]: one security state.
///
/// Numbers: 0 to 15 software-generated and 16 to 31 private, of each CPU; from 32 on shared.
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
    var priority: [UInt8]
    init(wordCount: Int) {
      (enabled, latched, level) = (Bits(wordCount), Bits(wordCount), Bits(wordCount))
      (active, group, isEdge) = (Bits(wordCount), Bits(wordCount), Bits(wordCount))
      priority = Array(repeating: 0, count: wordCount * 32)
    }
    /// Pending by a word.
    func pending(_ word: Int) -> UInt32 {
      latched.words[word] | level.words[word] & ~isEdge.words[word]
    }
  }

  /// A CPU's interface.
  struct Interface {
    /// Groups 0 and 1.
    var isGroupEnabled = [false, false]
    var priorityMask: UInt8 = 0
    var binaryPoint: [UInt8] = [2, 3]
    /// `eoi` only drops the priority; `deactivate` does the rest.
    var splitsEnd = false
    /// The priorities of the interrupts being handled, the most urgent last.
    var running: [(priority: UInt8, group: Int)] = []
    /// Group 0 is FIQ.
    var signalsFIQ = false
    var irq = false
    var fiq = false
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
  var isGroupForwarded = [false, false]
  /// Version 3's interrupts that messages cause, by CPU.
  var lpis: [LPIs]
  /// Version 3's GICR_WAKER.ProcessorSleep.
  var isAsleep: [Bool]
  var interfaces: [Interface]
  var virtual: [GICVirtualInterface]

  init(cpuCount: Int, sharedCount: Int) {
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
        let group = bank.group[index] ? 1 : 0
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
      let shift = UInt8(interfaces[cpu].binaryPoint[best.group] + (best.group == 0 ? 1 : 0))
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

  mutating func end(_ cpu: Int, _ number: Int) {
    _ = interfaces[cpu].running.popLast()
    if !interfaces[cpu].splitsEnd { deactivate(cpu, number) }
  }
  mutating func deactivate(_ cpu: Int, _ number: Int) {
    guard exists(number) else { return }
    change(cpu, number) { $0.active[$1] = false }
  }
  func runningPriority(_ cpu: Int) -> UInt8 { interfaces[cpu].running.last?.priority ?? 0xff }

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
  }

  private func readBits(_ register: BitRegister, _ bank: Bank, _ word: Int) -> UInt32 {
    switch register {
    case .group: bank.group.words[word]
    case .setEnable, .clearEnable: bank.enabled.words[word]
    case .setPending, .clearPending: bank.pending(word)
    case .setActive, .clearActive: bank.active.words[word]
    }
  }
  private func writeBits(_ register: BitRegister, _ bank: inout Bank, _ word: Int, _ value: UInt32) {
    switch register {
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
  func read(_ offset: Int, _ byteCount: Int, cpu: Int) -> UInt64? {
    if offset >= 0x80, offset < 0x400, byteCount == 4, offset % 4 == 0 {
      let register = BitRegister(rawValue: offset & ~0x7f)!
      let index = (offset & 0x7f) / 4
      if index == 0 { return UInt64(readBits(register, own[cpu], 0)) }
      return index - 1 < sharedCount / 32 ? UInt64(readBits(register, shared, index - 1)) : 0
    }
    if (0x400..<0x800).contains(offset) {
      return bytes(byteCount) { number in
        guard exists(offset - 0x400 + number) else { return 0 }
        let (bank, index) = bank(cpu, offset - 0x400 + number)
        return bank.priority[index]
      }
    }
    if (0xc00..<0xd00).contains(offset), byteCount == 4, offset % 4 == 0 {
      var value: UInt64 = 0
      for k in 0..<16 {
        let number = (offset - 0xc00) * 4 + k
        guard exists(number) else { break }
        let (bank, index) = bank(cpu, number)
        if bank.isEdge[index] { value |= 2 << UInt64(2 * k) }
      }
      return value
    }
    return nil
  }

  /// False: none of these.
  mutating func write(_ offset: Int, _ byteCount: Int, _ value: UInt64, cpu: Int) -> Bool {
    let value32 = UInt32(truncatingIfNeeded: value)
    if offset >= 0x80, offset < 0x400, byteCount == 4, offset % 4 == 0 {
      let register = BitRegister(rawValue: offset & ~0x7f)!
      let index = (offset & 0x7f) / 4
      if index == 0 {
        writeBits(register, &own[cpu], 0, value32)
      } else if index - 1 < sharedCount / 32 {
        writeBits(register, &shared, index - 1, value32)
      }
      return true
    }
    if (0x400..<0x800).contains(offset) {
      for k in 0..<byteCount where exists(offset - 0x400 + k) {
        let priority = UInt8(truncatingIfNeeded: value >> UInt64(8 * k)) & Self.priorityMask
        change(cpu, offset - 0x400 + k) { $0.priority[$1] = priority }
      }
      return true
    }
    if (0xc00..<0xd00).contains(offset), byteCount == 4, offset % 4 == 0 {
      for k in 0..<16 {
        let number = (offset - 0xc00) * 4 + k
        guard exists(number), number >= 16 else { continue }
        let isEdge = value >> UInt64(2 * k + 1) & 1 != 0
        change(cpu, number) { $0.isEdge[$1] = isEdge }
      }
      return true
    }
    return false
  }

  private func bytes(_ count: Int, _ body: (Int) -> UInt8) -> UInt64 {
    (0..<count).reduce(0) { $0 | UInt64(body($1)) << UInt64(8 * $1) }
  }
}
