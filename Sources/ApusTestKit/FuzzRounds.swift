import Glibc

/// How long fuzz targets run: `rounds` in a unit test run, APUS_FUZZ_FACTOR times as many where that is set.
public func fuzzRounds(_ rounds: Int) -> Int {
  guard let text = getenv("APUS_FUZZ_FACTOR"), let factor = Int(String(cString: text)), factor > 0 else {
    return rounds
  }
  return rounds * factor
}
