import unittest

from verbs.manual_check import differences
from verbs.manual_page import Facts, Page, facts, text

RAW = """\
.Dd November 1, 2026
.Dt SLUICE.SERVE.BLK 1
.Os
.Sh NAME
.Nm sluice serve blk
.Nd "Serves a disk."
.Sh SYNOPSIS
.Nm
.Ar subcommand
.Op Fl -socket-path Ar socket-path
.Op Fl -num-queues Ar num-queues
.Op Ar command...
.Sh DESCRIPTION
See `--socket-path` and (-v).

Exit status: 0 after a signal, 2 for --nonsense.
.Bl -tag -width 6n
.It Fl -num-queues Ar num-queues
How many queues.
.It Fl -socket-path Ar socket-path
Where.
.El
.Sh "EXIT STATUS"
.Ex -std
.Sh "SEE ALSO"
.Xr sluice.serve 1
.Xr sluice.help 1
""".splitlines()

DUMP = {
    "commandName": "sluice",
    "subcommands": [
        {"commandName": "help", "abstract": "Help."},
        {
            "commandName": "serve",
            "abstract": "Serves.",
            "arguments": [
                {"kind": "option", "names": [{"name": "num-queues"}], "defaultValue": "1", "allValues": ["1", "2"]},
                {"kind": "flag", "names": [{"name": "quiet"}]},
                {"kind": "positional", "valueName": "command", "parsingStrategy": "postTerminator"},
            ],
        },
    ],
}


class PageTests(unittest.TestCase):
    def page(self, known: Facts) -> list[str]:
        usage = "sluice serve blk --socket-path <socket-path> [--num-queues <num-queues>] -- [<command> ...]"
        return list(Page("1.2", usage, "0 when all is well.", known).edited(RAW))

    def test_facts_are_kept_by_page(self) -> None:
        known = facts(DUMP)
        self.assertEqual(sorted(known), ["sluice", "sluice.serve"])
        self.assertEqual(known["sluice"].commands, [("serve", "Serves.")])
        self.assertEqual(known["sluice.serve"].details, {"num-queues": "values: 1, 2; default: 1"})
        self.assertEqual(known["sluice.serve"].command_lines, {"command"})

    def test_a_page_gets_what_it_lacks(self) -> None:
        known = Facts({"num-queues": "default: 1"}, {"command"}, [("blk", "A `disk`.")])
        page = self.page(known)
        self.assertIn(".Dt SLUICE-SERVE-BLK 1", page)
        self.assertIn('.Os "Sluice 1.2"', page)
        self.assertIn(".Fl -socket-path Ar socket-path", page)
        self.assertIn(".Op Fl -num-queues Ar num-queues", page)
        self.assertEqual(page[page.index(".Sh DESCRIPTION") - 1], ".Op Fl - Ar command...")
        self.assertIn(r"See \(oq\-\-socket\-path\(cq and (\-v).", page)
        self.assertEqual(page[page.index("How many queues.") + 1], "(default: 1)")
        self.assertEqual(page[page.index('.Sh "EXIT STATUS"') + 1], r"0 after a signal, 2 for \-\-nonsense.")
        self.assertEqual(page[page.index(".Sh COMMANDS") + 2 :][:2], [".It Cm blk", r"A \(oqdisk\(cq."])
        self.assertIn(".Xr sluice-serve 1", page)
        self.assertNotIn(".Xr sluice.help 1", page)

    def test_one_without_an_exit_status_has_that_of_the_whole_command(self) -> None:
        lines = [line for line in RAW if not line.startswith("Exit status")]
        page = list(Page("1.2", "", "0 when all is well.", Facts()).edited(lines))
        self.assertEqual(page[page.index('.Sh "EXIT STATUS"') + 1], "0 when all is well.")

    def test_running_text_has_dashes_that_can_be_copied(self) -> None:
        self.assertEqual(text("well-known  --an-option (-x)"), r"well-known \-\-an\-option (\-x)")


class DifferenceTests(unittest.TestCase):
    help = """\
OVERVIEW: Serves a disk.

USAGE: sluice serve blk --socket-path <socket-path> [--num-queues <num-queues>] -- [<command> ...]

OPTIONS:
  --socket-path <socket-path>
  -n, --num-queues <num-queues>

Exit status: 0 after a signal.
"""
    page = """\
.Sh SYNOPSIS
.Fl -socket-path Ar socket-path
.Op Fl - Ar command...
.Sh DESCRIPTION
.It Fl -socket-path Ar socket-path
.It Fl n , -num-queues Ar num-queues
.Sh "EXIT STATUS"
0 after a signal.
"""

    def test_a_page_that_says_the_same(self) -> None:
        self.assertEqual(differences(self.help, self.page), [])

    def test_what_is_missing_is_named(self) -> None:
        missing = {
            ".It Fl -socket-path Ar": "--socket-path",
            ".Fl -socket-path Ar socket-path\n.Op": "--socket-path must be given",
            ".Op Fl - Ar command...\n": "no -- before the command line",
            "0 after a signal.": "the exit status: 0 after a signal.",
        }
        for words, wrong in missing.items():
            self.assertIn(wrong, differences(self.help, self.page.replace(words, ".Pp\n")))
