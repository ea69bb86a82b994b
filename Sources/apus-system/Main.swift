/// The system emulator. The work is in `SystemEmulator`: `main` is on the main actor, and closures written there are
/// slow or crash on other threads.
@main
struct Main {
  static func main() { SystemEmulator.run() }
}
