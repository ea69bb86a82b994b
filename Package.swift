// swift-tools-version: 6.2
import PackageDescription

/// Settings of every target: Swift 6 language mode, warnings are errors.
let common: [SwiftSetting] = [
  .treatAllWarnings(as: .error),
  .enableUpcomingFeature("ExistentialAny"),
]
/// Hot targets are optimised in debug builds too, so that a debug emulator stays usable.
/// Their dynamic exclusivity checks cost more than what they guard (docs/performance.md); debug builds keep them.
let hot: [SwiftSetting] =
  common + [
    .unsafeFlags(["-O"], .when(configuration: .debug)),
    .unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release)),
  ]

/// Without dynamic exclusivity checks in release builds: there they are a tenth of the time of walks through tables.
let unchecked: [SwiftSetting] =
  common + [.unsafeFlags(["-enforce-exclusivity=unchecked"], .when(configuration: .release))]

func lib(_ name: String, _ dependencies: [String], _ settings: [SwiftSetting] = common) -> Target {
  .target(name: name, dependencies: dependencies.map { .init(stringLiteral: $0) }, swiftSettings: settings)
}

func tests(_ name: String, _ dependencies: [String]) -> Target {
  .testTarget(
    name: name, dependencies: dependencies.map { .init(stringLiteral: $0) }, path: "Tests/\(name)",
    swiftSettings: common)
}

