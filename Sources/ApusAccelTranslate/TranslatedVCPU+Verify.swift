import ApusIR
import ApusIREval
import ApusJIT
import CApusHost

// Lockstep: the evaluator runs each block first, on an overlay of memory, then generated code runs it for real, and
// the outcomes are compared. Blocks that reach a device or a helper that leaves the block run only once.

extension TranslatedVCPU {
  /// The part of the state that is compared: everything below the jump caches.
  fileprivate static let comparedByteCount = StateHeader.jumpCaches

  func verify(_ number: UInt32, _ record: BlockRecord) {
    let (before, expected, overlay) = (lockstep.before, lockstep.expected, lockstep.overlay)
    overlay.removeAll()
    // Requests that arrive meanwhile make the two leave at different polls: such a block is not compared.
    let request = apus_exchange32(state + StateHeader.exitRequest, 0)
    defer { if request != 0 { requestInterruptCheck() } }
    before.copyMemory(from: state, byteCount: Self.comparedByteCount)
    let canCompare = !hasLeavingHelper(record)
    if canCompare { evaluate(record, overlay) }
    expected.copyMemory(from: state, byteCount: Self.comparedByteCount)
    let wasInterrupted = apus_exchange32(state + StateHeader.exitRequest, 0) != 0
    let shared = guest.sharedStateOffsets
    for offset in stride(from: 0, to: Self.comparedByteCount, by: 8) where !shared.contains(offset) {
      let word = before.load(fromByteOffset: offset, as: UInt64.self)
      if offset == StateHeader.exitRequest {
        state.storeBytes(of: UInt32(word >> 32), toByteOffset: StateHeader.pendingExit, as: UInt32.self)
      } else {
        state.storeBytes(of: word, toByteOffset: offset, as: UInt64.self)
      }
    }
    runCode(number)
    // A block that went on without groups was left halfway.
    guard canCompare, !overlay.reachedDevice, ungroupedPC == nil else { return }
    if wasInterrupted || apus_load_relaxed32(state + StateHeader.exitRequest) != 0 {
      return requestInterruptCheck()
    }
    for offset in stride(from: 0, to: Self.comparedByteCount, by: 8)
    where !Self.isEngineScratch(offset) && !shared.contains(offset) {
      let mask = offset == guest.layout.packedFlags ? IRPackedFlags.nzcv : .max
      let ours = state.load(fromByteOffset: offset, as: UInt64.self) & mask
      let theirs = expected.load(fromByteOffset: offset, as: UInt64.self) & mask
      if ours != theirs, !(offset == StateHeader.guestMXCSR || offset == StateHeader.softFloatFlags) {
        return reportDifference(
          record, "state at offset \(offset): evaluator \(hex(theirs)), code \(hex(ours))", expected)
      }
    }
    let expectedFlags = IREvaluator.floatFlags(expected)
    let flags = IREvaluator.floatFlags(state)
    if expectedFlags != flags {
      return reportDifference(record, "float flags: evaluator \(expectedFlags), code \(flags)", expected)
    }
    if let difference = overlay.firstDifference() { reportDifference(record, difference, expected) }
  }

  private func hasLeavingHelper(_ record: BlockRecord) -> Bool {
    for index in 0..<record.ir!.pointee.count {
      let i = record.ir!.pointee.instructions[index]
      if i.opcode == .call,
        !IRHelperEffects(rawValue: UInt8(truncatingIfNeeded: i.immediate >> 32)).isDisjoint(with: [
          .mayExit, .varies,
        ])
      {
        return true
      }
    }
    return false
  }

  /// Slow-path arguments, spills and requests differ by design.
  private static func isEngineScratch(_ offset: Int) -> Bool {
    switch offset {
    case StateHeader.exitRequest, StateHeader.argument0...StateHeader.result: true
    case StateHeader.vectorScratch..<StateHeader.vectorScratch + 16: true
    case StateHeader.scratch..<1024: true
    default: false
    }
  }

  private func hex(_ value: UInt64) -> String { "0x" + String(value, radix: 16) }

  private func reportDifference(_ record: BlockRecord, _ what: String, _ expected: UnsafeMutableRawPointer) {
    var text = "lockstep: the block at \(hex(record.pc)) differs: \(what)\n"
    text += "--- registers after generated code\n\(guest.registerText())"
    let ours = UnsafeMutableRawPointer.allocate(byteCount: Self.comparedByteCount, alignment: 16)
    defer { ours.deallocate() }
    ours.copyMemory(from: state, byteCount: Self.comparedByteCount)
    state.copyMemory(from: expected, byteCount: Self.comparedByteCount)
    text += "--- registers after the evaluator\n\(guest.registerText())"
    state.copyMemory(from: ours, byteCount: Self.comparedByteCount)
    text += "--- code\n"
    let ir = record.ir!.pointee
    for index in 0..<ir.count where ir.instructions[index].opcode == .instruction {
      let pc = UInt64(bitPattern: ir.instructions[index].immediate)
      if let page = resolveForReport(pc) { text += "\(hex(pc)): \(guest.disassemble(page, pc: pc))\n" }
    }
    text += "--- IR\n\(IRBlock.text(ir.instructions, count: ir.count, terminator: ir.terminator))"
    fail(text)
  }

  private func resolveForReport(_ pc: UInt64) -> UnsafePointer<UInt8>? {
    guard memory != nil else { return UnsafePointer(bitPattern: UInt(pc)) }
    guard case .page(let entry) = resolve(pc, .fetch, guest.fetchContext(mode: mode)),
      let host = entry.pointee.host
    else { return nil }
    return UnsafePointer((host + Int(pc & 4095)).assumingMemoryBound(to: UInt8.self))
  }
}

