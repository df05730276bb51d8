"""The graph of artifacts as an SVG: a box per stage, an arrow from every parent, laid out in layers.

Sugiyama's method in short: the layer of a node is its longest path from a root; an edge that skips layers gets a
waypoint in each; nodes of a layer are ordered by the mean position of their neighbours, a few sweeps down and up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pipeline.report_html import Html, fill, join

BOX_W, BOX_H, GAP_X, GAP_Y, MARGIN = 168, 44, 22, 34, 8  # px
WAYPOINT_W = 16  # px, room for an edge that passes a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    name: str
    title: str  # first line of the box
    caption: str  # second line: kind and short hash
    made: bool = True  # False draws a dashed box: the stage is not finished
    mark: bool = False  # a dot: this checkpoint was evaluated


def lineage_svg(nodes: Sequence[Node], parents: Mapping[str, Sequence[str]]) -> Html:
    """Draw the graph. `parents` maps a name to the names it was made from; unknown names and cycles are ignored."""
    by_name = {node.name: node for node in nodes}
    edges = [(p, name) for name in by_name for p in dict.fromkeys(parents.get(name, ())) if p in by_name and p != name]
    layer = _layers(list(by_name), edges)
    edges = [(p, c) for p, c in edges if layer[p] < layer[c]]
    paths, rows = _with_waypoints(by_name, edges, layer)
    _order(rows, paths)
    x, width = _place(rows, by_name)
    height = 2 * MARGIN + len(rows) * BOX_H + (len(rows) - 1) * GAP_Y
    tops = {name: MARGIN + i * (BOX_H + GAP_Y) for i, row in enumerate(rows) for name in row}
    return fill(
        '<svg viewBox="0 0 {w} {h}" width="{w}" height="{h}" role="img" aria-label="Graph of artifacts">'
        '<g fill="none" stroke="#8a8a8a" stroke-width="1.2">{lines}</g>{boxes}</svg>',
        w=round(width),
        h=height,
        lines=join(_line(path, x, tops, by_name) for path in paths),
        boxes=join(_box(by_name[name], x[name], tops[name]) for row in rows for name in row if name in by_name),
    )


def _layers(names: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    layer = dict.fromkeys(names, 0)
    for _ in names:  # longest path; a cycle cannot make it run for ever
        for parent, child in edges:
            layer[child] = min(max(layer[child], layer[parent] + 1), len(names) - 1)
    used = sorted(set(layer.values()))
    return {name: used.index(depth) for name, depth in layer.items()}


def _with_waypoints(
    names: Mapping[str, Node], edges: Sequence[tuple[str, str]], layer: Mapping[str, int]
) -> tuple[list[list[str]], list[list[str]]]:
    """Edges as chains of neighbours, one point per layer; and the points of each layer."""
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for name in names:
        rows[layer[name]].append(name)
    paths = []
    for parent, child in edges:
        path = [parent]
        for depth in range(layer[parent] + 1, layer[child]):
            path.append(f"{parent}\0{child}\0{depth}")
            rows[depth].append(path[-1])
        paths.append([*path, child])
    return paths, rows


def _order(rows: list[list[str]], paths: Sequence[Sequence[str]]) -> None:
    links = [pair for path in paths for pair in pairwise(path)]
    up: dict[str, list[str]] = {}
    down: dict[str, list[str]] = {}
    for above, below in links:
        up.setdefault(below, []).append(above)
        down.setdefault(above, []).append(below)
    for sweep in range(8):
        neighbours = up if sweep % 2 == 0 else down
        for row in rows if sweep % 2 == 0 else reversed(rows):
            position = {name: i / max(1, len(r) - 1) for r in rows for i, name in enumerate(r)}
            centre = {
                name: sum(position[n] for n in neighbours[name]) / len(neighbours[name])
                if name in neighbours
                else position[name]
                for name in row
            }
            row.sort(key=centre.__getitem__)


def _place(rows: Sequence[Sequence[str]], nodes: Mapping[str, Node]) -> tuple[dict[str, float], float]:
    """Centre of every point, each layer centred; and the width of the drawing."""

    def size(name: str) -> float:
        return BOX_W if name in nodes else WAYPOINT_W

    widths = [sum(map(size, row)) + GAP_X * (len(row) - 1) for row in rows]
    total = max(widths, default=0)
    x: dict[str, float] = {}
    for row, width in zip(rows, widths, strict=True):
        left = MARGIN + (total - width) / 2
        for name in row:
            x[name] = left + size(name) / 2
            left += size(name) + GAP_X
    return x, total + 2 * MARGIN


def _line(path: Sequence[str], x: Mapping[str, float], tops: Mapping[str, float], nodes: Mapping[str, Node]) -> Html:
    """From the foot of the parent to the head of the child: a curve between layers, straight through a layer."""
    start = path[0]
    commands = [f"M{x[start]:.1f} {tops[start] + BOX_H}"]
    for above, below in pairwise(path):
        y0, y1 = tops[above] + BOX_H, tops[below]
        middle = (y0 + y1) / 2
        commands.append(f"C{x[above]:.1f} {middle} {x[below]:.1f} {middle} {x[below]:.1f} {y1}")
        if below not in nodes:
            commands.append(f"V{y1 + BOX_H}")
    end_x, end_y = x[path[-1]], tops[path[-1]]
    commands.append(f"m-3.5 -6L{end_x:.1f} {end_y}l3.5 -6")  # the arrow head
    return fill('<path d="{}"/>', " ".join(commands))


def _box(node: Node, x: float, top: float) -> Html:
    return fill(
        '<g><rect x="{left}" y="{top}" width="{w}" height="{h}" rx="2" fill="#fffefb" stroke="#1c1c1c" '
        'stroke-width="1" stroke-dasharray="{dash}"/>{dot}'
        '<text x="{x}" y="{y1}" text-anchor="middle" font-size="12.5" font-weight="600">{title}</text>'
        '<text x="{x}" y="{y2}" text-anchor="middle" font-size="10.5" fill="#6b6b6b">{caption}</text></g>',
        left=Html(f"{x - BOX_W / 2:.1f}"),
        top=top,
        w=BOX_W,
        h=BOX_H,
        dash="none" if node.made else "4 3",
        dot=fill('<circle cx="{}" cy="{}" r="3.5" fill="#1f4e79"/>', f"{x + BOX_W / 2 - 9:.1f}", top + 9)
        if node.mark
        else "",
        x=Html(f"{x:.1f}"),
        y1=top + 19,
        y2=top + 34,
        title=node.title,
        caption=node.caption,
    )
