import ApusHost
import ApusUserABI
import CApusHost
import Glibc

/// Builds the stack that a program starts with [gABI ch. 3, process initialization]:
///
/// ```
///  high   strings, 16 random bytes
///         auxiliary vector, 16 bytes an entry, ending with AT_NULL
///         environment pointers, 0
///         argument pointers, 0
///  sp ->  argument count
/// ```
struct InitialStack {
  static let defaultByteCount: UInt64 = 8 << 20

  let memory: UserMemory
  var top: UInt64

  /// - Returns: the initial stack pointer, or `nil` without memory.
  static func build(
    _ memory: UserMemory, byteCount: UInt64, arguments: [String], environment: [String], path: String,
    program: LoadedProgram, hardwareCapabilities: UInt64
  ) -> UInt64? {
    let protection = PROT_READ | PROT_WRITE | (program.hasExecutableStack ? PROT_EXEC : 0)
    let flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | 0x20000  // MAP_STACK
    let base = memory.map(0x3f_0000_0000 - byteCount, byteCount, protection, flags, -1, 0)
    guard base > 0 else { return nil }
    var stack = InitialStack(memory: memory, top: UInt64(base) + byteCount)
    guard let name = stack.push(path), let random = stack.pushRandom() else { return nil }
    var environmentPointers: [UInt64] = []
    for variable in environment {
      guard let pointer = stack.push(variable) else { return nil }
      environmentPointers.append(pointer)
    }
    var argumentPointers: [UInt64] = []
    for argument in arguments {
      guard let pointer = stack.push(argument) else { return nil }
      argumentPointers.append(pointer)
    }
    let auxiliary: [(UInt64, UInt64)] = [
      (AuxiliaryKey.programHeaders, program.headers), (AuxiliaryKey.programHeaderByteCount, 56),
      (AuxiliaryKey.programHeaderCount, program.headerCount), (AuxiliaryKey.pageByteCount, 4096),
      (AuxiliaryKey.interpreterBase, program.interpreterBase), (AuxiliaryKey.flags, 0),
      (AuxiliaryKey.entry, program.entry), (AuxiliaryKey.user, UInt64(getuid())),
      (AuxiliaryKey.effectiveUser, UInt64(geteuid())), (AuxiliaryKey.group, UInt64(getgid())),
      (AuxiliaryKey.effectiveGroup, UInt64(getegid())),
      (AuxiliaryKey.hardwareCapabilities, hardwareCapabilities),
      (AuxiliaryKey.clockTicks, 100), (AuxiliaryKey.isSecure, 0), (AuxiliaryKey.random, random),
      (AuxiliaryKey.programName, name), (AuxiliaryKey.null, 0),
    ]
    var words: [UInt64] = [UInt64(arguments.count)]
    words += argumentPointers + [0] + environmentPointers + [0]
    for (key, value) in auxiliary { words += [key, value] }
    let stackPointer = (stack.top & ~15) - UInt64((words.count * 8 + 15) & ~15)
    return words.withUnsafeBytes { memory.write(stackPointer, $0) } ? stackPointer : nil
  }

  private mutating func push(_ text: String) -> UInt64? {
    var text = text
    return text.withUTF8 { bytes -> UInt64? in
      top -= UInt64(bytes.count) + 1
      return memory.write(top, UnsafeRawBufferPointer(bytes)) ? top : nil
    }
  }
  private mutating func pushRandom() -> UInt64? {
    var bytes: (UInt64, UInt64) = (0, 0)
    withUnsafeMutableBytes(of: &bytes) { _ = getrandom($0.baseAddress, 16, 0) }
    top = (top - 16) & ~15
    return memory.write(top, bytes) ? top : nil
  }
}
