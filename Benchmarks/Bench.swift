import ArgumentParser

@main
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-bench",
<<<<<<< HEAD
    abstract: "Measures Sluice: its queues alone, and its disk against qemu-storage-daemon's; and tries it against a model of memory.",
    subcommands: [RingBench.self, DomainBench.self, BlockBench.self, LibblkioBench.self, ModelBench.self])
=======
    abstract: "Measures Sluice: its queues and IOMMUs alone, a machine in one process, and its disk against qemu-storage-daemon's.",
    subcommands: [RingBench.self, DomainBench.self, MachineBench.self, BlockBench.self, LibblkioBench.self])
>>>>>>> growth
}
