import ApusIR
import ApusIREval
import ApusJIT
import CApusHost

// Lockstep: the evaluator runs each block first, on an overlay of memory, then generated code runs it for real, and
// the outcomes are compared. Blocks that reach a device or a helper that leaves the block run only once.

extension TranslatedVCPU {
  /// The part of the state that is compared: everything below the jump caches.
  private static let comparedByteCount = StateHeader.jumpCaches

  func verify(_ record: BlockRecord) {
    let before = UnsafeMutableRawPointer.allocate(byteCount: Self.comparedByteCount, alignment: 16)
    let expected = UnsafeMutableRawPointer.allocate(byteCount: Self.comparedByteCount, alignment: 16)
    defer {
      before.deallocate()
      expected.deallocate()
    }
    let number = cache.lock.withLock { cache.number(of: record) }
    // Requests that arrive meanwhile make the two leave at different polls: such a block is not compared.
    let request = apus_exchange32(state + StateHeader.exitRequest, 0)
    defer { if request != 0 { requestInterruptCheck() } }
    before.copyMemory(from: state, byteCount: Self.comparedByteCount)
    let overlay = OverlayMemory(self)
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
    guard canCompare, !overlay.reachedDevice else { return }
    if wasInterrupted || apus_load_relaxed32(state + StateHeader.exitRequest) != 0 {
      return requestInterruptCheck()
    }
    for offset in stride(from: 0, to: Self.comparedByteCount, by: 8)
    where !Self.isEngineScratch(offset) && !shared.contains(offset) {
      let ours = state.load(fromByteOffset: offset, as: UInt64.self)
      let theirs = expected.load(fromByteOffset: offset, as: UInt64.self)
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
    for index in 0..<Int(record.irCount) {
      let i = record.ir![index]
      if i.opcode == .call,
        IRHelperEffects(rawValue: UInt8(truncatingIfNeeded: i.immediate >> 32)).contains(.mayExit)
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
    for index in 0..<Int(record.irCount) where record.ir![index].opcode == .instruction {
      let pc = UInt64(bitPattern: record.ir![index].immediate)
      if let page = resolveForReport(pc) { text += "\(hex(pc)): \(guest.disassemble(page, pc: pc))\n" }
    }
    text += "--- IR\n\(IRBlock.text(record.ir!, count: Int(record.irCount), terminator: record.terminator))"
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

/// Memory as the evaluator sees it in lockstep: stores stay in 8-byte words aside.
private final class OverlayMemory: EvaluatorMemory {
  private let vcpu: TranslatedVCPU
  /// Host address of an aligned word -> its new value, and which of its bytes were stored.
  private var words: [UInt: UnsafeMutablePointer<UInt64>] = [:]
  private(set) var reachedDevice = false
  init(_ vcpu: TranslatedVCPU) { self.vcpu = vcpu }
  deinit { for word in words.values { word.deallocate() } }

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
  private func word(_ host: UnsafeMutableRawPointer) -> UnsafeMutablePointer<UInt64> {
    let key = UInt(bitPattern: host) & ~7
    if let known = words[key] { return known }
    let new = UnsafeMutablePointer<UInt64>.allocate(capacity: 1)
    new.initialize(to: UnsafeRawPointer(bitPattern: key)!.load(as: UInt64.self))
    words[key] = new
    return new
  }

  func load(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64) -> UInt64? {
    var value: UInt64 = 0
    for k in 0..<byteCount {
      guard let host = host(address &+ UInt64(k), context, pc, isStore: false) else { return nil }
      let key = UInt(bitPattern: host) & ~7
      let byte =
        words[key].map { UInt8(truncatingIfNeeded: $0.pointee >> UInt64(8 * (UInt(bitPattern: host) & 7))) }
        ?? host.load(as: UInt8.self)
      value |= UInt64(byte) << UInt64(8 * k)
    }
    return value
  }

  func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64, context: Int, pc: UInt64) -> Bool {
    // All pages are checked before a byte is stored.
    for k in 0..<byteCount where host(address &+ UInt64(k), context, pc, isStore: true) == nil {
      return false
    }
    for k in 0..<byteCount {
      guard let host = host(address &+ UInt64(k), context, pc, isStore: true) else { return false }
      let shift = UInt64(8 * (UInt(bitPattern: host) & 7))
      let word = word(host)
      word.pointee = word.pointee & ~(0xff << shift) | (value >> UInt64(8 * k) & 0xff) << shift
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
    return UnsafeMutableRawPointer(word(host)) + Int(UInt(bitPattern: host) & 7)
  }

  func firstDifference() -> String? {
    for (key, word) in words {
      let ours = UnsafeRawPointer(bitPattern: key)!.load(as: UInt64.self)
      if ours != word.pointee {
        return
          "memory at host 0x\(String(key, radix: 16)): evaluator 0x\(String(word.pointee, radix: 16)), code 0x\(String(ours, radix: 16))"
      }
    }
    return nil
  }
}
