/// A redistributor's locality-specific interrupts, numbers 8192 and up: only what is pending is kept; priority and enable
/// bit are read from the guest's table when an interrupt becomes pending or software says that they changed
/// [IHI 0069H §5.1].
struct LPIs {
  struct Setting {
    var priority: UInt8
    var isEnabled: Bool
  }
  static let first = 8192
  /// GICR_CTLR.EnableLPIs, GICR_PROPBASER, GICR_PENDBASER.
  var isEnabled = false
  var properties: UInt64 = 0
  var pendingTable: UInt64 = 0
  var pending: [Int: Setting] = [:]

  /// The most urgent one; of equals the lowest number.
  var best: (number: Int, priority: UInt8)? {
    var best: (number: Int, priority: UInt8)?
    for (number, setting) in pending where setting.isEnabled {
      if let found = best, (found.priority, found.number) < (setting.priority, number) { continue }
      best = (number, setting.priority)
    }
    return best
  }
}

extension GIC {
  /// The byte of the configuration table; `nil` outside it.
  private func setting(_ lpis: LPIs, _ number: Int) -> LPIs.Setting? {
    guard let memory, number >= LPIs.first, number >> Int(lpis.properties & 31 + 1) == 0 else { return nil }
    let address = lpis.properties & 0xf_ffff_ffff_f000 + UInt64(number - LPIs.first)
    guard let word = memory.load(address & ~7) else { return nil }
    let byte = word >> (8 * (address & 7))
    return .init(priority: UInt8(byte & 0xfc) & GICState.priorityMask, isEnabled: byte & 1 != 0)
  }

  func setLPI(_ cpu: Int, _ number: Int, isPending: Bool) {
    change { state in
      guard state.lpis[cpu].isEnabled else { return }
      state.lpis[cpu].pending[number] = isPending ? setting(state.lpis[cpu], number) : nil
    }
  }

  /// Software changed the configuration of one or all.
  func reloadLPI(_ cpu: Int, _ number: Int?) {
    change { state in
      let lpis = state.lpis[cpu]
      for pending in number.map({ [$0] }) ?? Array(lpis.pending.keys) where lpis.pending[pending] != nil {
        state.lpis[cpu].pending[pending] = setting(lpis, pending)
      }
    }
  }

  /// What is pending of one or all goes to another CPU.
  func moveLPI(_ number: Int?, from old: Int, to new: Int) {
    guard old != new else { return }
    change { state in
      for pending in number.map({ [$0] }) ?? Array(state.lpis[old].pending.keys) {
        guard state.lpis[old].pending.removeValue(forKey: pending) != nil, state.lpis[new].isEnabled else {
          continue
        }
        state.lpis[new].pending[pending] = setting(state.lpis[new], pending)
      }
    }
  }

  /// GICR_CTLR.EnableLPIs.
  func enableLPIs(_ cpu: Int, _ isEnabled: Bool) {
    change { state in
      guard isEnabled != state.lpis[cpu].isEnabled else { return }
      state.lpis[cpu].isEnabled = isEnabled
      state.lpis[cpu].pending.removeAll()
      // PTZ says that the pending table is all zeros.
      guard isEnabled, state.lpis[cpu].pendingTable >> 62 & 1 == 0, let memory else { return }
      let base = state.lpis[cpu].pendingTable & 0xf_ffff_ffff_0000
      let limit = min(1 << Int(state.lpis[cpu].properties & 31 + 1), 65536)
      for first in stride(from: LPIs.first, to: limit, by: 64) {
        guard var bits = memory.load(base + UInt64(first / 8)) else { return }
        while bits != 0 {
          let number = first + bits.trailingZeroBitCount
          bits &= bits - 1
          state.lpis[cpu].pending[number] = setting(state.lpis[cpu], number)
        }
      }
    }
  }
}
