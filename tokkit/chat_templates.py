"""Chat templates: how the turns of a conversation are written down, and what of it is to be learnt.

A template says for each role what stands before and after its words. The assistant's words have what they ``begin`` and ``end``
with besides, which is to be learnt with them: the end is how a model knows to stop. Everything else is only given.

``tokens`` names the special tokens: wherever one stands in the template's own strings, it becomes the text tokenizer's own id
of that name. The same characters in what somebody says stay text.

Named are those whose form is exactly known; one's own is a YAML file::

    tokens: ["<|im_start|>", "<|im_end|>"]
    system: {before: "<|im_start|>system\\n", after: "<|im_end|>\\n", default: "You are a helpful assistant."}
    user: {before: "<|im_start|>user\\n", after: "<|im_end|>\\n"}
    assistant: {before: "<|im_start|>assistant\\n", end: "<|im_end|>", after: "\\n"}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tokkit.documents import SpecialToken

Role = Literal["system", "user", "assistant"]
LARGEST = 1 << 20  # bytes of a file


class Turn(BaseModel):
    """What stands around the words of a role."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    before: str = ""
    after: str = ""


class SystemTurn(Turn):
    """The system's; ``default`` is what it says in a conversation that does not begin with it."""

    default: str | None = None


class AssistantTurn(Turn):
    """The assistant's; ``begin`` and ``end`` are to be learnt with its words."""

    begin: str = ""
    end: str = Field(min_length=1)


class ChatTemplate(BaseModel):
    """A chat template.

    Attributes:
        tokens: names of the special tokens in the strings below.
        bos: what a conversation begins with.
        system: None where the template has no such turn; a conversation with one is then rejected.
        trim: whether white space at both ends of what somebody says is left out.
        encode: ``together``: the assistant's words have the ids that they have behind the text before them, as where the whole
            conversation is encoded at once; what is learnt begins with the first id that this text does not have by itself.
            ``apart``: the ids that they have by themselves.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    tokens: list[str] = Field(default_factory=list)
    bos: str = ""
    system: SystemTurn | None = None
    user: Turn
    assistant: AssistantTurn
    trim: bool = False
    encode: Literal["together", "apart"] = "together"

    @model_validator(mode="after")
    def _in_its_strings(self) -> ChatTemplate:
        for token in self.tokens:
            if not token or token.isspace():
                raise ValueError(f"tokens: {token!r} is no name of a special token")
            if not any(SpecialToken(token) in self.parts(string) for string in self.strings):
                raise ValueError(f"tokens: {token!r} stands nowhere in the template")
        return self

    def __str__(self) -> str:
        return next((name for name, template in NAMED.items() if template == self), "one's own")

    @property
    def strings(self) -> list[str]:
        """The template's own strings; not the system's default, which is said like anything else."""
        turns = [turn for turn in (self.system, self.user) if turn is not None]
        own = self.assistant
        return [self.bos, *(s for turn in turns for s in (turn.before, turn.after)), own.before, own.begin, own.end, own.after]

    @cached_property
    def cuts(self) -> re.Pattern[str] | None:
        """Where special tokens stand in a string."""
        longest_first = sorted(self.tokens, key=lambda token: (-len(token), token))
        return re.compile(f"({'|'.join(map(re.escape, longest_first))})") if longest_first else None

    def parts(self, string: str) -> Iterator[str | SpecialToken]:
        """One of the template's own strings, cut at its special tokens."""
        pieces = [string] if self.cuts is None else self.cuts.split(string)
        for place, piece in enumerate(pieces):
            if piece:
                yield SpecialToken(piece) if place % 2 else piece

    def problems(self, special: Mapping[str, int]) -> list[str]:
        """What is wrong with it for a text tokenizer whose special tokens are these, for people; empty where nothing is."""
        missing = [token for token in self.tokens if token not in special]
        found = [f"the text tokenizer has no special tokens {', '.join(missing)}"] if missing else []
        texts = [part for string in self.strings for part in self.parts(string) if isinstance(part, str)]
        spelt = [name for name in special if any(name in text for text in texts)]
        if spelt:
            found.append(f"{', '.join(spelt)} would be spelt out as text: name them under tokens")
        return found


def load_template(name: str) -> ChatTemplate:
    """A template by its name, or one of a YAML file.

    Raises:
        ValueError: there is none of that name, or the file is not one.
    """
    if name in NAMED:
        return NAMED[name]
    path = Path(name)
    if not path.is_file():
        raise ValueError(f"{name!r} is no file, and there is no template of that name; known: {', '.join(NAMED)}")
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, which no template has")
        return ChatTemplate.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{path} is no chat template: {where + ': ' if where else ''}{first['msg']}") from None


def _chatml(default: str | None) -> ChatTemplate:
    def head(role: Role) -> str:
        return f"<|im_start|>{role}\n"

    end = "<|im_end|>"
    return ChatTemplate(
        tokens=["<|im_start|>", end],
        system=SystemTurn(before=head("system"), after=end + "\n", default=default),
        user=Turn(before=head("user"), after=end + "\n"),
        assistant=AssistantTurn(before=head("assistant"), end=end, after="\n"),
    )


def _llama3() -> ChatTemplate:
    def head(role: Role) -> str:
        return f"<|start_header_id|>{role}<|end_header_id|>\n\n"

    end = "<|eot_id|>"
    return ChatTemplate(
        tokens=["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", end],
        bos="<|begin_of_text|>",
        system=SystemTurn(before=head("system"), after=end),
        user=Turn(before=head("user"), after=end),
        assistant=AssistantTurn(before=head("assistant"), end=end),
        trim=True,
    )


# What is said of each: docs/sources.md.
NAMED: dict[str, ChatTemplate] = {
    "plain": ChatTemplate(
        system=SystemTurn(before="System: ", after="\n"),
        user=Turn(before="User: ", after="\n"),
        assistant=AssistantTurn(before="Assistant:", begin=" ", end="\n"),
        encode="apart",
    ),
    "vicuna": ChatTemplate(
        tokens=["<s>", "</s>"],
        bos="<s>",
        system=SystemTurn(
            after=" ",
            default=(
                "A chat between a curious user and an artificial intelligence assistant. "
                "The assistant gives helpful, detailed, and polite answers to the user's questions."
            ),
        ),
        user=Turn(before="USER: ", after=" "),
        assistant=AssistantTurn(before="ASSISTANT:", begin=" ", end="</s>"),
    ),
    "chatml": _chatml(None),
    "qwen2": _chatml("You are a helpful assistant."),
    "llama3": _llama3(),
    "gemma": ChatTemplate(
        tokens=["<bos>", "<start_of_turn>", "<end_of_turn>"],
        bos="<bos>",
        user=Turn(before="<start_of_turn>user\n", after="<end_of_turn>\n"),
        assistant=AssistantTurn(before="<start_of_turn>model\n", end="<end_of_turn>", after="\n"),
        trim=True,
    ),
}
PLAIN = NAMED["plain"]
