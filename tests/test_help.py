"""Help has an example in every command, and shells complete commands and options."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_docs import PROGRAMS, fault

COMMANDS = [(p, name) for p, group in PROGRAMS.items() for name in group.commands]
SHELLS = ("bash", "zsh", "fish", "powershell")


@pytest.mark.parametrize(("program", "name"), COMMANDS, ids=" ".join)
def test_every_command_shows_an_example_of_itself_that_parses(program, name):
    command = PROGRAMS[program].commands[name]
    context = command.make_context(f"{program} {name}", [], resilient_parsing=True)
    context.terminal_width = 200
    examples = re.findall(r"Example: (.+)", command.get_help(context))
    assert examples
    for example in examples:
        words = shlex.split(example)
        assert words[:2] == [program, name]
        assert fault(words) is None, example
    hidden = [p.name for p in command.params if not getattr(p, "help", None)]
    assert hidden == [], "an option without a word on what it is"


def completed(program, shell, line):
    """What a shell is told when the last word of a line is asked for."""
    words = line.split(" ")
    settings = {
        f"_{program.upper()}_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "_TYPER_COMPLETE_WORD_TO_COMPLETE": words[-1],
    }
    package = {"mmfeat": "pipeline", "mmtrain": "trainer"}[program]
    code = f"import sys; sys.argv = [{program!r}]; from mmfuse.{package}.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("program", "line", "found"),
    [
        ("mmfeat", "mmfeat tok", "tokenize"),
        ("mmfeat", "mmfeat verify --rec", "--recompute"),
        ("mmtrain", "mmtrain exp", "export"),
    ],
)
def test_shells_complete_commands_and_options(shell, program, line, found):
    assert found in completed(program, shell, line)


@pytest.mark.parametrize("program", PROGRAMS)
def test_bash_itself_completes_with_what_the_command_installs(program):
    script, bash = Path(sys.executable).with_name(program), shutil.which("bash")
    if bash is None or not script.is_file():
        pytest.skip("there is no bash, or no installed command")
    typed = f"""
        eval "$({script} --show-completion bash)"
        COMP_WORDS=({program} ru); COMP_CWORD=1
        _{program}_completion {script}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run([bash, "-c", typed], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "run", done.stderr
