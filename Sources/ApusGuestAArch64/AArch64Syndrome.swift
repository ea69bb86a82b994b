import ApusGuest

/// Exception syndromes [Arm ARM D19.2.37].
enum Syndrome {
  static let undefined: UInt64 = 0x02 << 24
  static let floatTrap: UInt64 = 0x07 << 26 | 1 << 25 | 0x1e << 20
  static func call(_ exceptionClass: UInt64, _ immediate: UInt64) -> UInt64 {
    exceptionClass << 26 | 1 << 25 | immediate
  }
  static let illegalState: UInt64 = 0x0e << 26 | 1 << 25
  static let waitTrap: UInt64 = 0x01 << 26 | 1 << 25 | 0x1e << 20
  static let authenticationTrap: UInt64 = 0x09 << 26 | 1 << 25
  /// BTYPE is the lowest bits.
  static let branchTarget: UInt64 = 0x0d << 26 | 1 << 25
  static let systemTrap: UInt64 = 0x18
  static let supervisorCall: UInt64 = 0x15
  static let hypervisorCall: UInt64 = 0x16
  static let secureMonitorCall: UInt64 = 0x17
  static let breakpoint: UInt64 = 0x3c
  static let systemError: UInt64 = 0x2f << 26 | 1 << 25
  // Debug exceptions from a lower level; those from the same level are one more.
  static let breakPoint: UInt64 = 0x30
  static let softwareStep: UInt64 = 0x32
  static let watchPoint: UInt64 = 0x34
  static let debug: UInt64 = 0x22
  static let misalignedPC: UInt64 = 0x22 << 26 | 1 << 25

  // Kinds of faults, for `status`.
  static let addressSize: UInt64 = 0
  static let translation: UInt64 = 4
  static let accessFlag: UInt64 = 8
  static let permission: UInt64 = 0xc
  static let external: UInt64 = 0x10
  static let walk: UInt64 = 0x14
  /// A kind of fault and the level of the table that it is about, -1 to 3.
  static func status(_ kind: UInt64, _ level: Int) -> UInt64 {
    if level >= 0 { return kind + UInt64(level) }
    return kind == walk ? 0x13 : kind == addressSize ? 0x29 : 0x2b
  }

  /// Whether a fault number is an external abort, of the access or of a walk for it.
  static func isExternal(_ fault: UInt64) -> Bool {
    [external, 0x13, walk, walk + 1, walk + 2, walk + 3].contains(fault & 0x3f)
  }

  // Fault numbers: the syndrome's lower bits; what faulted; for stage 2 the page of the intermediate address from bit 20.
  static let lowerBits: UInt64 = 0x7ff
  static let isWrite: UInt64 = 1 << 6
  static let isWalk: UInt64 = 1 << 7
  static let isData: UInt64 = 1 << 16
  static let isWatch: UInt64 = 1 << 17
  static let isStage2: UInt64 = 1 << 18
  static func fault(_ status: UInt64, _ access: GuestAccess) -> UInt64 {
    switch access {
    case .fetch: status
    case .load: isData | status
    case .store: isData | isWrite | status
    }
  }

  /// What stage 2 was to translate: an address of stage 1's tables, or stage 1's result.
  enum Stage2Part { case walk, output }
  static func stage2(_ status: UInt64, _ part: Stage2Part, _ access: GuestAccess, _ address: UInt64) -> UInt64
  {
    fault(status, access) | isStage2 | (part == .walk ? isWalk : 0) | (address >> 12) << 20
  }
}

/// SPSR_ELx's bits [C5.2.19].
enum PState {
  static let condition: UInt64 = 0xf000_0000
  static let userAccessOverride: UInt64 = 1 << 23
  static let pan: UInt64 = 1 << 22
  static let step: UInt64 = 1 << 21
  static let illegal: UInt64 = 1 << 20
  static let daif: UInt64 = 0x3c0
  static let errorMask: UInt64 = 1 << 8
  static let irqMask: UInt64 = 1 << 7
  static let fiqMask: UInt64 = 1 << 6
}

/// HCR_EL2's bits [D19.2.48].
enum HCR {
  static let stage2: UInt64 = 1
  static let fiq: UInt64 = 1 << 3
  static let irq: UInt64 = 1 << 4
  static let error: UInt64 = 1 << 5
  static let virtualFIQ: UInt64 = 1 << 6
  static let virtualIRQ: UInt64 = 1 << 7
  static let virtualError: UInt64 = 1 << 8
  static let broadcasts: UInt64 = 1 << 9
  static let defaultCacheable: UInt64 = 1 << 12
  static let wait: UInt64 = 1 << 13
  static let waitForEvent: UInt64 = 1 << 14
  // TID1 to TID3; of TID0 there is nothing.
  static let identification1: UInt64 = 1 << 16
  static let identification2: UInt64 = 1 << 17
  static let identification3: UInt64 = 1 << 18
  static let monitorCall: UInt64 = 1 << 19
  static let auxiliary: UInt64 = 1 << 21
  static let setWay: UInt64 = 1 << 22
  static let coherency: UInt64 = 1 << 23
  static let unification: UInt64 = 1 << 24
  static let tlb: UInt64 = 1 << 25
  static let writesTranslation: UInt64 = 1 << 26
  /// TGE: EL2 takes EL0's exceptions.
  static let general: UInt64 = 1 << 27
  static let zero: UInt64 = 1 << 28
  static let disablesCall: UInt64 = 1 << 29
  static let readsTranslation: UInt64 = 1 << 30
  static let wide: UInt64 = 1 << 31
  /// E2H.
  static let hostExtensions: UInt64 = 1 << 34
  static let externalAborts: UInt64 = 1 << 37
  // APK and API: these permit.
  static let authenticationKeys: UInt64 = 1 << 40
  static let authentication: UInt64 = 1 << 41
  static let authenticationBits = authenticationKeys | authentication
  static let addressTranslation: UInt64 = 1 << 44
  static let host = hostExtensions | general
  /// What may be written besides E2H, APK and API: nested virtualisation, RAS and later extensions are not there.
  static let writable: UInt64 = (1 << 34 - 1) & ~(1 << 20) | 1 << 37 | 1 << 38 | addressTranslation
  /// What is looked for at system instructions of EL1 and EL0.
  static let traps =
    wait | waitForEvent | identification1 | identification2 | identification3 | monitorCall | auxiliary
    | setWay
    | coherency | unification | tlb | writesTranslation | zero | readsTranslation | addressTranslation | irq
    | fiq
}
