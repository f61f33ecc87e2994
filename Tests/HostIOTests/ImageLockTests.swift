import Foundation
import Glibc
import HostIO
import Testing
import VirtioTestKit

private let dontLock = BlockFile.Options(locked: false)

@Suite("Image locks") struct ImageLockTests {
  private let directory: TemporaryFolder
  private let path: String

  init() throws {
    directory = try TemporaryFolder()
    path = try directory.file("disk", pattern(65536))
  }

  @Test(
    "One writer keeps everybody out, readers keep writers out",
    arguments: [
      (false, false, true), (false, true, true), (true, false, true), (true, true, false),
    ])
  func twoOfUs(firstReadOnly: Bool, secondReadOnly: Bool, conflict: Bool) throws {
    let first = try BlockFile(path: path, options: .init(readOnly: firstReadOnly))
    let answer = errno {
      _ = try BlockFile(path: path, options: .init(readOnly: secondReadOnly))
    }
    #expect(answer == (conflict ? EBUSY : nil))
    // Who does not ask is not stopped.
    _ = try BlockFile(path: path, options: dontLock)
    _ = first
  }

  @Test("The lock ends with the file")
  func ends() throws {
    do { _ = try BlockFile(path: path) }
    _ = try BlockFile(path: path)
  }

  @Test("A lock that was refused leaves nothing behind, and one that was given back is free")
  func takenAndGivenBack() throws {
    let first = try BlockFile(path: path, options: dontLock)
    let second = try BlockFile(path: path, options: dontLock)
    let reader = try BlockFile(path: path, options: .init(readOnly: true, locked: false))
    try first.lock()
    expect(EBUSY) { try second.lock() }
    expect(EBUSY) { try reader.lock() }
    try first.unlock()
    // The two that were refused are still open.
    try second.lock()
    try second.unlock()
    try reader.lock()
    expect(EBUSY) { try first.lock() }
    try reader.unlock()
    try first.lock()
  }

  @Test("The error names the step and the image")
  func message() throws {
    let first = try BlockFile(path: path)
    do {
      _ = try BlockFile(path: path)
      Issue.record("two writers on one image")
    } catch {
      #expect(error == HostError("lock", errno: .resourceBusy, subject: path))
    }
    _ = first
  }

  @Test(
    "A machine of QEMU does not start on an image we write, nor writes one we read",
    .enabled(if: isInstalled(qemu), "SKIPPED: QEMU is not installed"),
    arguments: [(false, false), (false, true), (true, false), (true, true)])
  func weAreFirst(weRead: Bool, theyRead: Bool) throws {
    let file = try BlockFile(path: path, options: .init(readOnly: weRead))
    let machine = try Machine(path, readOnly: theyRead)
    #expect(machine.started == (weRead && theyRead), "\(machine.output)")
    #expect(machine.output.contains("Failed to get") != machine.started)
    _ = file
  }

  @Test(
    "We do not open an image that a machine of QEMU writes, nor write one it reads",
    .enabled(if: isInstalled(qemu), "SKIPPED: QEMU is not installed"),
    arguments: [(false, false), (false, true), (true, false), (true, true)])
  func qemuIsFirst(theyRead: Bool, weRead: Bool) throws {
    let machine = try Machine(path, readOnly: theyRead)
    try #require(machine.started, "\(machine.output)")
    let answer = errno { _ = try BlockFile(path: path, options: .init(readOnly: weRead)) }
    #expect(answer == (theyRead && weRead ? nil : EBUSY))
  }
}

private let qemu = "/usr/bin/qemu-system-x86_64"

/// A machine that has the image as a disk, and never runs.
private final class Machine {
  private let process = Process()
  private let input = Pipe()
  private(set) var output = ""
  /// Whether it came as far as answering, with the image open.
  var started: Bool { output.contains("Attached to") }

  init(_ image: String, readOnly: Bool) throws {
    let both = Pipe()
    process.executableURL = URL(filePath: qemu)
    process.arguments = [
      "-M", "q35", "-accel", "tcg", "-m", "16", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio",
      "-blockdev", "driver=file,node-name=disk,filename=\(image),read-only=\(readOnly ? "on" : "off")",
      "-device", "virtio-blk-pci,drive=disk",
    ]
    process.standardInput = input
    process.standardOutput = both
    process.standardError = both
    // It may be gone before it has read anything.
    try SignalFD.ignoreBrokenPipes()
    try process.run()
    // The prompt shows before the devices are made; the answer comes after.
    try? input.fileHandleForWriting.write(contentsOf: Data("info block\n".utf8))
    while !started {
      let more = both.fileHandleForReading.availableData
      if more.isEmpty { break }
      output += String(decoding: more, as: UTF8.self)
    }
  }

  deinit {
    try? input.fileHandleForWriting.write(contentsOf: Data("quit\n".utf8))
    try? input.fileHandleForWriting.close()
    process.waitUntilExit()
  }
}
