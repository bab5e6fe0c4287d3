"""Prose by rule: articles of several themes, lines in many scripts, code and tables, and the texts of illustrated documents.

A small grammar: ``{noun}`` in a template is replaced by an entry of that list, which may hold further places. Names of people
and places are built from syllables, so that there are many different words to learn a vocabulary from.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

from tokkit.pipelines.sample.scenes import Scene
from tokkit.pipelines.sample.words import CODAS, COMMON, FOREIGN, ODD, ONSETS, SENTENCES, THEMES, TOWN_ENDS, VOWELS, Lists

_PLACE = re.compile(r"\{(\w+)\}")


def _expand(template: str, lists: Lists, rng: random.Random, depth: int = 0) -> str:
    def fill(match: re.Match[str]) -> str:
        word = match.group(1)
        if word == "name":
            return name(rng)
        if word == "town":
            return name(rng, rng.choice(TOWN_ENDS))
        if word == "number":
            return rng.choice([str(rng.randint(2, 99)), f"{rng.randint(1, 40) * 100:,}", f"{rng.uniform(0.1, 90):.1f}"])
        if word == "small":
            return rng.choice(["two", "three", "four", "seven", "nine", "eleven"])
        if word == "year":
            return str(rng.randint(1780, 2024))
        return _expand(rng.choice(lists[word]), lists, rng, depth + 1)

    return _PLACE.sub(fill, template)


def name(rng: random.Random, ending: str = "") -> str:
    """A name of two or three syllables."""
    syllables = [rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(1 if ending else 2)]
    return ("".join(syllables) + ending).capitalize()


def sentence(theme: str, rng: random.Random) -> str:
    """One sentence of a theme."""
    text = _expand(rng.choice(SENTENCES), {**COMMON, **THEMES[theme]}, rng)
    first = 1 if text[0] == "“" else 0
    text = text[:first] + text[first].upper() + text[first + 1 :]
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def paragraph(theme: str, rng: random.Random, sentences: int) -> str:
    """Some sentences of a theme."""
    return " ".join(sentence(theme, rng) for _ in range(sentences))


def _code(rng: random.Random) -> str:
    function, value = name(rng).lower(), rng.randint(2, 900)
    return rng.choice(
        [
            f"def {function}(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n"
            f"        if value > {value}:\n            total += value * {rng.randint(2, 9)}\n    return total\n",
            f"int {function}(int n)\n{{\n\tfor (int i = 0; i < {value}; i++) {{\n"
            f"\t\tn += i & 0x{value:x};\n\t}}\n\treturn n;\n}}\n",
            f"{function}:\n\tcc -O2 -o $@ {function}.c\n\ttest -x {function} || exit {value % 7}\n",
            f'{{\n  "name": "{function}",\n  "values": [{value}, {value + 1}],\n  "nested": {{"ok": true}}\n}}\n',
        ]
    )


def _table(theme: str, rng: random.Random) -> str:
    things = rng.sample(THEMES[theme]["thing"], 4)
    rows = [f"{thing}\t{rng.randint(1, 500)}\t{rng.uniform(0, 9):.2f}" for thing in things]
    return "name\tcount\tweight\n" + "\n".join(rows) + "\n"


def _list(theme: str, rng: random.Random) -> str:
    return "\n".join(f"- **{thing}**: {sentence(theme, rng)}" for thing in rng.sample(THEMES[theme]["thing"], 3))


def article(rng: random.Random) -> tuple[str, str, str]:
    """A document: title, theme and text, now and then with code, a table, a list, other scripts or odd characters."""
    theme = rng.choice(sorted(THEMES))
    title = f"{rng.choice(['Notes on', 'The history of', 'A day with', 'About'])} the {rng.choice(THEMES[theme]['thing'])}"
    parts = [f"# {title}"] if rng.random() < 0.7 else [title]
    for _ in range(rng.randint(2, 5)):
        parts.append(paragraph(theme, rng, rng.randint(2, 5)))
    extras = {
        "code": (0.15, lambda: f"```\n{_code(rng)}```"),
        "table": (0.1, lambda: _table(theme, rng)),
        "list": (0.2, lambda: _list(theme, rng)),
        "foreign": (0.3, lambda: "\n".join(rng.sample(FOREIGN, rng.randint(1, 3)))),
        "odd": (0.1, lambda: rng.choice(ODD)),
    }
    for chance, make in extras.values():
        if rng.random() < chance:
            parts.insert(rng.randint(1, len(parts)), make())
    ending = rng.choice(["", "", "\n", "\r\n", "  \n"])
    return title, theme, "\n\n".join(parts) + ending


_WALKS = {
    "countryside": "The path left the last gardens behind and climbed between fields.",
    "lake": "Behind the pass the ground fell away, and there was water.",
    "seaside": "Towards the coast the air began to smell of salt.",
    "balloons": "A faint roar made everybody look up.",
    "street": "Every house in the village has another colour, and they say there is a reason.",
    "still-life": "Inside, the table was laid, though nobody had eaten.",
    "chart": "On the wall of the school hung a large sheet of paper.",
    "shapes": "The children had cut forms out of coloured paper.",
}


def illustrated(scenes: Sequence[Scene], rng: random.Random) -> tuple[str, list[str]]:
    """The text of a document around pictures: its title, and one paragraph before each picture and one after the last.

    Each paragraph names what the picture behind it shows.
    """
    town, who = name(rng, rng.choice(TOWN_ENDS)), name(rng)
    title = rng.choice([f"A walk near {town}", f"What {who} saw on the way to {town}", f"A lesson at {town}"])
    paragraphs = []
    for number, scene in enumerate(scenes):
        lead = f"# {title}\n\n" if number == 0 else ""
        shows = rng.choice(["The picture shows {}.", "Here one can see {}.", "What {who} found was this: {}."])
        theme = rng.choice(sorted(THEMES))
        middle = paragraph(theme, rng, rng.randint(1, 3))
        paragraphs.append(f"{lead}{_WALKS[scene.kind]} {middle} {shows.format(scene.subject, who=who)}")
    last = scenes[-1].subject if scenes else town
    paragraphs.append(f"{who} went home {rng.choice(COMMON['time'])}, still thinking of {last}. {sentence('mountain', rng)}")
    return title, paragraphs
