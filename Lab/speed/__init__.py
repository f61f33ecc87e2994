"""Measures disks in guests with fio; `Scripts/speed` starts it."""
