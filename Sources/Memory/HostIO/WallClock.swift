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
    // Rounded down, before 1970 as well.
    let fraction = (milliseconds % 1000 + 1000) % 1000
    var seconds = time_t((milliseconds - fraction) / 1000)
    // Safe: two structures, read and written before the call returns; of the second only its integers are read.
    var date = unsafe tm()
    _ = unsafe gmtime_r(&seconds, &date)
    func padded<T: BinaryInteger>(_ value: T, _ width: Int) -> String {
      let digits = String(value)
      return String(repeating: "0", count: max(0, width - digits.count)) + digits
    }
    let day = unsafe [padded(date.tm_year + 1900, 4), padded(date.tm_mon + 1, 2), padded(date.tm_mday, 2)].joined(
      separator: "-")
    let time = unsafe [date.tm_hour, date.tm_min, date.tm_sec].map { padded($0, 2) }.joined(separator: ":")
    return "\(day)T\(time).\(padded(fraction, 3))Z"
  }
}
