import ArgumentParser

@main
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-bench",
    abstract: """
      Measures Sluice: its queues alone, its machines and IOMMUs, its disk against qemu-storage-daemon's, and its questions and \
      invalidations against the least there could be; and tries it against a model of memory.
      """,
    subcommands: [
      RingBench.self, DomainBench.self, MachineBench.self, BlockBench.self, LibblkioBench.self, FloorBench.self,
      LeastBackendCommand.self,
      ModelBench.self,
    ])
}
