import ApusDevice

/// Commands, and the data that they move.
extension BCM2835SDHost {
  static func endTransfer(_ state: inout State) {
    (state.direction, state.buffer, state.position, state.remaining) = (.none, [], 0, 0)
    (state.isBusy, state.moved, state.movedOfBlock) = (false, 0, 0)
    state.generation += 1
  }

  func writeCommand(_ word: UInt32) {
    guard word & Command.isNew != 0 else {
      return change { $0.command = word & 0x7fff }
    }
    // What was written before a stop still goes to the card.
    let (blocks, argument) = change { state -> ([UInt8], UInt32) in
      var blocks: [UInt8] = []
      if state.direction == .write {
        let count = state.buffer.count / SDCard.blockByteCount * SDCard.blockByteCount
        blocks = Array(state.buffer.prefix(count))
      }
      Self.endTransfer(&state)
      return (blocks, state.argument)
    }
    if !blocks.isEmpty { card?.writeData(blocks) { _ in } }
    let response = card?.command(word & 0x3f, argument) ?? .none
    change { state in
      state.command = word & 0x3fff
      switch response {
      case .none:
        guard word & Command.hasNoResponse == 0 else { break }
        state.command |= Command.failed
        state.status |= HostStatus.commandTimeOut
        return
      case .short(let word): state.response[0] = word
      case .long(let words): state.response = words.reversed()
      }
      if word & (Command.isRead | Command.isWrite) != 0 {
        // A count of zero is one block.
        state.remaining = Int(state.blockByteCount) * Int(max(1, state.blockCount))
        if state.remaining > 0 { state.direction = word & Command.isRead != 0 ? .read : .write }
      }
      guard word & Command.waitsBusy != 0 else { return }
      state.waitsForReady = true
    }
    if word & Command.waitsBusy != 0, card?.isBusy == false { cardIsReady() }
    fetch()
  }

  // MARK: Reading

  /// Asks the card for more, if the buffer is empty.
  private func fetch() {
    let request = change { state -> (count: Int, generation: UInt64)? in
      guard state.direction == .read, !state.isBusy, state.available == 0, state.remaining > 0 else {
        return nil
      }
      state.isBusy = true
      return (min(state.remaining, Self.bufferByteCount), state.generation)
    }
    guard let request else { return }
    card?.readData(request.count) { [weak self] bytes in
      self?.change { state in
        guard state.generation == request.generation else { return }
        state.isBusy = false
        guard let bytes else {
          state.status |= HostStatus.dataTimeOut
          return Self.endTransfer(&state)
        }
        (state.buffer, state.position) = (bytes, 0)
        state.remaining -= bytes.count
      }
    }
  }

  func readWord() -> UInt32 {
    var endedBlocks: Int?
    let word = change { state -> UInt32 in
      guard state.available > 0 else {
        state.status |= HostStatus.fifoError
        return 0
      }
      var word: UInt32 = 0
      let count = min(4, state.available)
      for index in 0..<count { word |= UInt32(state.buffer[state.position + index]) << UInt32(8 * index) }
      state.position += count
      Self.count(count, &state)
      if state.available == 0, state.remaining == 0 {
        endedBlocks = state.moved / Int(max(1, state.blockByteCount))
        Self.endTransfer(&state)
      }
      return word
    }
    if let endedBlocks { card?.endTransfer(blockCount: endedBlocks) } else { fetch() }
    return word
  }

  /// Counts bytes that the guest has moved; the end of a block raises its flag, if that has its interrupt enabled.
  private static func count(_ count: Int, _ state: inout State) {
    state.moved += count
    state.movedOfBlock += count
    if state.movedOfBlock >= Int(state.blockByteCount) {
      state.movedOfBlock = 0
      if state.configuration & Configuration.block != 0 { state.status |= HostStatus.block }
    }
  }

  // MARK: Writing

  func writeWord(_ word: UInt32) {
    change { state in
      guard state.room > 0 else {
        state.status |= HostStatus.fifoError
        return
      }
      let count = min(4, state.room)
      for index in 0..<count { state.buffer.append(UInt8(truncatingIfNeeded: word >> UInt32(8 * index))) }
      state.remaining -= count
      Self.count(count, &state)
    }
    flush()
  }

  /// Gives the card what has gathered: all of it, or a full buffer.
  private func flush() {
    let request = change { state -> (bytes: [UInt8], generation: UInt64)? in
      guard state.direction == .write, !state.isBusy, !state.buffer.isEmpty,
        state.remaining == 0 || state.buffer.count >= Self.bufferByteCount
      else { return nil }
      state.isBusy = true
      defer { state.buffer = [] }
      return (state.buffer, state.generation)
    }
    guard let request else { return }
    guard request.bytes.count % SDCard.blockByteCount == 0, let card else {
      return change { state in
        state.status |= HostStatus.dataTimeOut
        Self.endTransfer(&state)
      }
    }
    card.writeData(request.bytes) { [weak self] isWritten in self?.written(isWritten, request.generation) }
  }

  private func written(_ isWritten: Bool, _ generation: UInt64) {
    var endedBlocks: Int?
    change { state in
      guard state.generation == generation else { return }
      state.isBusy = false
      guard isWritten else {
        state.status |= HostStatus.dataTimeOut
        return Self.endTransfer(&state)
      }
      guard state.remaining == 0, state.buffer.isEmpty else { return }
      endedBlocks = state.moved / Int(max(1, state.blockByteCount))
      Self.endTransfer(&state)
    }
    if let endedBlocks { card?.endTransfer(blockCount: endedBlocks) } else { flush() }
  }
}
