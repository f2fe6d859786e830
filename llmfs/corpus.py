"""Where text comes from: the book's own tales, real corpora by name, and the reader's own files.

`load_texts` gives a list of documents, whatever the source. Real corpora are downloaded once, checked, and
kept in `cache_dir()`. The folder that the environment variable LLMFS_DATA names is looked in first, so that a
machine without a network can be given the files. Every file is checked by a hash, each time it is read. Of TinyStories
none is known: its size is checked, and the SHA-256 of the first file seen is kept, which later ones must have.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from llmfs import tales

N_TALES = 20_000  # stories in "tales" where no number is given

TEXT_SUFFIXES = (".txt", ".md")  # what is read of a folder


class CorpusError(ValueError):
    """A text that cannot be had; the message says what was looked for, where, and what to do."""


@dataclass(frozen=True)
class RemoteFile:
    """A published file."""

    name: str  # where it lies below LLMFS_DATA and below the cache, such as "kjv/Genesis.json"
    url: str
    checksum: str  # "sha256:...", "git:..." (a git blob's id), or "size:..." (bytes) where no hash is known

    @property
    def digest_path(self) -> Path:
        """Where the SHA-256 is kept of a file of which only the size is known: beside it in the cache."""
        return _inside(cache_dir(), f"{self.name}.sha256")


@dataclass(frozen=True)
class Corpus:
    """A corpus that `load_texts` knows by name."""

    name: str
    description: str
    license: str
    size: str  # for people
    parts: Callable[[], dict[str, RemoteFile]]  # by the name after the slash; none: made on demand
    default: str | None  # the part that the name alone stands for; None: all parts together
    documents: Callable[[str], list[str]]  # a file's text -> its documents


def load_texts(
    source: str | Path, *, n: int | None = None, seed: int = 0, progress: bool = False
) -> list[str]:
    """source -> documents.

    source is the name of a corpus ("tales", "kjv"), a part of one ("kjv/Genesis", "wikitext-2/validation"), a
    text file (one document), or a folder (every .txt and .md file in it and below, in the order of their
    paths). A name may end in a number of documents: "tales:5000". A name goes before a folder that is called
    the same; "./tales" is the folder.

    n: at most so many documents. seed: which tales. Files are UTF-8; line ends become "\\n". Raises
    CorpusError.
    """
    name, number = _split_number(source)
    if number is not None:
        n = number
    if n is not None and n < 1:
        raise CorpusError(f"{n} documents were asked for; expected at least 1")
    if name == "tales":
        return [tale.text for tale in tales.stories(n or N_TALES, seed)]
    if name is not None:
        return load_corpus(name, progress=progress)[:n]
    return _load_path(Path(source).expanduser())[:n]


def count_bytes(texts: Iterable[str]) -> int:
    """The length of texts in UTF-8, in bytes; a lone surrogate counts as three, as the tokenizer writes it."""
    return sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def list_corpora() -> list[Corpus]:
    """The corpora that have a name."""
    return list(CORPORA.values())


def cache_dir() -> Path:
    """Where downloads are kept: the folder that LLMFS_CACHE names, or the platform's folder for caches."""
    import pooch

    return Path(os.environ.get("LLMFS_CACHE") or pooch.os_cache("llmfs")).expanduser()


def _split_number(source: str | Path) -> tuple[str | None, int | None]:
    """"tales:5000" -> ("tales", 5000); (None, None) for what is no corpus's name."""
    if not isinstance(source, str):
        return None, None
    name, _, number = source.partition(":")
    if name.partition("/")[0] not in CORPORA:
        return None, None
    if not number:
        return name, None
    if not number.isdecimal():
        raise CorpusError(f"{source!r}: what follows the colon is a number of documents, not {number!r}")
    return name, int(number)


# --- corpora by name -------------------------------------------------------------------------------------


def load_corpus(name: str, *, progress: bool = False) -> list[str]:
    """The documents of a downloaded corpus, or of one part of it ("kjv/Genesis").

    Raises CorpusError for an unknown part, and for a file that cannot be had.
    """
    corpus_name, _, part = name.partition("/")
    corpus = CORPORA[corpus_name]
    parts = corpus.parts()
    part = part.replace(" ", "") or corpus.default or ""
    if part:
        if part not in parts:
            raise CorpusError(f"{corpus_name} has no part {part!r}; it has {', '.join(parts) or 'none'}")
        parts = {part: parts[part]}
    files: Iterable[RemoteFile] = parts.values()
    if progress and len(parts) > 1:
        from tqdm.auto import tqdm

        files = tqdm(files, desc=corpus_name, total=len(parts), unit=" files")
    texts = (read_text(fetch(file, progress=progress and len(parts) == 1)) for file in files)
    return list(itertools.chain.from_iterable(map(corpus.documents, texts)))


