# The rows of `make try` that come from `sluice explain --json`. Sourced by Scripts/try.