let package = Package(
  name: "apus",
  products: [],
  targets: [
    // Base
    .target(name: "CApusHost", cSettings: [.unsafeFlags(["-O2"])]),
    lib("ApusHost", ["CApusHost"], hot),
    lib("ApusBits", [], hot),
    // Execute
    lib("ApusMemory", ["ApusHost", "CApusHost"], hot),
    lib("ApusCPU", ["ApusMemory", "ApusHost", "CApusHost"], hot),
    // Translate
    lib("ApusDecode", [], hot),
    lib("ApusIR", [], hot),
    lib("ApusISARISCV", ["ApusDecode", "ApusBits"], hot),
    lib("ApusFloat", [], hot),
    lib("ApusIREval", ["ApusIR", "ApusFloat", "ApusBits", "CApusHost"], hot),
    lib("ApusGuest", ["ApusIR"], hot),
    lib(
      "ApusGuestRISCV",
      ["ApusGuest", "ApusISARISCV", "ApusIR", "ApusFloat", "ApusCPU", "ApusMemory", "ApusHost", "CApusHost"],
      hot),
    lib("ApusISAAArch64", ["ApusDecode"], hot),
    lib(
      "ApusGuestAArch64",
      [
        "ApusGuest", "ApusISAAArch64", "ApusIR", "ApusFloat", "ApusCPU", "ApusMemory", "ApusHost",
        "ApusBits", "CApusHost",
      ], hot),
    lib("ApusAsmX86", [], hot),
    lib("ApusJIT", ["ApusIR", "ApusHost"], hot),
    lib("ApusJITX86", ["ApusJIT", "ApusAsmX86", "ApusIR", "ApusBits", "CApusHost"], hot),
    lib(
      "ApusAccelTranslate",
      [
        "ApusJITX86", "ApusJIT", "ApusIREval", "ApusIR", "ApusGuest", "ApusCPU", "ApusMemory", "ApusHost",
        "CApusHost",
      ], hot),
    // Devices
    lib("ApusDevice", ["ApusMemory", "ApusCPU", "ApusHost"]),
    lib("ApusPlatformDevices", ["ApusDevice", "ApusMemory", "ApusCPU", "ApusHost", "ApusBits"]),
    lib("ApusSemihosting", ["ApusCPU", "ApusMemory", "ApusHost"]),
    lib("ApusBroadcomDevices", ["ApusDevice", "ApusMemory", "ApusCPU", "ApusHost", "ApusBits", "ApusBlock"]),
    lib("ApusCharDev", ["ApusDevice", "ApusHost", "ApusConfig"]),
    lib("ApusPCI", ["ApusDevice", "ApusMemory"]),
    lib("ApusVirtio", ["ApusDevice", "ApusMemory", "ApusPCI"], hot),
    lib(
      "ApusVirtioDevices",
      ["ApusVirtio", "ApusDevice", "ApusMemory", "ApusHost", "ApusBlock", "ApusNet", "ApusPCI"]),
    // Storage
    .target(name: "CURing", cSettings: [.unsafeFlags(["-O2"])], linkerSettings: [.linkedLibrary("uring")]),
    lib("ApusRing", ["ApusHost", "CURing"], unchecked),
    lib("ApusBlock", ["ApusRing", "ApusHost"], unchecked),
    .systemLibrary(name: "CZstd", pkgConfig: "libzstd", providers: [.apt(["libzstd-dev"])]),
    .systemLibrary(name: "CDeflate", pkgConfig: "libdeflate", providers: [.apt(["libdeflate-dev"])]),
    // No pkgConfig: the library is loaded when it is needed, and not linked.
    .systemLibrary(name: "CGnuTLS", providers: [.apt(["libgnutls28-dev"])]),
    lib("ApusCrypto", ["ApusBlock", "ApusHost", "CGnuTLS"]),
    lib("ApusQcow2", ["ApusBlock", "ApusCrypto", "ApusHost", "CZlib", "CZstd", "CDeflate"], unchecked),
    lib("ApusNBD", ["ApusBlock", "ApusHost", "CGnuTLS"], unchecked),
    lib("ApusImages", ["ApusBlock", "ApusCrypto", "ApusHost", "CDeflate"], unchecked),
    lib(
      "ApusStorage",
      ["ApusBlock", "ApusCrypto", "ApusQcow2", "ApusImages", "ApusNBD", "ApusConfig", "ApusHost"], unchecked),
    // Network. CSlirp has no pkgConfig: Debian's slirp.pc needs glib's, which the library's users do not.
    .systemLibrary(name: "CSlirp", path: "Sources/CSlirp"),
    lib("ApusNet", ["ApusHost", "ApusDevice", "CSlirp"]),
    // Machine
    lib("ApusConfig", []),
    .systemLibrary(name: "CZlib", pkgConfig: "zlib", providers: [.apt(["zlib1g-dev"])]),
    lib("ApusFirmware", ["ApusBits"]),
    lib("ApusLoader", ["ApusMemory", "ApusHost", "ApusBits", "CZlib"]),
    lib("ApusMachine", ["ApusConfig", "ApusCPU", "ApusMemory", "ApusHost"]),
    lib(
      "ApusBoards",
      [
        "ApusMachine", "ApusBits", "ApusConfig", "ApusFirmware", "ApusLoader", "ApusPlatformDevices",
        "ApusBroadcomDevices", "ApusSemihosting", "ApusVirtio",
        "ApusVirtioDevices", "ApusPCI", "ApusNet", "ApusBlock",
        "ApusStorage", "ApusDevice", "ApusCPU", "ApusMemory", "ApusHost",
      ]),
    // User mode
    lib("ApusUserABI", []),
    lib(
      "ApusUser",
      [
        "ApusUserABI", "ApusAccelTranslate", "ApusGuestRISCV", "ApusGuestAArch64", "ApusGuest",
        "ApusISARISCV",
        "ApusISAAArch64", "ApusIR", "ApusCPU",
        "ApusHost", "CApusHost",
      ], hot),
    // Tools
    .executableTarget(
      name: "apus-user",
      dependencies: ["ApusUser", "ApusAccelTranslate", "ApusISARISCV", "ApusIR", "ApusHost"],
      swiftSettings: common,
      // Static, and away from where guests want to be.
      linkerSettings: [
        .unsafeFlags([
          "-static-stdlib", "-static-executable", "-use-ld=lld", "-Xlinker", "--image-base=0x60000000",
          "-Xlinker", "--wrap=swift_copyAuxiliaryExecutablePath",
        ])
      ]),
    .executableTarget(
      name: "apus", dependencies: ["ApusHost"], swiftSettings: common,
      linkerSettings: [.unsafeFlags(["-static-stdlib"])]),
    .executableTarget(
      name: "apus-system",
      dependencies: [
        "ApusBoards", "ApusMachine", "ApusConfig", "ApusCharDev", "ApusDevice", "ApusHost",
        "ApusAccelTranslate",
        "ApusGuestRISCV", "ApusISARISCV", "ApusGuestAArch64", "ApusISAAArch64", "ApusCPU", "ApusIR",
      ],
      swiftSettings: common,
      // Swift's libraries need not be on the user's machine, and starting takes half the time.
      linkerSettings: [.unsafeFlags(["-static-stdlib"])]),
    .executableTarget(
      name: "apus-storage",
      dependencies: [
        "ApusStorage", "ApusNBD", "ApusQcow2", "ApusImages", "ApusBlock", "ApusConfig", "ApusCrypto",
        "ApusHost",
      ],
      swiftSettings: common,
      linkerSettings: [.unsafeFlags(["-static-stdlib"])]),
    .executableTarget(
      name: "apus-difftest", dependencies: ["ApusISARISCV", "ApusISAAArch64", "ApusDecode", "ApusHost"],
      swiftSettings: hot),
    // Tests
    tests("ApusIRTests", ["ApusIR"]),
    tests("ApusAsmX86Tests", ["ApusAsmX86", "ApusJIT", "ApusJITX86"]),
    tests(
      "ApusAccelTranslateTests",
      [
        "ApusAccelTranslate", "ApusGuestRISCV", "ApusGuest", "ApusISARISCV", "ApusCPU", "ApusIR",
        "ApusMemory",
      ]),
    lib("ApusTestKit", ["ApusVirtio", "ApusPCI", "ApusDevice", "ApusMemory", "ApusHost"]),
    tests("ApusFloatTests", ["ApusFloat", "ApusTestKit"]),
    tests("ApusBitsTests", ["ApusBits"]),
    tests("ApusISAAArch64Tests", ["ApusISAAArch64", "ApusDecode", "ApusHost", "ApusTestKit"]),
    tests("ApusGuestAArch64Tests", ["ApusGuestAArch64", "ApusISAAArch64"]),
    tests("ApusISARISCVTests", ["ApusISARISCV", "ApusDecode", "ApusHost", "ApusTestKit"]),
    // Runs apus-user and apus-difftest as programs: a dependency would hand its static linking on to the test bundle.
    tests("ApusUserTests", ["ApusHost"]),
    tests("ApusFirmwareTests", ["ApusFirmware", "ApusBits", "ApusTestKit"]),
    tests("ApusLoaderTests", ["ApusLoader", "ApusMemory", "ApusBits", "ApusTestKit"]),
    tests(
      "ApusPlatformDevicesTests",
      ["ApusPlatformDevices", "ApusDevice", "ApusCPU", "ApusMemory", "ApusHost", "ApusBits", "ApusTestKit"]),
    tests(
      "ApusBroadcomDevicesTests",
      [
        "ApusBroadcomDevices", "ApusDevice", "ApusCPU", "ApusMemory", "ApusHost", "ApusBlock", "ApusTestKit",
      ]),
    tests("ApusCharDevTests", ["ApusCharDev", "ApusConfig", "ApusDevice", "ApusHost"]),
    tests("ApusConfigTests", ["ApusConfig", "ApusTestKit"]),
    tests(
      "ApusBoardsTests",
      [
        "ApusBoards", "ApusMachine", "ApusConfig", "ApusFirmware", "ApusDevice", "ApusCPU", "ApusMemory",
        "ApusHost",
      ]),
    tests("ApusVirtioTests", ["ApusTestKit", "ApusVirtio", "ApusDevice", "ApusMemory", "ApusHost"]),
    tests("ApusPCITests", ["ApusTestKit", "ApusPCI", "ApusDevice", "ApusMemory"]),
    tests("ApusBlockTests", ["ApusBlock", "ApusHost"]),
    tests(
      "ApusStorageTests",
      [
        "ApusStorage", "ApusNBD", "ApusImages", "ApusQcow2", "ApusBlock", "ApusConfig", "ApusCrypto",
        "ApusHost",
        "ApusTestKit",
      ]),
    tests("ApusQcow2Tests", ["ApusQcow2", "ApusBlock", "ApusHost", "ApusTestKit"]),
    tests("ApusNetTests", ["ApusTestKit", "ApusNet", "ApusDevice", "ApusHost"]),
    tests(
      "ApusVirtioDevicesTests",
      [
        "ApusTestKit", "ApusVirtioDevices", "ApusVirtio", "ApusPCI", "ApusNet", "ApusBlock", "ApusDevice",
        "ApusMemory", "ApusHost",
      ]),
  ]
)