def fetch(file: RemoteFile, *, progress: bool = False) -> Path:
    """The path of the file on this machine: in LLMFS_DATA, in the cache, or downloaded into the cache.

    What lies in the cache and is damaged is downloaded again. Of several processes that want the same file, one
    fetches it and the others wait. Where only the size of the published file is known, the first one is trusted, with a
    warning, and its SHA-256 kept: a file that differs from it later is damaged or has been changed. Raises CorpusError
    where it cannot be had, or is not what was published.
    """
    if folder := os.environ.get("LLMFS_DATA"):
        given = _inside(Path(folder).expanduser(), file.name)
        if given.is_file():
            if not has_checksum(given, _known_checksum(file)):
                raise CorpusError(f"{given} is not the published file: {_expectation(file)}")
            with contextlib.suppress(OSError):  # a cache that cannot be written keeps nothing
                _keep_digest(file, given)
            return given
    cached = _inside(cache_dir(), file.name)
    if not has_checksum(cached, _known_checksum(file)) or _known_checksum(file).startswith("size:"):
        from filelock import FileLock

        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(cached.with_name(f".{cached.name}.lock")):
                if not has_checksum(cached, _known_checksum(file)):  # another process may have fetched it meanwhile
                    _download(file, cached, progress=progress)
                _keep_digest(file, cached)
        except OSError as error:
            raise CorpusError(
                f"{file.url} could not be downloaded ({type(error).__name__}: {error!s:.200}). Where there is no "
                f"network, put the file at {cached}, or as {file.name} into the folder that LLMFS_DATA names"
            ) from error
    return cached


def _download(file: RemoteFile, target: Path, *, progress: bool) -> None:
    """Fetch the file into a folder of its own, check it, and only then put it in its place."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    try:
        got = Path(pooch.retrieve(file.url, None, target.name, partial, progressbar=progress))
        if not has_checksum(got, _known_checksum(file)):
            raise CorpusError(f"what {file.url} gave is not the published file: {_expectation(file)}")
        os.replace(got, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _known_checksum(file: RemoteFile) -> str:
    """The published hash; where there is none, that of the first file seen; before there was one, the size."""
    if file.checksum.startswith("size:") and file.digest_path.is_file():
        return f"sha256:{file.digest_path.read_text(encoding='utf-8', errors='replace').strip()}"
    return file.checksum


def _expectation(file: RemoteFile) -> str:
    """What a file should have been, and what to do where the publisher has changed it."""
    known = _known_checksum(file)
    if known == file.checksum:
        return f"it should have {known}"
    return f"it should have {known}, as the first one had; to accept another, delete {file.digest_path}"


def _keep_digest(file: RemoteFile, path: Path) -> None:
    """Of a file of which only the size is known, keep the SHA-256 of the first one seen, and say so."""
    if not _known_checksum(file).startswith("size:"):
        return
    digest = _digest(path, hashlib.sha256())
    partial = file.digest_path.with_name(f".{file.digest_path.name}.{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(f"{digest}\n", encoding="utf-8")
    os.replace(partial, file.digest_path)
    warnings.warn(
        f"{path} was checked by its size alone: no hash of {file.url} is known. Its SHA-256, {digest}, is kept in "
        f"{file.digest_path}, and must be the same from now on",
        stacklevel=2,
    )


def _inside(folder: Path, name: str) -> Path:
    """folder/name; CorpusError where that lies elsewhere, as for "../name"."""
    path = Path(os.path.normpath(folder / name))
    if not path.is_relative_to(os.path.normpath(folder)):
        raise CorpusError(f"the file {name!r} would lie outside the folder {folder}")
    return path


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether there is such a file, and it has this "sha256:...", "git:..." or "size:..."."""
    kind, _, expected = checksum.partition(":")
    if not path.is_file():
        return False
    if kind == "size":
        return path.stat().st_size == int(expected)
    begun = hashlib.sha256() if kind == "sha256" else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    return _digest(path, begun) == expected


def _digest(path: Path, begun: hashlib._Hash) -> str:
    """The hash that was begun, carried on over the file: hexadecimal digits."""
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            begun.update(block)
    return begun.hexdigest()


def _github(repository: str, commit: str, path: str) -> str:
    return f"https://raw.githubusercontent.com/{repository}/{commit}/{path}"


def _one_document(text: str) -> list[str]:
    return [text]


