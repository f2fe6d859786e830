"""How things are compared: both sides take turns in one process, and first show that they do the same work."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

LIBRARIES = ("torch", "transformers", "tokenizers", "tiktoken", "numpy", "regex", "jupyter-book")


class DifferentWork(RuntimeError):
    """The two sides of a comparison do not give the same result, so that their times say nothing."""


@dataclass(frozen=True)
class Settings:
    """How to measure; every command takes these."""

    quick: bool = False  # small sizes and few rounds: shows that everything runs, and no more
    rounds: int | None = None  # None: each command's own number
    threads: int = 1  # of torch, and of the libraries in Rust
    cpu_clock: bool = False  # processor seconds of this process in place of seconds on the wall
    progress: bool = False

    def pick(self, quick: Any, full: Any) -> Any:
        """The one of two values that belongs to the settings."""
        return quick if self.quick else full

    def n_rounds(self, quick: int, full: int) -> int:
        """How often each side takes its turn."""
        return self.rounds if self.rounds is not None else self.pick(quick, full)

    def clock(self) -> float:
        """Seconds, of the clock that the settings ask for."""
        return time.process_time() if self.cpu_clock else time.perf_counter()


@dataclass
class Comparison:
    """The same work done by llmfs and by another library, several times each."""

    what: str  # "4 MB, 4,096 merges"
    rival: str  # "tokenizers"
    ours: list[float]  # seconds, one for each round
    theirs: list[float]
    amount: float = 0.0  # work of one round, in millions of bytes, tokens, ...; 0: show seconds
    unit: str = "s"  # of the table: "s", or "MB/s" and the like
    goal: float | None = None  # the least ratio of rates that is wanted
    extra: dict[str, Any] = field(default_factory=dict)  # further columns

    @property
    def ratio(self) -> float:
        """How many times as fast llmfs is: the ratio of the medians."""
        return statistics.median(self.theirs) / statistics.median(self.ours)

    @property
    def spread(self) -> tuple[float, float]:
        """The lowest and the highest ratio of a single round."""
        ratios = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        return min(ratios), max(ratios)

    def shown(self, seconds: list[float]) -> float:
        """The median of a side in the table's unit."""
        median = statistics.median(seconds)
        return self.amount / median if self.amount else median


@dataclass
class Table:
    """Numbers without a rival."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Section:
    """What one command found."""

    name: str
    title: str
    notes: list[str] = field(default_factory=list)  # what was compared, and how the text was made
    comparisons: list[Comparison] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Section:
        """The inverse of `to_dict`."""
        return cls(
            fields["name"],
            fields["title"],
            fields["notes"],
            [Comparison(**each) for each in fields["comparisons"]],
            [Table(**each) for each in fields["tables"]],
        )


def take_turns(
    sides: dict[str, Callable[[], object]], rounds: int, settings: Settings, what: str
) -> dict[str, list[float]]:
    """Run each side once a round -> its seconds. One round before the first is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through again
    try:
        for k in bar(range(rounds + 1), settings, what):
            for name, run in sides.items():
                gc.collect()  # no side pays for what the other left behind
                began = settings.clock()
                run()
                if k:
                    seconds[name].append(settings.clock() - began)
    finally:
        gc.unfreeze()
    return seconds


def bar(items: Any, settings: Settings, what: str) -> Any:
    """The items, with a progress bar if asked for."""
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, disable=not settings.progress, leave=False)


def expect_same(what: str, ours: Any, theirs: Any) -> None:
    """Raise `DifferentWork` unless the two results are equal."""
    if ours != theirs:
        raise DifferentWork(f"{what}: the results differ, so there is nothing to compare")


def expect_near(what: str, ours: list[float], theirs: list[float], tolerance: float) -> float:
    """Raise `DifferentWork` unless the numbers agree to `tolerance` -> the largest difference."""
    largest = max((abs(a - b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if not largest <= tolerance:
        raise DifferentWork(f"{what}: the results differ by up to {largest:.3g}, more than {tolerance:g}")
    return largest


def use_threads(n: int) -> None:
    """Give torch and the libraries in Rust so many threads. Before they are first used."""
    os.environ["RAYON_NUM_THREADS"] = str(n)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if n > 1 else "false"
    import torch

    torch.set_num_threads(n)


def machine() -> dict[str, Any]:
    """What the measurements were made on."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "load": [round(x, 2) for x in os.getloadavg()],  # at the start: who else was at work
    }
    return found


def _processor() -> str:
    """The processor's name, and the widest vector instructions that it has."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    widest = next((name for name in ("avx512_bf16", "avx512f", "avx2") if name in flags), "")
    name = fields.get("model name", platform.machine())
    numbers = f"family {fields['cpu family']}, model {fields['model']}" if "cpu family" in fields else ""
    return ", ".join(part for part in (name, numbers, widest) if part)


def versions() -> dict[str, str]:
    """Of Python and of every library that takes part."""
    found = {"python": sys.version.split()[0]}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def matrix_rate(settings: Settings, dtype: Any, device: str = "cpu", n: int = 1024) -> float:
    """The best rate of a product of two square matrices, n wide or half or twice that: the ceiling for a model.

    In operations per second.
    """
    import torch

    def rate(n: int) -> float:
        a, b = torch.randn(n, n, device=device).to(dtype), torch.randn(n, n, device=device).to(dtype)

        def product() -> None:
            a @ b
            if device == "cuda":
                torch.cuda.synchronize()

        return 2 * n**3 / best_of(product, 6, settings)

    return max(map(rate, (n // 2, n, 2 * n)))


def reading_seconds(settings: Settings, n_weights: int) -> float:
    """The least time to read so many float32 weights and add them up: the floor of a token that is made alone."""
    import torch

    return best_of(torch.ones(n_weights).sum, 20, settings)


def best_of(run: Callable[[], object], n: int, settings: Settings) -> float:
    """The fastest of n runs, seconds."""
    seconds = []
    for _ in range(n):
        began = settings.clock()
        run()
        seconds.append(settings.clock() - began)
    return min(seconds)
