import ApusBits

/// A flattened device tree's content as a value [DT-Spec 0.4].
public struct DeviceTree: Equatable, Sendable {
  /// One property: a name and bytes; integers in it are big-endian.
  public struct Property: Equatable, Sendable {
    public var name: String
    public var value: [UInt8]
    public init(_ name: String, _ value: [UInt8]) { (self.name, self.value) = (name, value) }
  }

  /// One node; names are unique among the children of a node.
  public struct Node: Equatable, Sendable {
    /// With the unit address: `serial@10000000`; empty for the root.
    public var name: String
    public var properties: [Property] = []
    public var children: [Node] = []
    public init(_ name: String) { self.name = name }
  }

  /// Memory that the operating system must leave alone.
  public struct Reservation: Equatable, Sendable {
    public var address: UInt64
    public var byteCount: UInt64
    public init(address: UInt64, byteCount: UInt64) { (self.address, self.byteCount) = (address, byteCount) }
  }

  public var root = Node("")
  public var reservations: [Reservation] = []
  /// The hardware number of the CPU that boots.
  public var bootCPU: UInt32 = 0
  public init() {}
}

extension DeviceTree.Node {
  /// A node with its properties set by `body`.
  public init(_ name: String, _ body: (inout DeviceTree.Node) -> Void) {
    self.init(name)
    body(&self)
  }

  public subscript(property name: String) -> [UInt8]? { properties.first { $0.name == name }?.value }

  /// Sets a property, in place if it is there already.
  public mutating func set(_ name: String, bytes: [UInt8]) {
    if let index = properties.firstIndex(where: { $0.name == name }) {
      properties[index].value = bytes
    } else {
      properties.append(.init(name, bytes))
    }
  }
  /// A property without a value: true by being there.
  public mutating func set(_ name: String) { set(name, bytes: []) }
  /// 32-bit cells.
  public mutating func set(_ name: String, _ cells: UInt32...) { set(name, cells: cells) }
  public mutating func set(_ name: String, cells: [UInt32]) {
    var bytes: [UInt8] = []
    for cell in cells { bytes.appendBigEndian(cell) }
    set(name, bytes: bytes)
  }
  /// 64-bit numbers of two cells each: addresses and sizes below nodes with `#address-cells = 2`.
  public mutating func set(_ name: String, wide numbers: UInt64...) {
    var bytes: [UInt8] = []
    for number in numbers { bytes.appendBigEndian(number) }
    set(name, bytes: bytes)
  }
  /// NUL-terminated strings, most specific first.
  public mutating func set(_ name: String, _ strings: [String]) {
    set(name, bytes: strings.flatMap { Array($0.utf8) + [0] })
  }
  public mutating func set(_ name: String, _ string: String) { set(name, [string]) }

  /// The property's first string.
  public func string(_ name: String) -> String? {
    self[property: name].map { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
  }
  /// The property as 32-bit cells; a ragged end is left out.
  public func cells(_ name: String) -> [UInt32]? {
    self[property: name].map { bytes in
      stride(from: 0, to: bytes.count - bytes.count % 4, by: 4).map { bytes.bigEndian(at: $0) ?? 0 }
    }
  }

  public mutating func add(_ child: DeviceTree.Node) { children.append(child) }

  /// The descendant at `path` ("soc/serial@10000000"; a leading slash is allowed).
  public subscript(path: String) -> DeviceTree.Node? {
    var node = self
    for part in path.split(separator: "/") {
      guard let next = node.children.first(where: { $0.name == part }) else { return nil }
      node = next
    }
    return node
  }

  /// Edits the child called `name`, which is added if it is missing.
  public mutating func updateChild(_ name: String, _ body: (inout DeviceTree.Node) -> Void) {
    if let index = children.firstIndex(where: { $0.name == name }) {
      body(&children[index])
    } else {
      add(.init(name, body))
    }
  }
}
