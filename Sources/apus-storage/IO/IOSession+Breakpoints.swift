import ApusBlock

/// Requests that stand still at an event of a blkdebug node, to test what comes between.
extension IOSession {
  static let breakpointCommands: [Command] = [
    .init(name: "break", usage: "event tag", help: "stops the next request at a blkdebug event, under a name")
    {
      (session, words) throws(ToolError) in
      let node = try session.faultNode("break", words, count: 2)
      guard FaultNode.events.contains(words[0]) else {
        throw ToolError(
          "break: there is no event '\(words[0])'; there are: \(FaultNode.events.joined(separator: ", "))")
      }
      node.addBreakpoint(words[0], tag: words[1])
    },
    .init(
      name: "remove_break", usage: "tag", help: "takes a breakpoint away, and lets go on who stands there"
    ) {
      (session, words) throws(ToolError) in
      guard try session.faultNode("remove_break", words, count: 1).removeBreakpoint(tag: words[0]) else {
        throw ToolError("remove_break: there is no breakpoint '\(words[0])'")
      }
    },
    .init(
      name: "wait_break", usage: "tag", help: "waits until a request stands at a breakpoint, at most a minute"
    ) {
      (session, words) throws(ToolError) in
      guard try session.faultNode("wait_break", words, count: 1).waitForBreakpoint(tag: words[0]) else {
        throw ToolError("wait_break: no request came to '\(words[0])' within a minute")
      }
      printLine("blkdebug: Suspended request '\(words[0])'")
    },
    .init(name: "resume", usage: "tag", help: "lets a request go on; by itself it does so after a minute") {
      (session, words) throws(ToolError) in
      let node = try session.faultNode("resume", words, count: 1)
      // Before the request's own words.
      printLine("blkdebug: Resuming request '\(words[0])'")
      guard node.resume(tag: words[0]) else {
        throw ToolError("resume: no request '\(words[0])' stands still")
      }
    },
  ]

  private func faultNode(_ command: String, _ words: [String], count: Int) throws(ToolError) -> FaultNode {
    guard words.count == count else {
      throw ToolError("\(command): expected \(count == 2 ? "an event and a name" : "a breakpoint's name")")
    }
    guard let found = FaultNode.find(below: try node()) else {
      throw ToolError("\(command): the image has no blkdebug node")
    }
    return found
  }
}
