"""What a finished run achieved, as a page: read from the files it wrote, never computed anew."""


def main(argv: list[str]) -> int:
    """``showo-dist report``; see :mod:`showo_dist.report.cli`."""
    # imported late: trainers take their image grids from this package and need no plots
    from showo_dist.report.cli import main as write_report

    return write_report(argv)
