"""BPE training against Hugging Face `tokenizers`: seconds and peak memory, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import Comparison, Section, Settings, Table, bar, expect_same
from benchmarks.texts import MB, mixture, paragraphs

MERGES = (512, 4_096, 16_384)
SIZES = (1, 4, 16)  # MB
GOAL = 1.0  # times as fast
MEMORY_GOAL = 2.0  # times the memory, at most


def run(settings: Settings) -> Section:
    """Train at every size and number of merges."""
    sizes: tuple[float, ...] = settings.pick((0.05,), SIZES)
    numbers = settings.pick((64,), MERGES)
    section = Section("bpe-train", "Training a BPE tokenizer")
    memory = Table(
        "Peak memory of training, MB", ["text", "llmfs", "tokenizers", "ratio", f"at most {MEMORY_GOAL:g}"], []
    )
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            text, what = mixture(int(size * MB))
            path = Path(folder, "text.txt")
            path.write_text(text, encoding="utf-8", newline="")
            section.notes.append(f"{size:g} MB: {what}; {_n_words(text):,} distinct words.")
            cases = [(n, True) for n in numbers] + ([(numbers[1], False)] if size == 4 else [])
            for n_merges, split in cases:
                found = compare(path, n_merges, split, settings, size)
                name = f"{size:g} MB, {n_merges:,} merges" + ("" if split else ", one document")
                section.comparisons.append(
                    Comparison(
                        name,
                        "tokenizers",
                        [each["seconds"] for each in found["llmfs"]],
                        [each["seconds"] for each in found["tokenizers"]],
                        goal=GOAL,
                    )
                )
                ours, theirs = (min(each["peak_mb"] for each in found[side]) for side in ("llmfs", "tokenizers"))
                met = "met" if ours <= MEMORY_GOAL * theirs else "missed"
                memory.rows.append([name, round(ours, 1), round(theirs, 1), round(ours / theirs, 2), met])
    section.notes += [
        "The text is given as its paragraphs, except where it says one document. Both sides learn the same merges, "
        "compared in every round. The memory is what training adds to the text and the imported library.",
    ]
    section.tables.append(memory)
    return section


def compare(path: Path, n_merges: int, split: bool, settings: Settings, size: float) -> dict[str, list[dict[str, Any]]]:
    """Both sides in turn, each time in a new process -> what each said."""
    found: dict[str, list[dict[str, Any]]] = {"llmfs": [], "tokenizers": []}
    for _ in bar(range(settings.n_rounds(1, 3)), settings, f"bpe-train, {size:g} MB, {n_merges:,} merges"):
        for side, results in found.items():
            results.append(in_new_process(side, path, 256 + n_merges, split, settings))
        expect_same(f"{n_merges} merges of {size:g} MB", *(results[-1]["merges"] for results in found.values()))
    return found


def in_new_process(side: str, path: Path, vocab_size: int, split: bool, settings: Settings) -> dict[str, Any]:
    """Train there -> seconds, peak memory, and a hash of the merges."""
    command = [sys.executable, "-m", "benchmarks.bpe_train", side, str(path), str(vocab_size), str(int(split))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.strip()}")
    result: dict[str, Any] = json.loads(done.stdout)
    result["seconds"] = result["cpu" if settings.cpu_clock else "wall"]
    return result


def measure_here(side: str, path: Path, vocab_size: int, split: bool) -> dict[str, Any]:
    """What the new process does."""
    text = path.read_text(encoding="utf-8")
    documents = paragraphs(text) if split else [text]
    del text
    train = {"llmfs": train_ours, "tokenizers": train_theirs}[side]
    train(["a"], 257)  # imports
    start = reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    trained = train(documents, vocab_size)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = _status("VmHWM") - start
    merges = hashlib.sha256(json.dumps(_merges(trained)).encode()).hexdigest()
    return {"wall": wall, "cpu": cpu, "peak_mb": max(peak, 0.0), "start_mb": start, "merges": merges}


def train_ours(documents: list[str], vocab_size: int) -> Any:
    """-> a `BPETokenizer`."""
    from llmfs.tokenizer import BPETokenizer

    return BPETokenizer.train(documents, vocab_size)


def train_theirs(documents: list[str], vocab_size: int) -> Any:
    """-> a `tokenizers.Tokenizer`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    return tokenizer


def _merges(trained: Any) -> list[list[int]]:
    """The merges as pairs of ids, of either side."""
    if hasattr(trained, "merges"):
        return [list(pair) for pair in trained.merges]
    model = json.loads(trained.to_str())["model"]
    return [[model["vocab"][a], model["vocab"][b]] for a, b in model["merges"]]


def reset_peak() -> float:
    """Let the kernel measure the peak from here on -> the memory in use now, MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> float:
    """A field of Linux's account of this process, MB. (ru_maxrss would count what the parent had used.)"""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024 / MB
    raise RuntimeError(f"/proc/self/status has no {name}")


def _n_words(text: str) -> int:
    import regex

    from llmfs.tokenizer import GPT2_PATTERN

    return len(set(regex.findall(GPT2_PATTERN, text)))


if __name__ == "__main__":
    side, path, vocab_size, split = sys.argv[1:]
    print(json.dumps(measure_here(side, Path(path), int(vocab_size), bool(int(split)))))
