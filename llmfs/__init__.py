"""The code of the book "LLM From Scratch": a GPT, from text to tokens to a model that answers questions.

Modules are flat and named by the field's terms (``llmfs.tokenizer``, ``llmfs.attention``, ``llmfs.gpt``, ...).
Import what you need from its module; importing the package itself loads nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"
