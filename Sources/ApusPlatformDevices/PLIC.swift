import ApusDevice
import ApusMemory
import Synchronization

/// The platform-level interrupt controller [RISC-V PLIC 1.0.0], as SiFive makes it.
///
/// ```
/// 0x000000 + 4 * source          priority, 0..7       0x200000 + 0x1000 * context   threshold, 0..7
/// 0x001000 + 4 * word            pending              0x200004 + 0x1000 * context   claim / complete
/// 0x002000 + 0x80 * context + 4 * word   enable
/// ```
/// Any thread. Inputs are level-triggered: a source is pending from its line's rise until it is claimed, and again
/// after completion if the line is still high. Not modelled: edge-triggered gateways.
public final class PLIC: MMIODevice {
  public static let byteCount: UInt64 = 0x600000
  static let priorityMask: UInt32 = 7

  struct State: Equatable {
    var priorities: [UInt32]
    /// One bit a source, in words of 32.
    var levels: [UInt32]
    var pending: [UInt32]
    var claimed: [UInt32]
    /// `words` words a context.
    var enabled: [UInt32]
    var thresholds: [UInt32]
    /// What was last driven on each context's output.
    var outputs: [Bool]
  }
  private let state: Mutex<State>
  private let outputs: [InterruptLine]
  private let sourceCount: Int
  private let words: Int

  /// - Parameters:
  ///   - sourceCount: the highest source number; source 0 does not exist.
  ///   - outputs: the input of the hart behind each context (RISC-V: M then S of each hart).
  public init(sourceCount: Int, outputs: [InterruptLine]) {
    precondition((1...1023).contains(sourceCount), "a PLIC has 1 to 1023 sources")
    (self.outputs, self.sourceCount) = (outputs, sourceCount)
    words = sourceCount / 32 + 1
    state = Mutex(Self.initial(sourceCount, words, outputs.count))
  }

  private static func initial(_ sources: Int, _ words: Int, _ contexts: Int) -> State {
    let empty = [UInt32](repeating: 0, count: words)
    return State(
      priorities: Array(repeating: 0, count: sources + 1), levels: empty, pending: empty, claimed: empty,
      enabled: Array(repeating: 0, count: words * contexts), thresholds: Array(repeating: 0, count: contexts),
      outputs: Array(repeating: false, count: contexts))
  }

  /// Power-on state; the inputs keep their levels.
  public func reset() {
    state.withLock { state in
      let (levels, outputs) = (state.levels, state.outputs)
      state = Self.initial(sourceCount, words, self.outputs.count)
      (state.levels, state.pending, state.outputs) = (levels, levels, outputs)
      update(&state)
    }
  }

  /// The wire into source `number`.
  public func input(_ number: Int) -> InterruptLine {
    precondition((1...sourceCount).contains(number), "the PLIC has no source \(number)")
    return InterruptLine { [weak self] level in self?.setLevel(number, level) }
  }

  private func setLevel(_ source: Int, _ level: Bool) {
    let (word, bit) = (source / 32, UInt32(1) << UInt32(source % 32))
    state.withLock { state in
      guard (state.levels[word] & bit != 0) != level else { return }
      state.levels[word] ^= bit
      if level && state.claimed[word] & bit == 0 {
        state.pending[word] |= bit
        update(&state)
      }
    }
  }

  // MARK: Arbitration

  /// The pending, enabled source of the highest priority above the threshold (the lowest number among equals).
  private func best(_ context: Int, _ state: State) -> Int {
    var best = 0
    var bestPriority = state.thresholds[context]
    for word in 0..<words {
      var candidates = state.pending[word] & state.enabled[context * words + word]
      while candidates != 0 {
        let source = word * 32 + candidates.trailingZeroBitCount
        candidates &= candidates - 1
        if state.priorities[source] > bestPriority {
          (best, bestPriority) = (source, state.priorities[source])
        }
      }
    }
    return best
  }

