import Foundation
import Glibc
import HostIO
import Testing

/// Processor time of the whole process.
private func processCPUTime() -> Duration { .microseconds(clock()) }

@Suite("Lines that no writer waits for", .timeLimit(.minutes(10))) struct LineWriterTests {
  /// A pipe, which fills up without a reader.
  private final class Unread {
    let reading: FileHandle
    let writing: FileHandle
    let writer: LineWriter

    init() throws {
      let pipe = Pipe()
      (reading, writing) = (pipe.fileHandleForReading, pipe.fileHandleForWriting)
      try SignalFD.ignoreBrokenPipes()
      writer = try LineWriter(writing.fileDescriptor) { "lost \($0)" }
    }
  }

  @Test("Lines arrive whole and in order, and a flush waits for them")
  func order() throws {
    let unread = try Unread()
    for number in 0..<100 { unread.writer.write("line \(number)") }
    unread.writer.flush(within: .seconds(10))
    try unread.writing.close()
    let text = String(decoding: try unread.reading.readToEnd() ?? Data(), as: UTF8.self)
    #expect(text == (0..<100).map { "line \($0)\n" }.joined())
  }

  @Test("Without a reader, writing and flushing go on, lines beyond the bound are lost, and a later line counts them")
  func full() throws {
    let unread = try Unread()
    let line = String(repeating: "x", count: 99)
    // What waits, as much again on its way, and the pipe's own room.
    let most = (2 * LineWriter.capacity + 65536) / 100
    let count = most + 1000
    let start = ContinuousClock.now
    for _ in 0..<count { unread.writer.write(line) }
    unread.writer.flush(within: .milliseconds(50))
    #expect(ContinuousClock.now - start < .seconds(30))
    // Now there is a reader: each line arrived or was counted as lost.
    var text = ""
    var come = 0
    var lost = 0
    while come + lost < count {
      text += String(decoding: unread.reading.availableData, as: UTF8.self)
      let end = text.lastIndex(of: "\n").map { text.index(after: $0) } ?? text.startIndex
      for one in text[..<end].split(separator: "\n") {
        if one == line { come += 1 } else { lost += try #require(Int(one.dropFirst(5))) }
      }
      text.removeSubrange(..<end)
    }
    #expect(come + lost == count && lost >= 1000)
  }

  @Test("A reader that has gone, a descriptor that is closed and a disk that is full lose lines and cost nothing")
  func withoutReader() throws {
    let unread = try Unread()
    try unread.reading.close()
    let full = try FileHandle(forWritingTo: URL(fileURLWithPath: "/dev/full"))
    for writer in [
      unread.writer, try LineWriter(1_000_000) { "lost \($0)" }, try LineWriter(full.fileDescriptor) { "lost \($0)" },
    ] {
      let before = processCPUTime()
      for _ in 0..<1000 { writer.write("a line") }
      let start = ContinuousClock.now
      writer.flush(within: .seconds(20))
      #expect(ContinuousClock.now - start < .seconds(10))
      #expect(processCPUTime() - before < .seconds(5))
    }
  }

  @Test("A descriptor that does not wait is waited for")
  func nonblocking() throws {
    let unread = try Unread()
    #expect(fcntl(unread.writing.fileDescriptor, F_SETFL, O_NONBLOCK) == 0)
    for number in 0..<20_000 { unread.writer.write("line \(number)") }
    var text = ""
    while !text.hasSuffix("line 19999\n") { text += String(decoding: unread.reading.availableData, as: UTF8.self) }
    #expect(text == (0..<20_000).map { "line \($0)\n" }.joined())
  }

  @Test(
    "Times are written as calendars have them",
    arguments: [
      (0, "1970-01-01T00:00:00.000Z"), (-1, "1969-12-31T23:59:59.999Z"), (951_782_400_123, "2000-02-29T00:00:00.123Z"),
      (4_107_542_400_000, "2100-03-01T00:00:00.000Z"), (1_764_431_865_250, "2025-11-29T15:57:45.250Z"),
      (1_709_164_800_000, "2024-02-29T00:00:00.000Z"), (-2_203_891_200_000, "1900-03-01T00:00:00.000Z"),
    ] as [(Int64, String)])
  func calendar(_ time: Int64, _ text: String) { #expect(WallClock.text(time) == text) }
}
