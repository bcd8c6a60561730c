"""How commands reach shards: the same as ``data.*`` in a training config, as options."""

import argparse

from showo_data.shards import Storage


def add_storage_options(parser: argparse.ArgumentParser) -> None:
    """Add options for everything that :class:`showo_data.shards.Storage` lets a user choose."""
    group = parser.add_argument_group("remote shards")
    default = Storage()
    group.add_argument("--cache-dir", help="folder for indices and cached shards")
    group.add_argument(
        "--cache-gb",
        type=float,
        default=default.cache_gb,
        help="gigabytes of whole shards to keep there; default %(default)s",
    )
    group.add_argument(
        "--retries",
        type=int,
        default=default.retries,
        help="of a failed request; default %(default)s",
    )
    group.add_argument("--allow-pipe", action="store_true", help="run the commands of pipe: URLs")


def storage_of(arguments: argparse.Namespace) -> Storage:
    """What the options say.

    Raises:
        ValueError: a number below 0.
    """
    for name in ("cache_gb", "retries"):
        value = getattr(arguments, name)
        if value < 0:
            raise ValueError(f"--{name.replace('_', '-')} must be at least 0, not {value}")
    return Storage(
        cache_dir=arguments.cache_dir,
        cache_gb=arguments.cache_gb,
        retries=arguments.retries,
        allow_pipe=arguments.allow_pipe,
    )
