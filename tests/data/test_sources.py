"""Raw text from tables, compressed files, source code, HTML, PDF, data sets: read, refused, or left out and counted."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import random
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tutti.config.data import DataConfig
from tutti.core import DataError
from tutti.data import prepare, staging
from tutti.data.compressed import inner_name, is_compressed
from tutti.data.listing import _named_as, list_sources
from tutti.data.reading import TextSettings
from tutti.data.sources.document import Bad, Stretch
from tutti.data.sources.documents import cut, documents

Configure = Callable[..., DataConfig]
TEXTS = [f'Text number {n}, with a comma, a "quote"\nand a second line: äöü 漢字.' for n in range(30)]


def read(source: object, **fields: object) -> list[str]:
    """The texts of `source`, as they are read."""
    config = DataConfig(source=str(source), **fields)  # type: ignore[arg-type]
    found = []
    for file in list_sources(config, config.source):
        for stretch in cut(Stretch(file), 10**9, TextSettings.of(config)):
            for one in documents(stretch, TextSettings.of(config)):
                found.append(f"BAD {one.number} {one.reason}" if isinstance(one, Bad) else one.text)
    return found


def far_sighted(data: bytes) -> bytes:
    """As `zstd --long=28` writes it: readers are told to remember 256 MB."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return packer.compress(data) + packer.flush()


def write_csv(path: Path, separator: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["id", "text"])
        writer.writerows([str(n), text] for n, text in enumerate(TEXTS))
    return path


def write_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS), encoding="utf-8")
    return path


def write_parquet(path: Path, rows_of_a_group: int = 7) -> Path:
    table = pa.table({"other": [b"\xff"] * len(TEXTS), "text": TEXTS})
    pq.write_table(table, path, row_group_size=rows_of_a_group)
    return path


