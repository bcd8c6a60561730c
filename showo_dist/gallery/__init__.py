"""A page to look at: pictures of checkpoints side by side, the rounds of a picture, training curves."""


def main(argv: list[str]) -> int:
    """``showo-dist gallery``; see :mod:`showo_dist.gallery.cli`."""
    from showo_dist.gallery.cli import (
        main as show,
    )  # imports the models, which --help does not need

    return show(argv)
