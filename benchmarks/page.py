"""Results as a page: the machine, the versions, and a table for each comparison."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison, Section

ORDER = ("bpe-train", "encode", "train", "generate", "rnn", "recipes", "book")  # of the sections

Results = dict[str, Any]  # {"machine", "versions", "settings", "sections": {name: Section as a dict}}

HEAD = """\
# Benchmarks

How fast `llmfs` is beside what you would use instead. `python -m benchmarks` measured it and wrote this page. The two
sides of each comparison take turns in one run, so that whatever else the machine does falls on both. Before anything is
timed, both must give the same result, or the run fails.

A ratio is that of the medians, and says how many times as fast `llmfs` is: above 1 it is faster. After it come the
lowest and the highest ratio of a single round. What limits each figure, and what was tried to raise it, is described in
`benchmarks/README.md` of the repository.
"""


def read(paths: Iterable[Path]) -> list[Results]:
    """Result files, or folders of them. Raises ValueError for a file that holds something else."""
    found = []
    for path in paths:
        for file in sorted(path.glob("*.json")) if path.is_dir() else [path]:
            try:
                results = json.loads(file.read_text("utf-8"))
                results["sections"], results["machine"], results["settings"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file} holds no results of `python -m benchmarks`: {error!r}") from error
            found.append(results)
    if not found:
        raise ValueError("no results: give the files that `python -m benchmarks all --out FOLDER` wrote")
    return found


def render(all_results: list[Results]) -> str:
    """Markdown; of a section that was measured twice, the last."""
    sections = {name: (section, results) for results in all_results for name, section in results["sections"].items()}
    order = {name: k for k, name in enumerate(ORDER)}
    goals: list[list[Any]] = []
    parts: list[str] = []
    for fields, results in sorted(sections.values(), key=lambda found: order.get(found[0]["name"], len(order))):
        section = Section.from_dict(fields)
        goals += goal_rows(section)
        parts.append(f"## {section.title}\n\n*{how(results['settings'], section)}*\n")
        parts += [f"{note}\n" for note in section.notes]
        if section.comparisons:
            parts.append(comparison_table(section.comparisons))
        for table in section.tables:
            parts.append(f"**{table.title}**\n\n{markdown(table.columns, table.rows)}")
    blocks = [HEAD, where(all_results[-1])]
    if goals:
        columns = ["comparison", "rival", "ratios", "goal", "met"]
        blocks.append(f"## Goals\n\n{markdown(columns, goals)}")
    return "\n".join([*blocks, *parts]).rstrip() + "\n"


def where(results: Results) -> str:
    """The machine and the versions."""
    m, versions = results["machine"], results["versions"]
    load = ", ".join(map(str, m["load"]))
    return (
        f"**Machine.** {m['processor']}; {m['cores']} cores, {m['memory_gib']} GiB of memory; {m['system']}. "
        f"Load averages when the last command began: {load} (over 1, 5 and 15 minutes).\n\n"
        f"**Versions.** {', '.join(f'{name} {version}' for name, version in versions.items())}.\n"
    )


def how(settings: dict[str, Any], section: Section) -> str:
    """How a section was measured, in a sentence."""
    if not section.comparisons:
        return "Read from files of an earlier run." if section.name == "book" else "Time on the wall."
    n = len(section.comparisons[0].ours)
    rounds = f"; {n} round{'s' * (n > 1)}"
    clock = "processor time of the process" if settings["cpu_clock"] else "time on the wall"
    size = ", quick sizes, which show that it runs and no more" if settings["quick"] else ""
    return f"{settings['threads']} thread{'s' * (settings['threads'] > 1)} on each side; {clock}{rounds}{size}."


def goal_rows(section: Section) -> list[list[Any]]:
    """How many comparisons of each goal meet it."""
    by_goal: dict[tuple[str, float], list[Comparison]] = {}
    for each in section.comparisons:
        if each.goal is not None:
            by_goal.setdefault((each.rival, each.goal), []).append(each)
    rows = []
    for (rival, goal), found in by_goal.items():
        ratios = [each.ratio for each in found]
        met = sum(ratio >= goal for ratio in ratios)
        span = f"{min(ratios):.2f} to {max(ratios):.2f}"
        rows.append([section.title, rival, span, f"at least {goal:g}", f"{met} of {len(found)}"])
    return rows


def comparison_table(comparisons: list[Comparison]) -> str:
    """One row for each."""
    extra = list(dict.fromkeys(name for each in comparisons for name in each.extra))
    rivals = list(dict.fromkeys(each.rival for each in comparisons))
    units = list(dict.fromkeys(each.unit for each in comparisons))
    unit = f", {units[0]}" if len(units) == 1 else ""
    columns = ["", f"llmfs{unit}", f"{' or '.join(rivals)}{unit}", "ratio", "of a round", "goal", *extra]
    rows = []
    for each in comparisons:
        low, high = each.spread
        goal = "" if each.goal is None else f"{each.goal:g}: {'met' if each.ratio >= each.goal else 'missed'}"
        shown = [number(each.shown(side)) + (f" {each.unit}" if not unit else "") for side in (each.ours, each.theirs)]
        more = [each.extra.get(name, "") for name in extra]
        rows.append([each.what, *shown, f"{each.ratio:.2f}", f"{low:.2f} to {high:.2f}", goal, *more])
    if not any(row[5] for row in rows):
        columns.pop(5)
        rows = [row[:5] + row[6:] for row in rows]
    return markdown(columns, rows)


def markdown(columns: list[str], rows: list[list[Any]]) -> str:
    """A table; numbers stand on the right, an empty cell among them too."""
    numeric = [all(_is_number(row[k]) for row in rows) for k in range(len(columns))]
    lines = [columns, ["--:" if right else "---" for right in numeric]]
    lines += [[number(cell) if isinstance(cell, int | float) else str(cell) for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(x: float) -> str:
    """Three digits that count, thousands set apart."""
    if isinstance(x, int) or abs(x) >= 100:
        return f"{x:,.0f}"
    digits = 1 if abs(x) >= 10 else 2 if abs(x) >= 1 else 3 if abs(x) >= 0.1 else 4
    return f"{x:.{digits}f}"


def _is_number(cell: Any) -> bool:
    text = str(cell)
    return not text or (text[0].isdigit() and " " not in text)
