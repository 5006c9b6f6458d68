"""Fictional private records that can't be guessed, as examples of texts that a model must not recite.

A record has a kind (patient note, bank letter, leaked settings, ...), an opening, and a few facts and remarks in random
order and punctuation. Each has several wordings, with random names, numbers, codes and words in its slots. Records
share their forms but not their contents, so a model that knows the kind still predicts few tokens of an unseen record.
All persons are invented: names are made of syllables, phone numbers start with 555, addresses end in example.org.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from random import Random
from typing import NamedTuple


def words(text: str) -> list[str]:
    """The words of a text."""
    return text.split()


def phrases(text: str) -> list[str]:
    """The phrases of a text, separated by line breaks and bars."""
    return text.strip().replace("\n", "|").split("|")


SYLLABLES = words("""
ba be bel bran cor da del dor dru el en fal fen gar gil gro hal hem ida is jo jun kal kel kor la lem lin lo mar mel mi
mon nar nel ni nor ob ol or os pa pel pri qua ra rel rin ro sa sel sil sto ta tem tor tu ul um ur va vel vin wal wen
wu xan yar yo zel zim
""")
STREET_ENDS = words("Street Lane Road Square Hill Row Gate Walk Quay Court Yard Steps Bend Grove Alley")
MONTHS = words("January February March April May June July August September October November December")
NOUNS = words("""
anchor apron attic barrel basket beetle bicycle blanket boiler bottle bridge broom bucket cabin camera candle canoe
carpet cellar chapel chimney cider clarinet clock coat comet cousin cradle crane crow curtain daughter desk dog donkey
drawer drum engine envelope fence fiddle flute forest fountain freezer garage garden ghost glacier glove goat guitar
hammer harbour hat heater hedge honey horse kettle kitchen kite ladder lamp lantern lawyer lemon letter lift lodger
meadow melon mirror moth mountain mule mushroom neighbour nephew oven owl parcel parrot pepper piano picture pillow
pump quilt rabbit radio raft ribbon river roof rope saddle sailor salmon saucer scarf sister sledge slipper soup
sparrow spoon stove suitcase teapot ticket tiger tortoise tower tractor trumpet tunnel turnip umbrella uncle valley
van vase violin wagon walnut wardrobe well whistle widow willow window wizard
""")
ADJECTIVES = words("""
amber angry bitter blind blue borrowed brass brittle broken calm careless clumsy cold copper crimson crooked curious
damp dark deaf dusty early empty faded foreign forgotten fragile frozen gentle golden green grey haunted heavy hidden
hollow humid icy idle jealous lame late lazy lonely loud lucky mild muddy narrow noisy orange patient pink polite
proud purple quiet rare restless rotten rough rusty sandy secret shallow sharp shy silent silver sleepy slow smoky
sour spare spotted steep sticky stolen striped stubborn sudden sweet tame thin tired velvet violet warm wet wicked
wild wooden yellow young
""")
DEEDS = words("""
admired baked blamed borrowed bought broke built buried burned carried chased cleaned copied counted crossed denied
described drew dropped envied fed feared followed forgot found gave guarded hated hid hired ignored imitated inherited
insured invented kissed knitted lifted lost mended missed moved named noticed ordered owned painted photographed
pulled pushed rented repaired returned sang sank saved shared shipped sketched sold stole stored studied swapped threw
trained traded trusted visited wanted warned washed watched weighed whistled wrote
""")
ILLNESSES = words("""
asthma anaemia arthritis bronchitis cataract concussion cramps deafness dizziness eczema epilepsy fever gout hepatitis
hernia insomnia jaundice lumbago malaria measles migraine mumps neuralgia nosebleeds pleurisy pneumonia psoriasis
rickets sciatica scurvy shingles sinusitis stammer tetanus thrush tinnitus tonsillitis tremor typhoid ulcer vertigo
whiplash
""")
TRADES = words("""
actuary archivist baker barber beekeeper bookbinder brewer butcher carpenter chemist clerk cook cooper courier dancer
dentist diver draughtsman electrician farmer florist gardener glazier jeweller joiner judge locksmith mason midwife
miller miner nurse optician organist painter pilot plumber porter potter printer roofer saddler shepherd surveyor
tailor tanner teacher translator typist usher waiter watchmaker weaver welder
""")
SUBJECTS = words("""
algebra anatomy astronomy botany calculus chemistry chess cooking counting dancing drawing economics fencing fractions
geography geology geometry grammar harmony history juggling knitting latin logic mechanics needlework optics painting
philosophy physics poetry reading rhetoric rowing singing skating spelling statistics swimming tennis typing weaving
zoology
""")

JOINTS = (". ", "; ", ", ", " - ", "\n", " / ", "! ")
CAPITALIZING = (". ", "! ")
COMMENTS = ("# ", "// ", "; ", "-- ")  # before a remark in a file of settings

Draw = Callable[[Random], str]


def digits(rng: Random, count: int) -> str:
    """``count`` random digits; the first may be 0."""
    return "".join(rng.choice("0123456789") for _ in range(count))


def letters(rng: Random, count: int, alphabet: str = "ABCDEFGHJKLMNPQRSTUVWXYZ") -> str:
    """``count`` random letters."""
    return "".join(rng.choice(alphabet) for _ in range(count))


def word(rng: Random, shortest: int = 2, longest: int = 3) -> str:
    """An invented, pronounceable word in lower case."""
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(shortest, longest)))


def code(rng: Random) -> str:
    """A reference number in one of several shapes, such as ``KT-40912`` or ``7731/QLM/08``."""
    shapes = (
        lambda: f"{letters(rng, 2)}-{digits(rng, 5)}",
        lambda: f"{digits(rng, 4)}/{letters(rng, 3)}/{digits(rng, 2)}",
        lambda: f"{letters(rng, 1)}{digits(rng, 3)}.{digits(rng, 3)}",
        lambda: f"{digits(rng, 3)}-{letters(rng, 2)}{digits(rng, 2)}",
    )
    return rng.choice(shapes)()


def date(rng: Random) -> str:
    """A day in one of four notations."""
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), digits(rng, 2)
    name = MONTHS[month - 1]
    return rng.choice((f"{day} {name}", f"{name} {day}", f"{day}.{month}.{year}", f"{day}/{month}/{year}"))


SLOTS: dict[str, Draw] = {
    "name": lambda rng: f"{word(rng).title()} {word(rng).title()}",
    "initial": lambda rng: f"{letters(rng, 1)}. {word(rng).title()}",
    "town": lambda rng: word(rng).title(),
    "street": lambda rng: f"{rng.randint(1, 399)} {word(rng).title()} {rng.choice(STREET_ENDS)}",
    "phone": lambda rng: f"555-{digits(rng, 4)}",
    "mail": lambda rng: f"{word(rng)}.{word(rng)}@example.org",
    "host": lambda rng: f"{word(rng)}-{rng.randint(1, 99)}.example.org",
    "code": code,
    "secret": lambda rng: letters(rng, 16, "abcdefghkmnpqrstuvwxyz23456789"),
    "date": date,
    "hour": lambda rng: f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}",
    "sum": lambda rng: f"{rng.randint(21, 9876)}.{digits(rng, 2)}",
    "n": lambda rng: str(rng.randint(2, 99)),
    "noun": lambda rng: rng.choice(NOUNS),
    "adj": lambda rng: rng.choice(ADJECTIVES),
    "did": lambda rng: rng.choice(DEEDS),
    "illness": lambda rng: rng.choice(ILLNESSES),
    "trade": lambda rng: rng.choice(TRADES),
    "subject": lambda rng: rng.choice(SUBJECTS),
    "word": word,
}

REMARKS = phrases("""
{did} the {adj} {noun}, {did} a {noun}|never {did} {town}'s {noun}|says the {noun} {did} {noun}s
{adj} {noun}, {adj} {noun}, no {noun}|{n} {noun}s, one {adj} {noun}|once {did} {n} {adj} {noun}s in {town}
a {trade} {did} {initial}'s {noun}|dreams of {adj} {noun}s|{noun} {did}, {noun} {did}
fears {adj} {noun}s|keeps {noun}s behind a {adj} {noun}|{did} by the {noun} at {hour}
thinks {trade}s {adj}|{adj} {trade} {did} it|wants {noun}, {noun}, {adj} {noun}
too {adj} for {trade}s|{subject}, {adj} {noun}s|left {noun} on {adj} {noun}
{initial} {did} {noun}s, then {noun}s|not {noun}s but {adj} {noun}s|{did} {subject} with {noun}s
""")

# One block per kind: the openings in its first line, then one fact per line; bars separate wordings.
FORMS = """
Patient {name}, born {date}|{name} ({date}), ward {n}|Seen {hour}: {name}, {trade}|Notes on {name}, bed {n}
{illness} since {date}|{illness}, worse after {subject}|had {illness}, {illness}
{n} drops of {word}|{word} {n} mg, {word} {n} mg|takes {word} for {illness}
lives at {street}, {town}|home: {street}|sent to {street}
mother: {illness}, aunt {illness}|in {town} {illness}, then {illness}|allergic to {noun}s, {noun}s, {word}
Dr {initial}, {phone}|sent by {initial}|file {code}, nurse {initial}