/// What lockstep keeps between blocks. Belongs to the vCPU's thread.
final class Lockstep {
  // SAFETY: comparedByteCount bytes each, alive as long as self.
  /// The state before the block, and as the evaluator left it.
  let before = UnsafeMutableRawPointer.allocate(
    byteCount: TranslatedVCPU.comparedByteCount, alignment: 16)
  let expected = UnsafeMutableRawPointer.allocate(
    byteCount: TranslatedVCPU.comparedByteCount, alignment: 16)
  let overlay: OverlayMemory
  init(_ vcpu: TranslatedVCPU) { overlay = OverlayMemory(vcpu) }
  deinit {
    before.deallocate()
    expected.deallocate()
  }
}

/// Memory as the evaluator sees it in lockstep: stores stay in 8-byte words aside.
final class OverlayMemory: EvaluatorMemory {
  private unowned(unsafe) let vcpu: TranslatedVCPU
  /// Host addresses of aligned words, and what they hold. One block stores few words: a search is short.
  private var addresses: [UInt] = []
  // SAFETY: capacity words, alive as long as self; every operation of a block stores two words at most.
  private let words = UnsafeMutablePointer<UInt64>.allocate(capacity: 2 * IRBlock.capacity)
  private(set) var reachedDevice = false
  init(_ vcpu: TranslatedVCPU) { self.vcpu = vcpu }
  deinit { words.deallocate() }

  func removeAll() {
    addresses.removeAll(keepingCapacity: true)
    reachedDevice = false
  }

  /// Host address of a byte; `nil` after a fault or at a device.
  private func host(_ address: UInt64, _ context: Int, _ pc: UInt64, isStore: Bool)
    -> UnsafeMutableRawPointer?
  {
    guard vcpu.memory != nil else {
      // Faults of flat memory become signals, which must not happen twice: not compared.
      if let pointer = vcpu.flatProbe(address, isStore: isStore) { return pointer }
      reachedDevice = true
      return nil
    }
    switch vcpu.resolve(address, isStore ? .store : .load, context) {
    case .fault(let fault):
      vcpu.guest.raise(fault: fault, address: address, pc: pc)
      return nil
    case .page(let entry):
      guard let host = entry.pointee.host else {
        reachedDevice = true
        return nil
      }
      return host + Int(address & 4095)
    }
  }
  private func known(_ key: UInt) -> UnsafeMutablePointer<UInt64>? {
    var index = addresses.count
    while index > 0 {
      index -= 1
      if addresses[index] == key { return words + index }
    }
    return nil
  }
  private func word(_ host: UnsafeMutableRawPointer) -> UnsafeMutablePointer<UInt64> {
    let key = UInt(bitPattern: host) & ~7
    if let known = known(key) { return known }
    addresses.append(key)
    let new = words + (addresses.count - 1)
    new.initialize(to: UnsafeRawPointer(bitPattern: key)!.load(as: UInt64.self))
    return new
  }

  func load(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64) -> UInt64? {
    if address & 7 <= 8 - UInt64(byteCount) {
      guard let host = host(address, context, pc, isStore: false) else { return nil }
      let key = UInt(bitPattern: host) & ~7
      let word = known(key)?.pointee ?? UnsafeRawPointer(bitPattern: key)!.load(as: UInt64.self)
      return word >> (8 * (address & 7)) & (UInt64.max >> UInt64(64 - 8 * byteCount))
    }
    var value: UInt64 = 0
    for k in 0..<byteCount {
      guard let byte = load(address &+ UInt64(k), 1, context: context, pc: pc) else { return nil }
      value |= byte << UInt64(8 * k)
    }
    return value
  }

  func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64, context: Int, pc: UInt64) -> Bool {
    if address & 7 <= 8 - UInt64(byteCount) {
      guard let host = host(address, context, pc, isStore: true) else { return false }
      let shift = 8 * (address & 7)
      let mask = (UInt64.max >> UInt64(64 - 8 * byteCount)) << shift
      let word = word(host)
      word.pointee = word.pointee & ~mask | value << shift & mask
      return true
    }
    // Both pages are checked before a byte is stored.
    for k in [0, byteCount - 1] where host(address &+ UInt64(k), context, pc, isStore: true) == nil {
      return false
    }
    for k in 0..<byteCount
    where !store(address &+ UInt64(k), 1, value >> UInt64(8 * k), context: context, pc: pc) {
      return false
    }
    return true
  }

  func atomicPointer(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64, isStore: Bool)
    -> UnsafeMutableRawPointer?
  {
    guard address & UInt64(byteCount - 1) == 0 else {
      vcpu.guest.raise(fault: vcpu.guest.misalignedFault(isStore ? .store : .load), address: address, pc: pc)
      return nil
    }
    guard let host = host(address, context, pc, isStore: isStore) else { return nil }
    return UnsafeMutableRawPointer(word(host)) + Int(address & 7)
  }

  func didStoreAtomically(_ address: UInt64, _ byteCount: Int, context: Int) {}

  func firstDifference() -> String? {
    for (index, key) in addresses.enumerated() {
      let ours = UnsafeRawPointer(bitPattern: key)!.load(as: UInt64.self)
      if ours != words[index] {
        return
          "memory at host 0x\(String(key, radix: 16)): evaluator 0x\(String(words[index], radix: 16)), code 0x\(String(ours, radix: 16))"
      }
    }
    return nil
  }
}
