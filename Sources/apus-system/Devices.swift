import ApusBoards

/// The devices that `-device` can name in this build.
func makeDeviceRegistry() -> DeviceRegistry { .virtio }
