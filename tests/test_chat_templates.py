"""Chat templates: the same ids and the same loss as transformers' own, no special token by data, errors before a run begins."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from shard_corpus import picture
from sources_helpers import read_all, source_of
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from tokkit.chat_templates import NAMED, PLAIN, ChatTemplate, load_template
from tokkit.documents import Document, Media, SpecialToken, Text
from tokkit.errors import FingerprintMismatch, ItemError, UsageError
from tokkit.interleave import TextCodes
from tokkit.pipelines.assembly import join_texts
from tokkit.pipelines.decoding import DecodedText, DocumentDecoder
from tokkit.pipelines.progress import SilentProgress
from tokkit.pipelines.recipe import Recipe, resolve
from tokkit.pipelines.shard import ShardConfig, ShardResult, shard
from tokkit.pipelines.texts import encode_texts_of
from tokkit.pipelines.verify import VerifyConfig, verify
from tokkit.shards.native import open_shards
from tokkit.sources.base import SourceOptions
from tokkit.tokenizers.text import TextTokenizer, load_text_tokenizer

CORPUS = [
    "A chat between USER: and ASSISTANT: user assistant system model.\n\nWhat is it? 1234 is a fox, isn't it! Weiß 日本語\n"
    "four\n\n\n\nlines\n\n\n\n"
] * 9
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def byte_level(expression: str | None, special: list[str]) -> Tokenizer:
    """As Llama 3's and Qwen's (with an expression) or GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=expression is None)
    split = [] if expression is None else [pre_tokenizers.Split(Regex(expression), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*split, level])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, special, pre_tokenizers.ByteLevel.alphabet())


def llama2(special: list[str], scheme: str | None) -> Tokenizer:
    """As Llama 2's and Vicuna's: a space before each text (None), or by Metaspace's scheme; as Gemma's: ``never``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if scheme is None:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return trained(tokenizer, ["<unk>", *(f"<0x{n:02X}>" for n in range(256)), *special], [])


def trained(tokenizer: Tokenizer, special: list[str], alphabet: list[str]) -> Tokenizer:
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in special])
    config = json.loads(tokenizer.to_str())
    config["added_tokens"] = [token for token in config["added_tokens"] if not token["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(config))


# The templates as their models have them, in Jinja; {% generation %} marks what transformers says is the assistant's.
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
)
QWEN2 = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
LLAMA_3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' }}{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] | trim + '<|eot_id|>' }}{% endgeneration %}{% else %}{{ m['content'] | trim + '<|eot_id|>' }}{% endif %}"
    "{% endfor %}"
)
GEMMA = (
    "{{ '<bos>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ '<start_of_turn>model\n' }}{% generation %}"
    "{{ m['content'] | trim + '<end_of_turn>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ '<start_of_turn>user\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endif %}{% endfor %}"
)
VICUNA = (
    "{{ '<s>' }}{% if messages[0]['role'] != 'system' %}{{ 'A chat between a curious user and an artificial intelligence "
    "assistant. The assistant gives helpful, detailed, and polite answers to the user\\'s questions. ' }}{% endif %}"
    "{% for m in messages %}{% if m['role'] == 'assistant' %}{{ 'ASSISTANT:' }}{% generation %}"
    "{{ ' ' + m['content'] + '</s>' }}{% endgeneration %}{% elif m['role'] == 'user' %}{{ 'USER: ' + m['content'] + ' ' }}"
    "{% else %}{{ m['content'] + ' ' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Kind:
    """A template, its Jinja, and a tokenizer of the kind that its models have."""

    template: str
    jinja: str
    tokenizer: Tokenizer


IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
KINDS = {
    "chatml": Kind("chatml", CHATML, byte_level(None, IM)),
    "qwen2": Kind("qwen2", QWEN2, byte_level(LLAMA3, IM)),
    "llama3": Kind("llama3", LLAMA_3, byte_level(LLAMA3, NAMED["llama3"].tokens)),
    "gemma": Kind("gemma", GEMMA, llama2(NAMED["gemma"].tokens, "never")),
    "vicuna": Kind("vicuna", VICUNA, llama2(["<s>", "</s>"], None)),
    "vicuna, always": Kind("vicuna", VICUNA, llama2(["<s>", "</s>"], "always")),
    "vicuna, first": Kind("vicuna", VICUNA, llama2(["<s>", "</s>"], "first")),
    "vicuna, byte-level": Kind("vicuna", VICUNA, byte_level(LLAMA3, ["<s>", "</s>"])),
}
CONVERSATIONS = [
    [("user", "What is it?"), ("assistant", "A fox, isn't it!")],
    [("user", "1234?"), ("assistant", "5678"), ("user", "  Weiß\n"), ("assistant", "日本語 \U0001f98a")],
    [("system", "Be brief.\n"), ("user", "\n\nHi"), ("assistant", "(Hi.)"), ("user", ""), ("assistant", "")],
    [("user", "user\n\nassistant"), ("assistant", "USER: ASSISTANT: \n\n'x'"), ("assistant", "Twice.")],
]
LEADING = [[("user", "x"), ("assistant", "\n\nwhat")], [("user", "x"), ("assistant", "   what \n")]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> dict[str, TextTokenizer]:
    found = {}
    for name, kind in KINDS.items():
        (folder / name).mkdir()
        kind.tokenizer.save(str(folder / name / "tokenizer.json"))
        found[name] = load_text_tokenizer(folder / name)
    return found


def written(path: Path, template: ChatTemplate, *conversations: list[tuple[str, str]]) -> list[Document]:
    """Conversations as the source reads them."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    turns = [{"conversations": [{"from": names[role], "value": said} for role, said in one]} for one in conversations]
    path.write_text(json.dumps(turns))
    source = source_of("llava", path)
    source.options = SourceOptions(chat_template=template)
    result = read_all(source)
    assert not result.failures
    return result.good


