"""The ``showo-dist`` command: the first word selects a command, which gets the other arguments."""

import os
import sys
from importlib import import_module

from showo_dist.runtime.exits import StoppedError, described, exit_code_of, run_and_exit
from showo_dist.runtime.streams import forgive_output, lost_output
from showo_launch.exit_codes import MACHINE_ERROR

_GENERATE, _EXPORT = "showo_dist.generation.commands", "showo_dist.export.cli"
# group -> name -> (module, function that takes argv and returns the exit code, help line). A module is
# imported only when its command is called.
GROUPS: dict[str, dict[str, tuple[str, str, str]]] = {
    "train": {
        "mini": ("showo_dist.mini", "main", "train and evaluate the mini world, all stages"),
        "train": ("showo_dist.train", "main", "train Show-o or RecA in this one process"),
        "recipe": ("showo_dist.recipe.cli", "main", "run training stages one after the other"),
        "reproduce": (
            "showo_dist.recipe.reproduce",
            "main",
            "run a row of a paper, from data conversion to scores",
        ),
        "tokenizer": ("showo_dist.tokenizer.__main__", "main", "train an image tokenizer"),
        "text-tokenizer": (
            "showo_dist.sequences.train_tokenizer",
            "main",
            "train a text tokenizer",
        ),
        "config": ("showo_dist.config.cli", "main", "print a resolved config, or report mistakes"),
    },
    "data": {
        "mini-data": ("showo_data.cli", "main_mini", "write the mini world as WebDataset shards"),
        "mini-edits": ("showo_data.cli", "main_edits", "write edits of the mini world as shards"),
        "shards": ("showo_data.cli", "main_shards", "index, verify, show or convert shards"),
        "encode": ("showo_dist.encode.cli", "main_encode", "encode images once, ahead of training"),
    },
    "use": {
        "generate": (_GENERATE, "main_generate", "generate images from prompts"),
        "edit": (_GENERATE, "main_edit", "change images as instructions say"),
        "inpaint": (_GENERATE, "main_inpaint", "regenerate the part of an image under a mask"),
        "extrapolate": (_GENERATE, "main_extrapolate", "extend images beyond their edges"),
        "understand": (
            "showo_dist.generation.understand",
            "main_understand",
            "ask questions about images",
        ),
        "reconstruct": (
            _GENERATE,
            "main_reconstruct",
            "generate images from the model's understanding of them",
        ),
        "export": (_EXPORT, "main_export", "write a model folder from a checkpoint"),
        "import": (_EXPORT, "main_import", "write a checkpoint from a model folder"),
        "inspect": (_EXPORT, "main_inspect", "show the content of a checkpoint or model folder"),
    },
    "evaluate": {
        "evaluate": ("showo_dist.evaluation.cli", "main", "generate, answer and score"),
        "gallery": (
            "showo_dist.report.gallery.cli",
            "main",
            "show images of checkpoints, masking rounds and curves as a page",
        ),
        "report": ("showo_dist.report.cli", "main", "write the report of a run"),
    },
    "cluster": {
        "plan": ("showo_dist.plan.cli", "main", "predict memory, traffic and time of a run"),
        "doctor": ("showo_launch.doctor", "main", "check whether hosts are fit for a run"),
    },
}
_LONG = ("mini", "train", "recipe", "reproduce", "tokenizer")  # what they print is only progress
_ONLY_CONFIG = ("train", "config", "tokenizer")  # their whole command line is a config
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}


def usage() -> str:
    """The help text: all commands, by group."""
    width = max(len(name) for name in COMMANDS)
    lines = ["usage: showo-dist COMMAND ...", "       showo-dist COMMAND --help"]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:<{width}}  {text}" for name, (_, _, text) in group.items()]
    return "\n".join(lines)


def _config_usage(name: str) -> str:
    """The help text of a command whose whole command line is a config."""
    keys = "showo_dist/tokenizer/config.py" if name == "tokenizer" else "docs/configuration.md"
    return f"""usage: showo-dist {name} config=FILE [key=value ...]

{COMMANDS[name][2]}

  config=FILE  YAML file of keys; those it leaves out have their defaults
  key=value    dotted keys, which take precedence over the file ({keys} has all)"""


def main(argv: list[str] | None = None) -> int:
    """Run a command; return its exit code: 2 for a mistake of the user, 1 for a fault of the machine."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments and arguments[0].startswith("--local_rank="):  # added by DeepSpeed's launcher
        arguments = arguments[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, rest = arguments[0], arguments[1:]
    if name not in COMMANDS:
        print(f"showo-dist: no command {name!r}\n{usage()}", file=sys.stderr)
        return 2
    if name in _ONLY_CONFIG and {"-h", "--help"} & set(rest):
        print(_config_usage(name))
        return 0
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:  # an error must end the other ranks too
        run_and_exit(f"showo-dist {name}", lambda: _call(name, rest))
    trains = name in _LONG
    if argv is None:  # the process is this command's alone
        forgive_output(warn=trains)
    code, lost = _one_line(name, rest), lost_output()
    if code or trains or lost is None:
        return code
    if not isinstance(lost, BrokenPipeError):  # the reader, such as head, has read enough
        print(f"showo-dist {name}: stdout: {lost.strerror}", file=sys.stderr)
    return MACHINE_ERROR


def _one_line(name: str, arguments: list[str]) -> int:
    """Run a command; an error that somebody can act on is one line without a traceback."""
    try:
        return _call(name, arguments)
    except StoppedError as stopped:
        print(f"showo-dist {name}: {stopped}", file=sys.stderr)
        return stopped.code
    except (ValueError, OSError) as error:
        print(f"showo-dist {name}: {described(error)}", file=sys.stderr)
        return exit_code_of(error)


def _call(name: str, arguments: list[str]) -> int:
    from showo_dist.config.loader import check_utf8

    for argument in arguments:
        check_utf8(argument)
    module, function, _ = COMMANDS[name]
    return int(getattr(import_module(module), function)(arguments) or 0)


if __name__ == "__main__":
    sys.exit(main())
