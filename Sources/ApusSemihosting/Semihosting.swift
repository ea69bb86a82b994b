import ApusCPU
import ApusHost
import ApusMemory
import Synchronization

/// Gives guest programs the host's files, standard output, clock and exit code [Arm Semihosting 2.0 §6].
///
/// The console (`:tt`) is the emulator's standard input, output and, for appending, error; characters and strings go to standard
/// error. SYS_SYSTEM is refused. Any vCPU's thread, one call after the other; reads of the console wait for input.
public final class Semihosting: SemihostingHandler {
  public struct Configuration: Sendable {
    public var servesUserCode = false
    /// What SYS_GET_CMDLINE gives.
    public var commandLine = ""
    /// The free memory that SYS_HEAPINFO tells: heap from its start, stack from its end.
    public var heap: Range<UInt64>
    public init(servesUserCode: Bool, commandLine: String, heap: Range<UInt64>) {
      (self.servesUserCode, self.commandLine, self.heap) = (servesUserCode, commandLine, heap)
    }
  }
  enum Operation: UInt64 {
    case open = 0x01
    case close, writeCharacter, writeString, write, read, readCharacter, isError, isTerminal, seek
    case fileLength = 0x0c
    case temporaryName, remove, rename, clock, time, system, errorNumber
    case commandLine = 0x15
    case heapInformation
    case exit = 0x18
    case exitExtended = 0x20
    case elapsed = 0x30
    case tickFrequency
  }
  /// SYS_EXIT's reason for a program that has come to its end; all others are failures.
  private static let applicationExit: UInt64 = 0x2_0026
  static let failure = UInt64.max
  static let ticksPerSecond: UInt64 = 1_000_000_000

  struct State {
    var files: SemihostingFiles
    var errorNumber: Int32 = 0
  }
  private let state: Mutex<State>
  let configuration: Configuration
  private let space: AddressSpace
  private let clock: GuestClock
  private let exit: @Sendable (Int32) -> Void
  /// False once the machine is to stop: a program must not wait for input any longer.
  private let isRunning: @Sendable () -> Bool
  public var servesUserCode: Bool { configuration.servesUserCode }

  /// - Parameter exit: ends the machine with a code.
  public init(
    _ configuration: Configuration, space: AddressSpace, clock: GuestClock,
    isRunning: @escaping @Sendable () -> Bool, exit: @escaping @Sendable (Int32) -> Void
  ) {
    (self.configuration, self.space) = (configuration, space)
    (self.clock, self.exit, self.isRunning) = (clock, exit, isRunning)
    state = Mutex(State(files: SemihostingFiles(goesOn: isRunning)))
  }

  /// Closes what the program has open.
  public func reset() { state.withLock { $0 = State(files: SemihostingFiles(goesOn: isRunning)) } }

  public func call(_ operation: UInt64, _ parameter: UInt64, translate: (UInt64, Bool) -> UInt64?) -> UInt64 {
    withoutActuallyEscaping(translate) { translate in
      let memory = SemihostingMemory(space: space, translate: translate)
      guard let known = Operation(rawValue: operation & 0xffff_ffff) else { return Self.failure }
      return state.withLock { state in
        do throws(HostError) {
          return try perform(known, parameter, memory, &state)
        } catch {
          state.errorNumber = error.errno
          return Self.failure
        }
      }
    }
  }

  private func perform(
    _ operation: Operation, _ parameter: UInt64, _ memory: SemihostingMemory, _ state: inout State
  ) throws(HostError) -> UInt64 {
    func field(_ index: UInt64) throws(HostError) -> UInt64 {
      guard let value = memory.field(parameter, index) else { throw .badAddress }
      return value
    }
    switch operation {
    case .open, .close, .write, .read, .isTerminal, .seek, .fileLength, .remove, .rename, .temporaryName:
      return try state.files.perform(operation, parameter, memory)
    case .writeCharacter:
      guard let bytes = memory.read(parameter, 1) else { throw .badAddress }
      writeStandardError(bytes)
      return 0
    case .writeString:
      guard let bytes = memory.terminated(parameter, limit: 1 << 20) else { throw .badAddress }
      writeStandardError(bytes)
      return 0
    case .readCharacter:
      let byte = try SequentialFile(standard: 0).read(1, while: isRunning)
      return byte.first.map { UInt64($0) } ?? Self.failure
    case .isError: return try field(0) >> 63
    case .clock: return clock.nowNanoseconds() / 10_000_000
    case .time: return HostClock.realtimeNanoseconds() / 1_000_000_000
    // Programs get no shell.
    case .system: throw .notPermitted
    case .errorNumber: return UInt64(state.errorNumber)
    case .commandLine:
      let (address, room) = (try field(0), try field(1))
      let bytes = Array(configuration.commandLine.utf8) + [0]
      guard UInt64(bytes.count) <= room else { throw .tooLong }
      guard memory.write(address, bytes), memory.setField(parameter, 1, UInt64(bytes.count - 1)) else {
        throw .badAddress
      }
      return 0
    case .heapInformation:
      let block = try field(0)
      let heap = configuration.heap
      for (index, value) in [heap.lowerBound, heap.upperBound, heap.upperBound, heap.lowerBound].enumerated()
      {
        guard memory.setField(block, UInt64(index), value) else { throw .badAddress }
      }
      return 0
    case .exit, .exitExtended:
      let (reason, code) = (try field(0), try field(1))
      exit(reason == Self.applicationExit ? Int32(truncatingIfNeeded: code) : 1)
      return 0
    case .elapsed:
      guard memory.setField(parameter, 0, clock.nowNanoseconds()) else { throw .badAddress }
      return 0
    case .tickFrequency: return Self.ticksPerSecond
    }
  }
}

extension HostError {
  /// A parameter block, string or buffer that the program cannot reach itself.
  static var badAddress: HostError { HostError("reach the program's memory", errno: 14) }
  static var badHandle: HostError { HostError("use a file", errno: 9) }
  static var invalid: HostError { HostError("do that", errno: 22) }
  static var tooManyFiles: HostError { HostError("open", errno: 24) }
  static var tooLong: HostError { HostError("pass a string", errno: 7) }
  static var notPermitted: HostError { HostError("run a command", errno: 1) }
}
