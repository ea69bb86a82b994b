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
    var format: String?
    var isOptionList = false
    var sharesAll = false
    var unmaps = true
    var copiesOnRead = false
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
  private let pool = WorkerPool("aio", threadLimit: 8)
  let pending = InFlightCounter()
  let asynchronousFailure = Flag()

  /// Set by requests in the background.
  final class Flag: Sendable {
    let isSet = Atomic<Bool>(false)
  }

  // MARK: Sessions

  func open(_ name: String, _ settings: OpenSettings) throws(ToolError) {
    guard image == nil else { throw ToolError("file open already, try 'help close'") }
    var options = OpenOptions(writable: !settings.isReadOnly)
    options.cache = settings.cache
    options.sharesAll = settings.sharesAll
    options.unmaps = settings.unmaps
    image = try tool { () throws(StorageError) in
      guard settings.isOptionList else { return try ImageGraph(options).open(name, format: settings.format) }
      let list: OptionList
      do throws(ConfigurationError) { list = try OptionList(parsing: name) } catch {
        throw StorageError(error)
      }
      return try ImageGraph(options).open(list)
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
    waitForRequests()
    guard let image else { return }
    self.image = nil
    try request("close") { () throws(BlockError) in try image.node.close() }
  }

  func reopen(_ change: (inout OpenSettings) -> Void) throws(ToolError) {
    guard var last = lastOpen, image != nil else { throw ToolError("no file open, try 'help open'") }
    change(&last.settings)
    try close()
    try open(last.name, last.settings)
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
      writeStandardOutput("apus-io> ")
      guard let line = readLine() else { break }
      run(line)
    }
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

  static let commands: [Command] = transferCommands + imageCommands
}
