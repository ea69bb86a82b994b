import ApusBlock
import ApusConfig
import ApusHost
import ApusStorage
import Synchronization

/// An open image and the commands that work on it. One thread, but for the asynchronous requests.
final class IOSession {
  struct OpenSettings {
    var isReadOnly = false
    var cache = BlockCacheMode.writeback
    var requestMode = FileRequestMode.threads
    var format: String?
    var isOptionList = false
    /// The list, if it is not the name itself.
    var options: OptionList?
    var sharesAll = false
    var unmaps = true
    var copiesOnRead = false
    var objects = StorageObjects()
    /// Driver options that `reopen` adds.
    var changes = OptionList()
    /// Writes go to a temporary overlay.
    var isTemporary = false
  }
  /// A command: usage, one line of help, what it does with its words.
  struct Command: Sendable {
    var name: String
    var aliases: [String] = []
    var usage: String
    var help: String
    var run: @Sendable (IOSession, [String]) throws(ToolError) -> Void
  }

  private(set) var hasFailed = false
  private(set) var hasQuit = false
  private var image: OpenedImage?
  private var lastOpen: (name: String, settings: OpenSettings)?
  private let pool = WorkerPool("aio", threadLimit: 32)
  let pending = InFlightCounter()
  let asynchronousFailure = Flag()
  /// What `--object` made.
  var objects = StorageObjects()

  /// Set by requests in the background.
  final class Flag: Sendable {
    let isSet = Atomic<Bool>(false)
  }

  // MARK: Sessions

  func open(_ name: String, _ settings: OpenSettings) throws(ToolError) {
    guard image == nil else { throw ToolError("file open already, try 'help close'") }
    var options = OpenOptions(writable: !settings.isReadOnly && !settings.isTemporary)
    options.cache = settings.cache
    options.requestMode = settings.requestMode
    options.sharesAll = settings.sharesAll
    options.unmaps = settings.unmaps
    options.objects = settings.objects
    image = try tool { () throws(StorageError) in
      guard settings.isOptionList || !settings.changes.entries.isEmpty else {
        return try ImageGraph(options).open(name, format: settings.format)
      }
      var list = OptionList()
      if settings.isOptionList {
        if let options = settings.options {
          list = options
        } else {
          do throws(ConfigurationError) { list = try OptionList(parsing: name) } catch {
            throw StorageError(error)
          }
        }
        if let format = settings.format, list["driver"] == nil {
          list.entries.append(.init("driver", format))
        }
      } else {
        // What a json: name says can be changed, too.
        list = settings.changes
        if let format = settings.format, list["driver"] == nil {
          list.entries.append(.init("driver", format))
        }
        list = try FileNames.options(list, of: name)
      }
      for entry in settings.changes.entries {
        list.entries.removeAll { $0.key == entry.key }
        list.entries.append(entry)
      }
      return try ImageGraph(options).open(list)
    }
    if settings.isTemporary, let opened = image {
      image = try tool { () throws(StorageError) in try ImageCreation.temporaryOverlay(of: opened) }
    }
    if settings.copiesOnRead, let opened = image {
      image = OpenedImage(
        CopyOnReadNode(opened.node), filename: opened.filename, format: opened.format,
        backing: opened.backing,
        backingFilename: opened.backingFilename)
    }
    lastOpen = (name, settings)
  }

  func close() throws(ToolError) {
    endRequests()
    guard let image else { return }
    self.image = nil
    try request("close") { () throws(BlockError) in try image.node.close() }
  }

  /// What an option was when the image was opened.
  func present(_ key: String) -> String? {
    switch key {
    case "driver": image?.format
    case "file.driver": image?.node.child("file")?.driverName
    case "backing.driver": image?.backing?.format
    default: lastOpen?.settings.options?[key]
    }
  }

  func reopen(_ change: (inout OpenSettings) -> Void) throws(ToolError) {
    guard let last = lastOpen, image != nil else { throw ToolError("no file open, try 'help open'") }
    var settings = last.settings
    change(&settings)
    try close()
    do throws(ToolError) { try open(last.name, settings) } catch {
      // As it was before.
      try open(last.name, last.settings)
      throw error
    }
  }

  func node() throws(ToolError) -> any ImageNode {
    guard let image else { throw ToolError("no file open, try 'help open'") }
    return image.node
  }
  func opened() throws(ToolError) -> OpenedImage {
    guard let image else { throw ToolError("no file open, try 'help open'") }
    return image
  }

  func quit() { hasQuit = true }
  func fail() { hasFailed = true }

  func submit(_ job: @escaping @Sendable () -> Void) {
    pending.enter()
    pool.submit { [pending] in
      job()
      pending.leave()
    }
  }
  func waitForRequests() {
    pending.waitUntilIdle()
    if asynchronousFailure.isSet.load(ordering: .relaxed) { hasFailed = true }
  }

  func runInteractively() {
    while !hasQuit {
      writeStandardOutput("\(StorageTools.name)> ")
      guard let line = readLine() else { break }
      run(line)
    }
    endRequests()
  }

  /// Waits until all is done, with nobody left to resume what stands at a breakpoint.
  private func endRequests() {
    if let image { FaultNode.find(below: image.node)?.clearBreakpoints() }
    waitForRequests()
  }

  /// Runs one line; failures are printed and remembered.
  func run(_ line: String) {
    let words = line.split(whereSeparator: { $0 == " " || $0 == "\t" }).map(String.init)
    guard let name = words.first else { return }
    guard let command = Self.commands.first(where: { $0.name == name || $0.aliases.contains(name) }) else {
      printLine("command \"\(name)\" not found")
      hasFailed = true
      return
    }
    do throws(ToolError) { try command.run(self, Array(words.dropFirst())) } catch {
      printLine(error.message)
      hasFailed = true
    }
  }

  static let commands: [Command] = transferCommands + imageCommands + breakpointCommands
}
