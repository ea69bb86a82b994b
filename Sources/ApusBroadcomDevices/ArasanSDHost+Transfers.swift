/// Commands, and the data that they move.
extension ArasanSDHost {
  func issue(_ command: UInt32) {
    let (argument, second) = change { state -> (UInt32, UInt32) in
      state.endTransfer()
      state.waitsForReady = false
      return (state.registers[Register.argument], state.registers[0])
    }
    if command & Mode.hasData != 0, command & Mode.automatic == Mode.countsAutomatically {
      _ = card?.command(23, second)
    }
    let (index, kind) = (command >> 24 & 0x3f, command >> 16 & 3)
    let response = card?.command(index, argument) ?? .none
    change { state in
      switch response {
      case .none:
        return state.raise(kind == 0 ? Interrupt.command : Interrupt.commandTimeOut)
      case .short(let word): state.registers[Register.response] = word
      case .long(let words):
        // Without the CRC.
        for part in 0..<4 {
          let upper = part == 3 ? 0 : words[2 - part] << 24
          state.registers[Register.response + part] = words[3 - part] >> 8 | upper
        }
      }
      state.raise(Interrupt.command)
      if command & Mode.hasData != 0 {
        let counts = command & Mode.isMultiple != 0 && command & Mode.countEnabled != 0
        state.blockCount = counts ? Int(state.registers[Register.sizeAndCount] >> 16) : 1
        state.remaining = state.blockByteCount * state.blockCount
        if state.remaining > 0 { state.direction = command & Mode.isRead != 0 ? .read : .write }
        if state.direction == .write { state.raise(Interrupt.writeReady) }
      } else if kind == 3 {
        state.waitsForReady = true
      }
    }
    if kind == 3, card?.isBusy == false { cardIsReady() }
    fetch()
  }

  private func complete() {
    let (stops, blocks) = state.withLock { state in
      (state.registers[Register.command] & Mode.automatic == Mode.stopsAutomatically, state.blockCount)
    }
    card?.endTransfer(blockCount: blocks)
    if stops { _ = card?.command(12, 0) }
    change { state in
      state.endTransfer()
      state.raise(Interrupt.transfer)
    }
  }

  private func fail(_ state: inout State) {
    state.endTransfer()
    state.raise(Interrupt.dataTimeOut)
  }

  // MARK: Reading

  private func fetch() {
    let request = change { state -> (count: Int, generation: UInt64)? in
      guard state.direction == .read, !state.isBusy, state.available == 0, state.remaining > 0 else {
        return nil
      }
      state.isBusy = true
      return (min(state.remaining, Self.bufferByteCount), state.generation)
    }
    guard let request, let card else { return }
    card.readData(request.count) { [weak self] bytes in
      self?.change { state in
        guard state.generation == request.generation else { return }
        state.isBusy = false
        guard let bytes else { return self?.fail(&state) ?? () }
        (state.buffer, state.position) = (bytes, 0)
        state.remaining -= bytes.count
        state.raise(Interrupt.readReady)
      }
    }
  }

  func readData() -> UInt32 {
    let (word, isDone) = change { state -> (UInt32, Bool) in
      let count = min(4, state.available)
      guard count > 0 else { return (0, false) }
      var word: UInt32 = 0
      for index in 0..<count { word |= UInt32(state.buffer[state.position + index]) << UInt32(8 * index) }
      state.position += count
      state.movedOfBlock += count
      if state.movedOfBlock >= state.blockByteCount {
        state.movedOfBlock = 0
        if state.available > 0 { state.raise(Interrupt.readReady) }
      }
      return (word, state.available == 0 && state.remaining == 0)
    }
    if isDone { complete() } else { fetch() }
    return word
  }

  // MARK: Writing

  func writeData(_ word: UInt32) {
    change { state in
      let count = min(4, state.room)
      guard count > 0 else { return }
      for index in 0..<count { state.buffer.append(UInt8(truncatingIfNeeded: word >> UInt32(8 * index))) }
      state.remaining -= count
      state.movedOfBlock += count
      if state.movedOfBlock >= state.blockByteCount {
        state.movedOfBlock = 0
        if state.room > 0 { state.raise(Interrupt.writeReady) }
      }
    }
    flush()
  }

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
    guard request.bytes.count % SDCard.blockByteCount == 0, let card else { return change { fail(&$0) } }
    card.writeData(request.bytes) { [weak self] isWritten in self?.written(isWritten, request.generation) }
  }

  private func written(_ isWritten: Bool, _ generation: UInt64) {
    let isDone = change { state -> Bool? in
      guard state.generation == generation else { return nil }
      state.isBusy = false
      guard isWritten else {
        fail(&state)
        return nil
      }
      if state.remaining > 0, state.room > 0 { state.raise(Interrupt.writeReady) }
      return state.remaining == 0 && state.buffer.isEmpty
    }
    guard let isDone else { return }
    if isDone { complete() } else { flush() }
  }
}
