import ApusConfig
import ApusDevice
import ApusMachine
import ApusMemory
import ApusPCI
import ApusVirtio
import ApusVirtioDevices

extension DeviceRegistry {
  /// All virtio devices, on memory-mapped slots and PCI, and the ports of virtio-serial.
  public static var virtio: DeviceRegistry {
    var registry = DeviceRegistry()
    for (name, model) in VirtioRegistry.models {
      registry.register(
        name,
        factory: .init(
          bus: model.isPCI ? .pci : .virtioMMIO, summary: model.summary,
          propertyHelp: model.options.helpText,
          make: { request, space, backends, place throws(MachineError) in
            do throws(OptionError) {
              let instance = try model.makeInstance(virtioRequest(request), backends.virtioEnvironment)
              return try plug(instance, request.item.name, space, place)
            } catch { throw MachineError("-device: \(error)") }
          }))
    }
    for name in ["virtconsole", "virtserialport"] {
      registry.register(
        name,
        factory: .init(
          bus: .virtioSerial, summary: "port of a virtio-serial bus",
          propertyHelp: VirtioRegistry.portOptions.helpText
        ) { _, _, _, _ in { () -> Void in } })
    }
    return registry
  }

  private static func virtioRequest(_ request: DeviceRequest) -> VirtioDeviceRequest {
    var result = virtioRequest(request.item)
    result.ports = request.ports.map(virtioRequest)
    return result
  }

  private static func virtioRequest(_ item: MachineConfiguration.Item) -> VirtioDeviceRequest {
    var options: [String: String] = [:]
    for entry in item.options.entries where entry.key != "id" && entry.key != "bus" {
      options[entry.key] = entry.value
    }
    return VirtioDeviceRequest(driver: item.name, id: item.id ?? "", options: options)
  }

  private static func plug(
    _ instance: VirtioDeviceInstance, _ name: String, _ space: AddressSpace, _ place: DevicePlace
  ) throws(OptionError) -> (@Sendable () -> Void) {
    switch place {
    case .virtioMMIO(let base, let byteCount, let line):
      let transport = VirtioMMIO(
        device: instance.device, space: space, line: line, options: instance.ringOptions)
      guard space.map(.init(name: name, base: base, byteCount: byteCount, device: transport))
      else {
        throw OptionError("'\(name)': its slot at \(base) is taken")
      }
      return { transport.reset() }
    case .pci(let host):
      do throws(PCIError) { _ = try instance.attach(to: host, space: space) } catch {
        throw OptionError(error.description)
      }
      return {}
    }
  }
}