def _shakespeare_parts() -> dict[str, RemoteFile]:
    commit = "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e"
    return {
        "all": RemoteFile(
            "tinyshakespeare.txt",
            _github("karpathy/char-rnn", commit, "data/tinyshakespeare/input.txt"),
            "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        )
    }


def _kjv_parts() -> dict[str, RemoteFile]:
    """A file for each book, in the order of the Bible."""
    commit = "a9aa4e55afbb3e095f57e4b14cd1f22c5ee8d7c9"
    lines = resources.files("llmfs").joinpath("kjv_sha256.txt").read_text(encoding="utf-8").splitlines()
    return {
        name.removesuffix(".json"): RemoteFile(
            f"kjv/{name}", _github("aruljohn/Bible-kjv", commit, name), f"sha256:{sha256}"
        )
        for sha256, name in map(str.split, lines)
    }


def kjv_document(text: str) -> list[str]:
    """A book's JSON -> one document: "Genesis 1", then a line for each verse, "1 In the beginning ..."."""
    book = json.loads(text)
    chapters = (
        "\n".join(
            [f"{book['book']} {chapter['chapter']}"]
            + [f"{verse['verse']} {verse['text'].strip()}" for verse in chapter["verses"]]
        )
        for chapter in book["chapters"]
    )
    return ["\n\n".join(chapters) + "\n"]


def _wikitext_parts() -> dict[str, RemoteFile]:
    checksums = {
        "train": ("train", "git:2d84b35af79e411d73ea7cae83c73964c6ac83b4"),
        "validation": ("valid", "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        "test": ("test", "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    }
    folder = "word_language_model/data/wikitext-2"
    commit = "77f55b912142e11fcfdf5b530231fb9c52f181e8"
    return {
        part: RemoteFile(
            f"wikitext2-{file}.txt", _github("pytorch/examples", commit, f"{folder}/{file}.txt"), checksum
        )
        for part, (file, checksum) in checksums.items()
    }


def wikitext_articles(text: str) -> list[str]:
    """The articles: each begins with its title, " = Du Fu = ", between two lines that hold a space."""
    return [part for part in re.split(r"(?:\A|(?<=\n)) \n(?= = [^=\n]+ = \n \n)", text) if part.strip()]


def _tinystories_parts() -> dict[str, RemoteFile]:
    name = "TinyStoriesV2-GPT4-valid.txt"
    url = f"https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/{name}"
    return {"validation": RemoteFile(name, url, "size:22502601")}


def tinystories_stories(text: str) -> list[str]:
    """The stories, which the file separates by a line with `<|endoftext|>`."""
    return [story.strip() for story in text.split("<|endoftext|>") if story.strip()]


CORPORA = {
    corpus.name: corpus
    for corpus in (
        Corpus(
            name="tales",
            description="short stories written from a seed by this package, whose exact probability is known",
            license="made by this package",
            size="any",
            parts=dict,
            default=None,
            documents=_one_document,
        ),
        Corpus(
            name="tiny-shakespeare",
            description="scenes from Shakespeare's plays (karpathy/char-rnn); one document",
            license="public domain",
            size="1.1 MB",
            parts=_shakespeare_parts,
            default=None,
            documents=_one_document,
        ),
        Corpus(
            name="kjv",
            description="the King James Bible (aruljohn/Bible-kjv); a document a book, kjv/Genesis is one",
            license="public domain outside the United Kingdom",
            size="4.2 MB",
            parts=_kjv_parts,
            default=None,
            documents=kjv_document,
        ),
        Corpus(
            name="wikitext-2",
            description="Wikipedia articles, tokenized, rare words as <unk>; train, validation, test",
            license="CC BY-SA 3.0",
            size="10.8 MB; validation 1.1 MB; test 1.3 MB",
            parts=_wikitext_parts,
            default="train",
            documents=wikitext_articles,
        ),
        Corpus(
            name="tinystories",
            description="the validation set of TinyStories (Eldan and Li, 2023), written by GPT-4",
            license="CDLA-Sharing-1.0",
            size="22.5 MB",
            parts=_tinystories_parts,
            default=None,
            documents=tinystories_stories,
        ),
    )
}
"""The corpora by name."""


# --- the reader's own text -------------------------------------------------------------------------------


def _load_path(path: Path) -> list[str]:
    if path.is_file():
        return [read_text(path)]
    if not path.is_dir():
        raise CorpusError(f"{path} is neither a file, a folder nor a corpus; corpora: {', '.join(CORPORA)}")
    files = sorted(file for file in path.rglob("*") if file.suffix in TEXT_SUFFIXES and file.is_file())
    texts = [read_text(file) for file in files if file.stat().st_size]
    if not texts:
        raise CorpusError(f"the folder {path} has no {' or '.join(TEXT_SUFFIXES)} file with text in it")
    return texts


def read_text(path: Path) -> str:
    """A UTF-8 file's text, line ends as "\\n". An empty or binary file, or another encoding: CorpusError."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start}): "
            "convert it, or leave it out"
        ) from error
    except OSError as error:
        raise CorpusError(f"{path} cannot be read: {error.strerror}") from error
    if "\0" in text:
        raise CorpusError(f"{path} is not text: it has a zero byte at {content.index(0)}")
    if not text.strip():
        raise CorpusError(f"{path} is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")
