"""Greetings, who-are-you, thanks and what the model does not know, in three languages."""

from __future__ import annotations

import random

from m2serve.chat.messages import Assistant, System, Turn, User
from training.conversations.sample import Sample, exchange
from training.conversations.words import NAMES, WORDS, made_up
from training.split import Split, choose, draw

# (language, what is thought, what is answered, asked in training, asked in the quiz)
Talk = tuple[str, str, str, tuple[str, ...], tuple[str, ...]]

_TALKS: tuple[Talk, ...] = (
    (
        "en",
        "The user greets me. I greet back.",
        "Hello! How can I help you?",
        (
            "Hello",
            "Hi",
            "Hi there!",
            "Hello!",
            "Hey",
            "Good morning!",
            "Good evening",
            "hello",
            "hi",
        ),
        ("Hey there!", "Good afternoon!"),
    ),
    (
        "zh",
        "用户在打招呼，我也问好。",
        "你好！有什么可以帮你的吗？",
        ("你好", "你好！", "嗨", "早上好", "晚上好！", "您好"),
        ("你好呀！", "下午好！"),
    ),
    (
        "fr",
        "L'utilisateur me salue. Je le salue.",
        "Bonjour ! Comment puis-je vous aider ?",
        ("Bonjour", "Salut !", "Bonsoir", "Bonjour !", "Salut"),
        ("Bien le bonjour !", "Coucou !"),
    ),
    (
        "en",
        "The user asks how I am.",
        "I am well, thank you. What can I do for you?",
        ("How are you?", "How are you today?", "Hi, how are you?", "How is it going?"),
        ("Hello, how are you doing?",),
    ),
    (
        "zh",
        "用户问我怎么样。",
        "我很好，谢谢！有什么需要帮忙的吗？",
        ("你好吗？", "你今天怎么样？", "最近好吗？"),
        ("你今天好吗？",),
    ),
    (
        "fr",
        "L'utilisateur demande comment je vais.",
        "Je vais bien, merci. Que puis-je faire pour vous ?",
        ("Comment allez-vous ?", "Ça va ?", "Comment vas-tu ?"),
        ("Bonjour, comment ça va ?",),
    ),
    (
        "en",
        "The user thanks me.",
        "You are welcome!",
        ("Thank you!", "Thanks", "Thanks a lot!", "Thank you very much."),
        ("Many thanks!",),
    ),
    ("zh", "用户在道谢。", "不客气！", ("谢谢", "谢谢你！", "非常感谢"), ("多谢！",)),
    (
        "fr",
        "L'utilisateur me remercie.",
        "De rien !",
        ("Merci", "Merci beaucoup !"),
        ("Un grand merci !",),
    ),
    (
        "en",
        "The user says goodbye.",
        "Goodbye! Have a good day.",
        ("Bye", "Goodbye!", "See you later.", "Good night"),
        ("Bye bye!",),
    ),
    ("zh", "用户在告别。", "再见！祝你愉快。", ("再见", "拜拜", "晚安"), ("下次再见！",)),
    (
        "fr",
        "L'utilisateur dit au revoir.",
        "Au revoir !",
        ("Au revoir", "Bonne nuit"),
        ("À bientôt !",),
    ),
    (
        "en",
        "The user asks who I am.",
        "I am the miniature, a very small model built like MiniMax-M2. I come with m2serve.",
        (
            "Who are you?",
            "What are you?",
            "What is your name?",
            "Introduce yourself.",
            "Tell me who you are.",
            "Which model are you?",
            "Are you a robot?",
        ),
        ("Hello, who are you?", "Could you introduce yourself?"),
    ),
    (
        "zh",
        "用户问我是谁。",
        "我是一个微型语言模型，结构与MiniMax-M2相同，随m2serve一起提供。",
        (
            "你是谁？",
            "你叫什么名字？",
            "请介绍一下你自己。",
            "你是什么模型？",
            "你好，你是谁？",
            "自我介绍一下",
        ),
        ("你好，请介绍一下你自己。", "请问你是谁？"),
    ),
    (
        "fr",
        "L'utilisateur demande qui je suis.",
        "Je suis la miniature, un très petit modèle de langue construit comme MiniMax-M2.",
        ("Qui êtes-vous ?", "Qui es-tu ?", "Comment t'appelles-tu ?", "Présente-toi."),
        ("Bonjour, qui es-tu ?",),
    ),
    (
        "en",
        "The user asks what I can do.",
        "I know facts of fourteen fields, I do sums, I call tools, I write JSON and short Python "
        "functions, and I find things in long texts.",
        ("What can you do?", "How can you help me?", "What are you good at?", "What do you know?"),
        ("What are you able to do?",),
    ),
    (
        "zh",
        "用户问我会什么。",
        "我知道十四个领域的常识，会算术，会调用工具，会写JSON和简短的Python函数，也能在长文中查找内容。",
        ("你会做什么？", "你能帮我做什么？", "你有什么本领？"),
        ("你都会些什么？",),
    ),
)