def encoded(documents: list[Document], tokenizer: TextTokenizer) -> list[tuple[list[int], list[bool]]]:
    """Ids and whether each is to be learnt."""
    found = []
    for parts in encode_texts_of([join_texts(d.segments, "\n\n") for d in documents], tokenizer):  # type: ignore[arg-type]
        codes = [part for part in parts if isinstance(part, TextCodes)]
        ids = np.concatenate([part.codes for part in codes]).tolist()
        found.append((ids, [part.loss for part in codes for _ in part.codes]))
    return found


@pytest.mark.parametrize("name", KINDS)
def test_ids_and_loss_are_those_of_transformers(
    name: str, folder: Path, loaded: dict[str, TextTokenizer], tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    kind = KINDS[name]
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / name / "tokenizer.json"))
    template = NAMED[kind.template]
    asked = [c for c in CONVERSATIONS + LEADING if template.system is not None or c[0][0] != "system"]
    documents = written(tmp_path / "c.json", template, *asked)
    for number, (conversation, (ids, loss)) in enumerate(zip(asked, encoded(documents, loaded[name]), strict=True)):
        messages = [{"role": role, "content": said} for role, said in conversation]
        found = theirs.apply_chat_template(
            messages, chat_template=kind.jinja, return_dict=True, return_assistant_tokens_mask=True, add_special_tokens=False
        )
        assert ids == found["input_ids"], conversation
        if number < len(CONVERSATIONS) - 2:  # where no id reaches over the begin of what the assistant says
            assert loss == [bool(n) for n in found["assistant_masks"]], conversation


def test_what_is_learnt_begins_with_the_first_id_that_the_text_before_does_not_have(loaded: dict[str, TextTokenizer]) -> None:
    tokenizer = loaded["llama3"]
    given, said = "assistant\n\n", "\n\nwhat"
    document = [Text(given, loss=False), Text(said, continues=True), SpecialToken("<|eot_id|>")]
    (parts,) = encode_texts_of([join_texts(document, "-")], tokenizer)  # type: ignore[arg-type]
    first, second = (part for part in parts if isinstance(part, TextCodes))
    whole = tokenizer.encode(given + said).tolist()
    assert whole[: len(tokenizer.encode(given))] != tokenizer.encode(given).tolist()
    assert [*first.codes, *second.codes] == [*whole, tokenizer.special_ids["<|eot_id|>"]]
    assert (first.loss, second.loss) == (False, True)
    assert "what" in tokenizer.decode(second.codes)
    assert "what" not in tokenizer.decode(first.codes)


