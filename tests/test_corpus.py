"""Where text comes from: names, files, folders, and downloads from a server of the test's own."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from llmfs import corpus, tales
from llmfs.corpus import CORPORA, Corpus, CorpusError, RemoteFile, cache_dir, list_corpora, load_texts


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no folder of given files."""
    monkeypatch.delenv("LLMFS_DATA", raising=False)
    monkeypatch.setenv("LLMFS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which it is published."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "published"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{http.server_port}"
        http.shutdown()
        thread.join()


def register(monkeypatch: pytest.MonkeyPatch, **files: RemoteFile) -> None:
    """Make "fake" a corpus with these parts."""
    fake = Corpus("fake", "for tests", "none", "tiny", lambda: files, None, lambda text: [text])
    monkeypatch.setitem(CORPORA, "fake", fake)


def sha256(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


# Of the text "hello"; the second is what `git hash-object` prints.
CHECKSUMS = [sha256("hello"), "git:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0", "size:5"]


# --- by name ---------------------------------------------------------------------------------------------


def test_tales_are_written_from_the_seed() -> None:
    texts = load_texts("tales:5", seed=3)
    assert texts == [tale.text for tale in tales.stories(5, 3)]
    assert texts == load_texts("tales", n=5, seed=3) != load_texts("tales:5", seed=4)


def test_every_corpus_says_what_it_is() -> None:
    assert [c.name for c in list_corpora()] == list(CORPORA)
    assert set(CORPORA) == {"tales", "tiny-shakespeare", "kjv", "wikitext-2", "tinystories"}
    for entry in list_corpora():
        assert entry.description and entry.license and entry.size
        assert entry.default is None or entry.default in entry.parts()
        for file in entry.parts().values():
            assert file.url.startswith("https://")
            assert file.checksum.partition(":")[0] in ("sha256", "git", "size")
    assert len(CORPORA["kjv"].parts()) == 66


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("kjv/Enoch", "no part 'Enoch'; it has Genesis, Exodus"),
        ("tales:many", "number of documents"),
        ("tales:0", "at least 1"),
        ("no-such-thing", "neither a file, a folder nor a corpus; corpora: tales"),
        ("no/such/folder", "neither a file"),
    ],
)
def test_a_wrong_source_is_named(source: str, message: str) -> None:
    with pytest.raises(CorpusError, match=message):
        load_texts(source)


def test_kjv_is_a_line_for_each_verse() -> None:
    verses = [{"verse": "1", "text": "In the beginning. "}, {"verse": "2", "text": "And the earth."}]
    book = {"book": "1 Genesis", "chapters": [{"chapter": str(c), "verses": verses} for c in (1, 2)]}
    (text,) = corpus.kjv_document(json.dumps(book))
    chapter = "1 In the beginning.\n2 And the earth.\n"
    assert text == f"1 Genesis 1\n{chapter}\n1 Genesis 2\n{chapter}"


def test_wikitext_is_cut_into_articles() -> None:
    text = " \n = Du Fu = \n \n Text . \n \n = = Life = = \n \n x \n = 1 = \n y \n \n = B = \n \n End . \n"
    articles = corpus.wikitext_articles(text)
    assert [article.split("\n")[0] for article in articles] == [" = Du Fu = ", " = B = "]
    assert "".join(" \n" + article for article in articles) == text


def test_tinystories_are_cut_at_their_separator() -> None:
    assert corpus.tinystories_stories("One.\n<|endoftext|>\nTwo.\n<|endoftext|>\n") == ["One.", "Two."]


# --- downloads -------------------------------------------------------------------------------------------


