"""Vocabulary of the demo: five subjects, each with its nouns, requests and clauses.

In a clause ``{noun}`` is the topic's noun, ``{traits}`` are two or three of the subject's, ``{object}`` is an object.
No clause has a comma of its own: commas come with openers and lists, where the style allows them.
"""

from dataclasses import dataclass

OBJECTS = ("lantern", "ribbon", "kettle", "mirror", "basket", "candle")
ENDINGS = ("That is all.", "See you soon.", "Thank you for reading.", "Ask me again tomorrow.")
POSTSCRIPTS = ("Bring an umbrella.", "Tell your friends.", "It is worth the time.")

# By name of a placeholder: the sentence around it, and the values that can replace it.
FILLS = {
    "date": ("Write to us before {}.", ("Monday", "Friday", "April")),
    "name": ("Ask for {} at the door.", ("Maria", "Peter", "Nina")),
    "phone": ("Call {} to learn more.", ("the office", "my brother")),
    "price": ("All of this costs {}.", ("ten coins", "nothing", "a few coins")),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One subject to write about.

    ``forbiddable``: words that some of the clauses contain, and others do not. ``mentions``: clauses with an object.
    """

    nouns: tuple[str, ...]
    requests: tuple[str, ...]
    titles: tuple[str, ...]
    openers: tuple[str, ...]
    traits: tuple[str, ...]
    clauses: tuple[str, ...]
    mentions: tuple[str, ...]
    forbiddable: tuple[str, ...]


SIGHT = Subject(
    nouns=(
        "lighthouse", "harbour", "market", "museum", "library", "castle", "bakery", "orchard", "theatre",
        "bookshop", "waterfall", "stadium",
    ),
    requests=("Describe the {noun}.", "Write a note about a visit to the {noun}.", "What is the {noun} like?"),
    titles=("A Day Out", "Notes From a Visit"),
    openers=("In the morning", "In summer", "These days"),
    traits=("quiet", "bright", "busy", "charming", "lively", "clean"),
    clauses=(
        "the {noun} is {traits}",
        "people come here from every part of the country",
        "young people fill the place with laughter",
        "the view from the {noun} is worth the trip",
        "the guide tells old stories about the {noun}",
        "old friends meet there for tea",
        "visitors take photographs all day",
        "visitors thank the friendly staff",
    ),
    mentions=("there is a {object} near the gate", "someone left a {object} on a bench"),
    forbiddable=("visitors",),
)  # fmt: skip

PASTIME = Subject(
    nouns=(
        "pottery", "archery", "knitting", "chess", "rowing", "juggling", "gardening", "fencing", "skating",
        "sailing", "swimming", "climbing",
    ),
    requests=("Why do so many people enjoy {noun}?", "Write an advert for a {noun} course.", "Is {noun} any fun?"),
    titles=("First Steps", "The Joy of Learning"),
    openers=("At first", "As a rule", "After a while"),
    traits=("calming", "cheap", "healthy", "simple", "playful", "safe"),
    clauses=(
        "{noun} can be {traits}",
        "a good teacher makes {noun} easy",
        "the teacher has endless patience",
        "a beginner learns the basics in a week",
        "it is fine for a beginner to make mistakes",
        "a little practice goes a long way",
        "daily practice keeps the mind awake",
        "you make new friends with {noun}",
    ),
    mentions=("you should bring a {object} to the lesson", "the winner gets a {object} as a prize"),
    forbiddable=("beginner",),
)  # fmt: skip

DISH = Subject(
    nouns=(
        "soup", "pancake", "omelette", "curry", "salad", "pizza", "pudding", "sandwich", "dumpling",
        "waffle", "muffin", "stew",
    ),
    requests=("Review the {noun} that you ate.", "Was the {noun} any good?", "Praise the {noun} on our menu."),
    titles=("A Taste of Home", "Lunch on Trial"),
    openers=("To my surprise", "Last night", "This time"),
    traits=("warm", "rich", "fresh", "spicy", "creamy", "light"),
    clauses=(
        "the {noun} was {traits}",
        "the cook took great care",
        "the cook made the {noun} with love",
        "the sauce had a smoky flavour",
        "a spoon of sauce turned it into a feast",
        "our table ordered the {noun} twice",
        "the waiter came to our table with a smile",
        "every bite was a pleasure",
    ),
    mentions=("it came with a {object} on the side", "a {object} stood beside the door"),
    forbiddable=("sauce",),
)  # fmt: skip

ANIMAL = Subject(
    nouns=(
        "otter", "fox", "rabbit", "hedgehog", "owl", "badger", "donkey", "penguin", "squirrel",
        "dolphin", "turtle", "lizard",
    ),
    requests=("Tell a short story about the {noun}.", "What happened to the {noun}?", "Write a tale about the {noun}."),
    titles=("A Long Way Home", "The Star"),
    openers=("One day", "That night", "In the end"),
    traits=("brave", "hungry", "gentle", "sleepy", "curious", "clever"),
    clauses=(
        "the {noun} was {traits}",
        "the {noun} walked down to the river",
        "nobody crossed the river before dawn",
        "the {noun} dreamed about the moon",
        "the moon showed everyone the way",
        "the forest was dark and cold",
        "the whole forest sang a song",
        "a small bird learned to fly",
    ),
    mentions=("the {noun} found a {object} in the grass", "a kind farmer brought a {object}"),
    forbiddable=("moon",),
)  # fmt: skip

TRADE = Subject(
    nouns=(
        "baker", "sailor", "farmer", "painter", "doctor", "gardener", "carpenter", "pilot", "barber",
        "tailor", "plumber", "janitor",
    ),
    requests=("What does a {noun} do all day?", "Tell a child about the work of a {noun}.", "Thank the {noun} for me."),
    titles=("A Working Day", "Hands at Work"),
    openers=("Every morning", "On most days", "Without a doubt"),
    traits=("patient", "careful", "strong", "honest", "cheerful", "quick"),
    clauses=(
        "a good {noun} is {traits}",
        "the {noun} starts before sunrise",
        "the work is hard but never dull",
        "good work takes time",
        "the neighbours trust the {noun}",
        "neighbours drop by for advice",
        "the best tools are clean tools",
        "a set of tools lasts for years",
    ),
    mentions=("the {noun} always carries a {object}", "a {object} hangs on the wall of the shop"),
    forbiddable=("tools",),
)  # fmt: skip

SUBJECTS = (SIGHT, PASTIME, DISH, ANIMAL, TRADE)