  private func update(_ state: inout State) {
    for context in outputs.indices {
      let level = best(context, state) != 0
      if level != state.outputs[context] {
        state.outputs[context] = level
        outputs[context].set(level)
      }
    }
  }

  private func claim(_ context: Int, _ state: inout State) -> UInt32 {
    let source = best(context, state)
    guard source != 0 else { return 0 }
    let (word, bit) = (source / 32, UInt32(1) << UInt32(source % 32))
    state.pending[word] &= ~bit
    state.claimed[word] |= bit
    update(&state)
    return UInt32(source)
  }

  private func complete(_ context: Int, _ source: UInt64, _ state: inout State) {
    // Completing what this context has not enabled is ignored, as the specification says.
    guard source >= 1, source <= UInt64(sourceCount) else { return }
    let (word, bit) = (Int(source) / 32, UInt32(1) << UInt32(source % 32))
    guard state.enabled[context * words + word] & bit != 0 else { return }
    state.claimed[word] &= ~bit
    state.pending[word] |= state.levels[word] & bit
    update(&state)
  }

  // MARK: Registers

  private enum Register {
    case priority(Int)
    case pending(Int)
    case enable(context: Int, word: Int)
    case threshold(Int)
    case claim(Int)
  }

  private func register(_ offset: UInt64, _ byteCount: Int) -> Register? {
    guard byteCount == 4, offset % 4 == 0, offset < Self.byteCount else { return nil }
    let offset = Int(offset)
    switch offset {
    case 0..<0x1000:
      return (1...sourceCount).contains(offset / 4) ? .priority(offset / 4) : nil
    case 0x1000..<0x1080:
      let word = (offset - 0x1000) / 4
      return word < words ? .pending(word) : nil
    case 0x2000..<0x200000:
      let (context, word) = ((offset - 0x2000) / 0x80, (offset - 0x2000) % 0x80 / 4)
      return context < outputs.count && word < words ? .enable(context: context, word: word) : nil
    case 0x200000...:
      let context = (offset - 0x200000) / 0x1000
      guard context < outputs.count else { return nil }
      switch offset % 0x1000 {
      case 0: return .threshold(context)
      case 4: return .claim(context)
      default: return nil
      }
    default: return nil
    }
  }

  /// The bits of enable word `word` that stand for sources.
  private func sourceMask(_ word: Int) -> UInt32 {
    var mask = UInt32.max
    if word == 0 { mask &= ~1 }
    let last = sourceCount - word * 32
    if last < 31 { mask &= (1 << UInt32(last + 1)) - 1 }
    return mask
  }

  public func readMMIO(offset: UInt64, byteCount: Int) -> UInt64 {
    guard let register = register(offset, byteCount) else { return misuse("read", offset, byteCount) }
    return state.withLock { state in
      switch register {
      case .priority(let source): UInt64(state.priorities[source])
      case .pending(let word): UInt64(state.pending[word])
      case .enable(let context, let word): UInt64(state.enabled[context * words + word])
      case .threshold(let context): UInt64(state.thresholds[context])
      case .claim(let context): UInt64(claim(context, &state))
      }
    }
  }

  public func writeMMIO(offset: UInt64, byteCount: Int, value: UInt64) {
    guard let register = register(offset, byteCount) else {
      _ = misuse("write", offset, byteCount)
      return
    }
    let word32 = UInt32(truncatingIfNeeded: value)
    state.withLock { state in
      switch register {
      case .priority(let source): state.priorities[source] = word32 & Self.priorityMask
      case .pending: return  // read-only
      case .enable(let context, let word): state.enabled[context * words + word] = word32 & sourceMask(word)
      case .threshold(let context): state.thresholds[context] = word32 & Self.priorityMask
      case .claim(let context):
        complete(context, value, &state)
        return
      }
      update(&state)
    }
  }

  private func misuse(_ what: String, _ offset: UInt64, _ byteCount: Int) -> UInt64 {
    GuestErrorTrace.report("plic", "\(what) of \(byteCount) bytes at offset 0x\(String(offset, radix: 16))")
    return 0
  }
}
