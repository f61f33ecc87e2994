// write-a-device SOCKET: serves the device of SeededEntropy.swift.
import HostIO
import Logging
import VhostUser

let socket = InheritedSocket.listening(try UnixListener(path: CommandLine.arguments[1]))
let server = try VhostUserServer(SeededEntropy(seed: 42), on: socket, log: Logger(label: "entropy"))
try server.run()
