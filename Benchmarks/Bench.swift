import ArgumentParser

@main
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-bench",
    abstract: "Measures Sluice: its queues and IOMMUs alone, a machine in one process, and its disk against qemu-storage-daemon's.",
    subcommands: [RingBench.self, DomainBench.self, MachineBench.self, BlockBench.self, LibblkioBench.self])
}
