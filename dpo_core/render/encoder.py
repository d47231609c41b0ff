"""Encoder: pieces to token ids in batches; plain text never becomes a special token."""

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from dpo_core.errors import DataError, RecipeError
from dpo_core.render.message_pieces import Marker, Pieces, Tag, TemplateText

CACHED_HEADERS = 4096
ANCHOR = "\n"
CONTROL_TOKEN = re.compile("<[|｜].*[|｜]>", re.DOTALL)


class Encoder:
    """A wrapped tokenizer for the renderer of this name with these markers.

    Plain text never becomes a special token or a marker, and gets no leading space (SentencePiece's dummy prefix):
    the parts of a conversation are tokenized separately, and would each get one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str, markers: Iterable[Marker]) -> None:
        self.tokenizer, self.name = tokenizer, name
        self.backend = plain_backend(tokenizer, frozenset(map(str, markers)))
        special = {index for index in tokenizer.all_special_ids if index != tokenizer.unk_token_id}
        self.forbidden = frozenset(special | {self.vocabulary[text] for text in markers if text in self.vocabulary})
        # Headers recur in every conversation; message texts are too long and too varied to cache.
        self.cached_fixed = lru_cache(CACHED_HEADERS)(self.encode_fixed)

    def encode(self, pieces: Pieces) -> list[int]:
        """The ids of pieces, concatenated."""
        return self.join(pieces, self.encode_plain([pieces]))

    def join(self, pieces: Pieces, texts: dict[str, list[int]]) -> list[int]:
        """The ids of pieces, concatenated; ``texts`` has the ids of every plain text."""
        ids: list[int] = []
        for piece in pieces:
            ids += texts[piece] if type(piece) is str else self.cached_fixed(piece, type(piece))
        return ids

    def join_with_cache(self, pieces: Pieces, texts: dict[str, list[int]]) -> list[int]:
        """The ids of pieces, concatenated; plain texts that ``texts`` lacks are encoded and added to it."""
        new = [piece for piece in pieces if type(piece) is str and piece not in texts]
        texts.update(zip(new, self.encode_texts(new), strict=True))
        return self.join(pieces, texts)

    def encode_plain(self, pieces_list: Iterable[Pieces]) -> dict[str, list[int]]:
        """The ids of every plain text among these pieces; each is encoded once, all in one batch."""
        texts = list({piece: None for pieces in pieces_list for piece in pieces if type(piece) is str})
        return dict(zip(texts, self.encode_texts(texts), strict=True))

    def encode_texts(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of plain texts, without special tokens.

        Raises DataError for a text that the tokenizer cannot encode without a special token.
        """
        return [
            ids if self.forbidden.isdisjoint(ids) else self.encode_lookalikes(text)
            for text, ids in zip(texts, self.raw_ids(texts), strict=True)
        ]

    def encode_text(self, text: str) -> list[int]:
        """Ids of one plain text; raises DataError as :meth:`encode_texts` does."""
        return self.encode_texts([text])[0]

    def encode_lookalikes(self, text: str) -> list[int]:
        """Ids of a text that has the letters of a special token; these are encoded letter by letter.

        Raises DataError when single letters become special tokens as well.
        """
        parts = self.lookalike.split(text)
        split_pieces = [piece for index, part in enumerate(parts) for piece in (list(part) if index % 2 else [part])]
        # A normalizer can produce a special token from other letters; then every letter is encoded separately.
        for pieces in (split_pieces, list(text)):
            ids = [token for piece in self.raw_ids(pieces) for token in piece]
            if self.forbidden.isdisjoint(ids):
                return ids
        problem = f"The tokenizer of {self.tokenizer.name_or_path} encodes {text!r:.60} with a special token."
        raise DataError(
            problem, "Message text must never become a special token.", "Choose a model with another tokenizer."
        )

    @cached_property
    def lookalike(self) -> re.Pattern[str]:
        """Pattern of the texts of all special tokens."""
        texts = [re.escape(text) for text, index in self.vocabulary.items() if index in self.forbidden]
        return re.compile(f"({'|'.join(texts)})")

    def raw_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokenizer's ids of texts, without recognizing special tokens."""
        if self.backend is None:
            return [self.slow_ids(text) for text in texts]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    def slow_ids(self, text: str) -> list[int]:
        """Ids from a slow (Python) tokenizer; encoded after ANCHOR where it puts a space before every text."""
        if not self.adds_space:
            return self.python_ids(text)
        return self.python_ids(ANCHOR + text)[len(self.python_ids(ANCHOR)) :]

    def python_ids(self, text: str) -> list[int]:
        """Ids of a text from the slow tokenizer itself."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    @cached_property
    def adds_space(self) -> bool:
        """Whether a slow tokenizer puts a space before every text."""
        return self.decode(self.python_ids("a") + self.python_ids("b")) != "ab"

    def encode_fixed(self, piece: str, kind: type[str]) -> list[int]:
        """The ids of a marker, a tag or a template's text; ``kind`` tells equal texts of different types apart."""
        if kind is Marker or (kind is Tag and piece in self.vocabulary):
            return [self.marker_id(piece)]
        return self.template_ids(str(piece)) if kind is TemplateText else self.encode_text(str(piece))

    def template_ids(self, text: str) -> list[int]:
        """The ids of a template's text; special tokens are recognized."""
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
                f"The renderer {self.name} needs this token.",
                "Choose another renderer_name (role_colon needs no special tokens).",
            )
        return index

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Every token's id; cached, because ``get_vocab`` builds a new dictionary at each call."""
        return dict(self.tokenizer.get_vocab())

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids without special tokens (tags stay), white space unchanged."""
        visible = [token for token in ids if token not in self.hidden_ids]
        return self.decode_raw([*self.decode_prefix, *visible]).removeprefix(self.decode_raw(self.decode_prefix))

    def decode_raw(self, ids: Sequence[int]) -> str:
        """The tokenizer's text of ids, special tokens included."""
        return str(self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False))

    @cached_property
    def hidden_ids(self) -> frozenset[int]:
        """Special tokens that :meth:`decode` leaves out; think tags stay, because they are part of a response."""
        tags = {self.vocabulary.get(tag) for tag in ("<think>", "</think>")}
        return frozenset(self.tokenizer.all_special_ids) - tags

    @cached_property
    def decode_prefix(self) -> list[int]:
        """Ids to decode before a text: those of a letter where the decoder strips a text's first space, else none."""
        stripped = self.decode_raw(self.raw_ids([" a"])[0]) != " a"
        return self.raw_ids(["a"])[0] if stripped else []


