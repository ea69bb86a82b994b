import ApusBlock
import ApusStorage

/// Completion of command lines in bash (and in zsh with bashcompinit), made from the tools' own tables of options.
enum Completion {
  /// The script for a tool: `source <(apus-img --completion)`.
  static func script(
    _ tool: String, options: [Arguments.Option] = [],
    commands: [(name: String, options: [Arguments.Option])] = []
  ) -> String {
    func words(_ options: [Arguments.Option]) -> String {
      options.flatMap {
        ($0.short.isEmpty ? [] : ["-" + $0.short]) + ($0.long.isEmpty ? [] : ["--" + $0.long])
      }.joined(separator: " ")
    }
    let function = "_" + tool.split(separator: "-").joined(separator: "_")
    let formats = ImageFormat.all.map(\.name).joined(separator: " ")
    let modes = BlockCacheMode.allCases.map(\.rawValue).joined(separator: " ")
    var lines = [
      "\(function)() {",
      "  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} words=",
      "  case $previous in",
      "    -f|-F|-O|--format) words='\(formats)' ;;",
      "    -t|-T|--cache|--source-cache) words='\(modes)' ;;",
      "    --output) words='human json' ;;",
      "    --preallocation) words='\(Preallocation.allCases.map(\.rawValue).joined(separator: " "))' ;;",
      "    --discard) words='ignore unmap' ;;",
      "    --detect-zeroes) words='off on unmap' ;;",
      "  esac",
      "  if [ -n \"$words\" ]; then COMPREPLY=($(compgen -W \"$words\" -- \"$current\")); return; fi",
    ]
    if commands.isEmpty {
      lines.append("  words='\(words(options))'")
    } else {
      lines.append("  if [ $COMP_CWORD -eq 1 ]; then")
      lines.append(
        "    COMPREPLY=($(compgen -W '\(commands.map(\.name).joined(separator: " ")) --help --version' -- \"$current\"))"
      )
      lines.append("    return")
      lines.append("  fi")
      lines.append("  case ${COMP_WORDS[1]} in")
      for command in commands {
        lines.append("    \(command.name)) words='\(words(command.options)) --help' ;;")
      }
      lines.append("  esac")
    }
    lines += [
      "  case $current in -*) COMPREPLY=($(compgen -W \"$words\" -- \"$current\")) ;; esac", "}",
      "complete -o default -F \(function) \(tool)",
    ]
    return lines.joined(separator: "\n")
  }
}
