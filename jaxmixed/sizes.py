"""Sizes that arrays are padded to, so that data sets of similar shape share one compiled program."""


def grid_size(m: int) -> int:
    """Smallest size of a geometric grid (1, 2, 3, 4, 6, 8, 12, ...) that holds `m` entries.

    Examples
    --------
    >>> grid_size(18), grid_size(1000), grid_size(1)
    (24, 1024, 1)
    """
    power = 1 << max(m - 1, 0).bit_length()
    return 3 * power // 4 if power >= 4 and m <= 3 * power // 4 else power


def root_size(columns: int) -> int:
    """Size of a root of so many columns: at most a sixteenth more, for its cost grows with the third power.

    Examples
    --------
    >>> root_size(6), root_size(100), root_size(1142)
    (6, 100, 1152)
    """
    step = 1 << max(columns.bit_length() - 5, 0)
    return -(-columns // step) * step