def plain_backend(tokenizer: PreTrainedTokenizerBase, markers: frozenset[str]) -> Tokenizer | None:
    """A copy of a fast tokenizer that adds no space, truncates nothing and recognizes no special token or marker.

    None for a slow (Python) tokenizer.
    """
    original = getattr(tokenizer, "backend_tokenizer", None)
    if original is None:
        return None
    state = json.loads(original.to_str())
    for token in state["added_tokens"]:
        # Only special tokens can be excluded from matching, and some markers (DeepSeek's) are not declared special.
        token["special"] |= token["content"] in markers or bool(CONTROL_TOKEN.fullmatch(token["content"]))
    for part in ("normalizer", "pre_tokenizer"):
        state[part] = without_prefix(state[part])
    backend = Tokenizer.from_str(json.dumps(state))
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def without_prefix(part: Any) -> Any:
    """The normalizer's or pre-tokenizer's state without the step that puts a space before a text; None if empty."""
    if part is None or part["type"] == "Prepend":
        return None
    list_key = next((name for name in ("normalizers", "pretokenizers") if name in part), None)
    if list_key:
        inner_parts = [cleaned for component in part[list_key] if (cleaned := without_prefix(component)) is not None]
        return part | {list_key: inner_parts} if inner_parts else None
    switches = {"prepend_scheme": "never", "add_prefix_space": False}
    return part | {name: value for name, value in switches.items() if name in part}
