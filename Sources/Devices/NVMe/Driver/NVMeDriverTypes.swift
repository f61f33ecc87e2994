public import DMA
public import DriverDMA
public import IOMMUInterface

/// How a command of ``NVMeDriver`` describes its data to the controller.
public enum NVMeDataFormat: Hashable, Sendable {
  /// Physical region pages: between the first and the last byte every piece begins and ends on a page of 4096 bytes.
  case prp
  /// Scatter gather lists: pieces of any size, anywhere; the controller has to offer them.
  case sgl
}

/// The options of ``NVMeDriver``, with defaults.
public struct NVMeDriverOptions {
  /// Pairs of I/O queues to make, as many as the controller has at most; at least 1.
  public var queues: Int
  /// Entries of each queue, at least 2; fewer where the controller takes fewer. One less can be under way.
  public var queueSize: Int
  /// How commands name their data.
  public var format: NVMeDataFormat
  /// The most pieces of data in a command, after those that are too long for one mapping were cut: 1...256.
  public var maxSegments: Int
  /// Messages for the admin queue and each I/O queue: MSI-X is enabled with them. Empty: no interrupts, the driver
  /// looks.
  public var messages: [InterruptMessage]
  /// Whether doorbells are in memory where the controller offers that (Doorbell Buffer Config): most of them then need
  /// no register.
  public var usesShadowDoorbells = false
  /// How long it waits for the controller.
  public var wait: BoundedWait

  public init(
    queues: Int = 1, queueSize: Int = 64, format: NVMeDataFormat = .prp, maxSegments: Int = 128,
    messages: [InterruptMessage] = [],
    wait: BoundedWait = BoundedWait()
  ) {
    self.queues = queues
    self.queueSize = queueSize
    self.format = format
    self.maxSegments = maxSegments
    self.messages = messages
    self.wait = wait
  }
}

/// Why ``NVMeDriver`` cannot go on, or a command failed.
public enum NVMeDriverError: Error, Hashable, Sendable, CustomStringConvertible {
  /// The function is no NVMe controller: its class code.
  case notNVMe(classCode: UInt32)
  /// The controller needs something that the driver does not have: its CAP.
  case capabilities(UInt64)
  /// The controller has not become ready, or not become idle, in the time allowed: its CSTS.
  case notReady(NVMeControllerStatus)
  /// The controller cannot go on (CSTS.CFS): only a reset helps.
  case fatal
  /// It has not as many MSI-X vectors as there are messages.
  case vectors(Int)
  /// SGLs are asked for, and not offered.
  case noSGLs
  /// The driver was stopped: make a new one.
  case stopped
  /// Memory could not be mapped, or not be taken back.
  case dma(DMAError)
  /// As many commands are under way as the queue takes.
  case queueFull
  /// The controller did not answer in the time allowed. The command's memory stays its until it does, or is reset
  /// (R179).
  case timeout
  /// A command has so many pieces of data, and may have at most this many.
  case segments(Int, maximum: Int)
  /// Data has a border here, and PRPs take only whole pages between the first and the last: use SGLs.
  case alignment(DMAAddress)
  /// The request makes no sense for this disk: past its end, no whole blocks, longer than the controller takes, no such
  /// queue.
  case request
  /// The controller could not do it, and says why.
  case status(NVMeStatus)
  /// The controller completed a command that the driver never sent.
  case unexpected(identifier: UInt16)

  public var description: String {
    switch self {
    case .notNVMe(let code): "a function of class 0x\(String(code, radix: 16)) is no NVMe controller"
    case .capabilities(let value):
      "the controller's capabilities 0x\(String(value, radix: 16)) lack 4 KiB pages or the NVM command set"
    case .notReady(let status):
      "the controller did not change its state in the time allowed: CSTS is \(status.rawValue)"
    case .fatal: "the controller reports a fatal status, and has to be reset: perhaps it cannot reach its queues"
    case .vectors(let count): "the controller has only \(count) MSI-X vectors"
    case .noSGLs: "the controller does not offer SGLs: use PRPs"
    case .stopped: "the driver was stopped"
    case .dma(let error): "memory: \(error)"
    case .queueFull: "the queue is full: complete commands first"
    case .timeout: "the controller did not answer in the time allowed"
    case .segments(let count, let maximum):
      "\(count) pieces of data are more than the \(maximum) that a command may have"
    case .alignment(let address):
      "data is cut at 0x\(String(address.rawValue, radix: 16)), inside a page: PRPs cannot say that, SGLs can"
    case .request: "the request does not fit this disk"
    case .status(let status):
      """
      the controller answered status type \(status.rawValue >> 8 & 7), \
      code 0x\(String(status.rawValue & 255, radix: 16))
      """
    case .unexpected(let identifier): "the controller completed command \(identifier), which was not under way"
    }
  }
}

/// A command's number, never used twice by the same driver.
public struct NVMeTag: Hashable, Sendable {
  /// The I/O queue it is in, from 0.
  public let queue: Int
  let number: UInt64
}

/// A command that has ended.
public struct NVMeCompletion: Hashable, Sendable {
  /// What submitting it returned.
  public var tag: NVMeTag
  /// Dword 0 of the answer.
  public var result: UInt32
  /// Why it failed, or nil.
  public var error: NVMeDriverError?
}
