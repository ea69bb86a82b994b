/// What a filter is asked about: `struct seccomp_data`, 64 bytes.
public struct SeccompData: BitwiseCopyable, Sendable {
  public var number: UInt32
  public var architecture: UInt32
  public var address: UInt64
  public var arguments: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
  public init(
    number: UInt32, architecture: UInt32, address: UInt64,
    arguments: (UInt64, UInt64, UInt64, UInt64, UInt64, UInt64)
  ) {
    (self.number, self.architecture, self.address) = (number, architecture, address)
    self.arguments = arguments
  }
}

/// A filter of system calls: classic BPF, as seccomp(2) takes it [Linux networking/filter, seccomp_filter].
public struct SeccompFilter: Sendable {
  /// One `struct sock_filter`: code u16, jt u8, jf u8, k u32.
  public struct Instruction: BitwiseCopyable, Sendable {
    public var code: UInt16
    public var ifTrue: UInt8
    public var ifFalse: UInt8
    public var k: UInt32
    public init(code: UInt16, ifTrue: UInt8, ifFalse: UInt8, k: UInt32) {
      (self.code, self.ifTrue, self.ifFalse, self.k) = (code, ifTrue, ifFalse, k)
    }
  }
  public static let maximumCount = 4096
  public let instructions: [Instruction]

  /// What a filter says, the most severe first; the low 16 bits are data.
  public enum Action {
    public static let killProcess: UInt32 = 0x8000_0000
    public static let killThread: UInt32 = 0
    public static let trap: UInt32 = 0x0003_0000
    public static let errno: UInt32 = 0x0005_0000
    public static let userNotification: UInt32 = 0x7fc0_0000
    public static let trace: UInt32 = 0x7ff0_0000
    public static let log: UInt32 = 0x7ffc_0000
    public static let allow: UInt32 = 0x7fff_0000
    public static let mask: UInt32 = 0xffff_0000
    public static let known = [killProcess, killThread, trap, errno, trace, log, allow]
  }

  /// `nil` for a program that the kernel would not take.
  public init?(_ instructions: [Instruction]) {
    guard (1...Self.maximumCount).contains(instructions.count) else { return nil }
    for (index, one) in instructions.enumerated() {
      let behind = instructions.count - index - 1
      switch one.code {
      // Loads of words of the data, of its size, of constants and of scratch memory.
      case 0x20: guard one.k & 3 == 0, one.k < 64 else { return nil }
      case 0x80, 0x81, 0x00, 0x01: break
      case 0x60, 0x61, 0x02, 0x03: guard one.k < 16 else { return nil }
      // Arithmetic with a constant or the index register.
      case 0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x3c, 0x44, 0x4c, 0x54, 0x5c, 0xa4, 0xac, 0x84: break
      case 0x34: guard one.k != 0 else { return nil }
      case 0x64, 0x74: guard one.k < 32 else { return nil }
      case 0x6c, 0x7c, 0x07, 0x87: break
      // Jumps, forward only.
      case 0x05: guard one.k < UInt32(behind) else { return nil }
      case 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d:
        guard Int(one.ifTrue) < behind, Int(one.ifFalse) < behind else { return nil }
      case 0x06, 0x16: break
      default: return nil
      }
    }
    guard [0x06, 0x16].contains(instructions[instructions.count - 1].code) else { return nil }
    self.instructions = instructions
  }

  public func evaluate(_ data: SeccompData) -> UInt32 {
    withUnsafeBytes(of: data) { bytes in
      instructions.withUnsafeBufferPointer { program in
        var (a, x): (UInt32, UInt32) = (0, 0)
        var memory = InlineArray<16, UInt32>(repeating: 0)
        var position = 0
        while position < program.count {
          let one = program[position]
          position += 1
          let source = one.code & 8 != 0 ? x : one.k
          switch one.code {
          case 0x20: a = bytes.loadUnaligned(fromByteOffset: Int(one.k), as: UInt32.self)
          case 0x80: a = 64
          case 0x81: x = 64
          case 0x00: a = one.k
          case 0x01: x = one.k
          case 0x60: a = memory[Int(one.k)]
          case 0x61: x = memory[Int(one.k)]
          case 0x02: memory[Int(one.k)] = a
          case 0x03: memory[Int(one.k)] = x
          case 0x04, 0x0c: a &+= source
          case 0x14, 0x1c: a &-= source
          case 0x24, 0x2c: a &*= source
          case 0x34, 0x3c:
            if source == 0 { return Action.killThread }
            a /= source
          case 0x44, 0x4c: a |= source
          case 0x54, 0x5c: a &= source
          case 0xa4, 0xac: a ^= source
          case 0x64, 0x6c: a = a << (source & 31)
          case 0x74, 0x7c: a = a >> (source & 31)
          case 0x84: a = 0 &- a
          case 0x07: x = a
          case 0x87: a = x
          case 0x05: position += Int(one.k)
          case 0x15, 0x1d: position += Int(a == source ? one.ifTrue : one.ifFalse)
          case 0x25, 0x2d: position += Int(a > source ? one.ifTrue : one.ifFalse)
          case 0x35, 0x3d: position += Int(a >= source ? one.ifTrue : one.ifFalse)
          case 0x45, 0x4d: position += Int(a & source != 0 ? one.ifTrue : one.ifFalse)
          case 0x06: return one.k
          default: return a  // 0x16
          }
        }
        return Action.killThread
      }
    }
  }

  /// What all of a thread's filters say, the newest first: the most severe action, of the newest one that says so.
  public static func evaluate(_ filters: [SeccompFilter], _ data: SeccompData) -> UInt32 {
    var result = Action.allow
    for filter in filters.reversed() {
      let one = filter.evaluate(data)
      if Int32(bitPattern: one & Action.mask) < Int32(bitPattern: result & Action.mask) { result = one }
    }
    return result
  }
}