@pytest.mark.parametrize("name", KINDS)
def test_no_text_yields_a_special_token(name: str, loaded: dict[str, TextTokenizer], tmp_path: Path) -> None:
    template, tokenizer = NAMED[KINDS[name].template], loaded[name]
    hostile = " ".join(template.tokens)
    plain, attack = ([("user", f"x{said}y"), ("assistant", f"z{said}")] for said in ("", hostile))
    (quiet, _), (loud, _) = encoded(written(tmp_path / "c.json", template, plain, attack), tokenizer)
    special = set(tokenizer.special_ids.values())
    assert len(loud) > len(quiet)
    assert [n for n in loud if n in special] == [n for n in quiet if n in special]
    assert tokenizer.decode_named(loud).count(hostile) == 2


def test_a_special_token_that_the_tokenizer_has_not_is_no_text(loaded: dict[str, TextTokenizer]) -> None:
    with pytest.raises(ItemError, match="special-token-not-known"):
        encode_texts_of([[SpecialToken("<|nothing|>")]], loaded["chatml"])


def test_sentencepiece_models_have_their_control_symbols(tmp_path: Path) -> None:
    from shard_corpus import write_tokenizers

    text, _ = write_tokenizers(tmp_path / "tokenizers")
    tokenizer = load_text_tokenizer(text)
    assert {"<s>", "</s>"} <= tokenizer.special_ids.keys()
    ((ids, loss),) = encoded(
        written(tmp_path / "c.json", NAMED["vicuna"], [("user", "</s>"), ("assistant", "fox <s>")]), tokenizer
    )
    assert ids[0] == tokenizer.special_ids["<s>"]
    assert (ids[-1], loss[-1]) == (tokenizer.special_ids["</s>"], True)
    assert [n in (ids[0], ids[-1]) for n in ids].count(True) == 2
    assert tokenizer.decode_named(ids).endswith("USER: </s> ASSISTANT: fox <s></s>")
    assert not NAMED["vicuna"].problems(tokenizer.special_ids)
    assert NAMED["chatml"].problems(tokenizer.special_ids) == [
        "the text tokenizer has no special tokens <|im_start|>, <|im_end|>"
    ]


# ---- the form


def test_a_file_is_a_template_as_the_named_ones_are(tmp_path: Path) -> None:
    for name, template in NAMED.items():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(template.model_dump(mode="json")))
        assert load_template(str(path)) == load_template(name) == template
    assert load_template("plain") is PLAIN


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1", "cannot be read"),
        ("- a", "valid dictionary"),
        ("user: {}", "assistant: Field required"),
        ("user: {}\nassistant: {end: ''}", "assistant.end"),
        ("user: {}\nassistant: {end: 3}", "assistant.end"),
        ("user: {befor: x}\nassistant: {end: x}", "user.befor"),
        ("user: {}\nassistant: {end: x}\ntokens: ['<a>']", "'<a>' stands nowhere"),
        ("user: {}\nassistant: {end: x}\ntokens: [' ']", "no name of a special token"),
        ("user: {}\nassistant: {end: x}\nsytem: {}", "sytem"),
        ("user: {}\nassistant: {end: x}\nencode: both", "encode"),
        ("\x00", "cannot be read"),
    ],
)
def test_what_is_no_template_is_told(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "t.yaml").write_text(content)
    with pytest.raises(ValueError, match=r"t\.yaml") as raised:
        load_template(str(tmp_path / "t.yaml"))
    assert said in str(raised.value)
    with pytest.raises(ValueError, match="known: plain, vicuna"):
        load_template("vicunna")


