"""Pieces to token ids: text that can never become a special token, many texts at a time."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dpo_core.errors import DataError, RecipeError
from dpo_core.render.message_pieces import Marker, Pieces, Tag, TemplateText

REMEMBERED = 4096
ANCHOR = "\n"
CONTROL = re.compile("<[|｜].*[|｜]>", re.DOTALL)


class Encoder:
    """A tokenizer without its surprises, for the renderer of this name and its markers.

    No text becomes a special token or a marker, whatever it says, and none gets a space in front that it does not have
    (SentencePiece's dummy prefix): parts of a conversation are tokenised on their own, and would each get one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, markers: Iterable[Marker]) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.backend = plain_backend(tokenizer, frozenset(map(str, markers)))
        special = {index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id}
        self.forbidden = frozenset(special | {self.vocabulary[text] for text in markers if text in self.vocabulary})
        # Headers are met in every conversation; message text is too long and too varied to remember.
        self.fixed = lru_cache(REMEMBERED)(self.encode_fixed)

    def encode(self, pieces: Pieces) -> list[int]:
        """The ids of pieces, one after the other."""
        return self.join(pieces, self.encode_all([pieces]))

    def join(self, pieces: Pieces, texts: dict[str, list[int]]) -> list[int]:
        """The ids of pieces whose plain texts are encoded already."""
        ids: list[int] = []
        for piece in pieces:
            ids += texts[piece] if type(piece) is str else self.fixed(piece, type(piece))
        return ids

    def join_new(self, pieces: Pieces, texts: dict[str, list[int]]) -> list[int]:
        """The ids of pieces; plain texts that ``texts`` lacks are encoded into it."""
        new = [piece for piece in pieces if type(piece) is str and piece not in texts]
        texts.update(zip(new, self.encode_texts(new), strict=True))
        return self.join(pieces, texts)

    def encode_all(self, many: Iterable[Pieces]) -> dict[str, list[int]]:
        """The ids of every plain text among these pieces, each encoded once, all together."""
        texts = list({piece: None for pieces in many for piece in pieces if type(piece) is str})
        return dict(zip(texts, self.encode_texts(texts), strict=True))

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of plain texts, none of them special.

        Raises DataError for a text that the tokenizer cannot write without a special token.
        """
        return [
            ids if self.forbidden.isdisjoint(ids) else self.unforged(text)
            for text, ids in zip(texts, self.raw_ids(texts), strict=True)
        ]

    def encode_text(self, text: str) -> list[int]:
        """Tokens of one plain text."""
        return self.encode_texts([text])[0]

    def unforged(self, text: str) -> list[int]:
        """Tokens of a text in which the vocabulary finds a special token's letters: those are tokenised one by one.

        Raises DataError when even single letters become special tokens.
        """
        parts = self.lookalike.split(text)
        apart = [piece for odd, part in enumerate(parts) for piece in (list(part) if odd % 2 else [part])]
        # Where a normalizer makes a special token of other letters, the text as it stands does not show it.
        for pieces in (apart, list(text)):
            ids = [token for piece in self.raw_ids(pieces) for token in piece]
            if self.forbidden.isdisjoint(ids):
                return ids
        found = f"The tokenizer of {self.tokenizer.name_or_path} writes {text!r:.60} with a special token."
        raise DataError(found, "Message text must never become one.", "Choose a model with another tokenizer.")

    @cached_property
    def lookalike(self) -> re.Pattern[str]:
        """What looks like a special token."""
        texts = [re.escape(text) for text, index in self.vocabulary.items() if index in self.forbidden]
        return re.compile(f"({'|'.join(texts)})")

    def raw_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokenizer's ids for texts, special tokens switched off."""
        if self.backend is None:
            return [self.slow_ids(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def slow_ids(self, text: str) -> list[int]:
        """The ids of a tokenizer written in Python; behind an anchor where it puts a space before every text."""
        if not self.adds_space:
            return self.python_ids(text)
        return self.python_ids(ANCHOR + text)[len(self.python_ids(ANCHOR)) :]

    def python_ids(self, text: str) -> list[int]:
        """What the tokenizer itself makes of a text."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    @cached_property
    def adds_space(self) -> bool:
        """Whether a tokenizer written in Python puts a space before every text."""
        return self.decode(self.python_ids("a") + self.python_ids("b")) != "ab"

    def encode_fixed(self, piece: str, kind: type[str]) -> list[int]:
        """The ids of a marker, of a tag, or of a template's text (``kind`` keeps equal texts of other kinds apart)."""
        if kind is Marker or (kind is Tag and piece in self.vocabulary):
            return [self.marker_id(piece)]
        return self.written_ids(str(piece)) if kind is TemplateText else self.encode_text(str(piece))

    def written_ids(self, text: str) -> list[int]:
        """The ids of a template's text, special tokens switched on."""
        if self.backend is None:
            ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=False)
            return ids
        self.backend.encode_special_tokens = False
        try:
            return self.backend.encode(text, add_special_tokens=False).ids
        finally:
            self.backend.encode_special_tokens = True

    def marker_id(self, marker: str) -> int:
        """The id of a special token.

        Raises RecipeError when the tokenizer does not have it.
        """
        index = self.vocabulary.get(str(marker))
        if index is None:
            raise RecipeError(
                f"The tokenizer of {self.tokenizer.name_or_path} has no token {marker}.",
                f"The renderer {self.name} needs it.",
                "Choose another renderer_name (role_colon needs no special tokens).",
            )
        return index

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id; made once, for a tokenizer makes it anew at each call."""
        return dict(self.tokenizer.get_vocab())

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out (tags stay), spaces untouched."""
        kept = [token for token in ids if token not in self.silent]
        return self.write([*self.behind, *kept]).removeprefix(self.write(self.behind))

    def write(self, ids: Sequence[int]) -> str:
        """The tokenizer's text of ids."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def silent(self) -> frozenset[int]:
        """Tokens without text: special ones, but for think tags, which are part of an answer."""
        tags = {self.vocabulary.get(tag) for tag in ("<think>", "</think>")}
        return frozenset(self.tokenizer.all_special_ids) - tags

    @cached_property
    def behind(self) -> list[int]:
        """What to decode texts behind: a letter where the decoder would strip a text's first space, else nothing."""
        stripped = self.write(self.raw_ids([" a"])[0]) != " a"
        return self.raw_ids(["a"])[0] if stripped else []


def plain_backend(tokenizer: PreTrainedTokenizerBase, markers: frozenset[str]) -> Tokenizer | None:
    """A copy of a fast tokenizer that adds no space, cuts nothing off and takes no text for a special token or marker.

    None for a tokenizer that is written in Python.
    """
    original = getattr(tokenizer, "backend_tokenizer", None)
    if original is None:
        return None
    state = json.loads(original.to_str())
    for token in state["added_tokens"]:
        # Only special ones are kept from matching, and some formats' markers (DeepSeek's) are not declared so.
        token["special"] |= token["content"] in markers or bool(CONTROL.fullmatch(token["content"]))
    for part in ("normalizer", "pre_tokenizer"):
        state[part] = without_prefix(state[part])
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def without_prefix(part: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space before a text."""
    if part is None or part["type"] == "Prepend":
        return None
    inner = next((name for name in ("normalizers", "pretokenizers") if name in part), None)
    if inner:
        kept = [changed for one in part[inner] if (changed := without_prefix(one)) is not None]
        return part | {inner: kept} if kept else None
    off = {"prepend_scheme": "never", "add_prefix_space": False}
    return part | {name: value for name, value in off.items() if name in part}
