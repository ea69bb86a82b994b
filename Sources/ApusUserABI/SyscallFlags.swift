/// Names of flags for `-strace`, a letter of `SyscallRow.arguments` each. The values are asm-generic's [Linux UAPI].
public enum SyscallFlags {
  /// O: how to open; P: protection; M: how to map; C: what to share; A: of calls with a directory descriptor; H: how to
  /// change a signal mask; K: a clock; W: how to wait; S: how to seek.
  public static func text(_ letter: Character, _ value: UInt64) -> String? {
    switch letter {
    case "O": open(value)
    case "P": flags(value, protections, none: "PROT_NONE")
    case "M": flags(value & ~0xf, mappings, none: "0", first: mapKinds[Int(value & 3)])
    case "C": flags(value & ~0xff, clones, none: "0", last: value & 0xff == 17 ? "SIGCHLD" : nil)
    case "A": flags(value, at, none: "0")
    case "H": value < 3 ? ["SIG_BLOCK", "SIG_UNBLOCK", "SIG_SETMASK"][Int(value)] : nil
    case "K": value < UInt64(clocks.count) ? "CLOCK_" + clocks[Int(value)] : nil
    case "W": flags(value, waits, none: "0")
    case "S": value < 5 ? ["SEEK_SET", "SEEK_CUR", "SEEK_END", "SEEK_DATA", "SEEK_HOLE"][Int(value)] : nil
    default: nil
    }
  }

  private static func open(_ value: UInt64) -> String {
    let access = ["O_RDONLY", "O_WRONLY", "O_RDWR", "O_ACCMODE"][Int(value & 3)]
    return flags(value & ~3, opens, none: "", first: access)
  }
  private static func flags(
    _ value: UInt64, _ names: [(UInt64, String)], none: String, first: String? = nil, last: String? = nil
  ) -> String {
    var rest = value
    var parts = first.map { [$0] } ?? []
    for (bits, name) in names where rest & bits == bits {
      parts.append(name)
      rest &= ~bits
    }
    if rest != 0 { parts.append("0x" + String(rest, radix: 16)) }
    if let last { parts.append(last) }
    return parts.isEmpty ? none : parts.joined(separator: "|")
  }

  private static let opens: [(UInt64, String)] = [
    (0x41_0000 | 0x10000, "O_TMPFILE"), (0x10_1000, "O_SYNC"), (0x40, "O_CREAT"), (0x80, "O_EXCL"),
    (0x100, "O_NOCTTY"),
    (0x200, "O_TRUNC"), (0x400, "O_APPEND"), (0x800, "O_NONBLOCK"), (0x1000, "O_DSYNC"), (0x4000, "O_DIRECT"),
    (0x8000, "O_LARGEFILE"), (0x10000, "O_DIRECTORY"), (0x20000, "O_NOFOLLOW"), (0x40000, "O_NOATIME"),
    (0x80000, "O_CLOEXEC"), (0x20_0000, "O_PATH"),
  ]
  private static let protections: [(UInt64, String)] = [
    (1, "PROT_READ"), (2, "PROT_WRITE"), (4, "PROT_EXEC"),
  ]
  private static let mapKinds = ["0", "MAP_SHARED", "MAP_PRIVATE", "MAP_SHARED_VALIDATE"]
  private static let mappings: [(UInt64, String)] = [
    (0x10, "MAP_FIXED"), (0x20, "MAP_ANONYMOUS"), (0x100, "MAP_GROWSDOWN"), (0x800, "MAP_DENYWRITE"),
    (0x2000, "MAP_LOCKED"), (0x4000, "MAP_NORESERVE"), (0x8000, "MAP_POPULATE"), (0x10000, "MAP_NONBLOCK"),
    (0x20000, "MAP_STACK"), (0x40000, "MAP_HUGETLB"), (0x10_0000, "MAP_FIXED_NOREPLACE"),
  ]
  private static let clones: [(UInt64, String)] = [
    (0x100, "CLONE_VM"), (0x200, "CLONE_FS"), (0x400, "CLONE_FILES"), (0x800, "CLONE_SIGHAND"),
    (0x1000, "CLONE_PIDFD"),
    (0x2000, "CLONE_PTRACE"), (0x4000, "CLONE_VFORK"), (0x8000, "CLONE_PARENT"), (0x10000, "CLONE_THREAD"),
    (0x20000, "CLONE_NEWNS"), (0x40000, "CLONE_SYSVSEM"), (0x80000, "CLONE_SETTLS"),
    (0x10_0000, "CLONE_PARENT_SETTID"), (0x20_0000, "CLONE_CHILD_CLEARTID"),
    (0x100_0000, "CLONE_CHILD_SETTID"),
    (0x200_0000, "CLONE_NEWCGROUP"), (0x400_0000, "CLONE_NEWUTS"), (0x800_0000, "CLONE_NEWIPC"),
    (0x1000_0000, "CLONE_NEWUSER"), (0x2000_0000, "CLONE_NEWPID"), (0x4000_0000, "CLONE_NEWNET"),
  ]
  private static let at: [(UInt64, String)] = [
    (0x100, "AT_SYMLINK_NOFOLLOW"), (0x200, "AT_REMOVEDIR"), (0x400, "AT_SYMLINK_FOLLOW"),
    (0x800, "AT_NO_AUTOMOUNT"),
    (0x1000, "AT_EMPTY_PATH"),
  ]
  private static let waits: [(UInt64, String)] = [
    (1, "WNOHANG"), (2, "WUNTRACED"), (4, "WEXITED"), (8, "WCONTINUED"), (0x100_0000, "WNOWAIT"),
    (0x4000_0000, "__WALL"), (0x8000_0000, "__WCLONE"),
  ]
  private static let clocks = [
    "REALTIME", "MONOTONIC", "PROCESS_CPUTIME_ID", "THREAD_CPUTIME_ID", "MONOTONIC_RAW", "REALTIME_COARSE",
    "MONOTONIC_COARSE", "BOOTTIME",
  ]
}
