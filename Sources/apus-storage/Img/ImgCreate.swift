import ApusBlock
import ApusConfig
import ApusHost
import ApusQcow2
import ApusStorage

extension ImgTool {
  static let create = Command(
    name: "create", usage: "[-q] [-f FMT] [-b BACKING [-F FMT]] [-u] [-o OPTIONS] FILE [SIZE]",
    help: """
      Makes an image. Without SIZE it takes the backing file's. -o help lists the format's options.
        -f FMT  format (raw)      -b FILE  backing file     -F FMT  its format
        -u      do not look at the backing file             -q      no output
      """,
    options: [
      format, quiet, .init("b", "", value: true), .init("F", "", value: true), .init("u", ""),
      .init("o", "", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let format = arguments["format"] ?? "raw"
    if arguments.all("o").contains(where: { $0 == "help" || $0 == "?" }) { return try showOptions(format) }
    var list = try optionList(arguments)
    guard (1...2).contains(arguments.operands.count) else {
      throw ToolError("create: expecting an image file name and a size")
    }
    if let backing = arguments["b"] { list.entries.append(.init("backing_file", backing)) }
    if let backingFormat = arguments["F"] { list.entries.append(.init("backing_fmt", backingFormat)) }
    var creation = ImageCreation(arguments.operands[0], format: format, options: list)
    if arguments.operands.count == 2 {
      guard list["size"] == nil else { throw ToolError("create: -o size= and SIZE exclude each other") }
      guard let size = parseSize(arguments.operands[1]), size < 1 << 63 else {
        throw ToolError(
          "invalid image size '\(arguments.operands[1])': it must be a number with one of the suffixes K, M, G, T, P"
        )
      }
      creation.byteCount = size
    }
    creation.isUnsafe = arguments.has("u")
    var opening = OpenOptions(writable: true)
    opening.objects = try objects(arguments)
    if !arguments.has("quiet") {
      let filename = creation.filename
      creation.announce = { printLine("Formatting '\(filename)', fmt=\(format) \($0)") }
    }
    let created = try tool { () throws(StorageError) in try creation.create(opening: opening) }
    try request { () throws(BlockError) in try created.node.close() }
    return 0
  }

  static let resize = Command(
    name: "resize", usage: "[-q] [-f FMT] [--preallocation=MODE] [--shrink] FILE [+|-]SIZE",
    help: "Changes an image's size, to SIZE or by it. --shrink allows to cut data off.",
    options: [format, quiet, .init("", "preallocation", value: true), .init("", "shrink")]
  ) { (arguments) throws(ToolError) in
    var operands = arguments.operands
    guard operands.count == 2 else { throw ToolError("resize: expecting one image file name and a size") }
    let text = operands.removeLast()
    let sign = text.first
    guard let amount = parseSize(sign == "+" || sign == "-" ? String(text.dropFirst()) : text),
      amount < 1 << 63
    else {
      throw ToolError("invalid image size '\(text)'")
    }
    let image = try open(operands[0], arguments, format: arguments["format"], OpenOptions(writable: true))
    let old = image.node.byteCount
    guard sign != "-" || amount < old else { throw ToolError("new image size must be positive") }
    let size = (sign == "+" ? old + amount : sign == "-" ? old - amount : amount)
    guard size > 0 else { throw ToolError("new image size must be positive") }
    guard let mode = Preallocation(rawValue: arguments["preallocation"] ?? "off") else {
      throw ToolError("invalid preallocation mode '\(arguments["preallocation"] ?? "")'")
    }
    if size < old, !arguments.has("shrink") {
      throw ToolError(
        "use the --shrink option to perform a shrink operation: data behind \(size) bytes would be lost")
    }
    if size < old, mode != .off { throw ToolError("preallocation can only be used for growing images") }
    try request("cannot resize '\(operands[0])'") { () throws(BlockError) in
      try image.node.truncate(size, preallocation: mode)
      try image.node.close()
    }
    if !arguments.has("quiet") { printLine("Image resized.") }
    return 0
  }

  static let snapshot = Command(
    name: "snapshot", usage: "[-U] [-q] [-f FMT] [-l | -a NAME | -c NAME | -d NAME] FILE",
    help: "Internal snapshots: -l lists them, -c makes one, -a goes back to one, -d deletes one.",
    options: [
      format, quiet, forceShare, .init("l", ""), .init("a", "", value: true), .init("c", "", value: true),
      .init("d", "", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    let actions = ["l", "a", "c", "d"].filter(arguments.has)
    guard actions.count <= 1 else { throw ToolError("cannot mix '-l', '-a', '-c', '-d'") }
    let action = actions.first ?? "l"
    let name = try operand(arguments, "snapshot")
    var options = OpenOptions(writable: action != "l")
    options.withoutBacking = true
    let image = try open(name, arguments, format: arguments["format"], options)
    guard let qcow2 = image.qcow2 else {
      if action == "l" { return 0 }
      throw ToolError("images of the format '\(image.format)' have no internal snapshots")
    }
    let key = arguments[action] ?? ""
    try request("snapshot '\(key)'") { () throws(BlockError) in
      switch action {
      case "a": try qcow2.applySnapshot(key)
      case "c":
        let now = HostClock.realtimeNanoseconds()
        try qcow2.createSnapshot(
          key, dateSeconds: UInt32(truncatingIfNeeded: now / 1_000_000_000),
          dateNanoseconds: UInt32(now % 1_000_000_000 / 1000 * 1000))
      case "d": try qcow2.deleteSnapshot(key)
      default: if !qcow2.snapshotList.isEmpty { writeStandardOutput(snapshotTable(qcow2)) }
      }
      try qcow2.close()
    }
    return 0
  }

  /// The list of snapshots as `snapshot -l` and `info` show it.
  static func snapshotTable(_ image: Qcow2Image) -> String {
    var text = "Snapshot list:\n"
    text += "ID        TAG               VM SIZE                DATE     VM CLOCK     ICOUNT\n"
    for snapshot in image.snapshotList {
      let clock = snapshot.vmClockNanoseconds
      let seconds = clock / 1_000_000_000
      func two(_ value: UInt64) -> String { value < 10 ? "0\(value)" : "\(value)" }
      let milliseconds = String(clock / 1_000_000 % 1000)
      let time =
        "\(two(seconds / 3600)):\(two(seconds / 60 % 60)):\(two(seconds % 60))."
        + String(repeating: "0", count: 3 - milliseconds.count) + milliseconds
      let count = snapshot.instructionCount == .max ? "" : "\(snapshot.instructionCount)"
      text +=
        Format.padded(snapshot.id, 10) + Format.padded(snapshot.name, 16)
        + Format.padded(Format.size(snapshot.vmStateByteCount), 9, left: true)
        + Format.padded(HostPath.localDate(Int(snapshot.dateSeconds)), 20, left: true)
        + Format.padded(time, 13, left: true) + Format.padded(count, 11, left: true) + "\n"
    }
    return text
  }

  static let bitmap = Command(
    name: "bitmap",
    usage:
      "(--merge SOURCE | --add | --remove | --clear | --enable | --disable)... [-b FILE [-F FMT]] [-g SIZE] [-f FMT] FILE NAME",
    help:
      "Changes the persistent bitmap NAME. The actions are carried out in their order. -b names the image of SOURCE.",
    options: [
      format, .init("", "add"), .init("", "remove"), .init("", "clear"), .init("", "enable"),
      .init("", "disable"),
      .init("", "merge", value: true), .init("g", "granularity", value: true),
      .init("b", "source-file", value: true),
      .init("F", "source-format", value: true),
    ]
  ) { (arguments) throws(ToolError) in
    guard arguments.operands.count == 2 else {
      throw ToolError("bitmap: expecting a file name and a bitmap name")
    }
    let (file, name) = (arguments.operands[0], arguments.operands[1])
    let actions = arguments.values.filter {
      ["add", "remove", "clear", "enable", "disable", "merge"].contains($0.name)
    }
    guard !actions.isEmpty else {
      throw ToolError("need at least one of --add, --remove, --clear, --enable, --disable, or --merge")
    }
    if arguments.has("granularity"), !arguments.has("add") {
      throw ToolError("granularity only supported with --add")
    }
    var options = OpenOptions(writable: true)
    options.withoutBacking = true
    let image = try open(file, arguments, format: arguments["format"], options)
    guard let qcow2 = image.qcow2 else {
      throw ToolError("images of the format '\(image.format)' have no bitmaps")
    }
    var source = qcow2
    if let path = arguments["source-file"] {
      var readOnly = OpenOptions()
      readOnly.withoutBacking = true
      let other = try open(path, arguments, format: arguments["source-format"], readOnly)
      guard let node = other.qcow2 else { throw ToolError("'\(path)' is no qcow2 image") }
      source = node
    }
    let granularity = try arguments.size("granularity") ?? 0
    for action in actions {
      try request("bitmap '\(name)'") { () throws(BlockError) in
        switch action.name {
        case "add": try qcow2.addBitmap(name, granularity: granularity, isEnabled: !arguments.has("disable"))
        case "remove": try qcow2.removeBitmap(name)
        case "clear": try qcow2.clearBitmap(name)
        case "enable": try qcow2.setBitmapEnabled(name, true)
        case "disable": try qcow2.setBitmapEnabled(name, false)
        default: try qcow2.mergeBitmap(name, from: try source.dirtyRanges(action.value))
        }
      }
    }
    try request { () throws(BlockError) in try qcow2.close() }
    return 0
  }
}
