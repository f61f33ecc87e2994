internal import DMA
internal import HostIO
internal import SocketMessages
internal import Synchronization

/// Receives the client's messages on a thread of its own, and hands out its commands in order.
///
/// For a client whose memory is reached by messages: its answers have to come through while a command of its own is
/// waited for. Commands that have not been taken are bounded; answers wait behind them then.
final class MessageReader: Sendable {
  private struct Command {
    var header: VfioHeader
    var payload: [UInt8]
    /// Owned by the list.
    var descriptors: [Int32]
  }
  private struct State {
    var commands: [Command] = []
    var ending: StreamEnding?
  }
  private final class Inbox: Sendable {
    let state = Mutex(State())
    let arrived: EventFD
    let room: EventFD
    let stopping: EventFD

    init() throws(HostError) {
      arrived = try EventFD()
      room = try EventFD()
      stopping = try EventFD()
    }

    deinit {
      for command in state.withLock({ $0.commands }) {
        for one in command.descriptors { _ = FileDescriptor(adopting: one) }
      }
    }
  }
  private static let limit = 64
  private let inbox: Inbox
  private let thread: WorkerThread

  /// - Parameters:
  ///   - socket: from which all messages so far have been taken, whole.
  ///   - answer: takes an answer; false if it was not asked for.
  init(_ socket: UnixSocket, answer: @escaping @Sendable (VfioHeader, [UInt8]) -> Bool) throws(HostError) {
    let inbox = try Inbox()
    self.inbox = inbox
    thread = try WorkerThread(name: "vfio-messages") { Self.read(socket, inbox, answer) }
  }

  /// The next command; nil: none is here yet. How the messages ended, once all commands are taken.
  func next() throws(StreamEnding) -> IncomingMessage<VfioHeader>? {
    let (command, ending) = inbox.state.withLock { state in
      (state.commands.isEmpty ? nil : state.commands.removeFirst(), state.ending)
    }
    guard let command else {
      if let ending { throw ending }
      return nil
    }
    inbox.room.signal()
    var descriptors = FileDescriptorList()
    for one in command.descriptors { descriptors.append(FileDescriptor(adopting: one)) }
    return IncomingMessage(header: command.header, payload: command.payload, descriptors: descriptors)
  }

  /// Waits for ``next()`` to have something; false if `cancel` was signalled first.
  func wait(cancel: EventFD) throws(HostError) -> Bool {
    guard try inbox.arrived.wait(cancel: cancel) else { return false }
    _ = try inbox.arrived.drain()
    return true
  }

  /// Ends the thread.
  func end() {
    inbox.stopping.signal()
    thread.join()
  }

  private static func read(
    _ socket: UnixSocket, _ inbox: Inbox, _ answer: (VfioHeader, [UInt8]) -> Bool
  ) {
    var stream = MessageStream<VfioHeader>(socket)
    var ending = StreamEnding.closed
    do throws(StreamEnding) {
      reading: while true {
        while var message = try stream.next() {
          if message.header.isReply {
            guard answer(message.header, message.payload) else {
              throw .peer(ProtocolError("answer", "it answers a command that was never sent, or wrongly"))
            }
            continue
          }
          var descriptors: [Int32] = []
          while let one = message.descriptors.takeFirst() { descriptors.append(one.release()) }
          let command = Command(header: message.header, payload: message.payload, descriptors: descriptors)
          inbox.state.withLock { $0.commands.append(command) }
          inbox.arrived.signal()
          while inbox.state.withLock({ $0.commands.count }) >= limit {
            let isThere = try rethrowing(inbox.room.wait(cancel: inbox.stopping), as: StreamEnding.host)
            guard isThere else { break reading }
            _ = try rethrowing(inbox.room.drain(), as: StreamEnding.host)
          }
        }
        guard try rethrowing(socket.waitReadable(cancel: inbox.stopping), as: StreamEnding.host) else { break }
      }
    } catch {
      ending = error
    }
    inbox.state.withLock { $0.ending = ending }
    inbox.arrived.signal()
  }
}
