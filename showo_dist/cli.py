"""The ``showo-dist`` command: one word picks a tool, the rest goes to it."""

import os
import sys
from importlib import import_module

from showo_dist.runtime.exits import StoppedError, exit_plainly

# name -> (module, function taking argv and returning the exit code, help line); imported when called
COMMANDS: dict[str, tuple[str, str, str]] = {
    "mini": (
        "showo_dist.mini",
        "main",
        "the whole story on the mini world, from images to report",
    ),
    "config": ("showo_dist.config.cli", "main", "print a resolved config, or say what is wrong"),
    "mini-data": ("showo_data.cli", "main_mini", "write the mini world as WebDataset shards"),
    "shards": ("showo_data.cli", "main_shards", "index, verify or show shards"),
    "text-tokenizer": (
        "showo_dist.sequences.train_tokenizer",
        "main",
        "train a text tokenizer on the texts of shards",
    ),
    "tokenizer": (
        "showo_dist.tokenizer.__main__",
        "main",
        "train an image tokenizer on any shards",
    ),
    "encode": (
        "showo_dist.encode.cli",
        "main_encode",
        "encode images once, ahead of training",
    ),
    "plan": ("showo_dist.plan.cli", "main", "memory, traffic and time of a run on any cluster"),
    "doctor": ("showo_launch.doctor", "main", "whether hosts are fit for a run"),
    "train": ("showo_dist.train", "main", "train Show-o or RecA in this one process"),
    "generate": ("showo_dist.generation.commands", "main_generate", "generate images from texts"),
    "inpaint": ("showo_dist.generation.commands", "main_inpaint", "regenerate what a mask covers"),
    "extrapolate": (
        "showo_dist.generation.commands",
        "main_extrapolate",
        "carry images on beyond their edges",
    ),
    "understand": (
        "showo_dist.generation.understand",
        "main_understand",
        "ask questions about images",
    ),
    "reconstruct": (
        "showo_dist.generation.commands",
        "main_reconstruct",
        "generate images anew from the model's understanding of them",
    ),
    "recipe": ("showo_dist.recipe.cli", "main", "run training stages one after the other"),
    "export": ("showo_dist.export.cli", "main_export", "write a model folder from a checkpoint"),
    "import": ("showo_dist.export.cli", "main_import", "make a checkpoint from a model folder"),
    "inspect": ("showo_dist.export.cli", "main_inspect", "show what a checkpoint holds"),
    "evaluate": ("showo_dist.evaluation", "main", "generate, answer and score"),
    "gallery": (
        "showo_dist.report.gallery",
        "main",
        "images of checkpoints, rounds and curves as a page",
    ),
    "report": ("showo_dist.report", "main", "write the report of a run"),
}


def usage() -> str:
    width = max(len(name) for name in COMMANDS)
    lines = [f"  {name:<{width}}  {text}" for name, (_, _, text) in COMMANDS.items()]
    return "usage: showo-dist COMMAND ...\n\n" + "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0].startswith("--local_rank="):  # DeepSpeed's launcher puts it first
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"showo-dist: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        exit_plainly(f"showo-dist {name}", lambda: _call(name, rest))
    try:
        return _call(name, rest)
    except StoppedError as stopped:
        print(f"showo-dist {name}: {stopped}", file=sys.stderr)
        return stopped.code
    except (ValueError, OSError) as error:  # what a user can mend: one line, no traceback
        print(f"showo-dist {name}: {error}", file=sys.stderr)
        return 2


def _call(name: str, arguments: list[str]) -> int:
    module, function, _ = COMMANDS[name]
    return int(getattr(import_module(module), function)(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