def test_longer_special_tokens_are_found_before_their_beginnings() -> None:
    template = ChatTemplate.model_validate(
        {"tokens": ["<a", "<a>"], "user": {"before": "<a> <a"}, "assistant": {"end": "<a>"}, "bos": "<a><a"}
    )
    names = [part.name if isinstance(part, SpecialToken) else part for part in template.parts("<a> <a<a>x")]
    assert names == ["<a>", " ", "<a", "<a>", "x"]


def test_roles_and_default_of_the_system(tmp_path: Path) -> None:
    own, other = [("user", "q"), ("assistant", "a")], [("system", "s"), ("user", "q"), ("assistant", "a")]
    first, second = written(tmp_path / "c.json", NAMED["qwen2"], own, other)
    assert "helpful" in str(first.segments)
    assert "helpful" not in str(second.segments)
    assert len(first.segments) == len(second.segments)
    (tmp_path / "d.json").write_text(
        json.dumps([{"conversations": [{"from": r, "value": v} for r, v in c]} for c in (own, other)])
    )
    source = source_of("llava", tmp_path / "d.json")
    source.options = SourceOptions(chat_template=NAMED["gemma"])
    result = read_all(source)
    assert list(result.failures.values()) == ["role-not-in-template"]
    assert len(result.good) == 1


def test_flags_recipes_and_set_name_one(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(NAMED["chatml"].model_dump(mode="json")))
    (tmp_path / "t.model").touch()
    base = {"inputs": ["x"], "out": str(tmp_path / "out"), "text_tokenizer": str(tmp_path / "t.model")}
    for recipe, sets, flags in (
        ({}, ["chat_template=chatml"], {}),
        ({"chat_template": "llama3"}, [f"chat_template={path}"], {}),
        ({"chat_template": yaml.safe_load(path.read_text())}, [], {}),
        ({"chat_template": yaml.safe_load(path.read_text())}, ["chat_template=llama3"], {"chat_template": "chatml"}),
    ):
        found = resolve(Recipe(options=recipe), sets, base | flags)
        assert found.config is not None
        assert found.config.chat_template == NAMED["chatml"]
        again = resolve(Recipe(options=yaml.safe_load(found.as_yaml())), [], {})
        assert again.config == found.config
    code, _, errors = command(["shard", "x", "--out", str(tmp_path / "out"), "--chat-template", "nope"])
    assert code == 2
    assert "nope" in errors
    assert "known: plain" in errors


def command(arguments: list[str]) -> tuple[int, str, str]:
    from typer.testing import CliRunner

    from tokkit.cli.main import app

    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.stdout, result.stderr


# ---- whole runs


@pytest.fixture(scope="module")
def image_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from tokkit.tokenizers.image.model import ImageTokenizer
    from tokkit.tokenizers.image.presets import configure

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("image") / "vq"
    ImageTokenizer(configure("fsq-tiny", resolution=32)).save(path)
    return path


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "a.png").write_bytes(picture(1))
    turns = [("human", "<image>\nWhat <|im_end|> is it?"), ("gpt", "A fox."), ("human", "Sure?"), ("gpt", "Yes.\n")]
    said = [{"from": who, "value": value} for who, value in turns]
    (folder / "chat.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": said}]))
    return folder


def sharded(chat: Path, text: Path, image: Path, out: Path, **options: object) -> ShardResult:
    given = {"inputs": [str(chat)], "out": out, "text_tokenizer": text, "image_tokenizer": image, "workers": 0, "batch_size": 2}
    return shard(ShardConfig.model_validate(given | {"report_documents": 1} | options), SilentProgress())


