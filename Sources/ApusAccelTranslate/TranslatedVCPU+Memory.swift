import ApusGuest
import ApusIR
import ApusIREval
import ApusJIT
import ApusJITX86
import ApusMemory
import CApusHost

// The slow path of memory accesses: TLB misses, devices, page crossings, stores to code.

extension TranslatedVCPU {
  /// Raises the fault; the state is the handler's afterwards.
  private func take(_ fault: UInt64, _ address: UInt64, _ pc: UInt64) {
    guest.raise(fault: fault, address: address, pc: pc)
  }

  /// A load of up to 8 bytes, zero-extended; `nil` after a fault.
  func loadGuest(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64) -> UInt64? {
    guard memory != nil else { return flatLoad(address, byteCount, pc: pc) }
    if address & 4095 > 4096 - UInt64(byteCount) {
      // Over a page's end: byte by byte, both pages checked first.
      let second = (address | 4095) &+ 1
      guard isAccessible(address, .load, context, pc, reported: address),
        isAccessible(second, .load, context, pc, reported: second)
      else { return nil }
      var value: UInt64 = 0
      for k in 0..<byteCount {
        guard let byte = loadGuest(address &+ UInt64(k), 1, context: context, pc: pc) else { return nil }
        value |= byte << UInt64(8 * k)
      }
      return value
    }
    switch resolve(address, .load, context) {
    case .fault(let fault):
      take(fault, address, pc)
      return nil
    case .page(let entry):
      if let fault = watchFault(address, byteCount, .load, context) {
        take(fault, address, pc)
        return nil
      }
      if let host = entry.pointee.host {
        fillFirstLevel(address, context, entry)
        let pointer = host + Int(address & 4095)
        switch byteCount {
        case 1: return UInt64(apus_load_relaxed8(pointer))
        case 2: return UInt64(pointer.loadUnaligned(as: UInt16.self))
        case 4: return UInt64(pointer.loadUnaligned(as: UInt32.self))
        default: return pointer.loadUnaligned(as: UInt64.self)
        }
      }
      let physical = entry.pointee.physicalPage << 12 | address & 4095
      if let value = deviceLoad(physical, byteCount) { return value }
      take(guest.busFault(.load), address, pc)
      return nil
    }
  }

  private func watchFault(_ address: UInt64, _ byteCount: Int, _ access: GuestAccess, _ context: Int)
    -> UInt64?
  {
    guard !watchedPages.isEmpty, watchedPages.contains(address & ~4095) else { return nil }
    return guest.watchFault(address, byteCount, access, context: context)
  }

  /// Devices see naturally aligned accesses only.
  private func deviceLoad(_ physical: UInt64, _ byteCount: Int) -> UInt64? {
    counters.deviceAccesses += 1
    if physical & UInt64(byteCount - 1) == 0 {
      return memory!.load(GuestPhysicalAddress(physical), byteCount)
    }
    var value: UInt64 = 0
    for k in 0..<byteCount {
      guard let byte = memory!.load(GuestPhysicalAddress(physical + UInt64(k)), 1) else { return nil }
      value |= (byte & 0xff) << UInt64(8 * k)
    }
    return value
  }

  private func isAccessible(
    _ address: UInt64, _ access: GuestAccess, _ context: Int, _ pc: UInt64, reported: UInt64
  )
    -> Bool
  {
    if case .fault(let fault) = resolve(address, access, context) {
      take(fault, reported, pc)
      return false
    }
    return true
  }

