import Glibc
import HostIO
import Testing

@Suite("Programs that are started") struct ChildProcessTests {
  private func end(_ process: ChildProcess) throws -> ChildProcess.State {
    let nothing = try EventFD()
    for _ in 0..<2000 where process.state == .running { _ = try nothing.wait(timeout: .milliseconds(5)) }
    return process.state
  }

  @Test("A program's status, or the signal that killed it, is known after its end, and stays known")
  func states() throws {
    let good = try ChildProcess(["sh", "-c", "exit 7"])
    #expect(try end(good) == .ended(7))
    #expect(good.state == .ended(7))
    #expect(try end(try ChildProcess(["sh", "-c", "kill -SEGV $$"])) == .killed(11))
  }

  @Test("Its last line is kept, from standard output and error alike")
  func output() throws {
    let process = try ChildProcess(["sh", "-c", "echo first; echo the last one >&2"])
    _ = try end(process)
    #expect(process.lastLine == "the last one")
    #expect(try ChildProcess(["true"]).lastLine == "")
  }

  @Test("It is ended politely if it listens, and by force if it does not")
  func ending() throws {
    let polite = try ChildProcess(["sleep", "1000"])
    #expect(polite.state == .running)
    polite.end()
    #expect(polite.state == .killed(15))
    let stubborn = try ChildProcess(["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"])
    let nothing = try EventFD()
    while stubborn.lastLine != "ready" { _ = try nothing.wait(timeout: .milliseconds(5)) }
    stubborn.end()
    #expect(stubborn.state == .killed(9))
  }

  @Test("A program that is not there, no name and a NUL are errors")
  func mistakes() {
    expect(ENOENT) { _ = try ChildProcess(["/nonexistent/program"]) }
    expect(EINVAL) { _ = try ChildProcess([]) }
    expect(EINVAL) { _ = try ChildProcess(["true", "a\0b"]) }
  }

  @Test("Arguments arrive as they are, and a broken pipe is the program's own again")
  func arguments() throws {
    let process = try ChildProcess(["sh", "-c", "printf '%s|%s' \"$1\" \"$2\"", "sh", "two words", ""])
    _ = try end(process)
    #expect(process.lastLine == "two words|")
    #expect(try end(try ChildProcess(["sh", "-c", "kill -PIPE $$"])) == .killed(13))
  }
}
