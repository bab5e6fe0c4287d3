"""The words of the sample corpus: lists by name, for all themes and for each; an entry may hold places like ``{thing}``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Lists = Mapping[str, Sequence[str]]


def _any(entries: str) -> list[str]:
    return entries.split("|")


COMMON: Lists = {
    "time": _any(
        "in the morning|after the rain|at the end of the week|before winter|as every year|last spring|"
        "for the first time|in the early hours|until late in the evening|during the long summer"
    ),
    "adjective": _any(
        "old|narrow|quiet|bright|heavy|careful|wooden|distant|unusual|patient|broken|simple|remarkable|"
        "ordinary|northern|early|small|generous|steady|curious"
    ),
    "person": _any("the {trade} {name}|{name}|{name} and {name}|a {trade} from {town}|the {adjective} {trade}"),
    "trade": _any("carpenter|teacher|fisherman|gardener|baker|engineer|librarian|ferryman|astronomer|tailor|printer|beekeeper"),
    "says": _any("said|explained|remembered|wrote|insisted|admitted|noted"),
    "opinion": _any(
        "It is {adjective} work, but it has to be done|Nobody believed us {time}|"
        "You can hear it before you see it|We counted {number} of them|There was nothing {adjective} about it|"
        "My grandmother would have done it differently"
    ),
    "link": _any(
        "However,|For this reason|In {year}|Not far from {town},|Even so,|Since then|According to {person},|"
        "On the other hand|Little by little"
    ),
}

THEMES: dict[str, Lists] = {
    "harbour": {
        "thing": _any("boat|lighthouse|net|anchor|rope|pier|sail|crane|tide|cargo|gull|lantern|compass|chart"),
        "does": _any(
            "repaired the {thing}|waited for the {thing}|tied the {thing} to the {adjective} {thing}|"
            "watched the {thing} drift past {town}|loaded {number} crates beside the {thing}"
        ),
        "fact": _any(
            "The {adjective} {thing} measures {number} metres from end to end|"
            "Salt water ruins any {thing} within {number} years|"
            "A {thing} without a {thing} is of no use at sea"
        ),
    },
    "mountain": {
        "thing": _any("path|glacier|ridge|valley|hut|stream|meadow|summit|bridge|avalanche|fir|stone|shepherd's dog"),
        "does": _any(
            "climbed towards the {thing}|crossed the {adjective} {thing}|slept near the {thing}|"
            "measured the {thing} above {town}|lost sight of the {thing} in the fog"
        ),
        "fact": _any(
            "The {thing} lies {number} metres above the {adjective} {thing}|"
            "Snow covers the {thing} for {small} months|Every {thing} on this side faces the morning sun"
        ),
    },
    "kitchen": {
        "thing": _any("oven|dough|onion|kettle|spoon|cellar|recipe|lemon|bread|table|pepper|jar|flour|butter"),
        "does": _any(
            "weighed {number} grams of {thing}|set the {thing} beside the {thing}|"
            "tasted the {adjective} {thing}|forgot the {thing} on the fire|wrote the {thing} down"
        ),
        "fact": _any(
            "A {adjective} {thing} needs {number} minutes in the oven|"
            "Without {thing} the {thing} will not rise|The {thing} keeps for {small} weeks in a cool {thing}"
        ),
    },
    "observatory": {
        "thing": _any("telescope|comet|mirror|dome|spectrum|planet|eclipse|star|orbit|photograph|galaxy|clock|shadow"),
        "does": _any(
            "pointed the {thing} at the {adjective} {thing}|recorded the {thing} {number} times|"
            "compared one {thing} with another {thing}|found the {thing} where {name} had predicted it"
        ),
        "fact": _any(
            "Light from the {thing} travels for {number} years|The {thing} turns once in {number} hours|"
            "A {thing} is brightest when the {thing} stands opposite the sun"
        ),
    },
    "workshop": {
        "thing": _any("wheel|engine|spring|lathe|gear|drawing|hammer|valve|motor|screw|pump|gauge|belt"),
        "does": _any(
            "took the {thing} apart|drew the {thing} to scale|oiled the {adjective} {thing}|"
            "replaced the {thing} with a {adjective} {thing}|sold the {thing} to {name}"
        ),
        "fact": _any(
            "The {thing} makes {number} turns a minute|Each {thing} carries a {adjective} {thing}|"
            "A worn {thing} costs {number} coins in {town}"
        ),
    },
    "music": {
        "thing": _any("violin|melody|drum|choir|rhythm|organ|flute|chord|rehearsal|string|audience|concert|score"),
        "does": _any(
            "tuned the {thing}|played the {adjective} {thing} twice|copied the {thing} by hand|"
            "carried the {thing} to {town}|listened to the {thing} from the street"
        ),
        "fact": _any(
            "The {thing} was built in {year} of {adjective} wood|A {thing} of {small} voices fills the hall|"
            "Between the {thing} and the {thing} there is a silence of {small} beats"
        ),
    },
}

ONSETS = _any("b|br|d|dr|f|g|gr|h|k|kl|l|m|n|p|r|s|sk|st|t|tr|v|w")
VOWELS = _any("a|e|i|o|u|ae|ei|ou")
CODAS = _any("|l|n|r|s|m|nd|rk|th")
TOWN_ENDS = _any("by|ford|haven|mouth|stead|wick|dale|field")

SENTENCES = (
    "{link} {person} {does}.",
    "{person} {does} {time}.",
    "{fact}.",
    "“{opinion},” {person} {says}.",
    "{fact}, and {person} {does}.",
    "When {person} {does}, the {adjective} {thing} was already {number} years old.",
    "Was it the {thing}, or only the {adjective} {thing}?",
    "{time}, {person} {does}; nobody else {does}.",
)

FOREIGN = (
    "Съешь ещё этих мягких французских булок, да выпей же чаю.",
    "Маяк стоит на скале, и ночью его видно за двадцать миль.",
    "いろはにほへと ちりぬるを。港に白い船が三隻とまっています。",
    "山の上の小さな家で、おばあさんがパンを焼いた。",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر.",
    "القارب الأزرق في الميناء منذ ثلاثة أيام.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, ένα παλιό καράβι.",
    "山高月小，水落石出。湖边有五棵树。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "हर पहाड़ के पीछे एक नदी बहती है।",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich.",
    "Pójdź, kińże tę chmurność w głąb flaszy! Żółta łódź płynie.",
    "Cafe\u0301 au lait, d\u00e9ja\u0300 vu; na\u00efve co\u00f6peration \u2014 \u00bd \u2264 \u03c0.",
    "Balloon 🎈 over the harbour ⛵, family 👨‍👩‍👧‍👦, flag 🇳🇴, thumbs 👍🏽!",
)

# What in other hands would become control symbols, or get lost: here it is text.
ODD = (
    "The tag <image> marks a picture, </s> ends a sentence and <unk> stands for the unknown.",
    "<|endoftext|><|im_start|>user[INST] ignore [/INST]<pad><s></s>",
    "Sentence pieces write a space as \u2581, and \u2581\u2581 as two of them.",
    "Trailing spaces   and\ttabs\t\tare kept,\u00a0as is a no-break space. ",
    "\ufeffA byte order mark in the middle, a NUL \x00 and an escape \x1b[0m.",
    "Right-to-left \u202eoverride\u202c, zero\u200bwidth, soft\u00adhyphen.",
)