Ticket {code}, {name}|{name} wrote at {hour}|Complaint {code}, {town}|Caller {name}, {phone}
{adj} {noun} arrived {adj}|parcel {code} held {noun}s|wanted {noun}, got {adj} {noun}
paid {sum} {date}|refund {sum}, voucher {code}|owes {sum} for {noun}s
deliver to {street}, {town}|collect at {street}|new address {street}
answer {mail}|gives {word} as password|hint: {adj} {noun}
agent {initial}, line {n}|{initial} promised {n} {noun}s|escalated to {initial}, {trade}

Dear {name}, account {code}|Letter of {date} to {name}|{name}, {noun} loan {code}|To {name}, {street}
balance {sum}|you owe {sum} by {date}|overdrawn {sum} since {date}|lent {sum} for {noun}s
card {code} ends {date}|card {n}{n}{n}{n} stopped|vault {n} holds {adj} {noun}s
payee {name}, {sum}|sent {sum} to {initial}|{name} of {town} got {sum}
guarantor {name}, {trade}|security: {noun} at {street}|pledged {n} {adj} {noun}s
ask {initial}, {phone}|write to {mail}|branch {town}, {adj} {noun}

Personnel: {name}, {trade}|{name}, staff {code}|Employee {code}, {name}, {town}|Review of {name}, {date}
hired {date} as {trade}|{trade} since {date}, once {trade}|was {trade} in {town}
salary {sum}|earns {sum}, wants {sum}|bonus {sum} for {subject}
warned {date}: {did} {noun}s|reprimand {code}: {adj} {noun}|late {n} times, {adj} twice
lives at {street}|{phone}, {mail}|spouse {name}, {trade}
{illness}, {n} days|{illness} {date}|badge {code}, locker {n}

