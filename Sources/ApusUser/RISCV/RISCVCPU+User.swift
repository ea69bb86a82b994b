import ApusGuest
import ApusGuestRISCV
import ApusUserABI

/// A RISC-V thread's registers in the layouts of Linux.
extension RISCVCPU: UserCPU {
  private var view: RISCVState { RISCVState(state) }
  private var floatControl: UInt64 {
    get { view.floatFlags | view[.frm] << 5 }
    set {
      view.floatFlags = newValue & 31
      setRounding(newValue >> 5 & 7)
    }
  }

  // MARK: Register sets

  /// `struct user_regs_struct`: pc, x1 to x31. `union __riscv_fp_state`: f0 to f31, fcsr.
  public static var registerSets: [UInt32] { [1, 2] }

  public func registerSet(_ kind: UInt32) -> [UInt8]? {
    let view = view
    switch kind {
    case 1: return Self.bytes([view.pc] + (1..<32).map { view[x: $0] })
    case 2: return Self.bytes((0..<32).map { view[f: $0] } + [floatControl])
    default: return nil
    }
  }
  private static func bytes(_ words: [UInt64]) -> [UInt8] { words.withUnsafeBytes { Array($0) } }

  public func setRegisterSet(_ kind: UInt32, _ bytes: UnsafeRawBufferPointer) -> Bool {
    let view = view
    guard kind == 1 || kind == 2 else { return false }
    for index in 0..<min(bytes.count / 8, kind == 1 ? 32 : 33) {
      let value = bytes.loadUnaligned(fromByteOffset: index * 8, as: UInt64.self)
      switch (kind, index) {
      case (1, 0): view.pc = value
      case (1, _): view[x: index] = value
      case (_, 32): floatControl = value
      default: view[f: index] = value
      }
    }
    return true
  }

  // MARK: Signal frames

  public func enterHandler(_ delivery: SignalDelivery, _ memory: UserMemory) -> Bool {
    typealias Frame = RISCVSignalFrame
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
      put(view.pc, Frame.registers)
      for number in 1..<32 { put(view[x: number], Frame.registers + 8 * number) }
      for number in 0..<32 { put(view[f: number], Frame.floats + 8 * number) }
      put(floatControl, Frame.floatControl)
      return memory.write(frame, UnsafeRawBufferPointer(raw))
    }
    guard isStored else { return false }
    view[x: 1] = delivery.returnAddress
    view[x: 2] = frame
    view[x: 10] = UInt64(delivery.signal)
    view[x: 11] = frame
    view[x: 12] = frame + Frame.context
    view.pc = delivery.handler
    return true
  }

  public func leaveHandler(_ memory: UserMemory) -> SignalContext? {
    typealias Frame = RISCVSignalFrame
    let view = view
    return withUnsafeTemporaryAllocation(byteCount: Int(Frame.byteCount), alignment: 16) { raw in
      guard memory.read(view[x: 2], into: raw) else { return nil }
      func get(_ offset: Int) -> UInt64 { raw.load(fromByteOffset: offset, as: UInt64.self) }
      view.pc = get(Frame.registers)
      for number in 1..<32 { view[x: number] = get(Frame.registers + 8 * number) }
      for number in 0..<32 { view[f: number] = get(Frame.floats + 8 * number) }
      floatControl = get(Frame.floatControl)
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
    case 33..<65: return Self.bytes([view[f: number - 33]])
    case 65: return Array(Self.bytes([view.floatFlags])[..<4])
    case 66: return Array(Self.bytes([view[.frm]])[..<4])
    default: return Array(Self.bytes([floatControl])[..<4])
    }
  }

  public func setDebuggerRegister(_ number: Int, _ bytes: [UInt8]) {
    let view = view
    let value = bytes.reversed().reduce(0 as UInt64) { $0 << 8 | UInt64($1) }
    switch number {
    case 0: break
    case 1..<32: view[x: number] = value
    case 32: view.pc = value
    case 33..<65: view[f: number - 33] = value
    case 65: view.floatFlags = value & 31
    case 66: setRounding(value)
    default: floatControl = value
    }
  }
}
