import DMA
import Foundation
import HostIO
import Testing
import VirtioTestKit

/// Guest memory with a chain's segments in it, the way a device gets them.
struct Buffers: ~Copyable {
  let memory: GuestMemory
  var list: SegmentList
  private var addresses: [(Int, Int)]

  /// One segment for each (address, count); they must not touch, or they are one.
  init(_ pieces: [(Int, Int)]) throws {
    let memory = try GuestMemory(byteCount: (pieces.map { $0.0 + $0.1 }.max() ?? 0) + 4096)
    var pool = SegmentPool()
    var list = pool.take()
    var tlb = IOTLB(PhysicalSpace(memory))
    _ = tlb.beginRound()
    for (address, count) in pieces {
      try tlb.resolve(DMAAddress(UInt64(address)), count: count, for: .write, into: &list)
    }
    tlb.endRound()
    self.memory = memory
    self.list = list
    addresses = pieces
  }

  /// All bytes of the segments in order.
  var bytes: [UInt8] {
    get {
      var all: [UInt8] = []
      for (address, count) in addresses { all += memory.bytes(count, at: GuestAddress(UInt64(address))) }
      return all
    }
    nonmutating set {
      var done = 0
      for (address, count) in addresses {
        let part = Array(newValue[done..<done + count])
        _ = memory.copy(part.span, to: GuestAddress(UInt64(address)))
        done += count
      }
    }
  }
}

/// The error number a call threw, nil if it did not.
func errno(_ body: () throws -> Void) -> Int32? {
  do { try body() } catch { return (error as? HostError)?.errno.rawValue ?? -1 }
  return nil
}

/// That a call throws this error number.
func expect(_ number: Int32, sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void) {
  #expect(errno(body) == number, sourceLocation: sourceLocation)
}

/// Runs a program to its end and returns its status and what it printed.
func run(_ program: String, _ arguments: [String]) throws -> (status: Int32, output: String) {
  let process = Process()
  process.executableURL = URL(filePath: program)
  process.arguments = arguments
  let pipe = Pipe()
  process.standardOutput = pipe
  process.standardError = pipe
  try process.run()
  let output = try pipe.fileHandleForReading.readToEnd() ?? Data()
  process.waitUntilExit()
  return (process.terminationStatus, String(decoding: output, as: UTF8.self))
}

func isInstalled(_ program: String) -> Bool { FileManager.default.isExecutableFile(atPath: program) }