def test_a_corpus_is_downloaded_once(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    folder, url = server
    (folder / "a.txt").write_text("hello")
    register(monkeypatch, a=RemoteFile("sub/a.txt", f"{url}/a.txt", sha256("hello")))
    assert load_texts("fake") == ["hello"]
    assert (empty_cache / "sub" / "a.txt").read_text() == "hello"
    (folder / "a.txt").unlink()
    assert load_texts("fake", progress=True) == ["hello"]


def test_a_damaged_file_in_the_cache_is_downloaded_again(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    folder, url = server
    (folder / "a.txt").write_text("hello")
    empty_cache.mkdir()
    for checksum in CHECKSUMS:
        (empty_cache / "a.txt").write_text("hel")
        register(monkeypatch, a=RemoteFile("a.txt", f"{url}/a.txt", checksum))
        assert load_texts("fake") == ["hello"]


@pytest.mark.parametrize("checksum", CHECKSUMS)
def test_a_download_that_is_not_the_published_file_is_refused(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path, checksum: str
) -> None:
    folder, url = server
    (folder / "a.txt").write_text("something else")
    register(monkeypatch, a=RemoteFile("a.txt", f"{url}/a.txt", checksum))
    with pytest.raises(CorpusError, match="not the published file"):
        load_texts("fake")
    assert not (empty_cache / "a.txt").exists()


def test_parts_are_read_in_order(server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, url = server
    for name in "bac":
        (folder / name).write_text(f"text {name}")
    files = {name: RemoteFile(name, f"{url}/{name}", sha256(f"text {name}")) for name in "bac"}
    register(monkeypatch, **files)
    assert load_texts("fake", progress=True) == ["text b", "text a", "text c"]
    assert load_texts("fake:2") == ["text b", "text a"]
    assert load_texts("fake/c") == ["text c"]


def test_without_a_network_the_error_says_where_to_put_the_file(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    _, url = server
    for address in (f"{url}/missing", "http://127.0.0.1:9/refused"):
        register(monkeypatch, a=RemoteFile("sub/a.txt", address, sha256("hello")))
        with pytest.raises(CorpusError) as error:
            load_texts("fake")
        for hint in (address, str(empty_cache / "sub" / "a.txt"), "sub/a.txt", "LLMFS_DATA"):
            assert hint in str(error.value)


@contextmanager
def unreliable(monkeypatch: pytest.MonkeyPatch, content: bytes, answers: list[str]) -> Iterator[tuple[str, list[str]]]:
    """A server that misbehaves in the ways of `answers`, one a request, then behaves -> its address and the requests."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    seen: list[str] = []
    finished = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

        def do_GET(self) -> None:
            how = answers.pop(0) if answers else "whole"
            seen.append(how)
            self.send_response(500 if how == "error" else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if how == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif how == "flipped":
                self.wfile.write(content[:-1] + bytes([content[-1] ^ 1]))
            elif how == "stuck":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                finished.wait(60)
            elif how == "slow":
                time.sleep(0.5)
                self.wfile.write(content)
            else:
                self.wfile.write(content)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{http.server_port}/a.txt", seen
        finished.set()
        http.shutdown()


@pytest.mark.parametrize("how", ["cut", "flipped", "error"])
def test_a_download_that_fails_leaves_nothing_and_the_next_one_works(
    how: str, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    text = "hello " * 1000
    with unreliable(monkeypatch, text.encode(), [how]) as (url, seen):
        register(monkeypatch, a=RemoteFile("sub/a.txt", url, sha256(text)))
        with pytest.raises(CorpusError, match=r"a\.txt (could not be downloaded|gave is not the published file)"):
            load_texts("fake")
        assert not [p for p in empty_cache.rglob("*") if p.is_file() and not p.name.endswith(".lock")]
        assert load_texts("fake") == [text]
        assert seen == [how, "whole"]


def test_two_processes_that_fetch_at_once_share_one_download(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    text = "hello " * 1000
    script = (
        "import sys; from llmfs.corpus import *; "
        "print(len(fetch(RemoteFile('sub/a.txt', sys.argv[1], sys.argv[2])).read_text()))"
    )
    with unreliable(monkeypatch, text.encode(), ["slow", "slow", "slow"]) as (url, seen):
        (empty_cache / "sub").mkdir(parents=True)
        (empty_cache / "sub" / "a.txt").write_text("damaged")
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(corpus.__file__).parents[1])}
        command = [sys.executable, "-c", script, url, sha256(text)]
        processes = [
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env) for _ in range(3)
        ]
        outputs = [process.communicate(timeout=60)[0].decode() for process in processes]
        assert outputs == [f"{len(text)}\n"] * 3
        assert len(seen) == 1


def test_a_fetch_that_is_killed_leaves_nothing_half_there(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    (empty_cache / "sub" / ".a.txt.part").mkdir(parents=True)  # what a killed process left
    (empty_cache / "sub" / ".a.txt.part" / "tmp123").write_text("hel")
    with unreliable(monkeypatch, b"hello", []) as (url, _):
        register(monkeypatch, a=RemoteFile("sub/a.txt", url, sha256("hello")))
        assert load_texts("fake") == ["hello"]
    assert not (empty_cache / "sub" / ".a.txt.part").exists()


def test_a_process_that_is_killed_while_it_fetches(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    text, script = "hello " * 1000, "import sys; from llmfs.corpus import *; fetch(RemoteFile('a.txt', *sys.argv[1:]))"
    with unreliable(monkeypatch, text.encode(), ["stuck"]) as (url, seen):
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(corpus.__file__).parents[1])}
        process = subprocess.Popen([sys.executable, "-c", script, url, sha256(text)], env=env)
        until = time.monotonic() + 60
        while not (seen and list(empty_cache.rglob(".a.txt.part/*"))):
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (empty_cache / "a.txt").exists()
        register(monkeypatch, a=RemoteFile("a.txt", url, sha256(text)))
        assert load_texts("fake") == [text] and seen == ["stuck", "whole"]
    assert sorted(path.name for path in empty_cache.iterdir() if not path.name.endswith(".lock")) == ["a.txt"]


def test_a_file_without_a_known_hash_is_trusted_once(
    server: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, empty_cache: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder, url = server
    (folder / "a.txt").write_text("hello")
    register(monkeypatch, a=RemoteFile("sub/a.txt", f"{url}/a.txt", "size:5"))
    with pytest.warns(UserWarning, match=rf"checked by its size alone.*{sha256('hello')[7:]}"):
        assert load_texts("fake") == ["hello"]
    recwarn.clear()
    record = empty_cache / "sub" / "a.txt.sha256"
    assert f"sha256:{record.read_text().strip()}" == sha256("hello")
    (empty_cache / "sub" / "a.txt").write_text("jello")  # damage of the same size: fetched again
    assert load_texts("fake") == ["hello"]
    (folder / "a.txt").write_text("cello")
    assert load_texts("fake") == ["hello"]
    (empty_cache / "sub" / "a.txt").unlink()
    with pytest.raises(CorpusError, match=r"gave is not the published file.*as the first one had.*a\.txt\.sha256"):
        load_texts("fake")  # what is published has changed
    monkeypatch.setenv("LLMFS_DATA", str(folder))
    with pytest.raises(CorpusError, match=r"published/sub/a\.txt is not the published file.*as the first one had"):
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("jello")
        load_texts("fake")
    assert not recwarn.list
    record.unlink()  # as the error says: another is accepted
    with pytest.warns(UserWarning, match="checked by its size alone"):
        assert load_texts("fake") == ["jello"]
    assert f"sha256:{record.read_text().strip()}" == sha256("jello")


@pytest.mark.parametrize("name", ["../a.txt", "sub/../../a.txt", "/tmp/a.txt"])
def test_a_path_cannot_leave_its_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    with unreliable(monkeypatch, b"hello", []) as (url, seen):
        register(monkeypatch, a=RemoteFile(name, url, sha256("hello")))
        with pytest.raises(CorpusError, match="would lie outside the folder"):
            load_texts("fake")
        monkeypatch.setenv("LLMFS_DATA", str(empty_cache))
        with pytest.raises(CorpusError, match="would lie outside the folder"):
            load_texts("fake")
        assert not seen and not (tmp_path / "a.txt").exists()


def test_the_folder_of_given_files_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    given = tmp_path / "given"
    (given / "sub").mkdir(parents=True)
    monkeypatch.setenv("LLMFS_DATA", str(given))
    register(monkeypatch, a=RemoteFile("sub/a.txt", "http://127.0.0.1:9/never", sha256("hello")))
    (given / "sub" / "a.txt").write_text("hello")
    assert load_texts("fake") == ["hello"]
    assert not empty_cache.exists()
    (given / "sub" / "a.txt").write_text("forged")
    with pytest.raises(CorpusError, match=r"a\.txt is not the published file"):
        load_texts("fake")


def test_the_cache_has_a_home_of_its_own(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    assert cache_dir() == empty_cache
    monkeypatch.delenv("LLMFS_CACHE")
    assert cache_dir().parts[-1] in ("llmfs", "Cache")


GIVEN = Path(os.environ.get("LLMFS_DATA", "/nonexistent"))


@pytest.mark.parametrize(
    ("source", "file", "n_documents", "begins"),
    [
        ("tiny-shakespeare", "tinyshakespeare.txt", 1, "First Citizen:\nBefore we proceed"),
        ("kjv", "kjv/Revelation.json", 66, "Genesis 1\n1 In the beginning God created"),
        ("kjv/1 John", "kjv/1John.json", 1, "1 John 1\n1 That which was from the beginning"),
        ("wikitext-2/validation", "wikitext2-valid.txt", 60, " = Homarus gammarus = \n"),
        ("wikitext-2/test", "wikitext2-test.txt", 60, " = Robert <unk> = \n"),
    ],
)
def test_the_real_corpora(
    source: str, file: str, n_documents: int, begins: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (GIVEN / file).is_file():
        pytest.skip(f"{file} is not in the folder that LLMFS_DATA names")
    monkeypatch.setenv("LLMFS_DATA", str(GIVEN))
    texts = load_texts(source)
    assert len(texts) == n_documents and texts[0].startswith(begins)


# --- files and folders -----------------------------------------------------------------------------------


def test_a_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfna\xc3\xafve\r\nline\rend\n")
    assert load_texts(path) == load_texts(str(path)) == ["naïve\nline\nend\n"]


def test_a_folder_is_a_document_for_each_text_file(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    files = {"c.txt": "c", "b/a.md": "a", "a.txt": "first", "empty.txt": "", "x.py": "code"}
    for name, text in files.items():
        (folder / name).write_text(text)
    assert load_texts(folder) == ["first", "a", "c"]
    assert load_texts(folder, n=2) == ["first", "a"]


def test_a_name_goes_before_a_folder_and_a_path_is_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tales").mkdir()
    (tmp_path / "tales" / "a.txt").write_text("mine")
    assert load_texts("./tales") == load_texts(Path("tales")) == ["mine"]
    assert load_texts("tales", n=1) != ["mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad\.txt is empty"),
        (b" \n\t ", r"bad\.txt is empty"),
        (b"abc\0def", r"bad\.txt is not text: it has a zero byte at 3"),
        (b"caf\xe9", r"bad\.txt is not UTF-8 text \(byte 0xe9 at 3\)"),
        ("text".encode("utf-16"), r"bad\.txt is not UTF-8 text"),
    ],
)
def test_a_file_that_is_no_text_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(content)
    with pytest.raises(CorpusError, match=message):
        load_texts(tmp_path / "bad.txt")
    (tmp_path / "good.txt").write_text("good")
    if content:
        with pytest.raises(CorpusError, match=message):
            load_texts(tmp_path)


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "code.py").write_text("code")
    with pytest.raises(CorpusError, match=r"has no \.txt or \.md file"):
        load_texts(tmp_path)
