/// §5.13: no device here is a virtio-iommu yet. Whoever adds one gives `Victim.Kind` a case for it, attacks these in a file of their own,
/// and takes the reasons away: a clause that has both is an error.
extension ClauseTable {
  private static let later = "There is no virtio-iommu among these devices yet; its attacks come with it."

  static let iommu = [
    Clause("5.13.4.1-1", "write no field of the configuration but bypass, and that with BYPASS_CONFIG only", later),
    Clause("5.13.4.1-2", "write nothing but 0 and 1 to bypass", later),
    Clause("5.13.5.1-1", "accept MAP_UNMAP only with both requests at hand", inside),
    Clause("5.13.6.1-1", "ignore the tail's reserved field", inside),
    Clause("5.13.6.1-2", "with INPUT_RANGE, send no addresses outside of it", later),
    Clause("5.13.6.1-3", "with DOMAIN_RANGE, send no domains outside of it", later),
    Clause("5.13.6.5.1-1", "end a mapping behind its start", later),
    Clause("5.13.6.5.1-2", "set READ where endpoints are to read", later),
    Clause("5.13.6.5.1-3", "set MMIO with the feature only", later),
    Clause("5.13.6.6.1-1", "begin and end what is unmapped where mappings do", later),
    Clause("5.13.6.7.1-1", "have room for as many bytes of properties as probe_size says", later),
    Clause("5.13.6.7.1-2", "ignore properties whose reserved field is not 0", inside),
    Clause("5.13.6.8.1.1-1", "ignore the reserved field of RESV_MEM", inside),
    Clause("5.13.6.9.1-1", "ignore fault reports whose reserved field is not 0, and what is undefined in others", inside),
  ]
}
