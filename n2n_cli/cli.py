"""The command line: ``n2n COMMAND [KEY=VALUE | --KEY VALUE | Hydra's flags] ...``.

Only the standard library and small modules of ours are imported before a command is known: help is instant.
"""

from __future__ import annotations

import os
import sys

from n2n_cli import __version__
from n2n_cli.arms import OPS
from n2n_cli.errors import N2NError, suggest
from n2n_cli.words import SHELLS, parse

HELP = f"""\
n2n: growth studies after Net2Net. Grow a trained network, keep its function, go on training.

  n2n train teacher            train the narrow network
  n2n train student            train the standard network from random initialization
  n2n grow --op OP             teacher -> student, proved and fine-tuned
                               OP: {", ".join(OPS)}
  n2n compare [STUDY]          teacher, all arms and the report; STUDY: baselines, operators, depth, lifelong, fig4, ...
  n2n compare RUN...           one report on runs that are there already, however they were started
  n2n evaluate CHECKPOINT      top-1, top-5 and loss
  n2n inspect CHECKPOINT|MODEL layers, parameters, MACs, lineage, groups that grow together; a plan's dry run (--op)
  n2n export CHECKPOINT        the network for other programs (--format safetensors, torch_export, onnx), and a card
  n2n data prepare imagenet SRC DST
                               ImageNet's official archives in SRC, unpacked to DST/train and DST/val
  n2n data check ROOT          every image file opened once: damaged, odd, hidden, twice
  n2n data pack ROOT TO        a smaller copy in a few large files, for data=packed data.root=TO
  n2n completion bash|zsh|fish what to eval (fish: source) for completion

Everything is KEY=VALUE or --KEY VALUE (seed=1, --lr 0.05, model=resnet18, data=imagefolder data.root=DIR);
-m sweeps over comma separated values. Groups and keys of a command: n2n COMMAND --help
Runs lie in runs/, found again by their config: the same command resumes or says that it is done.
"""
COMPLETION = """\
_n2n() {
    local IFS=$'\\n'
    COMPREPLY=($(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" n2n completion words 2>/dev/null))
    [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace 2>/dev/null
    __ltrim_colon_completions "${COMP_WORDS[COMP_CWORD]}" 2>/dev/null
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o default -F _n2n n2n
"""
FISH = """\
function _n2n
    set -lx COMP_LINE (commandline -cp)
    n2n completion words 2>/dev/null
end
complete -c n2n -f -a '(_n2n)'
"""


def main(argv: list[str] | None = None) -> int:
    """Runs one command line; the exit code: 0, 2 for a user's mistake, 130 for Ctrl-C, 141 for a closed pipe."""
    words = sys.argv[1:] if argv is None else list(argv)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:  # closed by the shell (>&-); for the processes that this one starts, too
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            setattr(sys, name, open(number, "w"))  # noqa: SIM115
    try:
        return _main(words)
    except N2NError as error:
        print(f"n2n: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        reason = " ".join(str(interrupt).split())
        print(f"n2n: interrupted{': ' + reason if reason else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except SystemExit as end:  # Hydra's way to end help
        return end.code if isinstance(end.code, int) else 0


def _main(words: list[str]) -> int:
    if not words or words[0] in ("--help", "-h", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"n2n {__version__}")
        return 0
    if words[0] == "completion":
        return _completion(words[1:])
    command, rest = parse(words)
    if command == "train":
        print("n2n train teacher: the narrow network\nn2n train student: the standard network, from random init")
        return 0
    from n2n_cli.overrides import translate

    if command == "compare":
        from n2n_cli.config import names_runs

        command = "compare_runs" if names_runs(rest) else command
    line = translate(command, rest)
    from n2n_cli import app

    app.run(command, line)
    return 0


def _completion(words: list[str]) -> int:
    if words == ["words"]:
        from n2n_cli.completion import complete

        print("\n".join(complete(os.environ.get("COMP_LINE", ""))))
        return 0
    shell = words[0] if words else ""
    if shell not in SHELLS or len(words) > 1:
        near = suggest(shell, SHELLS)
        raise N2NError(
            f"completion: '{' '.join(words)}' is not bash, zsh or fish{near}; type: eval \"$(n2n completion bash)\""
        )
    zsh = "autoload -U +X bashcompinit && bashcompinit\n" if shell == "zsh" else ""
    print(FISH if shell == "fish" else zsh + COMPLETION, end="")
    return 0
