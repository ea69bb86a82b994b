import ApusHost
import ApusUserABI
import CApusHost
import Glibc

// -strace: one line a call when it is done, decoded by the table's argument letters.

extension UserThread {
  /// Calls that need not return, or not here: they are shown before they are made.
  private static let early: Set = [93, 94, 139, 220, 221, 281, 435]

  /// Shows a call that may not return; returns the text of any other, for `traceResult`.
  func traceCall(_ row: SyscallRow, _ a: CallArguments) -> String {
    let text = callText(row, a)
    guard Self.early.contains(row.number) else { return text }
    process.log(text + "\n")
    return "\(getpid()) ... \(row.name)"
  }

  private func callText(_ row: SyscallRow, _ a: CallArguments) -> String {
    let values = [a.a, a.b, a.c, a.d, a.e, a.f]
    let letters = row.arguments.withUTF8Buffer { Array($0) }
    var parts: [String] = []
    for (index, letter) in letters.enumerated() where index < 6 {
      let value = values[index]
      switch Character(Unicode.Scalar(letter)) {
      case "d": parts.append("\(Int32(truncatingIfNeeded: value))")
      case "o": parts.append("0" + String(value & 0xffff_ffff, radix: 8))
      case "g": parts.append(GuestSignal.name(Int(Int32(truncatingIfNeeded: value))))
      case "f":
        parts.append(
          Int32(truncatingIfNeeded: value) == AT_FDCWD ? "AT_FDCWD" : "\(Int32(truncatingIfNeeded: value))")
      case "s", "n":
        parts.append(process.memory.readString(value).map { quote($0.text) } ?? pointer(value))
      case "q":
        let count = index + 1 < 6 ? min(values[index + 1], 32) : 0
        var bytes = [UInt8](repeating: 0, count: Int(count))
        let ok = bytes.withUnsafeMutableBytes { process.memory.read(value, into: $0) }
        let isShort = values[min(index + 1, 5)] > 32
        parts.append(
          ok ? quote(String(decoding: bytes, as: UTF8.self)) + (isShort ? "..." : "") : pointer(value))
      case "p": parts.append(pointer(value))
      case let letter where letter.isUppercase:
        let mask: UInt64 = letter == "C" ? .max : 0xffff_ffff
        let shown = letter == "O" ? process.isa.openFlags.converted(value) : value
        parts.append(SyscallFlags.text(letter, shown & mask) ?? "\(value)")
      default: parts.append(value < 10 ? "\(value)" : "0x\(String(value, radix: 16))")
      }
    }
    return "\(getpid()) \(row.name)(\(parts.joined(separator: ",")))"
  }

  func traceResult(_ call: String, _ result: Int) {
    if result < 0, result > -4096 {
      process.log("\(call) = -1 errno=\(-result) (\(String(cString: strerror(Int32(-result)))))\n")
    } else {
      process.log("\(call) = \(result > 0xffff ? "0x" + String(result, radix: 16) : String(result))\n")
    }
  }

  private func pointer(_ value: UInt64) -> String { value == 0 ? "NULL" : "0x" + String(value, radix: 16) }
  private func quote(_ text: String) -> String {
    var result = "\""
    for scalar in text.unicodeScalars {
      switch scalar {
      case "\n": result += "\\n"
      case "\t": result += "\\t"
      case "\"", "\\": result += "\\" + String(scalar)
      default: result += scalar.value < 32 ? "\\\(String(scalar.value, radix: 8))" : String(scalar)
      }
    }
    return result + "\""
  }
}