  /// A store of up to 8 bytes; false after a fault.
  func storeGuest(_ address: UInt64, _ byteCount: Int, _ value: UInt64, context: Int, pc: UInt64) -> Bool {
    guard memory != nil else { return flatStore(address, byteCount, value, pc: pc) }
    if address & 4095 > 4096 - UInt64(byteCount) {
      let second = (address | 4095) &+ 1
      guard isAccessible(address, .store, context, pc, reported: address),
        isAccessible(second, .store, context, pc, reported: second)
      else { return false }
      for k in 0..<byteCount {
        guard
          storeGuest(address &+ UInt64(k), 1, value >> UInt64(8 * k) & 0xff, context: context, pc: pc)
        else { return false }
      }
      return true
    }
    switch resolve(address, .store, context) {
    case .fault(let fault):
      take(fault, address, pc)
      return false
    case .page(let entry):
      if let fault = watchFault(address, byteCount, .store, context) {
        take(fault, address, pc)
        return false
      }
      let physical = entry.pointee.physicalPage << 12 | address & 4095
      if let host = entry.pointee.host, let ram = entry.pointee.ram?.takeUnretainedValue(), !ram.isReadOnly {
        fillFirstLevel(address, context, entry)
        let pointer = host + Int(address & 4095)
        switch byteCount {
        case 1: apus_store_relaxed8(pointer, UInt8(truncatingIfNeeded: value))
        case 2: pointer.storeBytes(of: UInt16(truncatingIfNeeded: value), as: UInt16.self)
        case 4: pointer.storeBytes(of: UInt32(truncatingIfNeeded: value), as: UInt32.self)
        default: pointer.storeBytes(of: value, as: UInt64.self)
        }
        noteStore(ram, physical, UInt64(byteCount))
        return true
      }
      counters.deviceAccesses += 1
      if physical & UInt64(byteCount - 1) == 0 {
        if memory!.store(GuestPhysicalAddress(physical), byteCount, value) { return true }
      } else if (0..<byteCount).allSatisfy({
        memory!.store(GuestPhysicalAddress(physical + UInt64($0)), 1, value >> UInt64(8 * $0) & 0xff)
      }) {
        return true
      }
      take(guest.busFault(.store), address, pc)
      return false
    }
  }

  private func noteStore(_ ram: GuestRAM, _ physical: UInt64, _ count: UInt64) {
    let page = Int((physical - ram.base.rawValue) >> 12)
    // Either this sees that the page has code, or the translator, which marks it first, sees what was stored.
    apus_fence()
    if apus_load_relaxed8(ram.pageFlags + page) & GuestRAM.pageHasCode != 0 {
      cache.invalidate(physical, count)
    }
  }

  /// Host memory for an atomic operation; `nil` after a fault. Devices take no atomics. After one that stores the
  /// caller tells with `noteAtomicStore`.
  func atomicGuestPointer(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64, isStore: Bool)
    -> UnsafeMutableRawPointer?
  {
    let access: GuestAccess = isStore ? .store : .load
    guard address & UInt64(byteCount - 1) == 0 else {
      take(guest.misalignedFault(access), address, pc)
      return nil
    }
    guard memory != nil else {
      if let pointer = flatProbe(address, isStore: isStore) { return pointer }
      take(guest.busFault(access), address, pc)
      return nil
    }
    switch resolve(address, access, context) {
    case .fault(let fault):
      take(fault, address, pc)
      return nil
    case .page(let entry):
      if let fault = watchFault(address, byteCount, access, context) {
        take(fault, address, pc)
        return nil
      }
      guard let host = entry.pointee.host, let ram = entry.pointee.ram?.takeUnretainedValue(),
        !(isStore && ram.isReadOnly)
      else {
        take(guest.busFault(access), address, pc)
        return nil
      }
      fillFirstLevel(address, context, entry)
      return host + Int(address & 4095)
    }
  }

  /// An atomic operation stored to RAM: translated code there goes.
  func noteAtomicStore(_ address: UInt64, _ byteCount: Int, context: Int) {
    guard memory != nil, case .page(let entry) = resolve(address, .store, context),
      let ram = entry.pointee.ram?.takeUnretainedValue()
    else { return }
    noteStore(ram, entry.pointee.physicalPage << 12 | address & 4095, UInt64(byteCount))
  }

  // Flat memory faults like any other host memory: the guarded functions come back, and the memory's owner decides.

  private func flatLoad(_ address: UInt64, _ byteCount: Int, pc: UInt64) -> UInt64? {
    guard let pointer = UnsafeRawPointer(bitPattern: UInt(address)) else {
      take(guest.busFault(.load), address, pc)
      return nil
    }
    var value: UInt64 = 0
    while true {
      let failed =
        switch byteCount {
        case 1: apus_guard_load8(pointer, &value)
        case 2: apus_guard_load16(pointer, &value)
        case 4: apus_guard_load32(pointer, &value)
        default: apus_guard_load64(pointer, &value)
        }
      if failed == 0 { return value }
      guard flatFault?(address, .load) ?? false else {
        take(guest.busFault(.load), address, pc)
        return nil
      }
    }
  }

