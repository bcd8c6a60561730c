"""Write the inputs of a conversion to shards: shard n holds the inputs from n · size on.

So any shard can be written without the others, and equal inputs and settings give equal bytes. An input that
cannot be used is absent from its shard. The journal ``PREFIX.convert.jsonl`` beside the shards holds the
settings and one line per finished shard; a conversion resumes after the last one. Several processes may each
write a part of the shards, each with its own journal.
"""

import errno
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from showo_data.convert.items import Item, Members, Note, Pieces, is_passing
from showo_data.files import remove_unfinished, unlike, written_aside
from showo_data.members import BadSampleError
from showo_data.readers import reason_of
from showo_data.shards import index_path, load_index, write_shard

DIGEST = "_sha256"  # end of the name of a setting that is the digest of a side file
_UNCAPTIONED = "without a caption"


@dataclass(frozen=True, kw_only=True)
class Target:
    """The shards to write.

    Attributes:
        out: their folder; created when it is missing.
        prefix: the shards are ``PREFIX-000000.tar`` and so on.
        shard_size: inputs per shard.
        limit: number of inputs to convert; None: all.
        part: (i, n): write only every n-th shard, from number i on.
        settings: everything else that decides the content; a folder and prefix hold one conversion only.
    """

    out: Path
    prefix: str = "train"
    shard_size: int = 1000
    limit: int | None = None
    part: tuple[int, int] = (0, 1)
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in (("--shard-size", self.shard_size), ("--limit", self.limit)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        if not 0 <= self.part[0] < self.part[1]:
            raise ValueError(f"--part must be I/N with 0 ≤ I < N, not {'{}/{}'.format(*self.part)}")
        if not self.prefix or set(self.prefix) & set("/{},"):
            raise ValueError(f"--prefix must be a plain name, not {self.prefix!r}")

    def shard(self, number: int) -> Path:
        """The path of shard ``number``."""
        return self.out / f"{self.prefix}-{number:06d}.tar"

    @property
    def journal(self) -> Path:
        """The path of this part's journal."""
        number, parts = self.part
        middle = f".part-{number}-of-{parts}" if parts > 1 else ""
        return self.out / f"{self.prefix}{middle}.convert.jsonl"

    @property
    def journals(self) -> list[Path]:
        """The paths of the journals of all parts that exist, and of the whole."""
        whole = self.out / f"{self.prefix}.convert.jsonl"
        return sorted({*self.out.glob(f"{self.prefix}.part-*.convert.jsonl"), whole})

    def has(self, number: int) -> bool:
        """Whether shard ``number`` belongs to this part."""
        return number % self.part[1] == self.part[0]


@dataclass(slots=True)
class Report:
    """The result of a conversion, including that of earlier calls that it resumed.

    Attributes:
        shards, inputs, samples: their numbers in this part.
        all_shards: number of shards of all parts.
        kept: shards that an earlier call finished.
        skipped: inputs, and parts of inputs, that cannot be used, by reason.
        notes: what else is counted, such as samples without a text; see
            :class:`showo_data.convert.items.Note`.
        examples: the first place of each reason and note.
    """

    shards: int = 0
    all_shards: int = 0
    inputs: int = 0
    samples: int = 0
    kept: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, record: dict[str, Any]) -> None:
        """Add a finished shard, given its line of the journal."""
        self.shards += 1
        self.inputs += record["inputs"]
        self.samples += record["samples"]
        self.skipped.update(record["skipped"])
        self.notes.update(record.get("notes", {}))
        self.examples = record["examples"] | self.examples
        if "uncaptioned" in record:  # of an older version
            self.notes[_UNCAPTIONED] += record["uncaptioned"]
            self.examples.setdefault(_UNCAPTIONED, record["first_uncaptioned"])

    def note(self, note: Note) -> None:
        """Count a note."""
        self.notes[note.what] += 1
        self.examples.setdefault(note.what, note.where)

    def summary(self) -> str:
        """Describe the result: one line with the totals, one per reason for skipped inputs and per note."""
        kept = f" ({self.kept} from before)" if self.kept else ""
        lines = [f"{self.shards} shards{kept}, {self.samples} samples of {self.inputs} inputs"]
        for reason, count in self.skipped.most_common():
            lines.append(f"skipped {count}: {reason}, first {self.examples[reason]}")
        for what, count in self.notes.items():
            lines.append(f"{what}: {count}, first {self.examples[what]}")
        # Names of files need not be UTF-8, and have to be printed all the same.
        return "\n".join(lines).encode(errors="backslashreplace").decode()


