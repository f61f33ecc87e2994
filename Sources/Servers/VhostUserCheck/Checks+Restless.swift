internal import DMA
internal import Examination
internal import VhostUser
internal import VhostUserFrontend
internal import Virtio

extension Check {
  /// Messages while a driver never pauses.
  static let restless: [Check] = [
    Check("restless", "split", "A request that takes its time is completed while the driver never pauses.") {
      context throws(Finding) in
      let session = try context.session(RestlessDriver.setup(context, Setup()))
      let driver = try RestlessDriver(session)
      for _ in 0..<4 { try driver.expectMore() }
      return "four requests were served among \(driver.served)"
    },
    Check(
      "restless-invalidate", "R110", "An INVALIDATE is acknowledged while the driver never pauses.",
      features: .accessPlatform
    ) { context throws(Finding) in
      try undisturbed(context, .platform) { frontend throws(FrontendError) in
        try frontend.invalidate(from: DMAAddress(0x5000_0000_0000), through: DMAAddress(0x5000_0000_0fff))
      }
    },
    Check(
      "restless-memory", "SET_MEM_TABLE", "A memory table is taken while the driver never pauses."
    ) { context throws(Finding) in
      let setup = Setup(protocolFeatures: Frontend.usualProtocolFeatures.subtracting(.configureMemorySlots))
      return try undisturbed(context, setup) { frontend throws(FrontendError) in try frontend.share() }
    },
    Check(
      "restless-log", "SET_LOG_BASE", "Logging is switched on while the driver never pauses.",
      features: Frontend.logAllBit, protocolFeatures: .logSharedMemory
    ) { context throws(Finding) in
      try undisturbed(context, Setup()) { frontend throws(FrontendError) in _ = try frontend.startLogging() }
    },
    Check("restless-stop", "GET_VRING_BASE", "A ring can be stopped while its driver never pauses.") {
      context throws(Finding) in
      let queue = context.device.queue
      return try ended(context, "after GET_VRING_BASE was answered requests were served") {
        frontend throws(FrontendError) in
        _ = try frontend.stopQueue(queue)
      }
    },
    Check(
      "restless-disable", "SET_VRING_ENABLE", "A ring can be disabled while its driver never pauses.",
      features: Frontend.protocolFeaturesBit
    ) { context throws(Finding) in
      let queue = context.device.queue
      // The protocol leaves open what a network device does on a disabled ring.
      if context.device.ringsStopAlone {
        return try undisturbed(context, Setup()) { frontend throws(FrontendError) in
          try frontend.enable(queue, false)
          try frontend.enable(queue, true)
        }
      }
      return try ended(context, "after the ring was disabled requests were served") { frontend throws(FrontendError) in
        try frontend.enable(queue, false)
      }
    },
  ]

  /// The message is answered, and the ring goes on.
  private static func undisturbed(
    _ context: CheckContext, _ setup: Setup, _ messages: @escaping @Sendable (Frontend) throws(FrontendError) -> Void
  ) throws(Finding) -> String {
    let session = try context.session(RestlessDriver.setup(context, setup))
    let driver = try RestlessDriver(session)
    try driver.expectMore()
    let time = try driver.goOn(messages)
    let served = driver.served
    try driver.expectMore()
    return "answered after \(milliseconds(time)) ms, while \(served) requests were served, and the ring went on"
  }

  /// The message is answered, and nothing is served from then on.
  private static func ended(
    _ context: CheckContext, _ otherwise: String,
    _ messages: @escaping @Sendable (Frontend) throws(FrontendError) -> Void
  ) throws(Finding) -> String {
    let session = try context.session(RestlessDriver.setup(context, Setup()))
    let driver = try RestlessDriver(session)
    try driver.expectMore()
    let time = try driver.goOn(messages)
    try driver.expectNothing(otherwise)
    return "answered after \(milliseconds(time)) ms, \(driver.served) requests were served before and none after it"
  }
}
