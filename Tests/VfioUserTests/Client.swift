import DMA
import DriverDMA
import HostIO
import IOMMUInterface
import NVMe
import PCI
import SocketMessages
import Storage
import Testing
import VirtioTestKit

@testable import VfioUser

/// A client of vfio-user, as a VMM is one: it sends a command and waits for its reply.
final class Client: PCIFunctionAccess {
  struct Failed: Error, Equatable {
    var errno: Int32
  }
  private let socket: UnixSocket
  private var next: UInt16 = 1
  /// Commands sent.
  private(set) var sent = 0
  private(set) var isClosed = false
  /// Doorbells that this client has mapped.
  private(set) var doorbells: MappedDoorbells?

  init(_ socket: UnixSocket) { self.socket = socket }

  /// Ends the connection.
  func close() {
    isClosed = true
    socket.shutdown()
  }

  /// Connects, and agrees on a version.
  convenience init(
    path: String, text: String = #"{"capabilities":{"max_msg_fds":16,"some_day":[1,{"a":null}]}}"#
  ) throws {
    self.init(try UnixSocket.connect(to: path))
    _ = try command(.version, VersionRequest(text: text).encoded)
  }

  /// Whether the server closes the connection, at once or soon. What it had sent before is taken.
  var closesSoon: Bool {
    do throws(HostError) {
      while try socket.waitReadable(timeout: .seconds(20)) {
        var bytes = [UInt8](repeating: 0, count: 4096)
        var none = FileDescriptorList()
        var span = bytes.mutableSpan
        if try socket.receive(into: &span, descriptors: &none) == .closed { return true }
      }
      return false
    } catch {
      return error.errno == .connectionReset
    }
  }

  /// - Parameter size: what the header says of the whole message; nil: what is so.
  func send(
    _ command: UInt16, _ payload: [UInt8], flags: UInt32 = 0, descriptors: [Int32] = [], claiming size: UInt32? = nil
  ) throws -> UInt16 {
    next &+= 1
    sent += 1
    var bytes = VfioHeader.frame(id: next, command: command, flags: flags, payload)
    if let size { for i in 0..<4 { bytes[4 + i] = UInt8(truncatingIfNeeded: size >> UInt32(8 * i)) } }
    try socket.send(bytes.span, descriptors: descriptors, timeout: .seconds(20))
    return next
  }

  /// Answers a command of the server's; nil: no answer is sent.
  var serve: ((VfioHeader, [UInt8]) -> [UInt8]?)?

  func reply(to id: UInt16) throws -> [UInt8] {
    var none = FileDescriptorList()
    defer { #expect(none.count == 0) }
    return try reply(to: id, &none)
  }

  private func receive(_ descriptors: inout FileDescriptorList) throws -> (VfioHeader, [UInt8]) {
    var bytes = [UInt8](repeating: 0, count: VfioHeader.byteCount)
    try fill(&bytes, &descriptors)
    let header = try VfioHeader(decoding: bytes)
    var payload = [UInt8](repeating: 0, count: header.payloadByteCount)
    if !payload.isEmpty { try fill(&payload, &descriptors) }
    return (header, payload)
  }

  private func answer(_ header: VfioHeader, _ payload: [UInt8]) throws {
    guard let answer = serve?(header, payload) else { return }
    try self.answer(answer)
  }

  /// Sends an answer to a command of the server's.
  func answer(_ bytes: [UInt8]) throws { try socket.send(bytes.span, timeout: .seconds(20)) }

  /// Answers what the server asks, until nothing came for a while.
  func pump(_ quiet: Duration = .milliseconds(1)) throws {
    var none = FileDescriptorList()
    while try socket.waitReadable(timeout: quiet) {
      let (header, payload) = try receive(&none)
      #expect(!header.isReply)
      try answer(header, payload)
    }
  }

  func reply(to id: UInt16, _ descriptors: inout FileDescriptorList) throws -> [UInt8] {
    var (header, payload) = try receive(&descriptors)
    while !header.isReply {
      try answer(header, payload)
      (header, payload) = try receive(&descriptors)
    }
    #expect(header.id == id)
    if header.hasFailed {
      #expect(payload.isEmpty)
      throw Failed(errno: Int32(header.error))
    }
    return payload
  }

  private func fill(_ bytes: inout [UInt8], _ descriptors: inout FileDescriptorList) throws {
    var span = bytes.mutableSpan
    // Thrown and not expected: a connection that the server closed ends the driver's waits.
    guard try socket.receiveAll(into: &span, descriptors: &descriptors, timeout: .seconds(20)) else {
      throw HostError("recvmsg", errno: .connectionReset)
    }
  }

  @discardableResult
  func command(_ command: VfioCommand, _ payload: [UInt8] = [], descriptors: [Int32] = []) throws -> [UInt8] {
    try reply(to: send(command.rawValue, payload, descriptors: descriptors))
  }

  /// Asks for a region's information as QEMU does: for the fixed part first, and then for as much as there is. Maps what
  /// may be mapped.
  func mapRegion(_ index: UInt32) throws -> (info: RegionInfo, map: SparseMap)? {
    var asked = RegionInfo(index: index)
    let first = try RegionInfo(decoding: command(.getRegionInfo, asked.encoded), of: "INFO")
    #expect(first.flags & (RegionInfo.mappable | RegionInfo.hasCapabilities) == 0 && first.capabilityOffset == 0)
    asked.argumentSize = first.argumentSize
    var descriptors = FileDescriptorList()
    let payload = try reply(to: send(VfioCommand.getRegionInfo.rawValue, asked.encoded), &descriptors)
    var reader = PayloadReader(payload, of: "INFO")
    let info = try RegionInfo(from: &reader)
    guard info.flags & RegionInfo.mappable != 0 else {
      #expect(descriptors.count == 0 && reader.remaining == 0 && info.argumentSize == RegionInfo.byteCount)
      return nil
    }
    #expect(info.flags & RegionInfo.hasCapabilities != 0 && info.capabilityOffset == RegionInfo.byteCount)
    let map = try SparseMap(from: &reader)
    #expect(reader.remaining == 0 && descriptors.count == 1)
    if let descriptor = descriptors.takeFirst() {
      doorbells = try MappedDoorbells(bar: Int(index), info, map, descriptor)
    }
    return (info, map)
  }
  /// Whether the server ends the connection, with nothing more to say.
  var isGivenUp: Bool { (try? socket.waitReadable(timeout: .seconds(20))) == true && socket.isHungUp }

  // MARK: PCIFunctionAccess

  private func read(_ region: UInt32, _ offset: UInt64, _ width: Int) -> UInt32 {
    do {
      let access = RegionAccess(offset: offset, region: region, count: UInt32(width))
      let bytes = try command(.readRegion, access.encoded).dropFirst(RegionAccess.byteCount)
      return bytes.reversed().reduce(0) { $0 << 8 | UInt32($1) }
    } catch {
      return .max
    }
  }

  private func write(_ region: UInt32, _ offset: UInt64, _ width: Int, _ value: UInt32) {
    let access = RegionAccess(offset: offset, region: region, count: UInt32(width))
    let bytes = (0..<width).map { UInt8(truncatingIfNeeded: value >> UInt32(8 * $0)) }
    // Posted, as QEMU does it.
    _ = try? send(VfioCommand.writeRegion.rawValue, access.encoded + bytes, flags: VfioHeader.noReply)
  }

  func readConfiguration(at offset: Int, width: Int) -> UInt32 {
    read(VfioRegion.configuration, UInt64(offset), width)
  }
  func writeConfiguration(at offset: Int, width: Int, _ value: UInt32) {
    write(VfioRegion.configuration, UInt64(offset), width, value)
  }
  func readBAR(_ index: Int, at offset: UInt64, width: Int) -> UInt32 { read(UInt32(index), offset, width) }
  func writeBAR(_ index: Int, at offset: UInt64, width: Int, _ value: UInt32) {
    if let doorbells, doorbells.store(index, offset, width, value) { return }
    write(UInt32(index), offset, width, value)
  }
}

/// The client's half of a domain: each mapping is a DMA_MAP of a range of one memfd.
final class ClientDomain: IOMMUDomain {
  private let client: Client
  private let file: Int32?

