// serve-a-disk IMAGE SOCKET: a disk for a virtual machine, from this process.
import HostIO
import Logging
import VhostUser
import VirtioDevices

let disk = try BlockDevice(BlockOptions(path: CommandLine.arguments[1]))
let socket = InheritedSocket.listening(try UnixListener(path: CommandLine.arguments[2]))
let server = try VhostUserServer(disk, on: socket, log: Logger(label: "disk"))
try server.run()
