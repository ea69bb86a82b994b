import ApusIR
import ApusJITX86

/// How guest code is executed, from `-accel` and `-d`.
public struct TranslateOptions: Sendable {
  public enum Engine: Sendable { case jit, interpreter }
  public var engine = Engine.jit
  /// Every block is run by the evaluator, too; the first difference stops the machine.
  public var verifies = false
  public var optimisations = IROptimisations.all
  /// The host's instructions that generated code uses; at most `X86HostLevel.host`.
  public private(set) var hostLevel = X86HostLevel.host ?? .sse4
  /// Bytes of host code kept before all of it is dropped and made anew.
  public var codeBufferByteCount = 128 << 20
  /// Guest instructions in a block, at most.
  public var blockInstructionLimit = 48
  /// Translation is timed, for `TranslationCache.statistics`.
  public var countsTime = false
  public var log = TranslateLog()
  /// The process forks: generated code must not be shared with children.
  public var forks = false
  /// Writes /tmp/perf-PID.map for `perf`.
  public var writesPerfMap = false
  public init() {}

  /// Lets generated code use no more than a level of the host's instructions, by its name, from `host-level=`.
  public mutating func limitHostLevel(_ name: String) throws(HostLevelError) {
    guard engine == .jit else {
      throw HostLevelError(description: "host-level is for the JIT; the interpreter uses none of it")
    }
    guard let level = X86HostLevel.allCases.first(where: { "\($0)" == name }) else {
      let names = X86HostLevel.allCases.map { "\($0)" }.joined(separator: ", ")
      throw HostLevelError(description: "host-level is one of \(names), not '\(name)'")
    }
    guard let host = X86HostLevel.host, level <= host else {
      throw HostLevelError(description: "host-level=\(name): this host lacks it")
    }
    hostLevel = level
  }

  /// Chooses the interpreter where the host cannot run generated code; returns a sentence that says so, or `nil`.
  public mutating func adaptToHost() -> String? {
    guard engine == .jit, X86HostLevel.host == nil else { return nil }
    engine = .interpreter
    return
      "the JIT needs a host with x86-64-v2 (SSE 4.2 and popcnt), which this one lacks; the interpreter runs"
  }
}

/// What is wrong with a `host-level=`.
public struct HostLevelError: Error {
  public let description: String
}

/// What `-d` shows, and where it goes.
public struct TranslateLog: Sendable {
  public struct Items: OptionSet, Sendable {
    public let rawValue: UInt32
    public init(rawValue: UInt32) { self.rawValue = rawValue }
    public static let guestCode = Items(rawValue: 1)
    public static let ir = Items(rawValue: 2)
    public static let hostCode = Items(rawValue: 4)
    public static let interrupts = Items(rawValue: 8)
    public static let mmu = Items(rawValue: 16)
    public static let execution = Items(rawValue: 32)
    public static let cpu = Items(rawValue: 64)
    /// `ir` without the operations whose values nothing uses, which no code is made for.
    public static let usedIR = Items(rawValue: 128)
    /// By `-d`'s names.
    public static let names: [(String, Items)] = [
      ("in_asm", .guestCode), ("op", .ir), ("op_opt", .usedIR), ("out_asm", .hostCode),
      ("int", .interrupts), ("mmu", .mmu), ("exec", .execution), ("cpu", .cpu),
    ]
  }
  public var items: Items = []
  /// Called with each piece of text, from vCPU threads.
  public var write: @Sendable (String) -> Void = { _ in }
  public init() {}
}
