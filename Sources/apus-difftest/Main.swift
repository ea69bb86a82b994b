/// Random-program differential test: see `DifferentialTest`.
@main
struct Main {
  static func main() { DifferentialTest.run() }
}
