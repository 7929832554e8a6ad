"""Write docs/cli.md from the help texts of both commands: python docs/make_cli.py."""

from pathlib import Path

import typer

from mmfuse.features import errors
from mmfuse.pipeline import cli as mmfeat
from mmfuse.trainer import cli as mmtrain

WIDTH = 100  # columns, whatever the terminal has
TARGET = Path(__file__).with_name("cli.md")
INTRO = """# Commands

Written by `make docs` from the help texts; change those.

`mmfeat` turns a corpus into a feature store, `mmtrain` turns a store into models. Both end with 0
when all went well. Otherwise:

```text
  1   A fault of the command itself, or of the disk; -v shows where
{exits}
130   Ctrl-C
143   SIGTERM
```
"""


def document() -> str:
    """The page as it should be."""
    parts = [INTRO.format(exits=exits())]
    for app in (mmfeat.app, mmtrain.app):
        program = app.info.name
        group = typer.main.get_command(app)
        parts.append(f"## {program}\n\n{block(group, program)}")
        for name, command in group.commands.items():
            parts.append(f"### {program} {name}\n\n{block(command, f'{program} {name}')}")
    return "\n".join(parts)


def block(command: typer.core.TyperCommand | typer.core.TyperGroup, name: str) -> str:
    """Help of a command as a code block."""
    context = command.make_context(name, [], resilient_parsing=True)
    context.terminal_width = WIDTH
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    return "\n".join(["```text", *lines, "```", ""])


def exits() -> str:
    """Exit codes of our errors, from the errors themselves."""
    kinds = (errors.ConfigError, errors.ClipError, errors.StoreError, errors.LockedError,
             errors.MissingError)  # fmt: skip
    first = ((kind, (kind.__doc__ or "").split(". ")[0].rstrip(".")) for kind in kinds)
    return "\n".join(f"{kind.exit_code:3}   {sentence}" for kind, sentence in first)


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