  /// - Parameter file: nil: mappings come without a descriptor.
  init(_ client: Client, file: Int32?) {
    self.client = client
    self.file = file
  }

  func map(_ address: DMAAddress, to guest: GuestAddress, count: UInt64, permissions: DMAPermissions) throws(DMAError) {
    var flags: UInt32 = 0
    if permissions.contains(.read) { flags |= MapRequest.readable }
    if permissions.contains(.write) { flags |= MapRequest.writable }
    let request = MapRequest(
      flags: flags, offset: file == nil ? 0 : guest.rawValue, address: address.rawValue, size: count)
    do { try client.command(.mapDMA, request.encoded, descriptors: file.map { [$0] } ?? []) } catch {
      throw .iommu(address)
    }
  }

  func unmap(_ address: DMAAddress, count: UInt64) throws(DMAError) {
    do { try client.command(.unmapDMA, UnmapRequest(address: address.rawValue, size: count).encoded) } catch {
      throw .iommu(address)
    }
  }
}

/// An NVMe controller served over vfio-user, and a client with memory.
final class Rig {
  static let memoryBytes = 16 << 20
  let folder = try! TemporaryFolder()
  let server: VfioUserServer
  private let thread: WorkerThread
  let path: String
  let memory: GuestMemory
  let file: MemoryFile

  convenience init(doorbells: DoorbellPolicy = .messages) throws {
    try self.init(doorbells: doorbells) { image, master in
      try NVMeController(NVMeOptions(DiskOptions(path: image)), on: master)
    }
  }

  /// - Parameter make: makes the function, with the path of an image of 8 MiB.
  init<F: PCIFunction>(
    doorbells: DoorbellPolicy = .messages, _ make: (String, BusMaster) throws -> F
  ) throws {
    let image = try folder.file("disk.img", [UInt8](repeating: 0, count: 8 << 20))
    path = folder.path("vfio.sock")
    let server = try VfioUserServer(on: .listening(UnixListener(path: path)), doorbells: doorbells, log: .silent) {
      master in
      try make(image, master)
    }
    self.server = server
    thread = try WorkerThread(name: "vfio-user") { try? server.run() }
    file = try MemoryFile(name: "guest", size: UInt64(Self.memoryBytes))
    memory = GuestMemory()
    try memory.add(
      MemoryRegion(
        guestAddress: GuestAddress(0), byteCount: UInt64(Self.memoryBytes),
        mapping: HostMapping(descriptor: file.descriptor.rawValue, offset: 0, byteCount: Self.memoryBytes)))
  }

  deinit {
    server.stop()
    thread.join()
  }
}
