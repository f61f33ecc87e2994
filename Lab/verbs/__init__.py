"""The verbs of `make` that are longer than a few lines of shell; `Scripts/NAME` starts each."""
