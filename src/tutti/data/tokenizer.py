"""Text to token numbers: a byte-level BPE or characters trained on the text, or any Hugging Face tokenizer.

Whatever its origin, the tokenizer ends up as a Hugging Face directory, and one special token ends every
document. Text that merely looks like a special token is encoded as the characters it consists of.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tutti.core.errors import DataError
from tutti.core.infilling import OWN as INFILLING
from tutti.data.pieces import pieces
from tutti.data.settings import END_OF_TEXT, UNKNOWN

#: Strings of this length go to the trainer, which holds 256 of them at a time.
_TRAINING_CHARACTERS = 1 << 14
_ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
_SMALLEST_BPE = len(_ALPHABET) + 1
_CONFIG = "tokenizer_config.json"
#: What encoders have beside the end of text, by transformers' names.
_SEPARATORS = {
    "cls_token": "<|class|>",
    "sep_token": "<|separator|>",
    "pad_token": "<|pad|>",
    "mask_token": "<|mask|>",
}


def choose_vocabulary(train_bytes: int) -> tuple[int, str]:
    """Entries for so many bytes of text: 1.25·√bytes as a power of two; and the words for it."""
    wanted = 1.25 * math.sqrt(max(train_bytes, 1))
    size = min(65536, max(512, 2 ** round(math.log2(wanted))))
    return (
        size,
        f"{train_bytes / 1e6:.1f} MB to train on; the power of two nearest to 1.25·√bytes, from 512 to 65536",
    )


def train_bpe(texts: Iterable[str], vocabulary: int, *, exactly: bool) -> Tokenizer:
    """Byte-level BPE: any text round-trips, since all 256 bytes are in the vocabulary.

    `exactly`: the user asked for this size, so fewer entries are an error. A merge must occur twice.

    Raises:
        DataError: the text cannot fill the vocabulary, or it has no room for the bytes.
    """
    if vocabulary < _SMALLEST_BPE:
        raise DataError(
            f"data.vocabulary is {vocabulary}; "
            f"byte-level BPE has at least {_SMALLEST_BPE} entries (256 bytes, end of text)",
            f"set data.vocabulary to {_SMALLEST_BPE} or more, or data.tokenizer: characters",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(END_OF_TEXT, normalized=False, special=True)],
        initial_alphabet=_ALPHABET,
    )
    small = (piece for text in texts for piece in pieces([text], _TRAINING_CHARACTERS))
    tokenizer.train_from_iterator(small, trainer)
    filled = tokenizer.get_vocab_size()
    if exactly and filled < vocabulary:
        raise DataError(
            f"data.vocabulary is {vocabulary}, but the text fills only {filled} entries",
            f"set data.vocabulary to {filled} or less (or auto), or give more text",
        )
    return tokenizer


def train_characters(texts: Iterable[str]) -> Tokenizer:
    """Every character of `texts` is a token; any other becomes `<|unknown|>`."""
    characters: set[str] = set()
    for text in texts:
        characters.update(text)
    vocabulary = {token: index for index, token in enumerate([END_OF_TEXT, UNKNOWN, *sorted(characters)])}
    # BPE without merges goes by character; it is given short stretches, since its time is not linear in them.
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex("(?m).{1,64}"), "isolated"
    )  # (?m): `.` is any character
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (END_OF_TEXT, UNKNOWN)]
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write `tokenizer`, trained here, as a directory that `AutoTokenizer.from_pretrained` opens."""
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
        "model_max_length": 10**30,
    }
    if tokenizer.token_to_id(UNKNOWN) is not None:
        config["unk_token"] = UNKNOWN
    config |= {name: token for name, token in _SEPARATORS.items() if tokenizer.token_to_id(token) is not None}
    (directory / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")


def with_separators(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, trained here, that puts a class token before a text and a separator behind each of one or two.

    So encoders are given texts. The new tokens, and one for padding and one for masking, come behind all others.
    """
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in _SEPARATORS.values()]
    )
    first, end = _SEPARATORS["cls_token"], _SEPARATORS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {end}",
        pair=f"{first} $A {end} $B:1 {end}:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, end)],
    )
    return tokenizer


def with_infilling(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, trained here, with the marks of text that is told round its middle."""
    tokenizer.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in INFILLING])
    return tokenizer