  private func flatStoreAttempt(_ address: UInt64, _ byteCount: Int, _ value: UInt64) -> Bool {
    guard let pointer = UnsafeMutableRawPointer(bitPattern: UInt(address)) else { return false }
    while true {
      let failed =
        switch byteCount {
        case 1: apus_guard_store8(pointer, value)
        case 2: apus_guard_store16(pointer, value)
        case 4: apus_guard_store32(pointer, value)
        default: apus_guard_store64(pointer, value)
        }
      if failed == 0 { return true }
      guard flatFault?(address, .store) ?? false else { return false }
    }
  }
  private func flatStore(_ address: UInt64, _ byteCount: Int, _ value: UInt64, pc: UInt64) -> Bool {
    if flatStoreAttempt(address, byteCount, value) { return true }
    take(guest.busFault(.store), address, pc)
    return false
  }
  /// Makes sure that an atomic operation on `address` will not fault.
  func flatProbe(_ address: UInt64, isStore: Bool) -> UnsafeMutableRawPointer? {
    guard let pointer = UnsafeMutableRawPointer(bitPattern: UInt(address)) else { return nil }
    var value: UInt64 = 0
    while true {
      if (isStore ? apus_guard_probe(pointer) : apus_guard_load8(pointer, &value)) == 0 { return pointer }
      guard flatFault?(address, isStore ? .store : .load) ?? false else { return nil }
    }
  }

  /// Carries out the instruction at the state's PC with the evaluator, in flat memory: for a store to a page that
  /// code was translated from. The caller has seen to it that the instruction can be read.
  public func interpretOne() {
    let isCounted = isInCode
    if !isCounted { beginRunning() }
    defer { if !isCounted { endRunning() } }
    let block = singleStepBlock
    let offset = Int(pc & 4095)
    guard let bytes = UnsafePointer<UInt8>(bitPattern: UInt(pc)) else { return }
    let window = GuestCodeWindow(
      bytes: bytes, count: 4096 - offset, precedingCount: offset, nextPage: bytes + (4096 - offset))
    _ = guest.translate(block, pc: pc, mode: mode, code: window, instructionLimit: 1)
    evaluator.run(
      block.instructions, count: block.count, terminator: block.terminator, state: state,
      helpers: guest.helpers,
      memory: self)
  }

  // MARK: For helpers

  public func storeGuest(_ address: UInt64, _ value: UInt64, context: Int) -> UInt64? {
    guard memory != nil else { return flatStoreAttempt(address, 8, value) ? nil : guest.busFault(.store) }
    switch resolve(address, .store, context) {
    case .fault(let fault): return fault
    case .page(let entry):
      let physical = entry.pointee.physicalPage << 12 | address & 4095
      return memory!.store(GuestPhysicalAddress(physical), 8, value) ? nil : guest.busFault(.store)
    }
  }

  public func compareExchange128(
    _ address: UInt64, _ expected: inout (UInt64, UInt64), _ desired: (UInt64, UInt64), context: Int
  ) -> UInt64? {
    var pointer = memory == nil ? flatProbe(address, isStore: true) : nil
    if memory != nil {
      switch resolve(address, .store, context) {
      case .fault(let fault): return fault
      case .page(let entry):
        if let fault = watchFault(address, 16, .store, context) { return fault }
        pointer = entry.pointee.host.map { $0 + Int(address & 4095) }
      }
    }
    guard let pointer else { return guest.busFault(.store) }
    withUnsafeMutablePointer(to: &expected) { pair in
      pair.withMemoryRebound(to: UInt64.self, capacity: 2) {
        _ = apus_compare_exchange128(pointer, $0, desired.0, desired.1)
      }
    }
    noteAtomicStore(address, 16, context: context)
    return nil
  }

  // MARK: From generated code

