import ArgumentParser

@main
struct Bench: ParsableCommand {
  static let configuration = CommandConfiguration(
    commandName: "sluice-bench",
    abstract: """
      Benchmarks of Sluice: rings, IOMMUs, machines in one process, its disk compared with qemu-storage-daemon's, and \
      the cost of translations compared with a minimal back-end; and random tests against a model of memory.
      """,
    subcommands: [
      RingBench.self, IOMMUBench.self, MachineBench.self, BlockBench.self, NVMeBench.self, LibblkioBench.self,
      FloorBench.self,
      LeastBackendCommand.self,
      ModelBench.self,
    ])
}
