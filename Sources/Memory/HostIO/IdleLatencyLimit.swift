internal import CLinux

/// A limit on the wake-up latency of idle processors of this machine, in force while this object lives
/// (`/dev/cpu_dma_latency`, the kernel's PM QoS interface). It applies to the whole machine: of several limits the
/// lowest counts.
public final class IdleLatencyLimit: Sendable {
  private let descriptor: FileDescriptor

  /// Asks for a limit. With 0 idle processors do not stop at all.
  ///
  /// - Throws: EACCES without the permission, which as a rule only root has; ENOENT where there is no such device.
  public init(microseconds: Int32) throws(HostError) {
    descriptor = FileDescriptor(
      adopting: try check(host_limit_idle_latency(microseconds), "open", "/dev/cpu_dma_latency"))
  }

  /// The lowest limit in force now, in microseconds; nil where it cannot be read.
  public static var current: Int32? {
    let limit = host_idle_latency()
    return limit < 0 ? nil : limit
  }

  /// Whether this kernel leaves an idle processor to a hypervisor below it (cpuidle's `haltpoll`). To be woken takes
  /// tens of microseconds then, and to stay awake costs the machine below and not this one's other work.
  public static var isIdleOutside: Bool { host_idle_is_outside() != 0 }
}
