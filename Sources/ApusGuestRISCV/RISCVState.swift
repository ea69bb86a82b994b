import ApusGuest
import ApusIR

/// The RISC-V hart's state as a view of raw memory; generated code uses the same offsets.
///
/// ```
///    0  x0 .. x31           1024  f0 .. f31 (NaN-boxed)        1280  CSRs, a u64 each, in the order below
/// ```
public struct RISCVState: @unchecked Sendable {
  // SAFETY: base points at StateHeader.byteCount bytes that outlive this view.
  public let base: UnsafeMutableRawPointer
  public init(_ base: UnsafeMutableRawPointer) { self.base = base }

  public static func x(_ number: Int) -> Int { number * 8 }
  public static func f(_ number: Int) -> Int { 1024 + number * 8 }

  /// The CSR-like fields, by position.
  public enum Field: Int, CaseIterable, Sendable {
    case mstatus, mip, mie, mideleg, medeleg, mtvec, mepc, mcause, mtval, mscratch, mcounteren, menvcfg
    case stvec, sepc, scause, stval, sscratch, scounteren, senvcfg, satp, stimecmp
    /// 0 user, 1 supervisor, 3 machine.
    case privilege
    case frm
    case mcountinhibit, cycleOffset, instretOffset
    case pmpcfg0, pmpcfg2
    case pmpaddr0, pmpaddr1, pmpaddr2, pmpaddr3, pmpaddr4, pmpaddr5, pmpaddr6, pmpaddr7
    case pmpaddr8, pmpaddr9, pmpaddr10, pmpaddr11, pmpaddr12, pmpaddr13, pmpaddr14, pmpaddr15
    public var offset: Int { 1280 + rawValue * 8 }
  }

  @inlinable
  public subscript(_ field: Field) -> UInt64 {
    get { base.load(fromByteOffset: 1280 + field.rawValue * 8, as: UInt64.self) }
    nonmutating set {
      base.storeBytes(of: newValue, toByteOffset: 1280 + field.rawValue * 8, as: UInt64.self)
    }
  }
  @inlinable
  public subscript(x number: Int) -> UInt64 {
    get { base.load(fromByteOffset: number * 8, as: UInt64.self) }
    nonmutating set { base.storeBytes(of: newValue, toByteOffset: number * 8, as: UInt64.self) }
  }
  @inlinable
  public subscript(f number: Int) -> UInt64 {
    get { base.load(fromByteOffset: 1024 + number * 8, as: UInt64.self) }
    nonmutating set { base.storeBytes(of: newValue, toByteOffset: 1024 + number * 8, as: UInt64.self) }
  }
  public var pc: UInt64 {
    get { base.load(fromByteOffset: StateHeader.pc, as: UInt64.self) }
    nonmutating set { base.storeBytes(of: newValue, toByteOffset: StateHeader.pc, as: UInt64.self) }
  }
  public var mode: RISCVMode {
    get { RISCVMode(rawValue: base.load(fromByteOffset: StateHeader.mode, as: UInt32.self)) }
    nonmutating set {
      base.storeBytes(of: newValue.rawValue, toByteOffset: StateHeader.mode, as: UInt32.self)
    }
  }
  /// Asks generated code to go to the dispatcher after the current helper.
  public func requestDispatch() {
    base.storeBytes(of: 1, toByteOffset: StateHeader.pendingExit, as: UInt32.self)
  }

