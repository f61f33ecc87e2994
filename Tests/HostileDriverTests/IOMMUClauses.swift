/// §5.13: beside the MUSTs what drivers SHOULD, as far as a device sees whether they do, and what the text says without
/// either word.
extension ClauseTable {
  static let iommu = [
    Clause("5.13.4.1-1", "write no field of the configuration but bypass, and that with BYPASS_CONFIG only"),
    Clause("5.13.4.1-2", "write nothing but 0 and 1 to bypass"),
    Clause("5.13.5.1-1", "accept MAP_UNMAP only with both requests at hand"),
    Clause("5.13.6-1", "send whole requests, with room for a tail (text)"),
    Clause("5.13.6-2", "send requests of types that exist (text)"),
    Clause("5.13.6-3", "name domains and endpoints that exist (text)"),
    Clause("5.13.6-4", "make no more domains and mappings than the device has (text)"),
    Clause("5.13.6-5", "map whole pages, and none twice (text)"),
    Clause("5.13.6.1-1", "ignore the tail's reserved field", inside),
    Clause("5.13.6.1-2", "with INPUT_RANGE, send no addresses outside of it"),
    Clause("5.13.6.1-3", "with DOMAIN_RANGE, send no domains outside of it"),
    Clause("5.13.6.1-4", "set the head's reserved field to 0 (SHOULD)"),
    Clause("5.13.6.3.1-1", "set the reserved field of ATTACH to 0 (SHOULD)"),
    Clause(
      "5.13.6.3.1-2", "attach endpoints that cannot be told apart to one domain (SHOULD)",
      "Functions that a bus cannot tell apart have one number here: no request can attach one of them without the others."
    ),
    Clause("5.13.6.3.1-3", "set the bypass flag for bypass domains, and for those only (SHOULD)"),
    Clause("5.13.6.3.1-4", "set no flags of ATTACH that do not exist (text)"),
    Clause("5.13.6.4.1-1", "set the reserved field of DETACH to 0 (SHOULD)"),
    Clause("5.13.6.5.1-1", "end a mapping behind its start"),
    Clause("5.13.6.5.1-2", "set READ where endpoints are to read"),
    Clause("5.13.6.5.1-3", "set MMIO with the feature only"),
    Clause("5.13.6.5.1-4", "set no flags of MAP that do not exist (SHOULD)"),
    Clause("5.13.6.5.1-5", "map nothing in bypass domains (SHOULD)"),
    Clause("5.13.6.5.1-6", "map memory or registers, say which, and not both at once (SHOULD)"),
    Clause("5.13.6.6.1-1", "begin and end what is unmapped where mappings do"),
    Clause("5.13.6.6.1-2", "set the reserved field of UNMAP to 0 (SHOULD)"),
    Clause("5.13.6.6.1-3", "unmap nothing in bypass domains (SHOULD)"),
    Clause("5.13.6.7.1-1", "have room for as many bytes of properties as probe_size says"),
    Clause("5.13.6.7.1-2", "ignore properties whose reserved field is not 0", inside),
    Clause("5.13.6.7.1-3", "set the reserved field of PROBE to 0 (SHOULD)"),
    Clause("5.13.6.8.1.1-1", "ignore the reserved field of RESV_MEM", inside),
    Clause("5.13.6.8.1.1-2", "map nothing that is reserved (SHOULD)"),
    Clause("5.13.6.9-1", "offer device-writable event buffers with room for a report (text)"),
    Clause(
      "5.13.6.9.1-1", "ignore fault reports whose reserved field is not 0, and what is undefined in others", inside),
  ]
}
