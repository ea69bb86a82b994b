/// How much of the known encoding space is implemented.
public enum RISCVCoverage {
  /// Rows by extension, and the sum, as text for a terminal.
  public static func report() -> String {
    var text = ""
    var implemented = 0
    for one in RISCVExtension.allCases {
      let count = riscvRows.filter { $0.extension == one }.count
      if count > 0 { text += pad("\(one)") + "\(count)\n" }
      implemented += count
    }
    text += pad("v (planned)") + "0 of \(riscvPlannedRows.count)\n"
    let all = implemented + riscvPlannedRows.count
    text += pad("all") + "\(implemented) of \(all) rows (\(implemented * 1000 / all / 10) %)\n"
    return text
  }
  private static func pad(_ name: String) -> String {
    name + String(repeating: " ", count: max(1, 16 - name.count))
  }
}
