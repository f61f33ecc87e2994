// VirtioDrivers: see architecture.
