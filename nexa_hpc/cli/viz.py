"""`viz`: the graph of a pipeline, as a tree in the terminal or as mermaid, dot or svg."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path

import click

from nexa_hpc.cli.completion import CONFIG_DIR_OPTION, OVERRIDES_ARGUMENT, RUN_ARGUMENT
from nexa_hpc.cli.reading import read_pipeline
from nexa_hpc.cli.session import Session
from nexa_hpc.core.instances import Instance
from nexa_hpc.core.quoting import printable
from nexa_hpc.pipeline import Pipeline

Steps = Mapping[str, Instance]

_BOX_WIDTH, _BOX_HEIGHT = 190, 46
_GAP_X, _GAP_Y = 40, 44
_FILL = {"RUN": "#fff3d6", "SKIP": "#dff3f7"}


@click.command()
@RUN_ARGUMENT
@OVERRIDES_ARGUMENT
@CONFIG_DIR_OPTION
@click.option(
    "--format",
    "format_",
    type=click.Choice(["tree", "mermaid", "dot", "svg"]),
    default="tree",
    show_default=True,
)
@click.pass_obj
def viz(
    session: Session,
    run: str | None,
    overrides: tuple[str, ...],
    config_dirs: tuple[Path, ...],
    format_: str,
) -> None:
    """Draw the graph of RUN, a pipeline file or the newest run: each step with what would be done.

    \b
    Example:
      nexa-hpc viz pipelines/general_e2e.yaml
      nexa-hpc viz --format svg > graph.svg
    """
    steps = _steps(session, run, overrides, config_dirs)
    drawers = {"tree": tree, "mermaid": mermaid, "dot": dot, "svg": svg}
    sys.stdout.write("\n".join(drawers[format_](steps)) + "\n")


def _steps(
    session: Session,
    name: str | None,
    overrides: tuple[str, ...],
    config_dirs: tuple[Path, ...],
) -> Steps:
    if name is not None and (overrides or Path(name).is_file()):
        return read_pipeline(session, Path(name), overrides, config_dirs).plan().instances
    return Pipeline.from_run(session.find_run(name)).plan().instances


def tree(steps: Steps) -> Iterator[str]:
    """Yield the lines of a tree; a step with several parents hangs below its last one."""
    children: dict[str, list[str]] = {step: [] for step in steps}
    roots: list[str] = []
    for step, instance in steps.items():
        (children[instance.parents[-1]] if instance.parents else roots).append(step)
    waiting = [(step, "", "") for step in reversed(roots)]
    while waiting:
        step, lead, indent = waiting.pop()
        instance = steps[step]
        others = instance.parents[:-1]
        also = f"  (also after {', '.join(others)})" if others else ""
        decided = f"{instance.action}: {printable(instance.reason)}"
        yield f"{lead}{step}  [{instance.uses}]  {decided}{also}"
        below = children[step]
        for child in reversed(below):
            last = child == below[-1]
            branch, rest = ("└─ ", "   ") if last else ("├─ ", "│  ")
            waiting.append((child, indent + branch, indent + rest))


def mermaid(steps: Steps) -> Iterator[str]:
    """Yield the lines of a mermaid flowchart."""
    names = {step: f"s{number}" for number, step in enumerate(steps)}
    yield "flowchart TD"
    for step, instance in steps.items():
        yield f'  {names[step]}["{step}<br/>{instance.uses}"]:::{instance.action.lower()}'
    for step, instance in steps.items():
        for parent in instance.parents:
            yield f"  {names[parent]} --> {names[step]}"
    for action, colour in _FILL.items():
        yield f"  classDef {action.lower()} fill:{colour}"


def dot(steps: Steps) -> Iterator[str]:
    """Yield the lines of a Graphviz digraph."""
    yield "digraph pipeline {"
    yield '  node [shape=box, style="rounded,filled", fontname="sans-serif"];'
    for step, instance in steps.items():
        label = f"{step}\\n{instance.uses}"
        yield f'  "{step}" [label="{label}", fillcolor="{_FILL[instance.action]}"];'
    for step, instance in steps.items():
        for parent in instance.parents:
            yield f'  "{parent}" -> "{step}";'
    yield "}"


def svg(steps: Steps) -> Iterator[str]:
    """Yield the lines of an SVG picture: a row for each depth, edges drawn downwards."""
    rows = _rows(steps)
    columns = max(len(row) for row in rows)
    width = columns * (_BOX_WIDTH + _GAP_X) + _GAP_X
    height = len(rows) * (_BOX_HEIGHT + _GAP_Y) + _GAP_Y
    places = {
        step: (
            (width - len(row) * (_BOX_WIDTH + _GAP_X) + _GAP_X) // 2 + i * (_BOX_WIDTH + _GAP_X),
            _GAP_Y + depth * (_BOX_HEIGHT + _GAP_Y),
        )
        for depth, row in enumerate(rows)
        for i, step in enumerate(row)
    }
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13">'
    )
    yield f'<rect width="{width}" height="{height}" fill="white"/>'
    for step, instance in steps.items():
        for parent in instance.parents:
            yield _edge(places[parent], places[step])
    for step, (x, y) in places.items():
        yield from _box(steps[step], x, y)
    yield "</svg>"


def _rows(steps: Steps) -> list[list[str]]:
    depth: dict[str, int] = {}
    rows: list[list[str]] = []
    for step, instance in steps.items():
        depth[step] = 1 + max((depth[parent] for parent in instance.parents), default=-1)
        if depth[step] == len(rows):
            rows.append([])
        rows[depth[step]].append(step)
    return rows


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1 = start[0] + _BOX_WIDTH // 2, start[1] + _BOX_HEIGHT
    x2, y2 = end[0] + _BOX_WIDTH // 2, end[1]
    middle = (y1 + y2) // 2
    path = f"M{x1},{y1} C{x1},{middle} {x2},{middle} {x2},{y2}"
    return f'<path d="{path}" fill="none" stroke="#888"/>'


def _box(instance: Instance, x: int, y: int) -> Iterator[str]:
    fill, centre = _FILL[instance.action], x + _BOX_WIDTH // 2
    yield (
        f'<rect x="{x}" y="{y}" width="{_BOX_WIDTH}" height="{_BOX_HEIGHT}" rx="7" '
        f'fill="{fill}" stroke="#666"/>'
    )
    for text, dy, style in (
        (instance.step, 19, 'font-weight="bold"'),
        (f"{instance.uses} · {instance.action}", 36, 'fill="#555" font-size="11"'),
    ):
        yield (
            f'<text x="{centre}" y="{y + dy}" text-anchor="middle" {style}>{escape(text)}</text>'
        )
