import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// Where a process's parts lie, as /proc and prctl tell of them.
struct ProcessLayout: Sendable {
  var codeStart: UInt64 = 0
  var codeEnd: UInt64 = 0
  var stackPointer: UInt64 = 0
  var argumentsStart: UInt64 = 0
  /// Also where the environment begins.
  var argumentsEnd: UInt64 = 0
  var environmentEnd: UInt64 = 0
}

/// Builds the stack that a program starts with [gABI ch. 3, process initialization]:
///
/// ```
///  high   the program's path, environment and argument strings, 16 random bytes
///         auxiliary vector, 16 bytes an entry, ending with AT_NULL
///         environment pointers, 0
///         argument pointers, 0
///  sp ->  argument count
/// ```
struct InitialStack {
  /// Without `-s`: the soft limit of the stack within these bounds.
  static let defaultByteCounts: ClosedRange<UInt64> = 8 << 20...1 << 30
  /// The kernel gives a program this much whatever the limit says.
  private static let smallestByteCount: UInt64 = 132 << 10
  /// The kernel's limit of arguments and environment together: a quarter of the stack.
  private static let argumentShare: UInt64 = 4

  let memory: UserMemory
  var top: UInt64
  private(set) var layout = ProcessLayout()
  private(set) var auxiliary: [UInt64] = []

  /// - Parameter wanted: the soft limit where the emulator keeps it: one that is too small for the emulator itself.
  static func defaultByteCount(limit wanted: UInt64?) -> UInt64 {
    if let wanted, wanted < 1 << 20 { return max(wanted & ~4095, smallestByteCount) }
    var limit = rlimit()
    guard getrlimit(__rlimit_resource_t(3), &limit) == 0 else { return defaultByteCounts.lowerBound }
    let wish = UInt64(limit.rlim_cur)
    return min(max(wish, defaultByteCounts.lowerBound), defaultByteCounts.upperBound) & ~4095
  }

  /// - Returns: the stack as built, or `nil` without memory.
  static func build(
    _ memory: UserMemory, byteCount: UInt64, options: UserOptions, program: LoadedProgram, vdso: UInt64
  ) -> InitialStack? {
    let protection = PROT_READ | PROT_WRITE | (program.hasExecutableStack ? PROT_EXEC : 0)
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | 0x20000  // MAP_STACK
    let base = memory.map(
      memory.addresses.stackEnd - byteCount, byteCount, protection, flags, -1, 0, label: .stack)
    guard base > 0 else { return nil }
    var stack = InitialStack(memory: memory, top: UInt64(base) + byteCount - 8)
    guard let name = stack.push(options.path) else { return nil }
    stack.layout.environmentEnd = stack.top
    guard let environment = stack.push(options.environment) else { return nil }
    stack.layout.argumentsEnd = stack.top
    guard let arguments = stack.push(options.arguments) else { return nil }
    stack.layout.argumentsStart = stack.top
    var platform: [(UInt64, UInt64)] = []
    if let name = options.isa.platform {
      guard let address = stack.push(ByteString(text: name)) else { return nil }
      platform = [(AuxiliaryKey.platform, address)]
    }
    guard let random = stack.pushRandom(),
      UInt64(base) + byteCount - stack.top < byteCount / argumentShare * 3
    else { return nil }
    let pairs: [(UInt64, UInt64)] = [
      (AuxiliaryKey.vdso, vdso),
      (AuxiliaryKey.programHeaders, program.headers), (AuxiliaryKey.programHeaderByteCount, 56),
      (AuxiliaryKey.programHeaderCount, program.headerCount), (AuxiliaryKey.pageByteCount, 4096),
      (AuxiliaryKey.interpreterBase, program.interpreterBase), (AuxiliaryKey.flags, 0),
      (AuxiliaryKey.entry, program.entry), (AuxiliaryKey.user, UInt64(getuid())),
      (AuxiliaryKey.effectiveUser, UInt64(geteuid())), (AuxiliaryKey.group, UInt64(getgid())),
      (AuxiliaryKey.effectiveGroup, UInt64(getegid())),
      (AuxiliaryKey.clockTicks, 100), (AuxiliaryKey.isSecure, UInt64(getauxval(UInt(AuxiliaryKey.isSecure)))),
      (AuxiliaryKey.random, random), (AuxiliaryKey.programName, name),
    ]
    stack.auxiliary = (pairs + options.isa.auxiliaryEntries + platform + [(AuxiliaryKey.null, 0)]).flatMap {
      [$0.0, $0.1]
    }
    var words: [UInt64] = [UInt64(arguments.count)]
    words += arguments + [0] + environment + [0] + stack.auxiliary
    let stackPointer = (stack.top & ~15) - UInt64((words.count * 8 + 15) & ~15)
    stack.layout.stackPointer = stackPointer
    (stack.layout.codeStart, stack.layout.codeEnd) = (program.codeStart, program.codeEnd)
    return words.withUnsafeBytes({ memory.write(stackPointer, $0) }) ? stack : nil
  }

  private init(memory: UserMemory, top: UInt64) { (self.memory, self.top) = (memory, top) }

  private mutating func push(_ text: ByteString) -> UInt64? {
    top -= UInt64(text.count) + 1
    return text.withUnsafeBytes { memory.write(top, $0) } ? top : nil
  }
  /// Strings one behind the other; returns their addresses.
  private mutating func push(_ texts: [ByteString]) -> [UInt64]? {
    var bytes: ByteString = []
    bytes.reserveCapacity(texts.reduce(0) { $0 + $1.count + 1 })
    var offsets: [UInt64] = []
    for text in texts {
      offsets.append(UInt64(bytes.count))
      bytes += text
      bytes.append(0)
    }
    guard top > UInt64(bytes.count) else { return nil }
    top -= UInt64(bytes.count)
    return bytes.withUnsafeBytes({ memory.write(top, $0) }) ? offsets.map { $0 + top } : nil
  }
  private mutating func pushRandom() -> UInt64? {
    var bytes: (UInt64, UInt64) = (0, 0)
    withUnsafeMutableBytes(of: &bytes) { _ = getrandom($0.baseAddress, 16, 0) }
    top = (top - 16) & ~15
    return memory.write(top, bytes) ? top : nil
  }
}
