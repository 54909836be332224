"""Small views and snapshots for the widgets' tests, and random ones from a seed."""

from __future__ import annotations

import random

from nbsgl.protocol import BranchView, EngineSnapshot, Finish, ModelInfo, RunView, SegmentView, Status, TreeNode

STATUSES: tuple[Status, ...] = ("queued", "running", "done", "failed", "aborted")

# Texts that would do something if a page, a terminal or a reader obeyed them.
PAYLOADS = [
    "<script>hacked=1</script>",
    "<img src=x onerror=hacked=1>",
    '"><svg onload=hacked=1>',
    "'><b onmouseover='hacked=1'>",
    "</pre></details></div><style>*{display:none}</style>",
    "</title><iframe srcdoc='<script>hacked=1</script>'>",
    "javascript:hacked=1",
    "<a href=javascript:hacked=1>x</a>",
    "&lt;script&gt;",
    "<!-- --><![CDATA[ ]]>",
    "{{constructor.constructor('hacked=1')()}}",
    "\x1b[2J\x1b]0;title\x07",
    "\u202egnp.exe\u2066",
    "\x00\x08\x7f\x9b31m",
    "\ud800",
    'style="background:url(//evil)"',
]


def forced(text: str, role: str | None = None, markup: bool = False) -> SegmentView:
    return SegmentView(kind="forced", text=text, role=role, is_markup=markup)


def gen(text: str, name: str | None = "x", status: Status = "done", **more: object) -> SegmentView:
    return SegmentView(kind="gen", text=text, name=name, status=status, **more)  # type: ignore[arg-type]


def chat() -> RunView:
    """Two turns with a cut answer, a select, a fork that failed and one that runs."""
    city = SegmentView(
        kind="select", text="Lyon", name="city", choices=("Paris", "Lyon"), scores=(-1.25, -0.5), chosen=1, num_tokens=2
    )
    root = [
        forced("<|user|>\n", "user", markup=True),
        forced("Capital of France?", "user"),
        forced("<|end|>\n<|assistant|>\n", "assistant", markup=True),
        gen("Par", "answer", num_tokens=1, role="assistant", finish=Finish(type="length", length=1)),
        forced("\nCity: "),
        city,
    ]
    more = [forced("Tell me. "), gen("It is", "more", "running", num_tokens=2)]
    return RunView(
        title="7",
        status="done",
        elapsed_s=1.84,
        generated=412,
        prefill_cached=120,
        prefill_computed=30,
        variables={"answer": "Par", "city": "Lyon", "mood": "calm"},
        branches=[
            BranchView(id=0, status="done", segments=root),
            BranchView(id=1, parent=0, fork_at=4, status="running", segments=more),
            BranchView(
                id=2, parent=0, fork_at=4, status="failed", segments=[gen("", "z", "failed", error="BadRegex: (")]
            ),
        ],
    )


def haunted(payload: str) -> RunView:
    """The payload in every place that text can take."""
    segments = [
        SegmentView(kind="forced", text=payload, role=payload, name=payload),
        SegmentView(kind="gen", text=payload, name=payload, error=payload, status="failed"),
        SegmentView(kind="select", name=payload, choices=(payload, "b"), scores=(0.0, -1.0), chosen=0, text=payload),
    ]
    branches = [BranchView(id=0, status="done", segments=segments)]
    return RunView(title=payload, status="done", branches=branches, variables={payload: payload}, error=payload)


def snapshot(nodes: list[TreeNode] | None, time: float = 100.0) -> EngineSnapshot:
    return EngineSnapshot(
        time=time,
        uptime_s=9,
        info=ModelInfo(model="tiny", context_length=64, vocab_size=8, roles={}),
        epoch=1,
        health=True,
        policy="lpm",
        slots_total=1000,
        slots_free=500,
        slots_in_tree=400,
        slots_owned=100,
        slots_evictable=300,
        running=0,
        waiting=0,
        parked=0,
        steps=1,
        prefill_tokens_computed=1,
        prefill_tokens_cached=3,
        decode_tokens=1,
        hit_rate=0.75,
        tree=nodes,
    )


def node(id: int, parent: int, num_tokens: int, text: str = "", depth: int = 1, **more: object) -> TreeNode:
    facts = {"locks": 0, "hits": 1, "age_s": 2.0} | more
    return TreeNode(id=id, parent=parent, num_tokens=num_tokens, text=text, depth=depth, **facts)  # type: ignore[arg-type]


def small_tree() -> list[TreeNode]:
    """root > system(20) > (user a(5), user b(10) locked), other(5)."""
    return [
        node(0, -1, 0, depth=0),
        node(1, 0, 20, "You are kind."),
        node(2, 1, 5, "a", depth=2),
        node(3, 1, 10, "b", depth=2, locks=2, parked=True),
        node(4, 0, 5, "other"),
    ]


def random_tree(rng: random.Random, count: int) -> list[TreeNode]:
    nodes = [node(0, -1, 0, depth=0)]
    for i in range(1, count):
        up = rng.choice(nodes[-50:])
        tokens = int(rng.paretovariate(0.8)) % 2000 + 1
        age = rng.expovariate(1 / 30)
        nodes.append(node(i, up.id, tokens, f"node {i}", up.depth + 1, hits=i % 7, age_s=age, parked=i % 9 == 0))
    return nodes


def random_text(rng: random.Random) -> str:
    return "".join(rng.choice("ab é😀\n\u202e<\x1b") for _ in range(rng.randrange(8)))


def random_run(rng: random.Random, old: RunView | None = None) -> RunView:
    """A view that could follow `old`, cuts, losses and changes of kind included."""
    branches = [] if old is None else list(old.branches)
    branches = branches[: rng.randrange(len(branches) + 1)] if rng.random() < 0.1 else branches
    for _ in range(rng.randrange(3)):
        branches.append(BranchView(id=len(branches), parent=rng.choice([None, 0]), fork_at=rng.randrange(3)))
    branches = [_grown(rng, branch) if rng.random() < 0.7 else branch for branch in branches]
    variables = {rng.choice(["a", "b", "__proto__", "é"]): random_text(rng) for _ in range(rng.randrange(4))}
    return RunView(
        title=random_text(rng),
        status=rng.choice(STATUSES),
        elapsed_s=rng.randrange(100) / 8,
        branches=branches,
        variables=variables,
        generated=rng.randrange(100),
        error=rng.choice([None, "bad"]),
    )


def _grown(rng: random.Random, branch: BranchView) -> BranchView:
    segments = list(branch.segments)
    if rng.random() < 0.1:
        segments = segments[: rng.randrange(len(segments) + 1)]
    if segments and rng.random() < 0.8:
        last = segments[-1]
        keep = len(last.text) if rng.random() < 0.8 else rng.randrange(len(last.text) + 1)
        text = last.text[:keep] + random_text(rng)
        finish = rng.choice([None, Finish(type="length", length=3), Finish(type="stop", matched="é")])
        segments[-1] = gen(text, status=rng.choice(STATUSES), num_tokens=rng.randrange(9), finish=finish)
    if rng.random() < 0.5:
        segments.append(rng.choice([forced(random_text(rng), "user"), gen(random_text(rng)), _select(rng)]))
    return BranchView(
        id=branch.id, parent=branch.parent, fork_at=branch.fork_at, status=rng.choice(STATUSES), segments=segments
    )


def _select(rng: random.Random) -> SegmentView:
    return SegmentView(kind="select", choices=("p", "q"), scores=(-1.0, -0.5), chosen=rng.randrange(2), text="q")