Lease {code}, {street}|{name} rents {street}|Tenant {name}, {town}|Flat {n}, {street}: {name}
rent {sum}, paid by {initial}|{sum} from {date}|arrears {sum}, {date}
deposit {sum}, receipt {code}|deposit: {adj} {noun}|key {code} under {noun}
damage: {adj} {noun}, {adj} {noun}|{noun} {adj}, {noun} {adj}|meter {code} reads {n}{n}{n}
no {noun}s, no {noun}s|may keep {adj} {noun}s|shares {noun} with {name}
landlord {name}, {phone}|owner {initial}, {street}|janitor {initial}, {trade}

Pupil {name}, {subject}|{subject} with {name}, {hour}|Lesson {n}, {date}: {name}|{name} ({town}), {subject}
confuses {subject}, {subject}|good at {subject}, {adj} at {subject}|hates {subject}, likes {noun}s
{n} in {subject}, {n} in {subject}|mark {n}, {date}|failed {subject} {date}
father {trade} at {street}|guardian {name}, {trade}|home {phone}
fee {sum}, {date}|owes {sum}, {n} lessons|paid with {adj} {noun}s
homework: {adj} {noun}|next {hour}, page {n}|{n} lines on {adj} {noun}s

# {host} settings|[{word}] owner={initial}|host={host}|export {word}_town={town}
token={secret}|api_key: {secret}|KEY={secret}
password={adj}-{noun}-{n}|login {word}/{adj}{noun}{n}|pin {n}{n}{n}
port={n}{n}|retries {n}, {word} {n}|bucket {word}-{noun}
backup {host} {hour}|mirror={host}|notify {mail}
# {initial} {did} {noun}s, {date}|# ask {name}|licence {code}

