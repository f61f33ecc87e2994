import ArgumentParser

@main
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-bench",
    abstract: """
      Measures Sluice: its queues alone, its machines and IOMMUs, and its disk against qemu-storage-daemon's; and tries it against a \
      model of memory.
      """,
    subcommands: [RingBench.self, DomainBench.self, MachineBench.self, BlockBench.self, LibblkioBench.self, ModelBench.self])
}