  /// Carries out the access of the site in `argument2`. Nonzero: an exception was taken.
  func slowMemory() -> UInt64 {
    counters.slowAccesses += 1
    let site = cache.site(Int(state.load(fromByteOffset: StateHeader.argument2, as: UInt32.self)))
    // The evaluator is the one definition of what each operation does: run it on this one.
    let a = state.load(fromByteOffset: StateHeader.argument0, as: UInt64.self)
    let operand = IRMemoryOperand(rawValue: site.memoryOperand)
    let address = a &+ UInt64(bitPattern: Int64(operand.displacement))
    let context = operand.context
    func finish(_ value: UInt64) -> UInt64 {
      state.storeBytes(of: value, toByteOffset: StateHeader.result, as: UInt64.self)
      return 0
    }
    func load(_ byteCount: Int, _ extend: (UInt64) -> UInt64) -> UInt64 {
      guard let value = loadGuest(address, byteCount, context: context, pc: site.pc) else { return 1 }
      return finish(extend(value))
    }
    func store(_ byteCount: Int) -> UInt64 {
      let value = state.load(fromByteOffset: StateHeader.argument1, as: UInt64.self)
      return storeGuest(address, byteCount, value, context: context, pc: site.pc) ? 0 : 1
    }
    switch site.opcode {
    case .loadU8: return load(1) { $0 }
    case .loadS8: return load(1) { UInt64(bitPattern: Int64(Int8(truncatingIfNeeded: $0))) }
    case .loadU16: return load(2) { $0 }
    case .loadS16: return load(2) { UInt64(bitPattern: Int64(Int16(truncatingIfNeeded: $0))) }
    case .loadU32, .loadF32: return load(4) { $0 }
    case .loadS32: return load(4) { UInt64(bitPattern: Int64(Int32(truncatingIfNeeded: $0))) }
    case .load64, .loadF64: return load(8) { $0 }
    case .store8: return store(1)
    case .store16: return store(2)
    case .store32, .storeF32: return store(4)
    case .store64, .storeF64: return store(8)
    default: return slowOperation(site, a)
    }
  }

  /// Brings the page of a group's lead into the first-level TLB. Nonzero: that cannot be done, and no exception was
  /// taken; the lead alone will find out why.
  func prepareGroup() -> UInt64 {
    counters.slowAccesses += 1
    let site = cache.site(Int(state.load(fromByteOffset: StateHeader.argument2, as: UInt32.self)))
    let operand = GroupOperand(rawValue: site.memoryOperand)
    let address =
      state.load(fromByteOffset: StateHeader.argument0, as: UInt64.self)
      &+ UInt64(bitPattern: Int64(operand.displacement))
    // Another page may not be touched: the guest might see its accessed bit.
    guard (address &- operand.byteCountBelow) >> 12 == address >> 12,
      case .page(let entry) = resolve(address, .load, operand.context)
    else { return 1 }
    fillFirstLevel(address, operand.context, entry)
    return isInFirstLevel(address, operand.context, isStore: operand.needsStore) ? 0 : 1
  }

  /// Atomics and floating-point fix-ups: one IR operation through the evaluator.
  private func slowOperation(_ site: SlowSite, _ a: UInt64) -> UInt64 {
    let b = state.load(fromByteOffset: StateHeader.argument1, as: UInt64.self)
    let c = state.load(fromByteOffset: StateHeader.result, as: UInt64.self)
    guard
      let value = evaluator.runOne(
        site.opcode, a, b, c, immediate: site.memoryOperand, pc: site.pc, state: state, memory: self)
    else { return 1 }
    state.storeBytes(of: value, toByteOffset: StateHeader.result, as: UInt64.self)
    return 0
  }
}

extension TranslatedVCPU: EvaluatorMemory {
  public func load(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64) -> UInt64? {
    loadGuest(address, byteCount, context: context, pc: pc)
  }
  public func store(_ address: UInt64, _ byteCount: Int, _ value: UInt64, context: Int, pc: UInt64) -> Bool {
    storeGuest(address, byteCount, value, context: context, pc: pc)
  }
  public func atomicPointer(_ address: UInt64, _ byteCount: Int, context: Int, pc: UInt64, isStore: Bool)
    -> UnsafeMutableRawPointer?
  { atomicGuestPointer(address, byteCount, context: context, pc: pc, isStore: isStore) }
  public func didStoreAtomically(_ address: UInt64, _ byteCount: Int, context: Int) {
    noteAtomicStore(address, byteCount, context: context)
  }
}
