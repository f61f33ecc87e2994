/// The value of `body`; its error becomes the one that `transform` makes of it.
///
/// For an error that is one case of the caller's: `try rethrowing(driver.flush(), as: MachineError.driver)`.
@inlinable
package func rethrowing<Value: ~Copyable, Inner: Error, Outer: Error>(
  _ body: @autoclosure () throws(Inner) -> Value, as transform: (Inner) -> Outer
) throws(Outer) -> Value {
  do throws(Inner) { return try body() } catch { throw transform(error) }
}

/// The value of `body`; of its error the words are left, in the error that `transform` makes of them.
///
/// For an error that the caller's tells in words only: `try rethrowing(EventFD(), saying: DeviceError.init)`.
@inlinable
package func rethrowing<Value: ~Copyable, Outer: Error>(
  _ body: @autoclosure () throws -> Value, saying transform: (String) -> Outer
) throws(Outer) -> Value {
  do { return try body() } catch { throw transform("\(error)") }
}
