// Virtio: see architecture.
