"""Every kind of source, and every bad one: one clear message, nothing half-written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from tutti.config.data import DataConfig
from tutti.core import DataError, RunError
from tutti.data import Prepared, TokenSource, prepare
from tutti.data import npy as npy_module
from tutti.data.pieces import pieces
from tutti.data.reading import BadText, TextSettings, read_text
from tutti.data.stdlib import LEFT_OUT, stdlib_files
from tutti.data.tokenizer import load_for_encoding

Configure = Callable[..., DataConfig]
SENTENCE = "It was a dark and stormy night; the rain fell in torrents.\n"


def documents(prepared: Prepared, split: str) -> list[str]:
    """The text of every document of a part, from its tokens."""
    tokenizer = load_for_encoding(prepared.tokenizer_directory)
    tokens = [int(t) for shard in prepared.splits[split].shards for t in prepared.open_tokens(shard)]
    found: list[list[int]] = [[]]
    for token in tokens:
        if token == prepared.end_token:
            found.append([])
        else:
            found[-1].append(token)
    assert found.pop() == []
    return [tokenizer.decode(document, skip_special_tokens=False) for document in found]


def every_document(prepared: Prepared) -> list[str]:
    return [text for split in prepared.splits for text in documents(prepared, split)]


def test_files_folders_globs_and_lists_in_a_fixed_order(tmp_path: Path, configure: Configure) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / "b" / ".git").mkdir()
    texts = {"z.txt": "zz", "b/2.md": "two", "b/1.txt": "one", "b/deep/3.py": "three"}
    for name, text in {**texts, "b/skip.html": "never", "b/.git/x.txt": "never", "b/.h.txt": "never"}.items():
        (tmp_path / name).write_text(text + SENTENCE)
    folder = prepare(configure(tmp_path / "b", validation=0.0))
    assert documents(folder, "train") == [texts[n] + SENTENCE for n in ("b/1.txt", "b/2.md", "b/deep/3.py")]
    listed = prepare(configure([tmp_path / "z.txt", tmp_path / "b"], validation=0.0))
    assert documents(listed, "train") == [
        texts[n] + SENTENCE for n in ("z.txt", "b/1.txt", "b/2.md", "b/deep/3.py")
    ]
    glob = prepare(configure(f"{tmp_path}/**/*.txt", validation=0.0))
    assert documents(glob, "train") == [texts["b/1.txt"] + SENTENCE, texts["z.txt"] + SENTENCE]
    twice = prepare(configure([tmp_path / "z.txt", f"{tmp_path}/z.*"], validation=0.0, deduplicate=False))
    assert twice.counts.documents == 1


def test_jsonl_and_its_text_field(tmp_path: Path, configure: Configure) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"body": f"{n} {SENTENCE}", "n": n} for n in range(3)]
    path.write_bytes(b"\xef\xbb\xbf" + "\n\n".join(json.dumps(line) for line in lines).encode())
    prepared = prepare(configure(path, text_field="body", validation=0.0))
    assert documents(prepared, "train") == [line["body"] for line in lines]
    as_text = prepare(configure(path, format="text", validation=0.0))
    assert documents(as_text, "train") == [path.read_text("utf-8-sig")]


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_fsspec_urls(tmp_path: Path, configure: Configure, scheme: str) -> None:
    root = f"memory://{tmp_path.name}" if scheme == "memory" else f"file://{tmp_path}/urls"
    filesystem, path = fsspec.core.url_to_fs(root)
    filesystem.makedirs(path, exist_ok=True)
    for number in range(3):
        filesystem.pipe(f"{path}/{number}.txt", f"{number} {SENTENCE}".encode())
    filesystem.pipe(f"{path}/lines.jsonl", json.dumps({"text": SENTENCE}).encode())
    expected = [f"{number} {SENTENCE}" for number in range(3)] + [SENTENCE]
    for source in (
        root,
        f"{root}/*",
        [f"{root}/{name}" for name in ("0.txt", "1.txt", "2.txt", "lines.jsonl")],
    ):
        assert documents(prepare(configure(source, validation=0.0), workers=2), "train") == expected
    with pytest.raises(DataError, match="nothing at"):
        prepare(configure(f"{root}/*.nothing"))
    with pytest.raises(DataError, match="nothing at"):
        prepare(configure(f"{root}/missing.txt"))


def test_the_standard_library() -> None:
    files = sorted(stdlib_files())
    names = {path.name for path in files}
    assert {"argparse.py", "ast.py", "decoder.py"} <= names
    assert all(
        not LEFT_OUT & set(path.parts[path.parts.index("json") :]) for path in files if "json" in path.parts
    )
    assert not any("site-packages" in path.parts or "idlelib" in path.parts for path in files)
    assert len(files) > 300


def test_python_modules_are_read_by_their_own_encoding(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "latin.py").write_bytes("# -*- coding: latin-1 -*-\nname = 'café'\n".encode("latin-1"))
    (tmp_path / "broken.py").write_bytes(b"name = '\xff\xfe'\n")
    (tmp_path / "good.py").write_text("print('hello')\n" * 4)
    from tutti.data import listing

    monkeypatch.setattr(listing, "stdlib_files", lambda: iter(tmp_path.glob("*.py")))
    prepared = prepare(configure("python-stdlib", validation=0.0))
    assert documents(prepared, "train")[1] == "# -*- coding: latin-1 -*-\nname = 'café'\n"
    assert [(Path(item.name).name, item.reason) for item in prepared.counts.skipped] == [
        ("broken.py", "does not decode")
    ]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "gb18030", "shift_jis", "cp1252"]
)
def test_encodings_in_blocks_and_from_any_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    from tutti.data import reading

    monkeypatch.setattr(reading, "BLOCK_BYTES", 7)
    text = "abc £ def\r\n" * 9 if encoding == "cp1252" else "日本語 text かな\r\n" * 9
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    settings = TextSettings(encoding, "fail", "text")
    chunks = list(read_text(str(path), settings))
    assert "".join(chunk for chunk, _ in chunks) == text
    for _, mark in chunks:
        rest = "".join(chunk for chunk, _ in read_text(str(path), settings, mark))
        assert rest == text[mark.characters :]


@given(text=st.text(alphabet="ab1 \n\r\t.'", max_size=300), limit=st.integers(2, 40))
@settings(max_examples=200, deadline=None)
def test_pieces_have_the_tokens_of_the_whole(text: str, limit: int) -> None:
    split = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    cut = list(pieces([text], limit))
    hard = any(piece[0] not in " \n" or not piece[1:2].strip() for piece in cut[1:])
    event("no white space to cut at" if hard else "cut at white space")
    if not hard:
        assert [word for piece in cut for word, _ in split(piece)] == [word for word, _ in split(text)]


@given(text=st.text(alphabet="ab \n\r", max_size=400), limit=st.integers(2, 40), size=st.integers(1, 50))
@settings(max_examples=200, deadline=None)
def test_pieces_lose_nothing_and_do_not_depend_on_the_chunks(text: str, limit: int, size: int) -> None:
    cut = list(pieces((text[at : at + size] for at in range(0, len(text), size)), limit))
    assert "".join(cut) == text
    assert all(0 < len(piece) <= limit for piece in cut)
    assert cut == list(pieces([text], limit))


def test_a_document_in_segments_has_the_tokens_of_the_whole(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tutti.data import reading, scan, segments, texts

    text = "".join(f"def f{n}(x):\n    return x + {n}  # é\n\n\n" for n in range(600))
    path = tmp_path / "a.txt"
    path.write_text(text)
    whole = prepare(configure(path, tokenizer="bpe", vocabulary=300, cache=str(tmp_path / "1")))
    for module, name, value in (
        (scan, "SEGMENT_CHARACTERS", 3000),
        (segments, "SHARD_TEXT_BYTES", 4000),
        (reading, "BLOCK_BYTES", 501),
    ):
        monkeypatch.setattr(module, name, value)
    small = lambda chunks: pieces(chunks, 700)  # noqa: E731
    monkeypatch.setattr(scan, "pieces", small)
    monkeypatch.setattr(texts, "pieces", small)
    cut = prepare(configure(path, tokenizer="bpe", vocabulary=300, cache=str(tmp_path / "2")))
    assert len(cut.splits["train"].shards) > 4
    assert [shard.documents for shard in cut.splits["train"].shards][1:] == [0] * (
        len(cut.splits["train"].shards) - 1
    )
    for split in ("train", "validation"):
        tokens = [
            [int(t) for shard in prepared.splits[split].shards for t in prepared.open_tokens(shard)]
            for prepared in (whole, cut)
        ]
        assert tokens[0] == tokens[1]
        assert cut.splits[split].bytes == whole.splits[split].bytes


# ---------------------------------------------------------------- bad input


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD_FILES: list[tuple[str, bytes, str]] = [
    ("empty.txt", b"", r"empty.txt is empty"),
    ("empty.jsonl", b"\n \n", r"empty.jsonl is empty"),
    ("nul.txt", b"text\0text", r"nul.txt is a binary file.*NUL at byte 4"),
    ("late.txt", b"a" * 400_000 + b"\0", r"late.txt is a binary file.*NUL at byte 400000"),
    ("control.txt", bytes(range(1, 32)) * 9, r"control.txt is a binary file.*control characters"),
    ("picture.txt", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", r"binary file"),
    ("a.gz.txt", b"\x1f\x8b\x08\0\0\0", r"binary file.*(\n.*)gzip archive"),
    ("torn.txt", "été".encode()[:-1], r"torn.txt is not utf-8: unexpected end of data at byte 3"),
    ("a.jsonl", b'{"text": "a"}\n{"text": \n', r"a.jsonl:2 is no JSON: Expecting value at column 9"),
    ("b.jsonl", b'\n{"txt": "a", "n": 1}\n', r"b.jsonl:2 has no field 'text'(\n.*)text_field.*txt"),
    ("c.jsonl", b'{"text": 3}\n', r"c.jsonl:1: field 'text' is a number, not text"),
    ("d.jsonl", b'["text"]\n', r"d.jsonl:1 is a list, not an object"),
    (
        "e.jsonl",
        b'{"text": "ab"}\n{"text": "\xff"}\n',
        r"e.jsonl:2 is not utf-8: invalid start byte at byte 25",
    ),
    ("f.jsonl", b'{"text": "\\ud800"}\n', r"f.jsonl:1 \(byte 0\): 'text' has half a surrogate pair"),
    ("g.jsonl", b"[" * 100_000, r"g.jsonl:1 is (nested too deeply|no JSON)"),
    ("h.jsonl", b"\x00\x01\x02\x03", r"h.jsonl is a binary file"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, configure: Configure, name: str, content: bytes, message: str) -> None:
    config = configure(write(tmp_path / name, content))
    with pytest.raises(DataError, match=message) as caught:
        prepare(config)
    assert caught.value.hint
    assert not list((tmp_path / "cache").rglob("*.npy"))


def test_the_byte_of_a_bad_character_is_exact_across_blocks(tmp_path: Path, configure: Configure) -> None:
    for bom in (b"", b"\xef\xbb\xbf"):
        for at in (0, 262_143, 262_144, 300_001):
            path = write(tmp_path / "a.txt", bom + b"x" * at + b"\xe9 after")
            with pytest.raises(DataError, match=rf"not utf-8: .* at byte {len(bom) + at}\b"):
                prepare(configure(path))


def test_policies_for_bad_encoding(tmp_path: Path, configure: Configure) -> None:
    folder = tmp_path / "text"
    folder.mkdir()
    write(folder / "a.txt", SENTENCE.encode())
    write(folder / "b.txt", b"caf\xe9 " + SENTENCE.encode())
    write(folder / "c.jsonl", b'{"text": "one"}\n{"text": "\xff two"}\n{"text": "x \\udc00"}\n')
    write(folder / "d.txt", b"\0\0\0\0")
    with pytest.raises(BadText):
        prepare(configure(folder))
    with pytest.raises(DataError, match=r"d\.txt is a binary file"):
        prepare(configure(folder, on_bad_encoding="replace"))
    skipping = prepare(configure(folder, on_bad_encoding="skip", validation=0.0))
    assert documents(skipping, "train") == [SENTENCE, "one"]
    assert [(Path(item.name).name, item.reason) for item in skipping.counts.skipped] == [
        ("b.txt", "not utf-8"),
        ("c.jsonl:2", "not utf-8"),
        ("c.jsonl:3", "no Unicode text"),
        ("d.txt", "binary"),
    ]
    (folder / "d.txt").unlink()
    replacing = prepare(configure(folder, on_bad_encoding="replace", validation=0.0))
    assert documents(replacing, "train") == [
        SENTENCE,
        f"caf\ufffd {SENTENCE}",
        "one",
        "\ufffd two",
        "x \ufffd",
    ]


def test_bad_places_and_settings(tmp_path: Path, configure: Configure) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    write(tmp_path / "other" / "a.html", b"x")
    text = write(tmp_path / "text.txt", SENTENCE.encode() * 20)
    write(tmp_path / "empty.txt", b"")
    cases: list[tuple[DataConfig, str]] = [
        (configure(tmp_path / "tezt.txt"), r"no file or folder .*(\n.*)did you mean .*text.txt"),
        (configure("python-stdlb"), r"did you mean python-stdlib"),
        (configure(tmp_path / "no" / "such"), r"no file or folder"),
        (configure(tmp_path / "empty"), r"folder .* is empty"),
        (configure(tmp_path / "other"), r"no file that ends in .*1 × .html(.|\n)*\*\*/\*\.html"),
        (configure(f"{tmp_path}/*.nothing"), r"no file matches"),
        (configure([]), r"empty list"),
        (configure("nonsense://bucket/x.txt"), r"cannot be opened"),
        (configure(text, encoding="utf-9"), r"no text encoding 'utf-9'"),
        (configure(text, encoding="rot13"), r"no text encoding 'rot13'"),
        (configure(text, tokenizer="bqe"), r"neither `bpe` nor"),
        (configure(text, tokenizer=str(tmp_path / "empty")), r"no tokenizer that transformers"),
        (configure(text, tokenizer="bpe", vocabulary=100), r"at least 257"),
        (configure(text, tokenizer="bpe", vocabulary=50_000), r"fills only \d+ entries"),
        (configure(text, vocabulary=500), r"has its own size"),
        (configure(text, sequence=5000), r"train part has [\d,]+ tokens .* data.sequence \+ 1 = 5,001"),
        (configure(text, sequence=300), r"validation part has \d+ tokens .*(\n.*)data.validation"),
        (configure(text, split="document"), r"no text falls to the validation part"),
        (configure(text, validation_source=str(text)), r"nothing is left to train on"),
        (configure(text, validation_source=str(tmp_path / "empty.txt")), r"empty.txt is empty"),
    ]
    for config, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            prepare(config)
        assert caught.value.hint, message


def test_unwritable_caches(tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write(tmp_path / "text.txt", SENTENCE.encode() * 20)
    blocked = write(tmp_path / "a-file", b"")
    with pytest.raises(RunError, match="cannot be written"):
        prepare(configure(text, cache=str(blocked / "cache")))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(npy_module.os, "fsync", full)
        with pytest.raises(RunError, match=r"disk that holds .* is full"):
            prepare(configure(text))
    assert not list((tmp_path / "cache").rglob("*.tmp"))
    assert not list((tmp_path / "cache").rglob("manifest.json"))
    TokenSource(prepare(configure(text)), "train", 16, 0, True)


@pytest.fixture(autouse=True)
def _no_memory_left_behind() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
