"""A page to look at: images of checkpoints side by side, the rounds of an image, training curves."""


def main(argv: list[str]) -> int:
    """``showo-dist gallery``; see :mod:`showo_dist.report.gallery.cli`."""
    from showo_dist.report.gallery.cli import main as show

    return show(argv)
