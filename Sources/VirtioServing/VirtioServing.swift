// VirtioServing: see architecture.