def convert(
    items: Iterable[Item | Note],
    target: Target,
    progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Write ``items`` to shards with their indices; ``progress`` is called after each shard.

    Raises:
        ValueError: ``target`` holds a conversion with other settings or inputs, or no input can be used.
        OSError: a server or this machine fails; the next call resumes at the shard that was being written.
    """
    report = Report()
    chunks = _chunks(_inputs(items, report), target)
    first = next(chunks, [])  # errors in the arguments are raised here, before anything is written
    target.out.mkdir(parents=True, exist_ok=True)
    done = _finished_shards(target)
    for number, chunk in enumerate(chain([first] if first else [], chunks)):
        report.all_shards += 1
        record = done.pop(target.shard(number).name, None)
        if not target.has(number):
            continue
        if record is not None:
            _refuse_other_inputs(record, chunk, target)
        if record is not None and _is_finished(target.shard(number), record, len(chunk)):
            report.kept += 1
        else:
            record = _write(target.shard(number), number * target.shard_size, chunk)
            _note(target.journal, record)
        report.add(record)
        progress(report)
    if done:
        raise _other_inputs(
            min(done), "of inputs that are not there now (a smaller --limit?)", target
        )
    if not report.samples and (report.shards or not report.all_shards):
        why = report.summary().replace("\n", "; ")
        raise ValueError(f"nothing was converted to {target.out}: {why}")
    return report


def _inputs(items: Iterable[Item | Note], report: Report) -> Iterator[Item]:
    """Yield the inputs, and count the notes between them."""
    for item in items:
        if isinstance(item, Note):
            report.note(item)
        else:
            yield item


def _chunks(items: Iterable[Item], target: Target) -> Iterator[list[Item]]:
    rest = islice(items, target.limit)
    while chunk := list(islice(rest, target.shard_size)):
        yield chunk


def _write(shard: Path, first: int, chunk: list[Item]) -> dict[str, Any]:
    """Write one shard of the inputs from number ``first`` on; returns its line for the journal."""
    remove_unfinished(shard.parent, shard.name)
    part = Report()

    def samples() -> Iterator[dict[str, Any]]:
        for number, item in enumerate(chunk, start=first):
            pieces = _load(item)
            for piece in pieces:
                if isinstance(piece, BadSampleError):
                    part.skipped[str(piece)] += 1
                    part.examples.setdefault(str(piece), item.name)
                elif isinstance(piece, Note):
                    part.note(piece)
            loaded = [piece for piece in pieces if isinstance(piece, dict)]
            for place, members in enumerate(loaded):
                key = f"{number:010d}" if len(loaded) == 1 else f"{number:010d}-{place:04d}"
                if not members.keys() & {"txt", "json"}:
                    part.note(Note(_UNCAPTIONED, item.name))
                yield {"__key__": key, **members}

    count = write_shard(shard, samples())
    record = {
        "shard": shard.name,
        "content": _digest(chunk),
        "inputs": len(chunk),
        "samples": count,
        "skipped": dict(part.skipped),
        "examples": part.examples,
    }
    return record | ({"notes": dict(part.notes)} if part.notes else {})


def _refuse_other_inputs(record: dict[str, Any], chunk: list[Item], target: Target) -> None:
    """Inputs added between others, changed or removed would leave some out and give some twice."""
    if len(chunk) < record["inputs"]:
        what = f"of {record['inputs']} inputs, of which {len(chunk)} are there now (a smaller --limit?)"
        raise _other_inputs(record["shard"], what, target)
    before = chunk[: record["inputs"]]
    # An older version noted the names alone, or nothing.
    noted = record.get("content", record.get("names"))
    if noted not in (None, _digest(before, marks="content" in record)):
        what = f"of other inputs than there are now, the first {chunk[0].name}"
        raise _other_inputs(record["shard"], what, target)


def _other_inputs(shard: str, what: str, target: Target) -> ValueError:
    return ValueError(
        f"{target.out / shard}: was made {what}: choose another --out or --prefix, or remove "
        f"{target.journal.name} and its shards"
    )


def _digest(chunk: list[Item], *, marks: bool = True) -> str:
    """A digest of the names and marks of a shard's inputs, in order."""
    lines = (f"{item.name}\n{item.mark}" if marks else item.name for item in chunk)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _load(item: Item) -> Pieces:
    """Load an input: its samples with their texts as UTF-8, and the reasons of what is left out.

    Raises:
        OSError: as :func:`convert`; it names the input.
    """
    try:
        return [_as_utf8(p) if isinstance(p, dict) else p for p in item.load()]
    except BadSampleError as bad:
        return [bad]
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can name
        return [BadSampleError("not-utf8")]
    except OSError as error:
        if is_passing(error):  # the shard would lack the input for good
            message = f"{error}; the same command again resumes at this shard"
            raise OSError(error.errno or errno.EIO, message, item.name) from error
        return [BadSampleError(reason_of(error))]
    except Exception as error:  # no input may end a conversion of millions, whatever is in it
        return [BadSampleError(f"unexpected-{type(error).__name__}")]


def _as_utf8(members: Members) -> Members:
    if isinstance(members.get("json"), dict):
        json.dumps(
            members["json"], ensure_ascii=False
        ).encode()  # escaped, the half would be written
    return {
        extension: value.encode() if isinstance(value, str) else value
        for extension, value in members.items()
    }


def _is_finished(shard: Path, record: dict[str, Any], inputs: int) -> bool:
    """Whether a shard exists as described by its line of the journal, with all its inputs."""
    if record["inputs"] != inputs or not shard.exists() or not index_path(str(shard)).exists():
        return False
    return load_index(str(shard))[0].samples == record["samples"]


def _finished_shards(target: Target) -> dict[str, dict[str, Any]]:
    """Return the journal lines of the finished shards of all parts; begins this part's journal if necessary.

    Raises:
        ValueError: a journal is of a conversion with other settings.
    """
    settings = {**target.settings, "shard_size": target.shard_size}
    done: dict[str, dict[str, Any]] = {}
    begun = False
    for journal in target.journals:
        lines = list(_complete_lines(journal)) if journal.exists() else []
        if len(lines) < 2:  # no shard was finished
            continue
        # An older version noted no digests of side files.
        unknown = [name for name in settings.keys() - lines[0] if name.endswith(DIGEST)]
        if differences := unlike(lines[0], settings, unknown):
            raise ValueError(
                f"{journal} belongs to a conversion with other settings, {differences}: "
                "name another --out or --prefix, or remove it and its shards"
            )
        done |= {record["shard"]: record for record in lines[1:]}
        begun |= journal == target.journal
    if not begun:
        with written_aside(target.journal) as stream:
            stream.write(json.dumps(settings).encode() + b"\n")
    return done


def _complete_lines(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal, without one that a killed process left incomplete."""
    for line in journal.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue


def _note(journal: Path, record: dict[str, Any]) -> None:
    """Append a line to the journal."""
    with journal.open("r+b") as stream:
        if stream.seek(0, 2) and stream.seek(-1, 2) >= 0 and stream.read(1) != b"\n":
            stream.write(b"\n")  # a killed process left an incomplete line
        stream.write(json.dumps(record).encode() + b"\n")
