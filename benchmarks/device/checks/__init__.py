"""The device checks, one file each: `check(size, work)` yields rows as it finds them."""