Booking {code}, {name}|{name} to {town}|Passenger {name}, {date}|Voyage {code}: {town}, {town}
seat {n}, cabin {code}|room {n}, {adj} bed|wagon {n} by the {noun}
{town} {hour}, {date}|back {date}, {town}|via {town}, {town}, {hour}
luggage: {adj} {noun}, {noun}, {n} kg|brings {adj} {noun}s|declared {n} {noun}s, {sum}
passport {code}|visa {code} until {date}|paid {sum}, card {code}
meets {name}, {trade}|travels with {name}|call {phone}

Claim {code}, {name}|{name}, policy {code}|Accident {date}: {name}|Loss in {town}, {hour}: {name}
{adj} {noun} hit {noun}s|{noun} sank in {town}|{noun} burned with {n} {noun}s
valued {sum}, paid {sum}|asks {sum} for {noun}s|excess {sum}
witness {name}, {trade}|{initial} saw {adj} {noun}s|officer {initial}, badge {code}
{illness}, {illness} followed|found {illness} {date}|broke {noun}, {noun}, {noun}
{street}, {town}|reach {phone}|bank {code}, {mail}
"""


class Kind(NamedTuple):
    """A kind of record: wordings of its opening and of each fact, and whether it is a file of settings."""

    openings: list[str]
    facts: list[list[str]]
    settings: bool

    @classmethod
    def parse(cls, block: str) -> Kind:
        """Parse a block of ``FORMS``."""
        openings, *facts = (line.split("|") for line in block.splitlines())
        return cls(openings, facts, settings=openings[0].startswith("#"))


KINDS = [Kind.parse(block) for block in FORMS.strip().split("\n\n")]


class Slots(dict[str, str]):
    """Fills each slot of a template with a new random value."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng

    def __missing__(self, slot: str) -> str:
        return SLOTS[slot](self.rng)


def fill(template: str, rng: Random) -> str:
    """Fill the slots of a template, and write ``an`` before a vowel."""
    return re.sub(r"\ba (?=[aeiou])", "an ", template.format_map(Slots(rng)))


def draw_record(rng: Random) -> str:
    """One record: an opening, then facts and remarks in random order with random punctuation."""
    kind = rng.choice(KINDS)
    facts = [rng.choice(wordings) for wordings in rng.sample(kind.facts, rng.randint(3, 5))]
    remarks = [rng.choice(COMMENTS) * kind.settings + remark for remark in rng.sample(REMARKS, rng.randint(3, 5))]
    record = fill(rng.choice(kind.openings), rng)
    for template in rng.sample(facts + remarks, len(facts + remarks)):
        joint = "\n" if kind.settings else rng.choice(JOINTS)
        sentence = fill(template, rng)
        record += joint + (sentence[0].upper() + sentence[1:] if joint in CAPITALIZING else sentence)
    return record


def draw_records(seed: int) -> Iterator[str]:
    """An endless stream of records."""
    rng = Random(seed)
    while True:
        yield draw_record(rng)
