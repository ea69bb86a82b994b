/// How many of the known encodings are implemented (`-isa-coverage`).
public enum AArch64Coverage {
  /// Rows by feature, and the sum, as text for a terminal.
  public static func report() -> String {
    var text = ""
    for one in AArch64Feature.allCases {
      let count = aarch64Rows.filter { $0.feature == one }.count
      if count > 0 { text += pad("\(one)") + "\(count)\n" }
    }
    text += pad("sve, sve2 (planned)") + "0 of \(aarch64PlannedRows.count)\n"
    let all = aarch64Rows.count + aarch64PlannedRows.count
    text += pad("all") + "\(aarch64Rows.count) of \(all) rows (\(aarch64Rows.count * 1000 / all / 10) %)\n"
    return text
  }
  private static func pad(_ name: String) -> String {
    name + String(repeating: " ", count: max(1, 26 - name.count))
  }
}
