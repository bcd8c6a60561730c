"""The ``showo-dist`` command: one word picks a tool, the rest goes to it."""

import sys
from importlib import import_module

# name -> (module, function taking argv and returning the exit code, help line); imported when called
COMMANDS: dict[str, tuple[str, str, str]] = {
    "mini": (
        "showo_dist.mini",
        "main",
        "the whole story on the mini world, from pictures to report",
    ),
    "config": ("showo_dist.config.cli", "main", "print a resolved config, or say what is wrong"),
    "mini-data": ("showo_data.cli", "main_mini", "write the mini world as WebDataset shards"),
    "shards": ("showo_data.cli", "main_shards", "index, verify or show shards"),
    "text-tokenizer": (
        "showo_dist.sequences.train_tokenizer",
        "main",
        "train a text tokenizer on the texts of shards",
    ),
    "tokenizer": ("showo_dist.tokenizer.cli", "main", "train an image tokenizer on any shards"),
    "encode": (
        "showo_dist.tokenizer.encode",
        "main_encode",
        "encode pictures once, ahead of training",
    ),
    "train": ("showo_dist.train", "main", "train Show-o or RecA in this one process"),
    "evaluate": ("showo_dist.evaluation", "main", "paint, answer and score"),
    "report": ("showo_dist.report", "main", "write the report of a run"),
}


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "usage: showo-dist COMMAND ...\n\n" + "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"showo-dist: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    module, function, _ = COMMANDS[name]
    try:
        return int(getattr(import_module(module), function)(rest) or 0)
    except (ValueError, OSError) as error:  # what a user can mend: one line, no traceback
        print(f"showo-dist {name}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
