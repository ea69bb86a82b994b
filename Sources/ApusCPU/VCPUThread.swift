import CApusHost

/// Which vCPU the calling thread runs: devices with registers for each CPU ask.
public enum VCPUThread {
  /// `nil` for threads that run none.
  public static var index: Int? {
    get {
      let value = apus_vcpu_index()
      return value < 0 ? nil : Int(value)
    }
    set { apus_set_vcpu_index(Int32(newValue ?? -1)) }
  }
}