def test_tables_give_the_texts_that_were_written(tmp_path: Path) -> None:
    assert read(write_csv(tmp_path / "a.csv")) == TEXTS
    assert read(write_csv(tmp_path / "a.tsv", "\t")) == TEXTS
    assert read(write_parquet(tmp_path / "a.parquet")) == TEXTS
    (tmp_path / "a.json").write_text(json.dumps([{"body": text} for text in TEXTS]))
    assert read(tmp_path / "a.json", text_field="body") == TEXTS


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".xz", lzma.compress),
        (".zst", zstandard.compress),
        (".zst", lambda data: zstandard.compress(data[:99]) + zstandard.compress(data[99:])),
        (".zst", lambda data: far_sighted(data)),
    ],
)
def test_compressed_files_are_read_as_what_is_in_them(
    tmp_path: Path, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    plain = write_jsonl(tmp_path / "a.jsonl").read_bytes()
    packed = tmp_path / f"b.jsonl{ending}"
    packed.write_bytes(pack(plain))
    assert read(packed) == TEXTS
    (tmp_path / f"c.txt{ending}").write_bytes(pack(TEXTS[0].encode()))
    assert read(tmp_path / f"c.txt{ending}") == [TEXTS[0]]
    packed.write_bytes(pack(plain)[:-9])
    with pytest.raises(DataError, match="is damaged"):
        read(packed)


def test_a_compressed_table_prepares_like_the_plain_one(tmp_path: Path, configure: Configure) -> None:
    plain = prepare(configure(write_jsonl(tmp_path / "a.jsonl"), split="document"))
    packed = tmp_path / "a.csv.gz"
    packed.write_bytes(gzip.compress(write_csv(tmp_path / "a.csv").read_bytes()))
    prepared = prepare(configure(packed, split="document"))
    assert prepared.fingerprint == plain.fingerprint
    assert not (Path(configure(packed).cache) / "ready").joinpath("x").exists()
    assert not list((Path(configure(packed).cache) / "ready").glob("*")), "what was made ready is removed"


def test_large_files_are_read_in_stretches_that_make_the_whole(tmp_path: Path) -> None:
    config = DataConfig()
    settings = TextSettings.of(config)
    for path in (write_jsonl(tmp_path / "a.jsonl"), write_parquet(tmp_path / "a.parquet")):
        file = list_sources(config, str(path))[0]
        for aim in (1, 100, 333, 10**9):
            stretches = cut(Stretch(file), aim, settings)
            found = [one.text for part in stretches for one in documents(part, settings)]  # type: ignore[union-attr]
            assert found == TEXTS, (path, aim)
        assert len(cut(Stretch(file), 500, settings)) > 3


BAD_CSV = 'id,text\n1,good\n2,too,many\n3,"never closed\n4,fine\n5,"a ""quoted"" word"\n6\n7,last\n'


def test_bad_rows_of_a_table_are_named_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(BAD_CSV)
    with pytest.raises(DataError, match=r"a.csv:3 has 3 columns(.|\n)*on_bad_row: skip"):
        read(path)
    found = read(path, on_bad_row="skip")
    assert [text for text in found if not text.startswith("BAD")] == [
        "good",
        "fine",
        'a "quoted" word',
        "last",
    ]
    assert [text for text in found if text.startswith("BAD")] == [f"BAD {line} bad row" for line in (3, 4, 7)]


def test_bad_lines_of_jsonl_are_named_with_their_number_also_behind_the_middle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in TEXTS]
    lines[20] = '{"text": 5}'
    path.write_text("\n".join(lines) + "\n")
    config = DataConfig()
    file = list_sources(config, str(path))[0]
    last = cut(Stretch(file), file.size // 2, TextSettings.of(config))[-1]
    assert last.start > 0
    with pytest.raises(DataError, match=r"a.jsonl:21: field 'text' is a number"):
        list(documents(last, TextSettings.of(config)))
    assert len([text for text in read(path, on_bad_row="skip") if text.startswith("BAD 21 ")]) == 1


def test_bad_rows_of_parquet_are_named_or_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", None, "three"]}), path)
    with pytest.raises(DataError, match=r"a.parquet, row 2: 'text' is null"):
        read(path)
    assert read(path, on_bad_row="skip") == ["one", "BAD 2 no text", "three"]
    with pytest.raises(DataError, match=r"has no column 'body'(.|\n)*text"):
        read(path, text_field="body")


def test_damaged_and_vanished_files_are_left_out_whole_and_counted(
    tmp_path: Path, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = write_csv(tmp_path / "good.csv")
    broken = write_parquet(tmp_path / "broken.parquet")
    content = broken.read_bytes()
    broken.write_bytes(
        content[:200] + b"\0" * 200 + content[400:]
    )  # the list of contents is whole, a page is not
    gone = tmp_path / "gone.csv"
    write_csv(gone)
    listed = list_sources(configure(gone), str(gone))
    sources = [good, broken, gone]
    with pytest.raises(DataError, match=r"broken.parquet is (a )?damaged(.|\n)*on_bad_file: skip"):
        prepare(configure(sources))
    monkeypatch.setattr(staging, "UNIT_BYTES", 500)
    original = staging.documents

    def vanishing(stretch: Stretch, settings: TextSettings) -> object:
        gone.unlink(missing_ok=True)
        return original(stretch, settings)

    monkeypatch.setattr(staging, "documents", vanishing)
    config = configure(sources, on_bad_file="skip", split="document")
    with pytest.raises(
        DataError
    ):  # it changed while it was prepared, and the second attempt knows it is not there
        prepare(config)
    prepared = prepare(configure([good, broken], on_bad_file="skip", split="document"))
    assert prepared.counts.documents == len(TEXTS)
    assert {one.name for one in prepared.counts.skipped} == {str(broken)} and prepared.counts.unreadable == 1
    assert listed


def test_rows_before_the_damage_of_a_file_that_is_left_out_do_not_count(
    tmp_path: Path, configure: Configure
) -> None:
    good, packed = write_csv(tmp_path / "good.csv"), tmp_path / "cut.jsonl.zst"
    lines = write_jsonl(tmp_path / "a.jsonl").read_bytes() * 40 + b"no JSON\n" * 3
    draw = random.Random(0)
    for _ in range(2000):  # more than is decompressed at once
        lines += json.dumps({"text": draw.randbytes(100).hex()}).encode() + b"\n"
    packed.write_bytes(zstandard.compress(lines))
    packed.write_bytes(packed.read_bytes()[:-9])
    how = {"on_bad_file": "skip", "on_bad_row": "skip", "split": "document", "clean": {"shortest": 1}}
    prepared = prepare(configure([good, packed], **how))
    assert prepared.counts.documents == len(TEXTS)
    assert [one.name for one in prepared.counts.skipped] == [str(packed)] and prepared.counts.unreadable == 1
    read, length = prepared.manifest.steps[:2]
    assert (read.step, read.seen, read.dropped) == ("read", len(TEXTS) + 1, 1)
    assert (length.step, length.seen) == ("length", len(TEXTS))


@pytest.mark.parametrize("how", [{}, {"clean": {"shortest": 1}}])
def test_bad_rows_are_all_counted_and_the_first_named(
    tmp_path: Path, configure: Configure, how: dict[str, object]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl")
    path.write_text("no JSON\n" * 250 + path.read_text() + '{"text": ' + "9" * 5000 + "}\n")
    for _ in range(2):  # the second time it is found prepared
        counts = prepare(configure(path, on_bad_row="skip", **how)).counts
        assert (counts.documents, counts.unreadable, len(counts.skipped)) == (len(TEXTS), 251, 100)
        assert counts.skipped[0].name == f"{path}:1"


def test_names_of_files_behind_urls() -> None:
    assert inner_name("https://h/x/a.jsonl.gz?download=true#top") == "/x/a.jsonl"
    assert is_compressed("https://h/a.zst?X-Signature=a.b") and not is_compressed("https://h/a.txt?b=c.gz")
    assert inner_name("what?.txt.gz") == "what?.txt"
    for entry, path, name, url in (
        ("ftp://u:p@h/x", "/x", "/x/a.txt", "ftp://u:p@h/x/a.txt"),
        ("s3://bucket/x/", "bucket/x", "bucket/x/a.txt", "s3://bucket/x/a.txt"),
        ("zip://in::s3://b/c.zip", "in", "in/a.txt", "zip://in/a.txt::s3://b/c.zip"),
        ("https://h/x", "https://h/x", "https://h/x/a.txt", "https://h/x/a.txt"),
    ):
        assert _named_as(entry, None, path)(name) == url


def test_folders_behind_links_are_read_once(tmp_path: Path) -> None:
    place, disk = tmp_path / "place", tmp_path / "disk"
    place.mkdir()
    disk.mkdir()
    (place / "a.txt").write_text("a")
    (disk / "b.txt").write_text("b")
    (place / "linked").symlink_to(disk)
    (disk / "back").symlink_to(place)  # round and round
    assert read(place) == ["a", "b"]


def test_source_code_is_read_by_its_endings(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for name in ("a.rs", "b.py", "src/c.H", "notes.txt", "data.csv"):
        (tmp_path / name).write_text(f"// {name}\n")
    assert read(f"code:{tmp_path}") == ["// a.rs\n", "// b.py\n", "// src/c.H\n"]


def test_the_main_text_of_html(tmp_path: Path) -> None:
    pytest.importorskip("trafilatura")
    story = "Die Straße nach Süden ist lang, und wer sie geht, der braucht Geduld und gute Schuhe. " * 5
    page = f"""<html><head><meta charset="iso-8859-1"><title>Reise</title><script>var x = 1;</script></head><body>
    <nav><a href="/">Start</a> <a href="/b">Impressum</a></nav><article><h1>Reise</h1><p>{story}</p><p>{story[:170]}</p>
    </article><footer>Alle Rechte vorbehalten</footer></body></html>"""
    (tmp_path / "a.html").write_bytes(page.encode("latin-1"))
    (text,) = read(tmp_path / "a.html")
    assert story.strip() in text and "var x" not in text and "Impressum" not in text
    (tmp_path / "b.html").write_text("<p>Short.</p>")
    assert read(tmp_path / "b.html") == ["Short."]


def test_the_text_of_pdf(tmp_path: Path, configure: Configure) -> None:
    pytest.importorskip("pypdfium2")
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    path = tmp_path / "a.pdf"
    with PdfPages(path) as pages:
        for number in (1, 2):
            figure = Figure()
            figure.text(0.1, 0.5, f"This is page {number} of a small book.")
            pages.savefig(figure)
    assert read(path) == ["This is page 1 of a small book.\n\nThis is page 2 of a small book."]
    broken = tmp_path / "b.pdf"
    broken.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match=r"b.pdf is a damaged PDF"):
        read(broken)
    with PdfPages(tmp_path / "scan.pdf") as pages:
        pages.savefig(Figure())
    with pytest.raises(DataError, match=r"scan.pdf has no text in it(.|\n)*OCR"):
        prepare(configure(tmp_path / "scan.pdf"))


def test_data_sets_of_the_hub_as_raw_text(tmp_path: Path, configure: Configure) -> None:
    datasets.Dataset.from_dict({"text": TEXTS, "id": list(range(30))}).save_to_disk(tmp_path / "set")
    assert read(f"hf:{tmp_path}/set") == TEXTS
    prepared = prepare(configure(f"hf:{tmp_path}/set", split="document"))
    assert (
        prepared.fingerprint
        == prepare(
            configure(write_jsonl(tmp_path / "a.jsonl"), split="document", cache=str(tmp_path / "other"))
        ).fingerprint
    )


def test_formats_of_labelled_examples_are_refused_as_raw_text(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("a B\n")
    with pytest.raises(DataError, match="labelled examples, not raw text"):
        read(tmp_path / "a.conll")
