"""Side by side with what a user would pick instead, in one run: ``make bench``. See `docs/performance.md`."""
