public import Virtio

extension DeviceProbe {
  /// A disk (§5.2). Nothing is ever written to it.
  public static let block: DeviceProbe = {
    // VIRTIO_BLK_T_IN of sector 0, and its status.
    let read = Request(readable: [[UInt8](repeating: 0, count: 16)], writable: [512, 1])
    var probe = DeviceProbe("blk", request: read) { answer in
      guard answer.pieces[1] == [0] else { return "the read's status is \(answer.pieces[1][0])" }
      guard let reference = answer.reference, reference != answer.pieces[0] else { return nil }
      return "the read brought other bytes than the first one did"
    }
    probe.answersAreAlike = true
    probe.configurationSize = 60
    probe.longRing = 1024
    probe.features = Set(0...17).subtracting([3, 8])
    // SEG_MAX, GEOMETRY, BLK_SIZE, FLUSH, TOPOLOGY, CONFIG_WCE, MQ.
    probe.usualFeatures = [2, 4, 6, 9, 10, 11, 12]
    // VIRTIO_BLK_T_GET_ID: the serial, and its status.
    probe.quickRequest = { pieces in
      Request(
        readable: [[8] + [UInt8](repeating: 0, count: 15)],
        writable: [20] + [Int](repeating: 20, count: max(0, pieces - 3)) + [1])
    }
    return probe
  }()
}
