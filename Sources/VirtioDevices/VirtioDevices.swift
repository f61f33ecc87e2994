// VirtioDevices: see architecture.
