// libFuzzer's entry: the one place outside Sources where a pointer is met. It is copied from and not kept.
@c(LLVMFuzzerTestOneInput)
public func fuzzOne(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
  let input = [UInt8](UnsafeBufferPointer(start: bytes, count: count))
  if let problem = ServerFuzz.run(input) { fatalError(problem) }
  return 0
}
