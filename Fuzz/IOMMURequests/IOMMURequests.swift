import IOMMUInterface
import Virtio
import VirtioIOMMU
import VirtioTestKit

// libFuzzer's entry: the one place outside Sources where a pointer is met. It is copied from and not kept.
@c(LLVMFuzzerTestOneInput)
public func fuzzOne(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  let input = [UInt8](UnsafeBufferPointer(start: bytes, count: count))
  let problem = IOMMUFuzz.run(input) { memory, limits in
    var options = IOMMUOptions()
    options.bypass = .configured(false)
    options.inputRange = limits.input
    options.domainRange = limits.domains
    options.probeSize = UInt32(limits.probeSize)
    options.maxDomains = limits.maxDomains
    options.maxMappings = limits.maxMappings
    options.maxMappingsPerDomain = limits.maxMappingsPerDomain
    for (endpoint, ranges) in limits.reserved {
      options.reservedMemoryOf[RequesterID(rawValue: endpoint)] = ranges.map { IOMMUReservedMemory($0) }
    }
    return try IOMMUDevice(memory, options: options)
  }
  if let problem { fatalError(problem) }
  return 0
}
