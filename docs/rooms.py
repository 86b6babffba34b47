"""Draws docs/rooms.toml: the picture and the table of rooms in docs/architecture.md. Run ``python -m docs.rooms`` after a change."""

import tomllib
from collections.abc import Iterator
from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
PICTURE = HERE / "images" / "rooms.svg"
PAGE = HERE / "architecture.md"
BEGIN, END = "<!-- rooms -->", "<!-- /rooms -->"
WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 150, 34, 184, 66, 24
GROUND = "ground"  # rooms that every other may use are drawn as one, without arrows


def rooms() -> list[dict]:
    """The rows of the table, from the top of the house to its ground."""
    return tomllib.loads((HERE / "rooms.toml").read_text(encoding="utf-8"))["room"]


def drawn_arrows(table: list[dict]) -> Iterator[tuple[str, str]]:
    """The arrows of the picture: those that no way over other rooms implies, and none to the ground."""
    uses = {room["name"]: {other for other in room["uses"]} for room in table}
    ground = {room["name"] for room in table if room["at"] == GROUND}

    def below(name: str) -> set[str]:
        return uses[name].union(*(below(other) for other in uses[name]))

    for name, direct in uses.items():
        implied = set().union(*(below(other) for other in direct))
        yield from ((name, other) for other in sorted(direct - implied - ground) if name not in ground)


def picture(table: list[dict]) -> str:
    """The house as SVG, in one colour on white so that it reads in a light and in a dark page."""
    place = {room["name"]: room["at"] for room in table if room["at"] != GROUND}
    columns, rows = (1 + max(at[axis] for at in place.values()) for axis in (0, 1))
    width, height = 2 * MARGIN + (columns - 1) * ACROSS + WIDTH, 2 * MARGIN + rows * DOWN + HEIGHT
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="14">',
        f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#7a869a"/></marker></defs>',
    ]
    for name, other in drawn_arrows(table):
        curve = _curve(_corner(place[name]), _corner(place[other]))
        parts.append(f'<path d="{curve}" fill="none" stroke="#7a869a" stroke-width="1.4" marker-end="url(#head)"/>')
    for name, at in place.items():
        x, y = _corner(at)
        parts += _box(x, y, WIDTH, name)
    ground = ", ".join(room["name"] for room in table if room["at"] == GROUND)
    parts += _box(MARGIN, MARGIN + rows * DOWN, width - 2 * MARGIN, f"ground, used by all: {ground}")
    return "\n".join([*parts, "</svg>", ""])


def page_table(table: list[dict]) -> str:
    """The same as a Markdown table."""
    lines = [f"| `{room['name']}` | {room['does']} | {', '.join(room['uses']) or 'nothing'} |" for room in table]
    return "\n".join([BEGIN, "| room | holds | imports |", "|---|---|---|", *lines, END])


def page_with_table(page: str, table: list[dict]) -> str:
    """The page with the table between its marks made anew."""
    before, rest = page.split(BEGIN)
    return before + page_table(table) + rest.split(END)[1]


def _curve(start: tuple[int, int], end: tuple[int, int]) -> str:
    """Straight down within a column; to another column out of the side that faces it, and around the rooms in between."""
    (x, y), (x2, y2) = start, end
    if x == x2:
        return f"M{x + WIDTH / 2:g} {y + HEIGHT}L{x2 + WIDTH / 2:g} {y2 - 2}"
    right = x2 > x
    side, facing = (x + WIDTH, x2 - 2) if right else (x, x2 + WIDTH + 2)
    gap = (side + facing) / 2
    return f"M{side} {y + HEIGHT / 2:g}C{gap:g} {y + HEIGHT / 2:g} {gap:g} {y2 + HEIGHT / 2:g} {facing} {y2 + HEIGHT / 2:g}"


def _corner(at: list[int]) -> tuple[int, int]:
    return MARGIN + at[0] * ACROSS, MARGIN + at[1] * DOWN


def _box(x: int, y: int, width: int, text: str) -> list[str]:
    return [
        f'<rect x="{x}" y="{y}" width="{width}" height="{HEIGHT}" rx="6" fill="#eef3fb" stroke="#2f5f9e"/>',
        f'<text x="{x + width / 2:g}" y="{y + HEIGHT / 2 + 5:g}" text-anchor="middle" fill="#15304f">{escape(text)}</text>',
    ]


def main() -> None:
    """Writes both."""
    table = rooms()
    PICTURE.write_text(picture(table), encoding="utf-8")
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
