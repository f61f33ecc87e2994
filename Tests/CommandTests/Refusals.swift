import Foundation
import Testing
import VirtioTestKit

/// Ways to start a command so that this host refuses it something.
enum Refusal {
  /// The kernel refuses io_uring with an error number.
  static func ring(_ error: Int32) -> [String] { filter("425", error) }
  /// The kernel refuses the locks of open file descriptions: F_OFD_GETLK, F_OFD_SETLK.
  static func locks(_ error: Int32) -> [String] { filter("72", error, "36", "37") }

  /// Whether these ways are there: the numbers are those of x86-64.
  static var isThere: Bool {
    #if arch(x86_64)
      true
    #else
      false
    #endif
  }

  /// A launcher that puts a seccomp filter over the command: system call `call` fails with `error`, if its second
  /// argument is one of `arguments` or none is given.
  private static func filter(_ call: String, _ error: Int32, _ arguments: String...) -> [String] {
    // perl is part of every Debian. The filter looks at the number, then at the argument, instruction by instruction.
    let program = #"""
      my ($call, $error, $count) = splice @ARGV, 0, 3; my @arguments = splice @ARGV, 0, $count;
      my @code = ([0x20, 0, 0, 0], [0x15, 0, $count ? 2 + $count : 1, $call]);
      if ($count) {
        push @code, [0x20, 0, 0, 24];
        for my $i (0 .. $count - 1) { push @code, [0x15, $count - 1 - $i, $i == $count - 1 ? 1 : 0, $arguments[$i]] }
      }
      push @code, [0x06, 0, 0, 0x50000 | $error], [0x06, 0, 0, 0x7fff0000];
      my $code = join "", map { pack "SCCL", @$_ } @code; my $filter = pack "Sx6P", scalar @code, $code;
      syscall(157, 38, 1, 0, 0, 0) == 0 && syscall(157, 22, 2, $filter) == 0 || die "no filter: $!"; exec @ARGV
      """#
    return ["/usr/bin/perl", "-e", program, call, "\(error)", "\(arguments.count)"] + arguments
  }
}

/// Ways to start a command whose standard error is of little use.
enum StandardError: String, CaseIterable, CustomTestStringConvertible {
  case closed, full, unread

  var testDescription: String { rawValue }

  /// Through a shell, with a folder for what it needs.
  func launcher(_ folder: TemporaryFolder) -> [String] {
    let script =
      switch self {
      case .closed: #"exec "$@" 2>&-"#
      case .full: #"exec "$@" 2>/dev/full"#
      // A pipe that holds 64 KiB, full, and open at both ends for as long as the command runs.
      case .unread: #"mkfifo "$0/pipe" && exec 3<>"$0/pipe" && head -c 65536 /dev/zero >&3 && exec "$@" 2>&3"#
      }
    return ["/bin/sh", "-c", script, folder.url.path]
  }
}
