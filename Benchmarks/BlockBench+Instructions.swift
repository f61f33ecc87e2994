import ArgumentParser
import Foundation
import FrontendKit

// What a translation adds to a request, in instructions: a machine with other work gives no time twice, but does the
// same.
extension BlockBench {
  /// Counts what the back-end's process does for a request, in all of its threads and outside of the kernel, behind a
  /// translation with static mappings and without one. What the kernel does is the same for both, and much more.
  func countInstructions(_ scratch: URL, _ operations: [DiskOperation], _ blocks: [Int], _ depths: [Int]) throws {
    let image = scratch.appendingPathComponent("image").path
    try BlockTarget.makeImages([image], bytes: UInt64(imageSize) << 20)
    let command = scratch.appendingPathComponent("counted").path
    let callgrind = try Callgrind(try sluice ?? commandBeside())
    try callgrind.makeCommand(at: command)
    var table = Table(["op", "block", "depth", "instructions", "physical", "ratio"], json: json)
    for operation in operations {
      for block in blocks {
        for depth in depths {
          let job = BlockJob(operation: operation, isRandom: true, blockBytes: block, depth: depth, queues: 1)
          var setup = setup(1, depth, block)
          // valgrind starts slowly
          setup.patience = 60
          let mine = try instructions(job, setup, command, image, scratch)
          setup.isTranslated = false
          let physical = try instructions(job, setup, command, image, scratch)
          table.add(
            [job.operationName, "\(block)", "\(depth)", mine.text(0), physical.text(0), (mine / physical).text(3)],
            json: [
              ("op", .word(job.operationName)), ("block", .integer(block)), ("depth", .integer(depth)),
              ("instructions", .number(mine)),
              ("physical", .number(physical)), ("ratio", .number(mine / physical)),
            ])
        }
      }
    }
    table.finish()
  }

  /// For one request: the difference of two runs, so that what happens once, such as asking for a page, does not count.
  private func instructions(
    _ job: BlockJob, _ setup: BlockSetup, _ command: String, _ image: String, _ scratch: URL
  ) throws -> Double {
    func total(_ requests: Int) throws -> (count: Double, requests: Int) {
      let target = try BlockTarget("sluice", try serve(command, "counted", image, scratch, 1), setup)
      let sample = try target.run(job, seconds: 60, limit: requests)
      let output = target.finish()
      guard let count = Callgrind.collected(output) else { throw BenchFailure("valgrind counted nothing:\n\(output)") }
      return (count, sample.requests)
    }
    let (less, more) = (try total(4096), try total(65_536))
    return (more.count - less.count) / Double(max(1, more.requests - less.requests))
  }
}
