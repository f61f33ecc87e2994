import ArgumentParser
import HostIO

/// The options of a device that is served over vfio-user.
struct VfioUserOptions: ParsableArguments {
  @Option(
    name: .customLong("vfio-user"),
    help: ArgumentHelp(
      """
      Listen for vfio-user clients on a Unix socket at this path. The path must not exist, unless a server that has \
      ended left it behind.
      """,
      valueName: "path"),
    completion: .file())
  var path: String?

  @Option(
    parsing: .unconditional,
    help: ArgumentHelp(
      "Use this open descriptor instead: a listening or a connected Unix socket.", valueName: "number"))
  var fd: Int32?

  @Flag(help: "End when the first client disconnects, instead of waiting for the next one.")
  var once = false

  @OptionGroup var program: ProgramOptions

  /// Opens the socket that the options name.
  func open() throws -> InheritedSocket {
    try SocketOptions.open(path: path, option: "--vfio-user", fd: fd)
  }
}
