/// What a vfio-user server knows of its client, which maps memory for the function and takes its interrupts.
extension ServingReport {
  /// A client's mappings and interrupts.
  public struct Client: Hashable, Sendable {
    /// Mappings in force.
    public var mappings = 0
    /// Of them, those of memory without a descriptor.
    public var mappingsWithoutDescriptor = 0
    /// Bytes of memory with a descriptor that are mapped now.
    public var mappedBytes: UInt64 = 0
    /// The most that was mapped at a time in this connection, memory without a descriptor included.
    public var peakMappedBytes: UInt64 = 0
    /// Bytes of memory without a descriptor that are mapped now.
    public var bytesWithoutDescriptor: UInt64 = 0
    /// Accesses to it, each a message to the client, since the server started.
    public var accessesByMessage: UInt64 = 0
    /// Of them, those that the client refused or did not answer.
    public var refusedByClient: UInt64 = 0
    /// Bytes of the files that the descriptors are of.
    public var fileBytes: UInt64 = 0
    /// Those files.
    public var files = 0
    /// DMA_MAP that were done in this connection.
    public var maps: UInt64 = 0
    /// DMA_MAP that were refused in this connection.
    public var refusedMaps: UInt64 = 0
    /// DMA_UNMAP that were done in this connection, those that found nothing included.
    public var unmaps: UInt64 = 0
    /// Accesses that were refused, since the server started.
    public var refusals: UInt64 = 0
    /// The last few of them, oldest first, each a clause.
    public var lastRefusals: [String] = []
    /// MSI-X vectors that the function has.
    public var vectors = 0
    /// Of them, those for which the client gave an eventfd.
    public var connectedVectors = 0
    /// Whether the interrupt pin has an eventfd.
    public var isPinConnected = false
    /// Interrupts sent, since the server started.
    public var interrupts: UInt64 = 0
    /// Interrupts that there was no eventfd for.
    public var lostInterrupts: UInt64 = 0
    /// Whether a client may have doorbells in shared memory.
    public var offersSharedDoorbells = false
    /// Whether the client was given doorbells in shared memory.
    public var sharesDoorbells = false
    /// Doorbells taken from shared memory in this connection.
    public var doorbells: UInt64 = 0

    /// No client yet.
    public init() {}

    /// Bytes that can be reached now, with a descriptor or without.
    public var reachableBytes: UInt64 { mappedBytes &+ bytesWithoutDescriptor }

    /// Nearly all of the client's memory is mapped, as far as it shows, so nothing confines the function to a part of
    /// it: a machine leaves out the few pages that its firmware or its screen cover.
    public var mapsEverything: Bool { mapsAllFiles || mapsLargePieces }

    private var mapsAllFiles: Bool { fileBytes > 0 && mappedBytes >= fileBytes - fileBytes / 16 }

    /// Memory without a descriptor comes in pieces of which a machine's memory is made, and not in pages. The client
    /// does not say how much there is of it.
    private var mapsLargePieces: Bool {
      bytesWithoutDescriptor >= Self.large
        && bytesWithoutDescriptor / UInt64(max(mappingsWithoutDescriptor, 1)) >= Self.large
    }
    /// More than drivers map at a time, and less than a small machine's memory in its few pieces.
    private static let large: UInt64 = 8 << 20

    /// Whose decision an access is, in a sentence.
    public var verdict: String {
      if mappings == 0 { return "the client has mapped nothing, so every access is refused" }
      if mapsAllFiles {
        return
          "the client has mapped nearly all of the memory that it shares: it has no IOMMU in front of the device, or one "
          + "that lets everything through"
      }
      if mapsLargePieces {
        return
          "the client has mapped large pieces of memory without a descriptor; whether they are all of the guest's memory it "
          + "does not say, but they look like it: it has no IOMMU in front of the device, or one that lets everything "
          + "through"
      }
      return "only what the client has mapped can be reached, whatever the device offers; behind an IOMMU that is what "
        + "the guest mapped for the device"
    }
  }
}
