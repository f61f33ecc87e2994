import HostIO
import Testing
import VhostUser
import VhostUserBackend
import VirtioEntropy
import VirtioServing
import VirtioTestKit

@Suite("The answer to explain of a server that has no words of its own", .timeLimit(.minutes(10)))
struct ExplainDefaultTests {
  @Test("It is JSON, asked for in either form", arguments: [ExplainRequest.Form.words, .json])
  func answers(_ form: ExplainRequest.Form) throws {
    let folder = try TemporaryFolder()
    let server = try VhostUserServer(
      EntropyDevice(), at: folder.path("rng.sock"), options: BackendOptions(name: "own"), log: .silent)
    let thread = try WorkerThread(name: "own") { try? server.run() }
    defer {
      server.stop()
      thread.join()
    }
    let answer = try ExplainRequest.ask(folder.path("rng.sock"), as: form)
    #expect(answer.contains(#""name":"own""#) && answer.contains(#""device":"virtio-rng""#), "\(answer)")
  }
}