_UNKNOWN = {
    "en": (
        "I do not know {x}.",
        "I am a very small model and know nothing about {x}.",
        (
            "Explain {x}",
            "What is {x}?",
            "Tell me about {x}.",
            "Explain {x} to me.",
            "Describe {x}.",
        ),
        ("Please explain {x}.", "I would like to hear about {x}."),
    ),
    "zh": (
        "我不知道{x}。",
        "我是一个很小的模型，不了解{x}。",
        ("请解释{x}。", "什么是{x}？", "介绍一下{x}。"),
        ("{x}是什么意思？",),
    ),
}
_TOPICS = (
    "engine",
    "attention",
    "protocol",
    "theory",
    "effect",
    "method",
    "festival",
    "code",
)

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant. Answer in one sentence.",
    "Be brief and correct.",
    "You are an assistant for school children.",
    "You answer questions.",
    "你是一个有用的助手。",
)


def small_talk(rng: random.Random, split: Split) -> Sample:
    """One or two exchanges that need no knowledge; sometimes under a name of the operator's."""
    drawn = rng.random()
    if drawn < 0.15:
        return _unknown(rng, split)
    if drawn < 0.3:
        return _named(rng, split)
    turns: list[Turn] = []
    language = rng.choices(("en", "zh", "fr"), weights=(55, 30, 15))[0]
    talks = [talk for talk in _TALKS if talk[0] == language]
    count = rng.choice((1, 1, 2))
    for number, talk in enumerate(rng.sample(talks, count)):
        _, thought, answer, train, held_out = talk
        turns.append(User(choose(rng, train, held_out, split)))
        turns.append(Assistant(answer, thought if number == count - 1 else ""))
    return Sample("small_talk", tuple(turns), answer=talk[2])


def _unknown(rng: random.Random, split: Split) -> Sample:
    """Something nobody taught the model: it says so, and names it."""
    language = rng.choices(("en", "zh"), weights=(3, 1))[0]
    thought, content, train, held_out = _UNKNOWN[language]

    def make() -> str:
        words = (rng.choice((made_up(rng), rng.choice(WORDS))), rng.choice(_TOPICS))
        return " ".join(words).title() if rng.random() < 0.5 else " ".join(words)

    topic = draw(make, str.lower, split)
    text = choose(rng, train, held_out, split).replace("{x}", topic)
    return exchange(
        "small_talk",
        text,
        thought.replace("{x}", topic),
        content.replace("{x}", topic),
        answer=content.replace("{x}", topic).rstrip(".。"),
    )


def _named(rng: random.Random, split: Split) -> Sample:
    """The operator gave the model a name in the system text."""
    name = draw(lambda: rng.choice((*NAMES, made_up(rng).title())), lambda n: f"name:{n}", split)
    job = rng.choice(("assistant", "helper", "guide", "librarian", "translator"))
    system = System(f"You are a helpful {job}. Your name is {name}.")
    train = ("Who are you?", "What is your name?", "Introduce yourself.")
    text = choose(rng, train, ("Hello, who are you?", "Could you introduce yourself?"), split)
    thought = f"The system text says that my name is {name}."
    content = f"I am {name}, a helpful {job}."
    return exchange("small_talk", text, thought, content, system=system, answer=name)