  /// The IEEE flags, in fcsr's layout: what soft float raised and what the host's unit did.
  public var floatFlags: UInt64 {
    get {
      let soft = base.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
      let host = base.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
      let flags = StateHeader.floatFlags(mxcsr: host)
      return UInt64((soft | flags) & 31)
    }
    nonmutating set {
      base.storeBytes(of: UInt32(newValue & 31), toByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
      let host = base.load(fromByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
      base.storeBytes(of: host & ~0x3f, toByteOffset: StateHeader.guestMXCSR, as: UInt32.self)
    }
  }
  public func raiseFloatFlags(_ flags: UInt8) {
    let soft = base.load(fromByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
    base.storeBytes(of: soft | UInt32(flags), toByteOffset: StateHeader.softFloatFlags, as: UInt32.self)
  }
}

/// What translated code depends on besides the bytes: the key of a block.
///
/// ```
///  9     8     6 5       4 3          2 1         0
/// | user | frm   | FS      | context    | privilege |
/// ```
public struct RISCVMode: Hashable, Sendable {
  public var rawValue: UInt32
  public init(rawValue: UInt32) { self.rawValue = rawValue }
  public init(
    privilege: UInt32, context: UInt32, floatState: UInt32, frm: UInt32, isUserEmulation: Bool = false
  ) {
    rawValue = privilege | context << 2 | floatState << 4 | frm << 6 | (isUserEmulation ? 1 << 9 : 0)
  }
  public var privilege: UInt32 { rawValue & 3 }
  /// Translation context of data accesses: 0 user, 1 supervisor, 2 supervisor with SUM, 3 machine.
  public var context: UInt8 { UInt8(rawValue >> 2 & 3) }
  public static let floatStateIsDynamic: UInt32 = 3
  /// 0 off, 1 on but clean, 2 dirty, 3 to be looked at when a floating-point instruction runs (S and M).
  public var floatState: UInt32 { rawValue >> 4 & 3 }
  public var frm: UInt32 { rawValue >> 6 & 7 }
  /// A process of user-mode emulation: `ecall` leaves to the host, CSRs are the unprivileged ones.
  public var isUserEmulation: Bool { rawValue >> 9 & 1 != 0 }
}

/// mstatus fields [RV-Priv 1.12 §3.1.6].
public enum MStatus {
  public static let sie: UInt64 = 1 << 1
  public static let mie: UInt64 = 1 << 3
  public static let spie: UInt64 = 1 << 5
  public static let mpie: UInt64 = 1 << 7
  public static let spp: UInt64 = 1 << 8
  public static let mpp: UInt64 = 3 << 11
  public static let fs: UInt64 = 3 << 13
  public static let mprv: UInt64 = 1 << 17
  public static let sum: UInt64 = 1 << 18
  public static let mxr: UInt64 = 1 << 19
  public static let tvm: UInt64 = 1 << 20
  public static let tw: UInt64 = 1 << 21
  public static let tsr: UInt64 = 1 << 22
  public static let uxl: UInt64 = 2 << 32
  public static let sxl: UInt64 = 2 << 34
  public static let sd: UInt64 = 1 << 63
  /// What M-mode may write, and what S-mode sees and may write.
  public static let writable = sie | mie | spie | mpie | spp | mpp | fs | mprv | sum | mxr | tvm | tw | tsr
  public static let supervisorVisible = sie | spie | spp | fs | sum | mxr | uxl | sd
  public static let supervisorWritable = sie | spie | spp | fs | sum | mxr
}

/// Exception causes [RV-Priv 1.12 §4.2, table 4.2].
public enum RISCVCause {
  public static let instructionMisaligned: UInt64 = 0
  public static let instructionAccess: UInt64 = 1
  public static let illegalInstruction: UInt64 = 2
  public static let breakpoint: UInt64 = 3
  public static let loadMisaligned: UInt64 = 4
  public static let loadAccess: UInt64 = 5
  public static let storeMisaligned: UInt64 = 6
  public static let storeAccess: UInt64 = 7
  public static let ecallFromU: UInt64 = 8
  public static let instructionPage: UInt64 = 12
  public static let loadPage: UInt64 = 13
  public static let storePage: UInt64 = 15

  static func userException(_ cause: UInt64) -> GuestUserException {
    switch cause {
    case illegalInstruction: .illegalInstruction
    case breakpoint: .breakpoint
    case loadMisaligned, storeMisaligned, instructionMisaligned: .misaligned
    case instructionAccess, instructionPage: .fetch
    default: .access
    }
  }
}
