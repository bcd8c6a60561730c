"""Resampled reading, as published: webdataset's own endless draw of shards, with replacement.

Shards are read from front to back and need no index. There are no epochs; where a run goes on after a stop,
or on another number of ranks or loader processes, it goes on with other draws.
"""

import random
from collections.abc import Iterator

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from showo_data.raw import RawSample, nothing, reason_of
from showo_data.samples import FlowSpec
from showo_data.shards import expand, open_whole
from showo_data.streams import part_seed


class ResampledReader:
    """Any position → the next stored sample that this process draws."""

    def __init__(self, spec: FlowSpec) -> None:
        """Checks the names of the shards.

        Raises:
            FileNotFoundError, ValueError: as :func:`showo_data.shards.expand`.
        """
        self._spec = spec
        self._parts = [expand(part.urls, spec.storage) for part in spec.parts]
        self._draws: Iterator[RawSample] | None = None

    def __len__(self) -> int:
        return 0

    def read(self, position: int) -> RawSample:
        """The next sample; the first position that a process asks for is the seed of all its draws."""
        if self._draws is None:
            self._draws = self._mixed(part_seed(self._spec.seed, 1 + position))
        return next(self._draws)

    def _mixed(self, seed: int) -> Iterator[RawSample]:
        rng, weights = random.Random(seed), [part.weight for part in self._spec.parts]
        parts = [self._shuffled(shards, part_seed(seed, i)) for i, shards in enumerate(self._parts)]
        while True:
            yield next(rng.choices(parts, weights)[0])

    def _shuffled(self, shards: list[str], seed: int) -> Iterator[RawSample]:
        rng = random.Random(seed)
        drawn = webdataset.ResampledShards(
            shards, seed=seed, worker_seed=lambda: 0, deterministic=True
        )
        stored = (sample for source in drawn for sample in self._stored(source["url"]))
        return iter(webdataset.shuffle(self._spec.window, rng=rng)(stored))

    def _stored(self, shard: str) -> Iterator[RawSample]:
        """The samples of a shard, then what could not be read of it."""
        failures: list[Exception] = []

        def note(failure: Exception) -> bool:
            failures.append(failure)
            return True

        try:
            with open_whole(shard, self._spec.storage) as stream:
                opened = [{"url": shard, "stream": stream}]
                for sample in group_by_keys(tar_file_expander(opened, note), handler=note):
                    yield RawSample(shard, sample["__key__"], sample.get)
        except OSError as error:
            failures.append(error)
        for failure in failures:
            reason = reason_of(failure) if isinstance(failure, OSError) else "damaged-shard"
            yield RawSample(shard, "", nothing, reason)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_draws": None}