def test_a_run_by_a_template(
    chat: Path, folder: Path, loaded: dict[str, TextTokenizer], image_tokenizer: Path, tmp_path: Path
) -> None:
    text, out = folder / "chatml", tmp_path / "out"
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(NAMED["chatml"].model_dump(mode="json")))
    result = sharded(chat, text, image_tokenizer, out, chat_template=str(tmp_path / "mine.yaml"))
    assert result.manifest.documents == {"committed": 1}
    shards = open_shards(out, "train")
    row = shards.row(0)
    spans = row["spans"]
    assert [(s["modality"], s["loss"]) for s in spans] == [  # type: ignore[attr-defined]
        ("text", False),
        ("image", False),
        ("text", False),
        ("text", True),
        ("text", False),
        ("text", True),
        ("text", False),
    ]
    tokens, tokenizer = shards.tokens(0), loaded["chatml"]
    learnt = [tokenizer.decode_named(tokens[s["start"] : s["start"] + s["length"]]) for s in spans if s["loss"]]  # type: ignore[attr-defined]
    assert learnt == ["A fox.<|im_end|>", "Yes.\n<|im_end|>"]
    parts = DocumentDecoder(out).decode("train", 0).parts
    said = "".join(part.text for part in parts if isinstance(part, DecodedText))
    assert said.startswith("<|im_start|>user\n\nWhat <|im_end|> is it?<|im_end|>\n<|im_start|>assistant\nA fox.<|im_end|>\n")
    special = [tokenizer.special_ids[name] for name in ("<|im_start|>", "<|im_end|>")]
    assert [int((tokens == number).sum()) for number in special] == [4, 4]

    (tmp_path / "mine.yaml").unlink()  # what the output was made by is written in it
    verified = verify(VerifyConfig.model_validate({"directory": out, "reencode": 5}), SilentProgress())
    assert verified.problems == []
    assert verified.reencoded is not None
    assert verified.reencoded.documents == 1
    assert sharded(chat, text, image_tokenizer, out, chat_template="chatml").manifest.semantic == result.manifest.semantic
    with pytest.raises(FingerprintMismatch, match="chat_template"):
        sharded(chat, text, image_tokenizer, out, chat_template="qwen2")
    with pytest.raises(FingerprintMismatch, match="chat_template"):
        sharded(chat, text, image_tokenizer, out)


def test_the_plain_template_is_not_in_the_fingerprint(
    chat: Path, folder: Path, loaded: dict[str, TextTokenizer], tmp_path: Path
) -> None:
    result = shard(
        ShardConfig.model_validate(
            {"inputs": [str(chat)], "out": tmp_path / "out", "text_tokenizer": folder / "chatml", "workers": 0}
        ),
        SilentProgress(),
    )
    assert "chat_template" not in result.manifest.semantic


def test_what_a_tokenizer_lacks_is_told_before_the_run(
    chat: Path, folder: Path, loaded: dict[str, TextTokenizer], image_tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"has no special tokens <\|im_start\|>, <\|im_end\|>"):
        sharded(chat, folder / "llama3", image_tokenizer, tmp_path / "out", chat_template="chatml")
    forgotten = NAMED["chatml"].model_dump() | {"tokens": ["<|im_start|>"]}
    with pytest.raises(UsageError, match=r"<\|im_end\|> would be spelt out as text"):
        sharded(chat, folder / "chatml", image_tokenizer, tmp_path / "out", chat_template=forgotten)
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert not list((tmp_path / "out").rglob("commits/*"))


def test_a_feature_cache_has_the_same_ids(chat: Path, folder: Path, loaded: dict[str, TextTokenizer], tmp_path: Path) -> None:
    from feature_double import DoubleConfig

    from tokkit.features.store import open_cache
    from tokkit.pipelines.features import features

    given = {"inputs": [str(chat)], "out": tmp_path / "out", "text_tokenizer": folder / "chatml", "encoder": "1"}
    features(DoubleConfig.model_validate(given | {"workers": 0, "device": "cpu", "chat_template": "chatml"}), SilentProgress())
    cache, tokenizer = open_cache(tmp_path / "out", "train"), loaded["chatml"]
    ids = np.array(cache.document(0).ids)
    learn = np.ones(len(ids), dtype=bool)
    for start, length in cache.given(0):
        learn[start : start + length] = False
    assert tokenizer.decode_named(ids[learn]) == "A fox.<|im_end|>Yes.\n<|im_end|>"
    source = source_of("llava", chat / "chat.json")
    source.options = SourceOptions(chat_template=NAMED["chatml"])
    texts = [replace(d, segments=tuple(s for s in d.segments if not isinstance(s, Media))) for d in read_all(source).good]
    ((_, loss),) = encoded(texts, tokenizer)
    assert learn.tolist() == loss
