/// Which rules of `Documentation/rules.md`, R001 to R142, a front-end can observe.
///
/// A check covers the rule in its `rule` and those that its sentence names. What it covers besides, without saying so,
/// is in `also`; `unseen` says of every other rule why no check is made.
enum RuleCoverage {
  /// Rules that checks cover without naming them, each with these checks.
  static let also: [Int: [String]] = [
    1: ["translated"], 2: ["packed"], 10: ["no-misses-without"], 13: ["no-misses-without", "without-after-with"],
    29: ["indirect-translated"],
    40: ["ring-moved"], 42: ["ring-unmapped"], 66: ["empty-at-first"], 72: ["empty-success"], 74: ["event-index"],
    85: ["write-only-page"],
    88: ["partly-mapped"], 89: ["available-far"], 93: ["empty-success", "ring-lost"], 120: ["scattered-buffer"],
    121: ["big-working-set"], 138: ["log-translated"],
  ]

  private static let frontend = "The front-end's part: over vhost-user the back-end is told of the result only."
  private static let platform = "About buses and IOMMUs, which the front-end keeps; a back-end has a socket."
  private static let legacy = "The legacy interface ends in the front-end."
  private static let devices = "About device types that no check drives."
  private static let several = "Needs several devices or machines; a check has one connection to one back-end."

  static let unseen: [Int: String] = {
    var list: [Int: String] = [:]
    for rule in [8, 9, 18, 19, 61, 92, 104, 123, 125, 128, 129, 130, 131, 137, 139, 140] { list[rule] = frontend }
    for rule in [12, 22] + Array(30...39) + [67, 68, 70, 75, 80, 81, 96, 97, 98] { list[rule] = platform }
    for rule in 23...28 { list[rule] = legacy }
    for rule in 56...58 { list[rule] = devices }
    for rule in [77, 78, 79, 82, 141] { list[rule] = several }
    list[3] = "How a back-end was started cannot be seen from its socket."
    list[4] = "How a back-end was started cannot be seen from its socket."
    list[63] = "No vhost-user message suspends a device; `disabled` is the nearest."
    list[71] = "A kick is an eventfd and carries nothing at all."
    list[73] = "Over vhost-user a queue that failed may signal its error descriptor; the document does not demand it."
    list[90] = "One of two policies that are both allowed; `broken rings` accept either."
    list[95] = "Looking ahead is a MISS like any other to a front-end, and a MISS is no fault."
    list[99] =
      "A queue that waits for a translation is to go on when it comes (R115); vhost-user does not tell that from a fault."
    list[133] =
      "Needs one page at two guest addresses, and most back-ends refuse regions that share front-end addresses."
    list[142] = "This front-end does not do post-copy (PAGEFAULT)."
    return list
  }()
}
