import ApusBlock
import ApusConfig

/// Filter drivers: nodes that change how requests reach another node.
enum ImageFilter {
  static let names: [String] = []

  static func open(_ driver: String, _ list: inout OptionList, _ graph: ImageGraph, _ shown: String)
    throws(StorageError) -> OpenedImage
  {
    throw StorageError("\(shown): \(ConfigurationError.unknown("filter", driver, among: names).description)")
  }
}
