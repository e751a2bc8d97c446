"""A click group whose commands are imported when they are called, and not for `--help`.

The short help of each command stands in the table, so that listing them imports nothing.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import click

from nexa_hpc.errors import nearest


class ReaderGone(Exception):
    """Whoever read standard output (`| head`) has gone."""


class LazyGroup(click.Group):
    """A group over a table: name -> ("module:attribute", one line of help)."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._table = table

    def invoke(self, ctx: click.Context) -> Any:
        """Invoke the command; raises ReaderGone, as click would end a broken pipe with 1."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise ReaderGone from error
        return result

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the table's order, which is the order of use."""
        return list(self._table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None when the table has none of that name."""
        if cmd_name not in self._table:
            return None
        # Imported here: `--help` needs none of the core.
        from nexa_hpc.core.collector import made_to_stay

        module, _, attribute = self._table[cmd_name][0].partition(":")
        with made_to_stay():
            command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Name the nearest command when there is none of that name."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            message = error.message.rstrip(".") + nearest(args[0], self._table)
            raise click.UsageError(message, ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry[1]) for name, entry in self._table.items()])
