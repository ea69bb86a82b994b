import ApusIR

// Atomics that the IR has no operation for: bytes, half words and pairs. All are exchanges of the aligned 16 bytes around
// the operand, which never straddles them.

extension AArch64CPU {
  /// Changes 16 aligned bytes by `body`, which returns `nil` to leave them as they are. False: the access faulted.
  private func update(_ address: UInt64, _ body: ((UInt64, UInt64)) -> (UInt64, UInt64)?) -> Bool {
    let base = address & ~15
    let context = Int(s.mode.context)
    var old: (UInt64, UInt64) = (0, 0)
    // Zeros for zeros: a read that changes nothing.
    if let fault = engine.compareExchange128(base, &old, (0, 0), context: context) {
      raise(fault: fault, address: address, pc: s.pc)
      return false
    }
    while let new = body(old) {
      let expected = old
      if let fault = engine.compareExchange128(base, &old, new, context: context) {
        raise(fault: fault, address: address, pc: s.pc)
        return false
      }
      if old == expected { break }
    }
    return true
  }

  private func isAligned(_ address: UInt64, _ byteCount: UInt64) -> Bool {
    if address & (byteCount - 1) == 0 { return true }
    raise(.misaligned, address: address)
    return false
  }

  private static func extract(_ pair: (UInt64, UInt64), _ address: UInt64, _ mask: UInt64) -> UInt64 {
    (address & 8 == 0 ? pair.0 : pair.1) >> ((address & 7) * 8) & mask
  }
  private static func insert(
    _ pair: (UInt64, UInt64), _ address: UInt64, _ mask: UInt64, _ value: UInt64
  ) -> (UInt64, UInt64) {
    let shift = (address & 7) * 8
    func merge(_ old: UInt64) -> UInt64 { old & ~(mask << shift) | (value & mask) << shift }
    return address & 8 == 0 ? (merge(pair.0), pair.1) : (pair.0, merge(pair.1))
  }

  private var monitor: (address: UInt64, value: UInt64) {
    get {
      (
        state.load(fromByteOffset: StateHeader.monitorAddress, as: UInt64.self),
        state.load(fromByteOffset: StateHeader.monitorValue, as: UInt64.self)
      )
    }
    set {
      state.storeBytes(of: newValue.address, toByteOffset: StateHeader.monitorAddress, as: UInt64.self)
      state.storeBytes(of: newValue.value, toByteOffset: StateHeader.monitorValue, as: UInt64.self)
    }
  }

  func storeExclusiveNarrow(_ address: UInt64, _ value: UInt64, _ size: Int) -> UInt64 {
    guard isAligned(address, 1 << UInt64(size)) else { return 1 }
    let reserved = monitor
    monitor.address = StateHeader.noAddress
    guard reserved.address == address else { return 1 }
    let mask: UInt64 = size == 0 ? 0xff : 0xffff
    var isStored = false
    let hasAccess = update(address) { old in
      isStored = Self.extract(old, address, mask) == reserved.value & mask
      return isStored ? Self.insert(old, address, mask, value) : nil
    }
    return hasAccess && isStored ? 0 : 1
  }

  func atomicNarrow(_ address: UInt64, _ operand: UInt64, _ control: UInt64) -> UInt64 {
    let size = control & 3
    guard isAligned(address, 1 << size) else { return 0 }
    let width = 8 << size
    let mask: UInt64 = (1 << width) - 1
    let operation = control >> 8 & 0xff
    let expected = control >> 16 & mask
    func signed(_ value: UInt64) -> Int64 { Int64(bitPattern: value << (64 - width)) }
    var result: UInt64 = 0
    _ = update(address) { old in
      let value = Self.extract(old, address, mask)
      result = value
      let new: UInt64
      switch operation {
      case 0: new = value &+ operand
      case 1: new = value & ~operand
      case 2: new = value ^ operand
      case 3: new = value | operand
      case 4: new = signed(value) > signed(operand) ? value : operand
      case 5: new = signed(value) < signed(operand) ? value : operand
      case 6: new = max(value, operand & mask)
      case 7: new = min(value, operand & mask)
      case 8: new = operand
      default:
        if value != expected { return nil }
        new = operand
      }
      return Self.insert(old, address, mask, new)
    }
    return result
  }

  private func general(_ number: UInt32) -> UInt64 { number & 31 == 31 ? 0 : s[x: Int(number & 31)] }
  private func setGeneral(_ number: UInt32, _ value: UInt64) {
    if number & 31 != 31 { s[x: Int(number & 31)] = value }
  }

  func loadExclusivePair(_ address: UInt64, _ word: UInt32) {
    let isWide = word >> 30 & 1 != 0
    guard isAligned(address, isWide ? 16 : 8) else { return }
    var value: (UInt64, UInt64) = (0, 0)
    guard
      update(
        address,
        { old in
          value = old
          return nil
        })
    else { return }
    if isWide {
      monitor = (address, value.0)
      s[.monitorHigh] = value.1
      setGeneral(word, value.0)
      setGeneral(word >> 10, value.1)
    } else {
      let both = address & 8 == 0 ? value.0 : value.1
      monitor = (address, both)
      setGeneral(word, both & 0xffff_ffff)
      setGeneral(word >> 10, both >> 32)
    }
  }

  func storeExclusivePair(_ address: UInt64, _ word: UInt32) {
    let isWide = word >> 30 & 1 != 0
    guard isAligned(address, isWide ? 16 : 8) else { return }
    let reserved = monitor
    let high = s[.monitorHigh]
    monitor.address = StateHeader.noAddress
    guard reserved.address == address else { return setGeneral(word >> 16, 1) }
    let first = general(word)
    let second = general(word >> 10)
    var isStored = false
    let hasAccess = update(address) { old in
      if isWide {
        isStored = old == (reserved.value, high)
        return isStored ? (first, second) : nil
      }
      isStored = (address & 8 == 0 ? old.0 : old.1) == reserved.value
      guard isStored else { return nil }
      let both = first & 0xffff_ffff | second << 32
      return address & 8 == 0 ? (both, old.1) : (old.0, both)
    }
    if hasAccess { setGeneral(word >> 16, isStored ? 0 : 1) }
  }

  /// casp: register pairs begin with an even number.
  func compareAndSwapPair(_ address: UInt64, _ word: UInt32) {
    let isWide = word >> 30 & 1 != 0
    let expected = word >> 16 & 31
    let desired = word & 31
    guard expected & 1 == 0, desired & 1 == 0 else { return raise(.illegalInstruction, address: s.pc) }
    guard isAligned(address, isWide ? 16 : 8) else { return }
    let comparison = (general(expected), general(expected + 1))
    let new = (general(desired), general(desired + 1))
    var found: (UInt64, UInt64) = (0, 0)
    let hasAccess = update(address) { old in
      if isWide {
        found = old
        return old == comparison ? new : nil
      }
      let both = address & 8 == 0 ? old.0 : old.1
      found = (both & 0xffff_ffff, both >> 32)
      guard found == (comparison.0 & 0xffff_ffff, comparison.1 & 0xffff_ffff) else { return nil }
      let stored = new.0 & 0xffff_ffff | new.1 << 32
      return address & 8 == 0 ? (stored, old.1) : (old.0, stored)
    }
    guard hasAccess else { return }
    setGeneral(expected, found.0)
    setGeneral(expected + 1, found.1)
  }
}
