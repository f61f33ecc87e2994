// write-a-device SOCKET: serves the device of SeededEntropy.swift.
import Logging
import VhostUserBackend

let server = try VhostUserServer(SeededEntropy(seed: 42), at: CommandLine.arguments[1], log: Logger(label: "entropy"))
try server.run()
