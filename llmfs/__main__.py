"""`python -m llmfs`."""
from llmfs.cli import run

run()
