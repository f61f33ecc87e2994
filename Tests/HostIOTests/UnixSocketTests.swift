import Foundation
import Glibc
import HostIO
import Synchronization
import Testing
import VirtioTestKit

extension UnixSocket {
  /// So many bytes, without descriptors; nil at the end.
  fileprivate func all(_ count: Int, timeout: Duration? = nil, cancel: EventFD? = nil) throws -> [UInt8]? {
    var bytes = [UInt8](repeating: 0, count: count)
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    let isWhole = try receiveAll(into: &span, descriptors: &list, timeout: timeout, cancel: cancel)
    return isWhole ? bytes : nil
  }
}

@Suite("Unix sockets") struct UnixSocketTests {
  @Test("Bytes and descriptors arrive together, the descriptors close-on-exec")
  func descriptors() throws {
    let (a, b) = try UnixSocket.pair()
    let events = try (0..<3).map { _ in try EventFD() }
    try a.send([1, 2, 3].span, descriptors: events.map(\.rawValue))
    var bytes = [UInt8](repeating: 0, count: 10)
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    let received = try b.receive(into: &span, descriptors: &list)
    #expect(received == .bytes(3))
    #expect(bytes[..<3] == [1, 2, 3])
    let count = list.count
    #expect(count == 3)
    for (i, raw) in list.rawValues.enumerated() {
      #expect(fcntl(raw, F_GETFD) == FD_CLOEXEC)
      #expect(raw != events[i].rawValue)
    }
    // The first one received is the first one sent.
    guard let taken = list.takeFirst() else { return #expect(Bool(false), "the list is empty") }
    let first = try EventFD(adopting: taken)
    first.signal()
    #expect(try events[0].drain() == 1)
    #expect(list.count == 2)
  }

  @Test("As many descriptors as the kernel takes, and not one more")
  func most() throws {
    let (a, b) = try UnixSocket.pair()
    let event = try EventFD()
    try a.send([9].span, descriptors: Array(repeating: event.rawValue, count: 253))
    var bytes: [UInt8] = [0]
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    _ = try b.receive(into: &span, descriptors: &list)
    let count = list.count
    #expect(count == 253)
    list.closeAll()
    #expect(list.count == 0)
    let (some, none) = (pattern(1), pattern(0))
    expect(EINVAL) { try a.send(some.span, descriptors: Array(repeating: event.rawValue, count: 254)) }
    expect(EINVAL) { try a.send(none.span, descriptors: [event.rawValue]) }
    #expect(bytes == [9])
  }

  @Test("Descriptors that do not fit into this process are an error, not a loss in silence")
  func exhausted() async {
    await #expect(processExitsWith: .success) {
      let (a, b) = try UnixSocket.pair()
      let event = try EventFD()
      try a.send([1].span, descriptors: Array(repeating: event.rawValue, count: 200))
      let open = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
      let limits = Process()
      limits.executableURL = URL(filePath: "/usr/bin/prlimit")
      limits.arguments = ["--pid", "\(getpid())", "--nofile=\(open + 100)"]
      try limits.run()
      limits.waitUntilExit()
      guard limits.terminationStatus == 0 else { exit(4) }
      let before = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
      var bytes: [UInt8] = [0]
      var span = bytes.mutableSpan
      var list = FileDescriptorList()
      do throws(HostError) {
        _ = try b.receive(into: &span, descriptors: &list)
        Issue.record("nothing was said")
        exit(1)
      } catch {
        let count = list.count
        guard error.errno == .tooManyOpenFiles, count == 0 else { exit(2) }
      }
      // Those that did fit were closed again.
      let after = try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count
      // What started prlimit may open or close a few of its own meanwhile; a loss would be 97 or so.
      guard after < before + 50 else { exit(3) }
      exit(0)
    }
  }

  @Test("A large message arrives whole while the reader is slow")
  func large() throws {
    let (a, b) = try UnixSocket.pair()
    let message = pattern(1_000_000)
    let thread = try WorkerThread(name: "send") { try? a.send(message.span, timeout: .seconds(20)) }
    #expect(try b.all(message.count, timeout: .seconds(20)) == message)
    thread.join()
  }

  @Test("Nothing yet, closed, and closed in the middle are three things")
  func ends() throws {
    let (a, b) = try UnixSocket.pair()
    var bytes = [UInt8](repeating: 0, count: 4)
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    let nothing = try b.receive(into: &span, descriptors: &list)
    #expect(nothing == .nothingYet)
    try a.send([1, 2].span)
    #expect(try b.pendingBytes() == 2)
    a.shutdown()
    // Half a message is not taken.
    expect(ECONNRESET) { _ = try b.all(4) }
    #expect(try b.all(4) == nil)
    let closed = try b.receive(into: &span, descriptors: &list)
    #expect(closed == .closed)
    _ = bytes
  }

  @Test("Waiting ends with its time, or when cancelled, on both sides")
  func limits() throws {
    let (a, b) = try UnixSocket.pair()
    expect(ETIMEDOUT) { _ = try b.all(4, timeout: .milliseconds(5)) }
    let cancel = try EventFD()
    cancel.signal()
    expect(ECANCELED) { _ = try b.all(4, cancel: cancel) }
    #expect(try !b.waitReadable(cancel: cancel))
    let message = [UInt8](repeating: 7, count: 10_000_000)
    expect(ETIMEDOUT) { try a.send(message.span, timeout: .milliseconds(5)) }
    expect(ECANCELED) { try a.send(message.span, cancel: cancel) }
    #expect(try b.waitReadable(timeout: .zero))
  }

  @Test("Sending to a peer that is gone is an error and no signal")
  func gone() throws {
    let (a, b) = try UnixSocket.pair()
    b.shutdown()
    let message = pattern(1)
    expect(EPIPE) { try a.send(message.span) }
  }

