// HostIO: see architecture.
