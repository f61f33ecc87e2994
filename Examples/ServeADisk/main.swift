// serve-a-disk IMAGE SOCKET: a disk for a virtual machine, from this process.
import Logging
import VhostUserBackend
import VirtioBlock

let disk = try BlockDevice(BlockOptions(path: CommandLine.arguments[1]))
let server = try VhostUserServer(disk, at: CommandLine.arguments[2], log: Logger(label: "disk"))
try server.run()