  @Test("The peer's credentials are known")
  func credentials() throws {
    let (a, _) = try UnixSocket.pair()
    let peer = try a.peer()
    #expect(peer.process == getpid() && peer.user == getuid() && peer.group == getgid())
  }

  @Test("What is no connected Unix stream socket is not taken for one")
  func adoption() throws {
    expect(ENOTSOCK) { _ = try UnixSocket(adopting: MemoryFile(name: "x", size: 1).intoDescriptor()) }
    let udp = FileDescriptor(adopting: socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0))
    do {
      _ = try UnixSocket(adopting: udp)
      Issue.record("an internet socket was taken")
    } catch { #expect(error.errno == .protocolWrongTypeForSocket) }
    let (a, b) = try UnixSocket.pair()
    guard case .connected(let adopted) = try InheritedSocket(adopting: .duplicating(a.rawValue)) else {
      return #expect(Bool(false), "a connected socket was taken for a listening one")
    }
    try adopted.send([5].span)
    #expect(try b.waitReadable(timeout: .zero))
  }
}

@Suite("Unix listeners") struct UnixListenerTests {
  private let directory: TemporaryFolder
  private let path: String

  init() throws {
    directory = try TemporaryFolder()
    path = directory.path("s")
  }

  @Test("A connection reaches the listener and carries bytes")
  func connects() throws {
    let listener = try UnixListener(path: path)
    #expect(try listener.accept() == nil)
    let client = try UnixSocket.connect(to: path)
    let server = try #require(try listener.accept(timeout: .seconds(5)))
    try client.send([1, 2].span)
    #expect(try server.all(2, timeout: .seconds(5)) == [1, 2])
    let cancel = try EventFD()
    cancel.signal()
    #expect(try listener.accept(timeout: nil, cancel: cancel) == nil)
  }

  @Test("A socket's file without a listener is replaced, a live one is busy")
  func stale() throws {
    do {
      // Its file outlives it, as after kill -9: renamed, it is no longer at the place that is cleaned up.
      let dead = try UnixListener(path: directory.path("dead"))
      try FileManager.default.moveItem(atPath: directory.path("dead"), toPath: path)
      _ = dead
    }
    #expect(FileManager.default.fileExists(atPath: path))
    let listener = try UnixListener(path: path)
    expect(EADDRINUSE) { _ = try UnixListener(path: path) }
    // Being asked did not hurt the live one.
    _ = try UnixSocket.connect(to: path)
    listener.removeFile()
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test("A path that is something else is left alone")
  func other() throws {
    let path = try directory.file("data", [1, 2, 3])
    expect(EEXIST) { _ = try UnixListener(path: path) }
    #expect(try Data(contentsOf: URL(filePath: path)) == Data([1, 2, 3]))
    expect(EEXIST) { _ = try UnixListener(path: directory.url.path) }
    let long = directory.path(String(repeating: "x", count: 120))
    expect(ENAMETOOLONG) { _ = try UnixListener(path: long) }
    expect(ENOENT) { _ = try UnixListener(path: directory.path("no/such")) }
    expect(ENOENT) { _ = try UnixSocket.connect(to: directory.path("missing")) }
  }

  @Test("Only a listener's own file is removed when it ends")
  func ownFile() throws {
    do {
      let first = try UnixListener(path: path)
      try FileManager.default.removeItem(atPath: path)
      try Data([1]).write(to: URL(filePath: path))
      _ = first
    }
    #expect(FileManager.default.fileExists(atPath: path))
    try FileManager.default.removeItem(atPath: path)
    do { _ = try UnixListener(path: path) }
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test("Of many that start on one stale path exactly one listens")
  func race() throws {
    for round in 0..<10 {
      let path = directory.path("s\(round)")
      do {
        let dead = try UnixListener(path: directory.path("dead\(round)"))
        try FileManager.default.moveItem(atPath: directory.path("dead\(round)"), toPath: path)
        _ = dead
      }
      let winners = Shared(Mutex<[UnixListener]>([]))
      let threads = try (0..<6).map { i in
        try WorkerThread(name: "race\(i)") {
          if let listener = try? UnixListener(path: path) { winners.value.withLock { $0.append(listener) } }
        }
      }
      for thread in threads { thread.join() }
      let all = winners.value.withLock { $0 }
      #expect(all.count == 1)
      _ = try UnixSocket.connect(to: path)
      let accepted = try all[0].accept(timeout: .seconds(5))
      #expect(accepted != nil)
      winners.value.withLock { $0 = [] }
    }
  }

  @Test("An inherited listening socket is told from a connected one, and keeps its file")
  func inherited() throws {
    let original = try UnixListener(path: path)
    do {
      guard case .listening(let adopted) = try InheritedSocket(adopting: .duplicating(original.rawValue)) else {
        return #expect(Bool(false), "a listening socket was taken for a connected one")
      }
      _ = try UnixSocket.connect(to: path)
      let accepted = try adopted.accept(timeout: .seconds(5))
      #expect(accepted != nil)
    }
    #expect(FileManager.default.fileExists(atPath: path))
  }

  @Test("Connecting to a listener whose queue is full gives up in time")
  func fullQueue() throws {
    let listener = try UnixListener(path: path, backlog: 0)
    var clients: [UnixSocket] = []
    var refused: Int32?
    for _ in 0..<8 where refused == nil {
      refused = errno {
        clients.append(try UnixSocket.connect(to: path, timeout: .milliseconds(20)))
      }
    }
    #expect(refused == EAGAIN)
    // Someone lives there all the same.
    expect(EADDRINUSE) { _ = try UnixListener(path: path) }
    _ = listener
  }
}
