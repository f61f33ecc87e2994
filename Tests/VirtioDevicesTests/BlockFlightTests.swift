import Glibc
import HostIO
import Storage
import Testing

/// What follows from the host's answers, the ones included that no healthy host gives when a test wants them.
@Suite("virtio-blk: answers of the host to a request in flight") struct BlockFlightTests {
  /// How a request of 4096 bytes, or of `count` ranges, goes on after each answer, and what it has done at the end.
  private func complete(
    _ kind: DiskOperation.Kind, _ answers: [Int32], count: Int = 4096, flushing: Bool = false
  ) throws -> (ways: [String], done: Int, filled: Int) {
    var transfer = DiskTransfer(DiskOperation(kind: kind, count: count), segments: 0..<1)
    transfer.piece = 0..<1
    transfer.pieceCount = count
    if flushing { transfer.operation = DiskOperation(kind: .flush) }
    let ways = answers.map { "\(transfer.complete($0))" }
    return (ways, transfer.done, transfer.filled)
  }

  @Test("All bytes end a read or a write; fewer, none at all too, are left to calls that say why")
  func bytes() throws {
    #expect(try complete(.read, [4096]) == (["done"], 4096, 4096))
    #expect(try complete(.write(durable: true), [4096]) == (["done"], 4096, 0))
    for count in [0, 1, 512, 4095] as [Int32] {
      #expect(try complete(.read, [count]) == (["fallback"], Int(count), Int(count)))
      #expect(try complete(.write(durable: false), [count]) == (["fallback"], Int(count), 0))
    }
  }

  @Test("Interrupted, out of memory for the moment, would block: done without the ring, every kind of request")
  func again() throws {
    for number in [EAGAIN, EINTR, ENOMEM] {
      for kind in [.read, .write(durable: true), .flush, .ranges(.discard), .ranges(.writeZeroes)]
        as [DiskOperation.Kind]
      {
        #expect(try complete(kind, [-number], count: 2) == (["fallback"], 0, 0), "\(number) of \(kind)")
      }
    }
  }

  @Test("Other errors fail the request, and name the call")
  func errors() throws {
    for number in [EIO, ENOSPC, EFBIG, ECANCELED, EINVAL] {
      #expect(try complete(.read, [-number]).ways == ["failed(\"read\", \(Errno(rawValue: number)))"])
      #expect(try complete(.write(durable: false), [-number]).ways == ["failed(\"write\", \(Errno(rawValue: number)))"])
      #expect(try complete(.flush, [-number], count: 0).ways == ["failed(\"fdatasync\", \(Errno(rawValue: number)))"])
      #expect(
        try complete(.ranges(.discard), [0, -number], count: 2).ways == [
          "more", "failed(\"discard\", \(Errno(rawValue: number)))",
        ])
      #expect(
        try complete(.ranges(.writeZeroes), [-number], count: 1).ways == [
          "failed(\"write zeroes\", \(Errno(rawValue: number)))"
        ])
      #expect(
        try complete(.ranges(.writeZeroes), [-number], count: 1, flushing: true).ways == [
          "failed(\"fdatasync\", \(Errno(rawValue: number)))"
        ])
    }
  }

  @Test(
    "Ranges are done one after the other; zeroes are then made stable; what a file system cannot do is done in another way"
  )
  func ranges() throws {
    #expect(try complete(.flush, [0], count: 0).ways == ["done"])
    #expect(try complete(.ranges(.discard), [0, 0, 0], count: 3) == (["more", "more", "done"], 3, 0))
    #expect(try complete(.ranges(.writeZeroes), [0, 0], count: 2) == (["more", "flush"], 2, 0))
    #expect(try complete(.ranges(.writeZeroes), [0], count: 2, flushing: true).ways == ["done"])
    for number in [EOPNOTSUPP, ENOSYS] {
      #expect(try complete(.ranges(.writeZeroes), [0, -number], count: 2) == (["more", "fallback"], 1, 0))
    }
  }
}
