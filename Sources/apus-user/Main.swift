/// The user-mode emulator: `apus-riscv64 PROGRAM ARGUMENTS`. The work is in `UserTool`: `main` is on the main actor.
@main
struct Main {
  static func main() { UserTool.run() }
}