def words_tokenizer(words: Sequence[str], between: str) -> Tokenizer:
    """A tokenizer whose tokens are `words`, numbered as they come, then one for all others and the end token; in a text
    `between` stands between them."""
    numbers = {word: number for number, word in enumerate([*words, UNKNOWN])}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(between, "removed")
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False, special=True) for name in (UNKNOWN, END_OF_TEXT)]
    )
    return tokenizer


def with_end(tokenizer: Tokenizer) -> Tokenizer:
    """`tokenizer`, trained here, that puts the end token behind a text: so encoder-decoders are given texts."""
    tokenizer = with_separators(tokenizer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END_OF_TEXT}", special_tokens=[(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    )
    return tokenizer


def marks_in(directory: Path, tokenizer: Tokenizer) -> dict[str, int]:
    """Numbers of the marks that the tokenizer in `directory` has, by transformers' names (`mask_token`, …)."""
    config = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
    found = {}
    for name in ("bos_token", "eos_token", *_SEPARATORS):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        number = tokenizer.token_to_id(text) if text else None
        if number is not None:
            found[name] = number
    return found


def pad_token_of(directory: Path, tokenizer: Tokenizer) -> int:
    """Number of the token that fills up what is shorter; the end token where there is none."""
    number = marks_in(directory, tokenizer).get("pad_token")
    return end_token_of(directory, tokenizer) if number is None else number


def import_tokenizer(source: str, directory: Path) -> None:
    """Copy the Hugging Face tokenizer at `source` into `directory`.

    Raises:
        DataError: no such directory, not a tokenizer, or one that `tokenizers` cannot run.
    """
    path = hugging_face_directory(source)
    from transformers import AutoTokenizer  # takes seconds; only this kind of tokenizer needs it

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # whatever transformers meets in somebody's files
        raise DataError(
            f"{path} is no tokenizer that transformers can open: {error}", "check the directory"
        ) from error
    if not isinstance(getattr(tokenizer, "backend_tokenizer", None), Tokenizer):
        raise DataError(f"the tokenizer at {path} has no fast version", "convert it to a `tokenizer.json`")
    if tokenizer.eos_token_id is None and tokenizer.sep_token_id is None:
        raise DataError(
            f"the tokenizer at {path} has neither an end token nor a separator", "give it an `eos_token`"
        )
    tokenizer.save_pretrained(str(directory))


def hugging_face_directory(source: str) -> Path:
    """`data.tokenizer` as a directory.

    Raises:
        DataError: there is none.
    """
    path = Path(source).expanduser()
    if not path.is_dir():
        raise DataError(
            f"data.tokenizer: '{source}' is neither `bpe` nor `characters` nor a directory",
            "name a directory with a tokenizer.json in it",
        )
    return path


def digest_of_directory(path: Path) -> str:
    """Names the content of the small files of a tokenizer directory (weights beside it don't matter)."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model", ".jinja"):
            digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def load_for_encoding(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`, set to take all text as text: no special tokens, no cutting."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def end_token_of(directory: Path, tokenizer: Tokenizer) -> int:
    """Number of the token that ends a document: the end-of-text token, or else the separator."""
    marks = marks_in(directory, tokenizer)
    for name in ("eos_token", "sep_token"):
        if name in marks:
            return marks[name]
    raise DataError(f"the tokenizer at {directory} has no end token", "give it an `eos_token`")


def begin_token_of(directory: Path, tokenizer: Tokenizer) -> int | None:
    """Number of the token that begins a document: the `bos_token` that the tokenizer itself puts before a text (as
    Llama's and Gemma's do); None: it puts none."""
    begin, ids = marks_in(directory, tokenizer).get("bos_token"), tokenizer.encode("a").ids
    return begin if len(ids) > 1 and ids[0] == begin else None


def vocabulary_of(tokenizer: Tokenizer) -> int:
    """One more than the highest token number, counting added tokens."""
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
