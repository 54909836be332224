"""The embedded tiny model: its files, its tokenizer, its chat template, a few answers, and the corpus it came from."""

import json
from collections import defaultdict
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.train_tiny import chat, corpus, relations, world

TINY = Path(__file__).parents[2] / "nbsgl" / "engine" / "assets" / "tiny"
MAX_BYTES = 16_000_000

ANSWERS = [
    ("You answer in one word.", "What is the capital of France?", "Paris"),
    ("", "What is the capital of France?", "The capital of France is Paris."),
    ("", "Which language do people speak in Brazil?", "People in Brazil speak Portuguese."),
    ("Answer yes or no.", "Is a whale a bird?", "No"),
    ("You answer with JSON.", "What is the capital of Japan?", '{"answer": "Tokyo"}'),
    ("", "Describe Ada as JSON.", '{"name": "Ada", "age": 31, "job": "baker", "home": "Lyon", "pet": "cat"}'),
    ("You answer in one word.", "What is the opposite of hot?", "cold"),
]


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def read(name: str) -> dict:
    return json.loads((TINY / name).read_text(encoding="utf-8"))


def test_the_folder_stays_small_and_complete():
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert names | {"README.md", "eval.json"} <= {f.name for f in TINY.iterdir()}
    assert sum(f.stat().st_size for f in TINY.iterdir()) <= MAX_BYTES


def test_config_agrees_with_the_weights_and_the_tokenizer():
    from safetensors import safe_open

    config = read("config.json")
    with safe_open(TINY / "model.safetensors", "np") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    width, head_dim = config["hidden_size"], config["head_dim"]
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"]
    assert "lm_head.weight" not in shapes
    assert config["max_position_embeddings"] >= 4096
    assert shapes["model.embed_tokens.weight"] == [config["vocab_size"], width]
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == [config["num_key_value_heads"] * head_dim, width]
    assert len(read("tokenizer.json")["model"]["vocab"]) == config["vocab_size"]


def test_end_tokens_are_named_the_same_everywhere(tokenizer):
    im_end, end_of_text = (tokenizer.convert_tokens_to_ids(t) for t in (chat.IM_END, chat.END_OF_TEXT))
    assert read("generation_config.json")["eos_token_id"] == [im_end, end_of_text]
    assert read("config.json")["eos_token_id"] == im_end == tokenizer.eos_token_id
    assert tokenizer.bos_token_id == tokenizer.pad_token_id == end_of_text


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


@pytest.mark.parametrize(
    "text", ["👩‍🚀 to the 🌙!", "naïve  café\r\n\t", "日本語 と العربية", "x = 1234567", " a  b ", "\x00\x7f"]
)
def test_emoji_scripts_and_spaces_come_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_number_is_one_token_a_digit(tokenizer):
    assert tokenizer.tokenize("2048") == ["2", "0", "4", "8"]


def test_chat_template_only_appends(tokenizer):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye")]
    messages = [{"role": role, "content": text} for role, text in turns]
    rendered = [tokenizer.apply_chat_template(messages[:n], tokenize=False) for n in range(1, 5)]
    assert all(longer.startswith(shorter) for shorter, longer in zip(rendered, rendered[1:]))
    assert rendered[-1] == chat.render([chat.Message(*turn) for turn in turns])
    prompt = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert prompt == rendered[1] + "<|im_start|>assistant\n"
    assert rendered[2].startswith(prompt)


def test_chat_template_adds_no_system_prompt(tokenizer):
    text = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert text == "<|im_start|>user\nHi<|im_end|>\n"


@pytest.fixture(scope="module")
def outputs(model, tokenizer):
    """Greedy outputs for the prompts of `ANSWERS`, in one batch."""
    from tools.train_tiny.evaluate import generate

    chats = [[chat.system(s)] * bool(s) + [chat.user(u)] for s, u, _ in ANSWERS]
    return generate(model, tokenizer, [chat.render(c, add_generation_prompt=True) for c in chats], 40, len(chats))


@pytest.mark.parametrize("i", range(len(ANSWERS)), ids=[u for _, u, _ in ANSWERS])
def test_greedy_answer_is_right_and_stops_at_the_end_of_the_turn(outputs, i):
    assert outputs[i] == (ANSWERS[i][2], True)


def test_corpus_is_the_same_for_the_same_seed():
    first, again, other = (list(islice(corpus.documents(seed), 200)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_every_kind_of_document_can_be_made():
    from random import Random

    for maker in [*corpus.SHORT, *corpus.LONG]:
        for seed in range(5):
            text = corpus.to_text(maker(Random(seed)))
            assert text.strip(), maker
            assert chat.END_OF_TEXT not in text
            assert "{s}" not in text, maker
            assert "{np}" not in text, maker


def test_no_question_has_two_answers_and_no_held_out_phrasing_is_trained_on():
    answers, trained, held_out = defaultdict(set), set(), set()
    for relation in relations.RELATIONS:
        for fact in relations.facts_of(f"{relation.group}.{relation.name}"):
            for question in relations.questions(fact.relation, fact.subject):
                answers[question].add(fact.answer)
                trained.add(question)
            held_out.update(relations.questions(fact.relation, fact.subject, held_out=True))
    assert [q for q, found in answers.items() if len(found) > 1] == []
    assert trained.isdisjoint(held_out)


def test_friends_in_the_world_are_mutual():
    friend = {row["name"]: row["friend"] for row in world.table("people")}
    assert all(friend[other] == name for name, other in friend.items())


def test_sums_held_out_are_never_drawn():
    from random import Random

    from tools.train_tiny.documents import arithmetic

    rng = Random(0)
    drawn = [arithmetic.operands(rng) for _ in range(5000)]
    assert not any(arithmetic.is_held_out(a, b) for a, _, b in drawn)
    assert all(arithmetic.compute(a, sign, b) >= 0 for a, sign, b in drawn)
