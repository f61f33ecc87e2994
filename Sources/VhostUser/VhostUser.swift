// VhostUser: see architecture.
