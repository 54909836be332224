"""Programs as users of SGLang write them: they run with only the import changed."""

from __future__ import annotations

from typing import Any

import nbsgl as sgl

DIMENSIONS = ["clarity", "originality", "evidence", "style"]
RECORD = r'\{"station": "[\w\d\s]{1,16}", "access": "(Open|Closed)"\}'


@sgl.function
def select(s: Any, shots: str, question: str) -> None:
    s += shots
    s += "Question: " + question + "\nAnswer:"
    s += sgl.select("answer", choices=[" yes", " no", " maybe", " unknown"])


@sgl.function
def judge(s: Any, essay: str) -> None:
    s += "Here is an essay.\n\n" + essay + "\n\n"
    forks = s.fork(4)
    for f, dim in zip(forks, DIMENSIONS, strict=True):
        f += f"A verdict on its {dim}: "
        f += sgl.gen("verdict", max_tokens=48, ignore_eos=True, temperature=0)
    forks.join()
    s += "The four verdicts: " + "".join(f["verdict"][:200] for f in forks) + "\nAll in all: "
    s += sgl.gen("overall", max_tokens=48, ignore_eos=True, temperature=0)


@sgl.function
def chain(s: Any, question: str) -> None:
    s += "You are an agent that answers by steps.\n" + question + "\n"
    for i in range(8):
        s += f"Thought {i + 1}:" + sgl.gen(f"t{i}", max_tokens=16, ignore_eos=True, temperature=0)
        s += f"\nAction {i + 1}: search["
        s += sgl.gen(f"a{i}", max_tokens=8, ignore_eos=True, temperature=0)
        s += f"]\nObservation {i + 1}: the result is listed below.\n"


@sgl.function
def record(s: Any, name: str) -> None:
    s += "Write the register's entry for the measuring station called " + name + ".\n"
    s += sgl.gen("entry", max_tokens=256, regex=RECORD, temperature=0)


@sgl.function
def simple_gen(s: Any, prompt: str) -> None:
    s += prompt
    s += sgl.gen("response", max_tokens=100)


@sgl.function
def chat_dialogue(s: Any, user_input: str) -> None:
    s += sgl.system("You are a helpful assistant.")
    s += sgl.user(user_input)
    s += sgl.assistant(sgl.gen(max_tokens=128))


@sgl.function
def conditional_gen(s: Any) -> None:
    s += "Do you like tea? "
    first_word = sgl.gen(max_tokens=1, choices=["Yes", "No"])
    if first_word == "Yes":
        s += sgl.gen("more")


@sgl.function
def conditional_gen_right(s: Any) -> None:
    s += "Do you like tea? "
    s += sgl.gen("first_word", max_tokens=1, choices=["Yes", "No"])
    if s["first_word"] == "Yes":
        s += " " + sgl.gen("more", max_tokens=4)


@sgl.function
def interleaved(s: Any) -> None:
    s += '{ "name": "' + sgl.gen("name", stop='"') + '", "age": ' + sgl.gen("age", max_tokens=2) + " }"


@sgl.function
def turns(s: Any, first: str, second: str) -> None:
    s += sgl.system("Be brief.")
    for i, question in enumerate([first, second]):
        s += sgl.user_begin() + question + sgl.user_end()
        s += sgl.assistant_begin()
        s += sgl.gen(f"answer_{i}", max_tokens=16)
        s += sgl.assistant_end()
