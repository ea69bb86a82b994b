/// The commands of the SD bus [SD-Phys 9.00 §4.7].
extension SDCard {
  /// Carries out a command and returns its answer.
  func command(_ index: UInt32, _ argument: UInt32) -> Response {
    var erased: (UInt64, UInt64)?
    let response = state.withLock { state -> Response in
      let isApplication = state.expectsApplicationCommand
      state.expectsApplicationCommand = false
      guard state.phase != .inactive else { return .none }
      if isApplication, let response = applicationCommand(index, argument, &state) { return response }
      return standardCommand(index, argument, &state, &erased)
    }
    if let erased { eraseData(erased.0, erased.1) }
    return response
  }

  /// R1: the state before the command, and the bits that have gathered.
  private func report(_ state: inout State, _ phase: Phase? = nil) -> Response {
    .short(status(&state, phase))
  }

  private func status(_ state: inout State, _ phase: Phase? = nil) -> UInt32 {
    let isProgramming = state.phase == .transfer && !state.requests.isEmpty
    let number = isProgramming ? 7 : (phase ?? state.phase).rawValue
    defer { state.status = 0 }
    return state.status | number << 9 | (isProgramming ? 0 : Status.readyForData)
      | (state.expectsApplicationCommand ? Status.applicationCommand : 0)
  }

  /// The command does not fit the card or its state: no answer, and the next one tells.
  private func illegal(_ state: inout State) -> Response {
    state.status |= Status.illegalCommand
    return .none
  }

  private func standardCommand(
    _ index: UInt32, _ argument: UInt32, _ state: inout State, _ erased: inout (UInt64, UInt64)?
  ) -> Response {
    let isAddressed = UInt16(argument >> 16) == state.address
    switch (index, state.phase) {
    case (0, _):
      let requests = state.requests
      state = State()
      state.requests = requests
      return .none
    case (2, .ready):
      state.phase = .identification
      return .long(identification)
    case (3, .identification), (3, .standby):
      let old = state.phase
      state.phase = .standby
      state.address = 0x4567
      let status = status(&state, old)
      return .short(
        UInt32(state.address) << 16 | status >> 8 & 0xc000 | status >> 6 & 0x2000 | status & 0x1fff)
    case (6, .transfer):
      state.phase = .data
      state.transfer = .register(switchFunction(argument, &state))
      state.isMultiple = false
      return report(&state, .transfer)
    case (7, _): return select(isAddressed && argument >> 16 != 0, &state)
    // The voltage of 2.7 to 3.6 V, with the check pattern.
    case (8, .idle): return argument >> 8 & 15 == 1 ? .short(argument & 0xfff) : .none
    case (9, .standby) where isAddressed: return .long(specificData)
    case (10, .standby) where isAddressed: return .long(identification)
    case (12, .data), (12, .receive):
      let old = state.phase
      (state.phase, state.transfer, state.announcedBlocks) = (.transfer, .none, 0)
      return report(&state, old)
    case (12, .transfer): return report(&state)
    case (13, .standby), (13, .transfer), (13, .data), (13, .receive):
      return isAddressed ? report(&state) : .none
    case (15, .standby) where isAddressed:
      state.phase = .inactive
      return .none
    case (16, .transfer):
      // High-capacity cards have the one length whatever this says.
      if argument != UInt32(Self.blockByteCount), !isHighCapacity { state.status |= Status.blockLengthError }
      return report(&state)
    case (17, .transfer), (18, .transfer), (24, .transfer), (25, .transfer):
      return beginTransfer(index, argument, &state)
    case (23, .transfer):
      let response = report(&state)
      state.announcedBlocks = argument & 0xffff
      return response
    case (32, .transfer), (33, .transfer):
      let offset = offset(argument)
      if index == 32 { state.erase = (offset, nil) } else { state.erase.end = offset }
      return report(&state)
    case (38, .transfer): return erase(&state, &erased)
    case (55, _):
      guard isAddressed || state.phase.rawValue < Phase.standby.rawValue else { return .none }
      state.expectsApplicationCommand = true
      return report(&state)
    default: return illegal(&state)
    }
  }

  /// `nil`: there is no such command, and the standard one is meant.
  private func applicationCommand(_ index: UInt32, _ argument: UInt32, _ state: inout State) -> Response? {
    func register(_ bytes: [UInt8]) -> Response {
      state.expectsApplicationCommand = true
      let response = report(&state)
      state.expectsApplicationCommand = false
      (state.phase, state.transfer, state.isMultiple) = (.data, .register(bytes), false)
      return response
    }
    switch (index, state.phase) {
    case (6, .transfer):
      state.isWide = argument & 3 == 2
      return report(&state)
    case (13, .transfer): return register(cardStatus(isWide: state.isWide))
    case (22, .transfer):
      let count = state.writtenBlocks
      return register((0..<4).map { UInt8(truncatingIfNeeded: count >> UInt32(24 - 8 * $0)) })
    case (23, .transfer), (42, .transfer): return report(&state)
    case (41, .idle):
      // Without a voltage the host only asks.
      if argument & 0xff_ffff != 0 {
        guard !isHighCapacity || argument >> 30 & 1 != 0 else { return .short(Self.voltages) }
        state.phase = .ready
      }
      return .short(Self.voltages | 1 << 31 | (isHighCapacity ? 1 << 30 : 0))
    case (51, .transfer): return register(configuration)
    default: return nil
    }
  }

  private func select(_ isSelected: Bool, _ state: inout State) -> Response {
    switch (isSelected, state.phase) {
    case (true, .standby):
      let response = report(&state)
      state.phase = .transfer
      return response
    case (true, .transfer): return report(&state)
    case (false, .transfer), (false, .data), (false, .standby):
      (state.phase, state.transfer) = (.standby, .none)
      return .none
    default: return illegal(&state)
    }
  }

  /// The byte offset that an address means; `nil` beyond the end.
  private func offset(_ address: UInt32) -> UInt64? {
    let offset = isHighCapacity ? UInt64(address) * UInt64(Self.blockByteCount) : UInt64(address)
    return node.contains(offset: offset, count: UInt64(Self.blockByteCount)) ? offset : nil
  }

  private func beginTransfer(_ index: UInt32, _ argument: UInt32, _ state: inout State) -> Response {
    let isWrite = index >= 24
    guard let offset = offset(argument) else {
      state.status |= Status.outOfRange
      return report(&state)
    }
    guard offset % UInt64(Self.blockByteCount) == 0 else {
      state.status |= Status.addressError
      return report(&state)
    }
    if isWrite, node.isReadOnly {
      state.status |= Status.writeProtected
      return report(&state)
    }
    let response = report(&state)
    state.isMultiple = index == 18 || index == 25
    if !state.isMultiple { state.announcedBlocks = 0 }
    state.phase = isWrite ? .receive : .data
    state.transfer = isWrite ? .write(offset) : .read(offset)
    if isWrite { state.writtenBlocks = 0 }
    return response
  }

  private func erase(_ state: inout State, _ erased: inout (UInt64, UInt64)?) -> Response {
    let response = report(&state)
    defer { state.erase = (nil, nil) }
    guard state.requests.isEmpty, let start = state.erase.start, let end = state.erase.end else {
      state.status |= Status.eraseSequenceError
      return response
    }
    guard start <= end, !node.isReadOnly else {
      state.status |= node.isReadOnly ? Status.writeProtected : Status.eraseParameter
      return response
    }
    let block = UInt64(Self.blockByteCount)
    erased = (start / block * block, end / block * block + block - start / block * block)
    return response
  }
}
