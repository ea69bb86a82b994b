import ApusGuest
import ApusGuestAArch64
import ApusUserABI

/// An AArch64 thread's registers in the layouts of Linux.
extension AArch64CPU: UserCPU {
  private var view: AArch64State { AArch64State(state) }
  private static func bytes(_ words: [UInt64]) -> [UInt8] { words.withUnsafeBytes { Array($0) } }

  public func setGuardedPages(_ isGuarded: @escaping (UInt64) -> Bool) { self.isGuarded = isGuarded }

  // MARK: Register sets

  /// `struct user_pt_regs`, `struct user_fpsimd_state`, NT_ARM_TLS, NT_ARM_PAC_MASK.
  public static var registerSets: [UInt32] { [1, 2, 0x401, 0x406] }

  public func registerSet(_ kind: UInt32) -> [UInt8]? {
    let view = view
    switch kind {
    case 1: return Self.bytes((0..<32).map { view[x: $0] } + [view.pc, view.nzcv])
    case 2:
      let vectors = (0..<32).flatMap { [view[v: $0].low, view[v: $0].high] }
      return Self.bytes(vectors + [view.fpsr | view[.fpcr] << 32, 0])
    case 0x401: return Self.bytes([view[.tpidr]])
    // The bits of a code in pointers to data and to instructions, below the top byte; debuggers take them out.
    case 0x406 where features.contains(.pauth): return Self.bytes([0x7f << 48, 0x7f << 48])
    default: return nil
    }
  }

  public func setRegisterSet(_ kind: UInt32, _ bytes: UnsafeRawBufferPointer) -> Bool {
    let view = view
    let limits: [UInt32: Int] = [1: 34, 2: 65, 0x401: 1]
    guard let limit = limits[kind] else { return false }
    for index in 0..<min(bytes.count / 8, limit) {
      let value = bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
      switch (kind, index) {
      case (1, 0..<32): view[x: index] = value
      case (1, 32): view.pc = value
      case (1, _): view.nzcv = value & 0xf000_0000
      case (2, 64):
        view.fpsr = value & 0xffff_ffff
        setFPCR(value >> 32)
      case (2, _):
        if index & 1 == 0 { view[v: index / 2].low = value } else { view[v: index / 2].high = value }
      default: view[.tpidr] = value
      }
    }
    return true
  }

  // MARK: Signal frames

  public func enterHandler(_ delivery: SignalDelivery, _ memory: UserMemory) -> Bool {
    typealias Frame = AArch64SignalFrame
    let view = view
    let frame = (delivery.stackPointer &- Frame.byteCount) & ~15
    let isStored = withUnsafeTemporaryAllocation(byteCount: Int(Frame.byteCount), alignment: 16) { raw in
      raw.initializeMemory(as: UInt8.self, repeating: 0)
      raw.copyBytes(from: delivery.info)
      func put(_ value: UInt64, _ offset: Int) {
        raw.storeBytes(of: value, toByteOffset: offset, as: UInt64.self)
      }
      put(delivery.context.stackBase, Frame.stack)
      put(delivery.context.stackFlags, Frame.stack + 8)
      put(delivery.context.stackByteCount, Frame.stack + 16)
      put(delivery.context.mask, Frame.mask)
      // SIGILL, SIGTRAP, SIGBUS, SIGFPE and SIGSEGV have an address.
      if [4, 5, 7, 8, 11].contains(delivery.signal) {
        put(delivery.info.loadUnaligned(fromByteOffset: 16, as: UInt64.self), Frame.faultAddress)
      }
      for number in 0..<32 { put(view[x: number], Frame.registers + 8 * number) }
      put(view.pc, Frame.registers + 256)
      put(view.nzcv, Frame.registers + 264)
      put(Frame.floatMagic, Frame.floats)
      put(view.fpsr | view[.fpcr] << 32, Frame.floats + 8)
      for number in 0..<32 {
        put(view[v: number].low, Frame.floats + 16 + 16 * number)
        put(view[v: number].high, Frame.floats + 24 + 16 * number)
      }
      put(view[x: 29], Frame.frameRecord)
      put(view[x: 30], Frame.frameRecord + 8)
      return memory.write(frame, UnsafeRawBufferPointer(raw))
    }
    guard isStored else { return false }
    view[x: 0] = UInt64(delivery.signal)
    view[x: 1] = frame
    view[x: 2] = frame + Frame.context
    view[x: 29] = frame + UInt64(Frame.frameRecord)
    view[x: 30] = delivery.returnAddress
    view[x: 31] = frame
    view.pc = delivery.handler
    return true
  }

  public func leaveHandler(_ memory: UserMemory) -> SignalContext? {
    typealias Frame = AArch64SignalFrame
    let view = view
    return withUnsafeTemporaryAllocation(byteCount: Int(Frame.byteCount), alignment: 16) { raw in
      guard memory.read(view[x: 31], into: raw) else { return nil }
      func get(_ offset: Int) -> UInt64 { raw.load(fromByteOffset: offset, as: UInt64.self) }
      for number in 0..<32 { view[x: number] = get(Frame.registers + 8 * number) }
      view.pc = get(Frame.registers + 256)
      view.nzcv = get(Frame.registers + 264) & 0xf000_0000
      if get(Frame.floats) == Frame.floatMagic {
        view.fpsr = get(Frame.floats + 8) & 0xffff_ffff
        setFPCR(get(Frame.floats + 8) >> 32)
        for number in 0..<32 {
          view[v: number] = AArch64Vector(
            low: get(Frame.floats + 16 + 16 * number), high: get(Frame.floats + 24 + 16 * number))
        }
      }
      return SignalContext(
        mask: get(Frame.mask), stackBase: get(Frame.stack), stackFlags: get(Frame.stack + 8),
        stackByteCount: get(Frame.stack + 16))
    }
  }

  // MARK: GDB

  public func debuggerRegister(_ number: Int) -> [UInt8] {
    let view = view
    switch number {
    case 0..<32: return Self.bytes([view[x: number]])
    case 32: return Self.bytes([view.pc])
    case 33: return Array(Self.bytes([view.nzcv])[..<4])
    case 34..<66: return Self.bytes([view[v: number - 34].low, view[v: number - 34].high])
    case 66: return Array(Self.bytes([view.fpsr])[..<4])
    default: return Array(Self.bytes([view[.fpcr]])[..<4])
    }
  }

  public func setDebuggerRegister(_ number: Int, _ bytes: [UInt8]) {
    let view = view
    func word(_ part: ArraySlice<UInt8>) -> UInt64 { part.reversed().reduce(0) { $0 << 8 | UInt64($1) } }
    let value = word(bytes.prefix(8))
    switch number {
    case 0..<32: view[x: number] = value
    case 32: view.pc = value
    case 33: view.nzcv = value & 0xf000_0000
    case 34..<66: view[v: number - 34] = AArch64Vector(low: value, high: word(bytes.dropFirst(8)))
    case 66: view.fpsr = value
    default: setFPCR(value)
    }
  }
}
