import Foundation
import Testing

@Suite("Explain", .serialized) struct ExplainTests {
  @Test("Before a front-end has connected, words and JSON agree that nothing can be reached")
  func nobody() throws {
    let folder = try Folder()
    let running = try folder.serve(try folder.image())
    let words = try Command.run("explain", folder.path("s.sock"))
    #expect(words.status == 0)
    #expect(words.output.contains("virtio-blk"))
    #expect(words.output.contains("no front-end has connected yet"))
    let json = try Command.run("explain", "--json", folder.path("s.sock"))
    let object = try #require(try JSONSerialization.jsonObject(with: Data(json.output.utf8)) as? [String: Any])
    #expect(object["connected"] as? Bool == false)
    #expect(object["reachable_bytes"] as? Int == 0)
    #expect(object["faults"] as? Int == 0)
    #expect(json.output.split(separator: "\n").count == 1)
    running.terminate()
    #expect(try running.end(within: 10).status == 0)
  }

  @Test("A socket that is not there, and one nobody listens on, are told apart, status 1")
  func unreachable() throws {
    let folder = try Folder()
    let none = try Command.run("explain", folder.path("none.sock"))
    #expect(none.status == 1)
    #expect(none.errors.contains("there is no socket"))
    let running = try folder.serve(try folder.image())
    kill(running.process.processIdentifier, SIGKILL)
    _ = try running.end(within: 10)
    let stale = try Command.run("explain", folder.path("s.sock"))
    #expect(stale.status == 1)
    #expect(stale.errors.contains("nobody listens"))
  }

  @Test("Help is printed on standard output, status 0", arguments: [["--help"], ["serve", "--help"], ["serve", "blk", "--help"], ["explain", "--help"]])
  func help(_ words: [String]) throws {
    let result = try Command.Running(words).end(within: 30)
    #expect(result.status == 0)
    #expect(result.output.contains("OVERVIEW: "))
    #expect(result.errors == "")
  }
}
