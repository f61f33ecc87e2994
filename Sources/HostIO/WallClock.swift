internal import Glibc

/// The time of day, as clocks on walls show it: for logs. It can jump.
public enum WallClock {
  /// Now, in milliseconds since 1970 began, in UTC.
  public static func now() -> Int64 {
    var time = timespec()
    // Safe: one structure, written before the call returns.
    guard unsafe clock_gettime(CLOCK_REALTIME, &time) == 0 else { return 0 }
    return Int64(time.tv_sec) * 1000 + Int64(time.tv_nsec) / 1_000_000
  }

  /// A time as RFC 3339 writes it: `2026-11-29T15:57:45.250Z`.
  public static func text(_ milliseconds: Int64) -> String {
    let (days, ofDay) = milliseconds.quotientAndFloor(86_400_000)
    let (year, month, day) = date(days)
    func padded(_ value: Int64, _ width: Int) -> String {
      let digits = String(value)
      return String(repeating: "0", count: max(0, width - digits.count)) + digits
    }
    let time = [ofDay / 3_600_000, ofDay / 60_000 % 60, ofDay / 1000 % 60].map { padded($0, 2) }.joined(separator: ":")
    return "\(padded(year, 4))-\(padded(month, 2))-\(padded(day, 2))T\(time).\(padded(ofDay % 1000, 3))Z"
  }

  /// The date of a day, counted from 1970-01-01. Years are counted from March on, so that a leap day is the last one,
  /// and in turns of 400, which are all of one length.
  private static func date(_ days: Int64) -> (year: Int64, month: Int64, day: Int64) {
    let (turn, ofTurn) = (days + 719_468).quotientAndFloor(146_097)
    // A year less for each leap day before this one that made a year longer; every century one of them is missing.
    let ofYear = (ofTurn - ofTurn / 1460 + ofTurn / 36_524 - ofTurn / 146_096) / 365
    let dayOfYear = ofTurn - (365 * ofYear + ofYear / 4 - ofYear / 100)
    // From March on the months have 31, 30, 31, 30, 31 days, again and again: 153 in five.
    let fromMarch = (5 * dayOfYear + 2) / 153
    let month = fromMarch < 10 ? fromMarch + 3 : fromMarch - 9
    return (turn * 400 + ofYear + (month <= 2 ? 1 : 0), month, dayOfYear - (153 * fromMarch + 2) / 5 + 1)
  }
}

extension Int64 {
  /// The quotient rounded down, and what is left, which is never negative.
  fileprivate func quotientAndFloor(_ divisor: Int64) -> (Int64, Int64) {
    let (quotient, rest) = quotientAndRemainder(dividingBy: divisor)
    return rest < 0 ? (quotient - 1, rest + divisor) : (quotient, rest)
  }
}
