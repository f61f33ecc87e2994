/// A number and what it counts: `1 queue`, `2 queues`.
package func counted<T: BinaryInteger>(_ number: T, _ one: String, _ more: String? = nil) -> String {
  "\(number) \(number == 1 ? one : more ?? one + "s")"
}
