"""The arrows between modules hold, nothing heavy is imported at the top, and nothing happens at import."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llmfs"

ARROWS = {
    "__init__": "",
    "config": "",
    "tokenizer": "",
    "tales": "",
    "embeddings": "",
    "optim": "",
    "scale": "config",
    "evaluate": "",
    "viz": "",
    "corpus": "tales",
    "data": "tokenizer",
    "attention": "config embeddings",
    "layers": "config attention",
    "gpt": "config embeddings attention layers",
    "pretrained": "config tokenizer gpt",
    "rnn": "config attention",
    "checkpoint": "config tokenizer gpt rnn",
    "train": "optim tokenizer checkpoint evaluate",
    "decode": "attention gpt layers",
    "sample": "attention decode gpt",
    "quantize": "gpt",
    "sft": "evaluate gpt sample tales tokenizer",
    "rlhf": "gpt sft tokenizer train",
    "chat": "checkpoint gpt recipes rlhf sample sft tales tokenizer train",
    "cli_common": "checkpoint",
    "recipes": "config tokenizer tales corpus data gpt rnn optim train checkpoint evaluate sample",
    "experiments": (
        "attention checkpoint config corpus data evaluate gpt layers recipes rnn sample scale tales tokenizer train"
    ),
}
LAZY = {"transformers", "tokenizers", "tiktoken", "matplotlib", "IPython"}


def imports(tree: ast.AST) -> set[str]:
    """Names of the modules that are imported anywhere below this node."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | (
                {f"llmfs.{alias.name}" for alias in node.names} if node.module == "llmfs" else set()
            )
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda path: path.stem)
def test_arrows(path):
    if path.stem in ("cli", "cli_experiments", "cli_tuning", "__main__"):
        return
    allowed = {f"llmfs.{name}" for name in ARROWS[path.stem].split()}
    used = {name for name in imports(ast.parse(path.read_text("utf8"))) if name.startswith("llmfs.")}
    assert used <= allowed, f"{path.stem} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.stem)
def test_what_readers_may_lack_is_imported_where_it_is_used(path):
    tree = ast.parse(path.read_text("utf8"))
    top = {alias for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom)) for alias in imports(node)}
    assert not {name.split(".")[0] for name in top} & LAZY


def test_the_command_line_starts_without_torch():
    code = "import sys, llmfs.cli; llmfs.cli.build_parser(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
