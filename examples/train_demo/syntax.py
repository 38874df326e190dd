"""Other grammar for a question, whatever it is about: as a clause ("which port it uses"), as an order, and inside of a carrier
("i wonder which port it uses"). So the form of a question tells nothing about its answer. The carriers stand in `text/carriers.toml`.
"""

import re
from random import Random

from msgspec import Struct

from examples.train_demo.templates import Texts, expand, read


class Carriers(Struct, frozen=True, forbid_unknown_fields=True):
    """carriers.toml: what people build around a clause, an order, a whole question, or anything they say. `past` and `orders`
    are the verbs that the rules know."""

    clause: Texts
    order: Texts
    question: Texts
    before: Texts
    behind: Texts
    calls: Texts
    orders: Texts
    past: dict[str, str]
    doubled: frozenset[str]


TEXT = read("carriers.toml", Carriers)
SUBJECT = (
    r"(?P<subject>i|you|we|they|he|she|it|somebody|everybody|people|actorllm|(?:this|that)(?= (?:about|for|good|made|together)\b|$)"
    r"|(?:the|this) (?:server|story|program|thing|software|project)(?! (?:name|address|size|file|page|length|log|start|model)))"
)
AUXILIARY = r"(?P<aux>is|are|was|were|am|can|could|should|would|may|must|might|will|shall|do|does|did|have|had)"
THE = r"(?:the|a|an|my|your|its|his|her|{\w+}) "
WH = r"(?:(?:in|on|at|from|under|by|with|for|of) )?(?:what|which|who|whom|whose|where|when|why|how)"

ORDER = re.compile(
    rf"(?:please |kindly )?(?:(?:can|could|would|will) you (?:please |kindly )?)?(?P<order>(?:{'|'.join(TEXT.orders)}) (?!of\b).+)"
)
INVERTED = re.compile(rf"(?P<wh>{WH}(?: [\w-]+){{0,3}}?) {AUXILIARY} {SUBJECT}\b(?P<rest>.*)")
YES_NO = re.compile(rf"{AUXILIARY} {SUBJECT}\b(?P<rest> .+)")
PASSIVE = re.compile(
    rf"(?P<aux>can|could|may|must|will|should|is|are) (?P<noun>{THE}[\w ]+?) (?P<rest>be .+|\w+ed|alive|up|possible|enough|ok|free)"
)
NOUN = re.compile(
    rf"(?P<wh>what|who|where|how (?:much|big|old|large|long|small|high|far)) (?P<aux>is|are|was|were) (?P<noun>{THE}.+|[A-Z]\w+|\d.*)"
)
PARTICIPLE = re.compile(
    rf"(?P<wh>where|how|when|why) (?P<aux>is|are|was|were) (?P<noun>{THE}[\w ]+?) (?P<rest>\w+ed|set|chosen|done|made|built|written|run)"
)
OPEN_END = re.compile(
    r" (?:\w+ed|\w+ing|like|for|about|from|with|of|on|in|so|now|then|today|again|called|made|set|it|that|there|here)$"
)
PLAIN = re.compile(
    r"how to .+|(?:who|what) (?:made|wrote|built|trained|taught|helped|happens|decides|lets|invented|discovered|causes) .+|which \w+ (?:are|is) \w+ed"
)
REQUEST = ("please ", "can you ", "could you ", "would you ", "will you ")
WH_WORDS = ("what ", "which ", "who ", "where ", "when ", "why ", "how ", "whats ")
ENDING = re.compile(r"[^aeiou]*[aeiou][^aeiouwxy]")


def clause(question: str) -> str | None:
    """ "which port does it use" -> "which port it uses"; None if the rules do not know the question's grammar."""
    text = re.sub(r"^(what|who|how|where)'s ", r"\1 is ", question)
    if PLAIN.fullmatch(text):
        return text
    for rule, start in ((PARTICIPLE, ""), (NOUN, ""), (INVERTED, ""), (YES_NO, "whether"), (PASSIVE, "whether")):
        found = rule.fullmatch(text)
        if found:
            parts = {"wh": start, "subject": "", "noun": "", "rest": ""} | found.groupdict()
            if rule is NOUN and OPEN_END.search(text):
                return None
            return _straight(parts["wh"], parts["subject"] or parts["noun"], aux=parts["aux"], rest=parts["rest"].strip())
    return None


def _straight(start: str, subject: str, *, aux: str, rest: str) -> str | None:
    """The subject before the verb."""
    verb, _, after = rest.partition(" ")
    if aux not in ("do", "does", "did") or verb == "not":
        words = [start, subject, aux, rest]
    elif aux == "do":
        words = [start, subject, rest]
    else:
        words = [start, subject, third(verb) if aux == "does" else TEXT.past.get(verb, ""), after]
        if not words[2]:
            return None
    return " ".join(word for word in words if word)


def third(verb: str) -> str:
    """use -> uses."""
    if verb in ("have", ""):
        return "has" if verb else ""
    if verb.endswith(("s", "sh", "ch", "x", "o")):
        return f"{verb}es"
    return f"{verb[:-1]}ies" if verb.endswith("y") and verb[-2:-1] not in "aeiou" else f"{verb}s"


def gerund(act: str) -> str:
    """ "run the tests" -> "running the tests"."""
    verb, space, after = act.partition(" ")
    if verb in TEXT.doubled or ENDING.fullmatch(verb):
        verb += verb[-1]
    elif verb.endswith("ie"):
        verb = f"{verb[:-2]}y"
    elif verb.endswith("e") and not verb.endswith("ee"):
        verb = verb[:-1]
    return f"{verb}ing{space}{after}"


def carried(text: str, rng: Random) -> str:
    """A question in one of its other forms; what is no question stays as it is."""
    bare = text.rstrip("?!. ")
    order = ORDER.fullmatch(bare) if text[-1:] != "?" or bare.startswith(REQUEST) else None
    if order:
        return expand(rng.choice(TEXT.order), rng).replace("<order>", order["order"])
    straight = clause(bare) if rng.random() < 0.75 else None
    if straight:
        return expand(rng.choice(TEXT.clause), rng).replace("<clause>", straight)
    if text.endswith("?") or bare.startswith(WH_WORDS):
        return expand(rng.choice(TEXT.question), rng).replace("<question>", bare)
    return text


def is_question(text: str) -> bool:
    """Whether it asks or orders."""
    return text.endswith("?") or text.startswith(WH_WORDS) or bool(ORDER.fullmatch(text))
