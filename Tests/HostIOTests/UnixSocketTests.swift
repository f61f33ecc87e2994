import Foundation
import Glibc
import HostIO
import Synchronization
import Testing
import VirtioTestKit

@Suite("Unix sockets")
struct UnixSocketTests {
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
    guard let taken = list.takeFirst() else {
      Issue.record("the list is empty")
      return
    }
    let first = try EventFD(adopting: taken)
    first.signal()
    let drained = try events[0].drain()
    #expect(drained == 1)
    let left = list.count
    #expect(left == 2)
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
    let left = list.count
    #expect(left == 0)
    let (some, none) = (pattern(1), pattern(0))
    #expect(
      errno { () throws(HostError) in
        try a.send(some.span, descriptors: Array(repeating: event.rawValue, count: 254))
      } == EINVAL)
    #expect(errno { () throws(HostError) in try a.send(none.span, descriptors: [event.rawValue]) } == EINVAL)
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
    var bytes = [UInt8](repeating: 0, count: message.count)
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    let whole = try b.receiveAll(into: &span, descriptors: &list, timeout: .seconds(20))
    thread.join()
    #expect(whole)
    #expect(bytes == message)
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
    let pending = try b.pendingBytes()
    #expect(pending == 2)
    a.shutdown()
    do {
      _ = try b.receiveAll(into: &span, descriptors: &list)
      Issue.record("half a message was taken")
    } catch {
      #expect(error.errno == .connectionReset)
    }
    let whole = try b.receiveAll(into: &span, descriptors: &list)
    #expect(!whole)
    let closed = try b.receive(into: &span, descriptors: &list)
    #expect(closed == .closed)
    _ = bytes
  }

  @Test("Waiting ends with its time, or when cancelled, on both sides")
  func limits() throws {
    let (a, b) = try UnixSocket.pair()
    var bytes = [UInt8](repeating: 0, count: 4)
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    do {
      _ = try b.receiveAll(into: &span, descriptors: &list, timeout: .milliseconds(5))
      Issue.record("nothing was received")
    } catch { #expect(error.errno == .timedOut) }
    let cancel = try EventFD()
    cancel.signal()
    do {
      _ = try b.receiveAll(into: &span, descriptors: &list, cancel: cancel)
      Issue.record("nothing was received")
    } catch { #expect(error.errno == .canceled) }
    let readable = try b.waitReadable(cancel: cancel)
    #expect(!readable)
    let message = [UInt8](repeating: 7, count: 10_000_000)
    #expect(errno { () throws(HostError) in try a.send(message.span, timeout: .milliseconds(5)) } == ETIMEDOUT)
    #expect(errno { () throws(HostError) in try a.send(message.span, cancel: cancel) } == ECANCELED)
    let filled = try b.waitReadable(timeout: .zero)
    #expect(filled)
    _ = bytes
  }

  @Test("Sending to a peer that is gone is an error and no signal")
  func gone() throws {
    let (a, b) = try UnixSocket.pair()
    b.shutdown()
    let message = pattern(1)
    #expect(errno { () throws(HostError) in try a.send(message.span) } == EPIPE)
  }

  @Test("The peer's credentials are known")
  func credentials() throws {
    let (a, _) = try UnixSocket.pair()
    let peer = try a.peer()
    #expect(peer.process == getpid() && peer.user == getuid() && peer.group == getgid())
  }

  @Test("What is no connected Unix stream socket is not taken for one")
  func adoption() throws {
    #expect(
      errno { () throws(HostError) in
        _ = try UnixSocket(adopting: MemoryFile(name: "x", size: 1).intoDescriptor())
      } == ENOTSOCK)
    let udp = FileDescriptor(adopting: socket(AF_INET, Int32(SOCK_DGRAM.rawValue), 0))
    do {
      _ = try UnixSocket(adopting: udp)
      Issue.record("an internet socket was taken")
    } catch { #expect(error.errno == .protocolWrongTypeForSocket) }
    let (a, b) = try UnixSocket.pair()
    guard case .connected(let adopted) = try InheritedSocket(adopting: .duplicating(a.rawValue)) else {
      Issue.record("a connected socket was taken for a listening one")
      return
    }
    try adopted.send([5].span)
    let readable = try b.waitReadable(timeout: .zero)
    #expect(readable)
  }
}

@Suite("Unix listeners")
struct UnixListenerTests {
  @Test("A connection reaches the listener and carries bytes")
  func connects() throws {
    let directory = try TemporaryFolder()
    let listener = try UnixListener(path: directory.path("s"))
    let none = try listener.accept()
    #expect(none == nil)
    let client = try UnixSocket.connect(to: directory.path("s"))
    let server = try #require(try listener.accept(timeout: .seconds(5)))
    try client.send([1, 2].span)
    var bytes: [UInt8] = [0, 0]
    var span = bytes.mutableSpan
    var list = FileDescriptorList()
    let whole = try server.receiveAll(into: &span, descriptors: &list, timeout: .seconds(5))
    #expect(whole && bytes == [1, 2])
    let cancel = try EventFD()
    cancel.signal()
    let cancelled = try listener.accept(timeout: nil, cancel: cancel)
    #expect(cancelled == nil)
  }

  @Test("A socket's file without a listener is replaced, a live one is busy")
  func stale() throws {
    let directory = try TemporaryFolder()
    let path = directory.path("s")
    do {
      // Its file outlives it, as after kill -9: renamed, it is no longer at the place that is cleaned up.
      let dead = try UnixListener(path: directory.path("dead"))
      try FileManager.default.moveItem(atPath: directory.path("dead"), toPath: path)
      _ = dead
    }
    #expect(FileManager.default.fileExists(atPath: path))
    let listener = try UnixListener(path: path)
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: path) } == EADDRINUSE)
    // Being asked did not hurt the live one.
    _ = try UnixSocket.connect(to: path)
    listener.removeFile()
    #expect(!FileManager.default.fileExists(atPath: path))
  }

  @Test("A path that is something else is left alone")
  func other() throws {
    let directory = try TemporaryFolder()
    let path = try directory.file("data", [1, 2, 3])
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: path) } == EEXIST)
    #expect(try Data(contentsOf: URL(filePath: path)) == Data([1, 2, 3]))
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: directory.url.path) } == EEXIST)
    let long = directory.path(String(repeating: "x", count: 120))
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: long) } == ENAMETOOLONG)
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: directory.path("no/such")) } == ENOENT)
    #expect(errno { () throws(HostError) in _ = try UnixSocket.connect(to: directory.path("missing")) } == ENOENT)
  }

  @Test("Only a listener's own file is removed when it ends")
  func ownFile() throws {
    let directory = try TemporaryFolder()
    let path = directory.path("s")
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
    let directory = try TemporaryFolder()
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
    let directory = try TemporaryFolder()
    let path = directory.path("s")
    let original = try UnixListener(path: path)
    do {
      guard case .listening(let adopted) = try InheritedSocket(adopting: .duplicating(original.rawValue)) else {
        Issue.record("a listening socket was taken for a connected one")
        return
      }
      _ = try UnixSocket.connect(to: path)
      let accepted = try adopted.accept(timeout: .seconds(5))
      #expect(accepted != nil)
    }
    #expect(FileManager.default.fileExists(atPath: path))
  }

  @Test("Connecting to a listener whose queue is full gives up in time")
  func fullQueue() throws {
    let directory = try TemporaryFolder()
    let listener = try UnixListener(path: directory.path("s"), backlog: 0)
    var clients: [UnixSocket] = []
    var refused: Int32?
    for _ in 0..<8 where refused == nil {
      refused = errno { () throws(HostError) in
        clients.append(try UnixSocket.connect(to: directory.path("s"), timeout: .milliseconds(20)))
      }
    }
    #expect(refused == EAGAIN)
    // Someone lives there all the same.
    #expect(errno { () throws(HostError) in _ = try UnixListener(path: directory.path("s")) } == EADDRINUSE)
    _ = listener
  }
}
